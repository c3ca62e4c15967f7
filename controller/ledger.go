package controller

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"bulkhead/controller/record"
	"bulkhead/controller/schedule"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/store"
)

// ledger sums up what is assigned to each node, for placement. It follows the
// store, so that a placement costs what there are nodes, not Machines, and what workers
// report of Machines that traffic started or stopped.
type ledger struct {
	mu       sync.Mutex
	machines map[key.Node]map[key.MachineID]record.Assigned
	memory   map[key.Node]int64 // MiB of what is wanted started
	local    map[key.MachineID]localWish
}

// localWish is what traffic made of a user's wish.
type localWish struct {
	want machine.Desired
	wish int64
}

func newLedger() *ledger {
	return &ledger{
		machines: map[key.Node]map[key.MachineID]record.Assigned{}, memory: map[key.Node]int64{},
		local: map[key.MachineID]localWish{},
	}
}

// runs reports whether a Machine is wanted started. l.mu is held.
func (l *ledger) runs(id key.MachineID, a record.Assigned) bool {
	if w, ok := l.local[id]; ok && w.wish == a.Wish {
		return w.want == machine.WantStarted
	}
	return a.Runs
}

// heard takes what workers report.
func (l *ledger) heard(all ...*seen) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range all {
		a, ok := l.machines[s.Node][s.Machine]
		if ok && l.runs(s.Machine, a) {
			l.memory[s.Node] -= int64(a.MemoryMB)
		}
		delete(l.local, s.Machine)
		if s.Local != "" {
			l.local[s.Machine] = localWish{s.Local, s.Wish}
		}
		if ok && l.runs(s.Machine, a) {
			l.memory[s.Node] += int64(a.MemoryMB)
		}
	}
}

// run follows the store until ctx ends; loaded is closed when the first sum is done.
func (l *ledger) run(ctx context.Context, s store.Store, loaded chan struct{}) error {
	for {
		kvs, rev, err := s.List(ctx, record.PrefixNode)
		if err != nil {
			return err
		}
		l.mu.Lock()
		clear(l.machines)
		clear(l.memory)
		l.mu.Unlock()
		for _, kv := range kvs {
			l.take(store.Event{KV: kv})
		}
		if loaded != nil {
			close(loaded)
			loaded = nil
		}
		err = s.Watch(ctx, record.PrefixNode, rev, func(es []store.Event) error {
			for _, e := range es {
				l.take(e)
			}
			return nil
		})
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
}

func (l *ledger) take(e store.Event) {
	id := key.MachineID(record.LastPart(e.Key))
	node := key.Node(e.Key[len(record.PrefixNode) : len(e.Key)-len(id)-1])
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.machines[node] == nil {
		l.machines[node] = map[key.MachineID]record.Assigned{}
	}
	if old, ok := l.machines[node][id]; ok && l.runs(id, old) {
		l.memory[node] -= int64(old.MemoryMB)
	}
	delete(l.machines[node], id)
	if e.Deleted {
		delete(l.local, id)
		return
	}
	a, err := record.Decode[record.Assigned](e.KV)
	if err != nil {
		return
	}
	l.machines[node][id] = *a
	if l.runs(id, *a) {
		l.memory[node] += int64(a.MemoryMB)
	}
}

// used returns the MiB that a node's started Machines may use.
func (l *ledger) used(n key.Node) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.memory[n]
}

// count is how many Machines are assigned to a node.
func (l *ledger) count(n key.Node) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.machines[n])
}

// some returns at most max of a node's Machines, in order.
func (l *ledger) some(n key.Node, max int) []key.MachineID {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := slices.Sorted(maps.Keys(l.machines[n]))
	return ids[:min(max, len(ids))]
}

// nodes lists the nodes that have Machines.
func (l *ledger) nodes() []key.Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []key.Node
	for n, ms := range l.machines {
		if len(ms) > 0 {
			out = append(out, n)
		}
	}
	return out
}

// candidates is what placement chooses from.
func (c *Controller) candidates() []schedule.Node {
	var out []schedule.Node
	for n, st := range c.view.allNodes() {
		out = append(out, schedule.Node{
			Name: n, Region: c.cfg.Role.Region, Connected: st.Connected,
			MemoryMB: st.MemoryMB, UsedMemoryMB: c.ledger.used(n),
		})
	}
	return out
}
