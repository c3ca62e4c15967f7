package main

import (
	"math"
	"runtime/debug"
	"time"
)

const (
	// spare is how much memory this program takes before it looks for garbage while
	// it starts; commands end before they get there.
	spare = 24 << 20
	// startsUp is how long a sandbox counts as starting.
	startsUp = 3 * time.Second
)

// putOffCollection keeps the garbage collector away from a start, of which it is a
// tenth.
func putOffCollection() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(spare)
}

// collect brings the collector back and gives the host what the start has left.
func collect() {
	debug.SetMemoryLimit(math.MaxInt64)
	debug.SetGCPercent(100)
	debug.FreeOSMemory()
}
