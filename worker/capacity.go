package worker

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"

	"bulkhead/fault"
	"bulkhead/key"
)

// noMemory is Fly's sentence, which clients know.
const noMemory = "could not reserve resource for machine: insufficient memory available to fulfill request"

// capacity counts the memory of the Machines that have a sandbox, in MiB.
type capacity struct {
	limit int64

	mu    sync.Mutex
	taken map[key.MachineID]int64
	sum   int64
}

func newCapacity(limit int64) *capacity {
	return &capacity{limit: limit, taken: map[key.MachineID]int64{}}
}

// take counts a Machine in, once; Precondition when it does not fit.
func (c *capacity) take(id key.MachineID, mb int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sum-c.taken[id]+mb > c.limit {
		return fault.New(fault.Precondition, noMemory).WithStatus("insufficient_capacity")
	}
	c.set(id, mb)
	return nil
}

// hold counts in what runs already, whether it fits or not.
func (c *capacity) hold(id key.MachineID, mb int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set(id, mb)
}

func (c *capacity) set(id key.MachineID, mb int64) {
	c.sum += mb - c.taken[id]
	c.taken[id] = mb
}

// release counts a Machine out.
func (c *capacity) release(id key.MachineID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum -= c.taken[id]
	delete(c.taken, id)
}

// memoryLimit is how many MiB the Machines of this node may take together.
func memoryLimit(opt Options) int64 {
	mb := opt.MemoryMB
	if mb == 0 {
		total := nodeMemoryMB()
		reserve := opt.ReserveMB
		if reserve == 0 {
			reserve = min(1024, total/8)
		}
		mb = max(total-reserve, 0)
	}
	if opt.Overcommit > 0 {
		mb = int64(float64(mb) * opt.Overcommit)
	}
	return mb
}

// nodeMemoryMB is the node's memory.
func nodeMemoryMB() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb / 1024
		}
	}
	return 0
}

// gate lets a number of callers through at a time.
type gate chan struct{}

func newGate(n int) gate { return make(gate, n) }

// try takes a place if there is one, and returns what gives it back, or nil.
func (g gate) try() (release func()) {
	select {
	case g <- struct{}{}:
		return func() { <-g }
	default:
		return nil
	}
}

// enter waits for a place; release gives it back.
func (g gate) enter(ctx context.Context) (release func(), err error) {
	select {
	case g <- struct{}{}:
		return func() { <-g }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
