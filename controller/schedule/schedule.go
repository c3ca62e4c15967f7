// Package schedule decides where a Machine goes. It is pure: what it is told is all
// it knows, and the same question gets the same answer.
package schedule

import (
	"slices"
	"strings"

	"bulkhead/fault"
	"bulkhead/key"
)

// Node is a server that may take Machines.
type Node struct {
	Name         key.Node
	Region       string
	Connected    bool  // its worker is there
	MemoryMB     int64 // MiB that Machines may have in all; 0 when unknown
	UsedMemoryMB int64 // MiB promised to Machines that are wanted started
}

// Request is a Machine that wants a place.
type Request struct {
	Region   string // empty or "any" for any
	MemoryMB int    // MiB
	Starts   bool   // it is to run at once, so that its memory counts
}

// Place picks the node with the most free memory among those that can take the
// Machine; of equals, the first by name.
//
// Its errors are Invalid for a region that no node is in, Unavailable when no
// worker is there, and Precondition with status insufficient_capacity when all are
// full.
func Place(r Request, nodes []Node) (key.Node, error) {
	var inRegion, connected []Node
	for _, n := range nodes {
		if r.Region == "" || r.Region == "any" || slices.Contains(strings.Split(r.Region, ","), n.Region) {
			inRegion = append(inRegion, n)
			if n.Connected {
				connected = append(connected, n)
			}
		}
	}
	switch {
	case len(nodes) == 0 || len(inRegion) > 0 && len(connected) == 0:
		return "", fault.New(fault.Unavailable, "no worker is connected that could take the machine; try again in a moment")
	case len(inRegion) == 0:
		return "", fault.New(fault.Invalid, "region %q is not one of this cluster's; GET /v1/platform/regions lists them", fault.Clip(r.Region))
	}
	best := -1
	for i, n := range connected {
		if !fits(r, n) {
			continue
		}
		if best < 0 || better(n, connected[best]) {
			best = i
		}
	}
	if best < 0 {
		return "", fault.New(fault.Precondition, "insufficient resources: no server has %d MB of memory free for the machine; stop machines or add a server", r.MemoryMB).WithStatus("insufficient_capacity")
	}
	return connected[best].Name, nil
}

// Fits reports whether a Machine of memoryMB may start on n beside what runs there.
func Fits(memoryMB int, n Node) bool { return fits(Request{MemoryMB: memoryMB, Starts: true}, n) }

func fits(r Request, n Node) bool {
	if n.MemoryMB == 0 {
		return true
	}
	if !r.Starts {
		return int64(r.MemoryMB) <= n.MemoryMB
	}
	return n.UsedMemoryMB+int64(r.MemoryMB) <= n.MemoryMB
}

func better(a, b Node) bool {
	fa, fb := a.MemoryMB-a.UsedMemoryMB, b.MemoryMB-b.UsedMemoryMB
	if fa != fb {
		return fa > fb
	}
	return a.Name < b.Name
}
