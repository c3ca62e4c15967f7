package controller

import (
	"encoding/json"
	"strings"
	"sync"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/key"
	"bulkhead/machine"
)

// seen is what a worker last reported of a Machine. It is never changed: a newer
// report replaces it.
type seen struct {
	Machine      key.MachineID
	Node         key.Node
	Seq          int64
	Generation   int64
	Instance     key.InstanceID
	State        machine.State
	PrivateIP    string
	Events       []machine.Event // newest first
	UpdatedAt    time.Time
	Error        string
	StartNonce   int64
	RestartNonce int64
	// Local is what traffic made of the user's wish numbered Wish; see wants.
	Local machine.Desired
	Wish  int64
	// Secrets is the version of the app's secrets that it was started with.
	Secrets uint64
	// Lease is the revision of the lease that the worker knows.
	Lease int64
}

// Bounds of what is kept of an observation: a worker that is in other hands must not
// fill this process, nor grow a tombstone beyond what the store takes.
const (
	maxSeenEvents = 50
	maxSeenEvent  = 4 << 10 // bytes of one in JSON
	maxSeenError  = 2 << 10 // bytes
)

// seenOf reads an observation. Events that do not decode, or are too many or too
// large, are left out: they are for people, nothing decides by them.
func seenOf(node key.Node, o *internalpb.Observation) *seen {
	s := &seen{
		Machine: key.MachineID(o.MachineId), Node: node, Seq: o.Seq, Generation: o.Generation,
		Instance: key.InstanceID(o.InstanceId), State: machine.State(o.State), PrivateIP: o.PrivateIp,
		UpdatedAt: time.UnixMilli(o.UpdatedAtMs).UTC(), Error: strings.ToValidUTF8(o.Error[:min(len(o.Error), maxSeenError)], "\uFFFD"),
		StartNonce: o.StartNonce, RestartNonce: o.RestartNonce, Secrets: o.SecretsVersion, Lease: o.LeaseRevision,
	}
	if l := machine.Desired(o.Local); l == machine.WantStarted || l == machine.WantStopped {
		s.Local, s.Wish = l, o.Wish
	}
	for _, b := range o.Events[:min(len(o.Events), maxSeenEvents)] {
		var e machine.Event
		if len(b) <= maxSeenEvent && json.Unmarshal(b, &e) == nil {
			s.Events = append(s.Events, e)
		}
	}
	return s
}

// observation is s as a worker that has lost its journal hears of it.
func (s *seen) observation() *internalpb.Observation {
	o := &internalpb.Observation{
		MachineId: string(s.Machine), Seq: s.Seq, Generation: s.Generation, InstanceId: string(s.Instance), State: string(s.State),
		PrivateIp: s.PrivateIP, UpdatedAtMs: s.UpdatedAt.UnixMilli(), Error: s.Error,
		StartNonce: s.StartNonce, RestartNonce: s.RestartNonce, Local: string(s.Local), Wish: s.Wish, SecretsVersion: s.Secrets,
	}
	for _, e := range s.Events {
		if b, err := json.Marshal(e); err == nil {
			o.Events = append(o.Events, b)
		}
	}
	return o
}

// view is what is known of all Machines from their workers, in memory: it is
// rebuilt from each worker's Hello. Waiters follow one Machine each; nothing here
// is ever scanned by app or by cluster.
type view struct {
	mu       sync.Mutex
	machines map[key.MachineID]*seen
	byNode   map[key.Node]map[key.MachineID]bool
	waiters  map[key.MachineID]map[*waiter]bool
	nodes    map[key.Node]nodeStatus
	// onNode is closed and replaced when a node reports for the first time.
	onNode chan struct{}
}

// nodeStatus is what is known of a node.
type nodeStatus struct {
	Connected bool
	CPUs      int
	MemoryMB  int64
}

// waiter is told of every report of one Machine, in order, and of changes of its
// record. A waiter that does not keep up loses the oldest reports.
type waiter struct {
	mu   sync.Mutex
	all  []*seen
	poke chan struct{} // buffered, 1
}

const maxWaiting = 256 // reports that a waiter may leave unread

func newView() *view {
	return &view{
		machines: map[key.MachineID]*seen{},
		byNode:   map[key.Node]map[key.MachineID]bool{},
		waiters:  map[key.MachineID]map[*waiter]bool{},
		nodes:    map[key.Node]nodeStatus{},
		onNode:   make(chan struct{}),
	}
}

// get returns the last report of a Machine, or nil.
func (v *view) get(id key.MachineID) *seen {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.machines[id]
}

// hello replaces everything known of a node.
func (v *view) hello(node key.Node, st nodeStatus, all []*seen) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fresh := map[key.MachineID]bool{}
	for _, s := range all {
		fresh[s.Machine] = true
		v.machines[s.Machine] = s
		v.wake(s.Machine, s)
	}
	for id := range v.byNode[node] {
		if !fresh[id] {
			delete(v.machines, id)
			v.wake(id, nil)
		}
	}
	v.byNode[node] = fresh
	st.Connected = true
	v.nodes[node] = st
	close(v.onNode)
	v.onNode = make(chan struct{})
}

// observe takes one report, unless a newer one is known: a stream that was replaced
// may have one left.
func (v *view) observe(s *seen) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.machines[s.Machine]; old != nil && old.Node == s.Node && old.Seq > s.Seq {
		return
	}
	v.machines[s.Machine] = s
	if v.byNode[s.Node] == nil {
		v.byNode[s.Node] = map[key.MachineID]bool{}
	}
	v.byNode[s.Node][s.Machine] = true
	v.wake(s.Machine, s)
}

// forget drops a Machine.
func (v *view) forget(id key.MachineID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.machines[id]; s != nil {
		delete(v.byNode[s.Node], id)
		delete(v.machines, id)
	}
	v.wake(id, nil)
}

// bye notes that a node's connection is gone. What it reported stays known: its
// Machines run on.
func (v *view) bye(node key.Node) {
	v.mu.Lock()
	defer v.mu.Unlock()
	st := v.nodes[node]
	st.Connected = false
	v.nodes[node] = st
	for id := range v.byNode[node] {
		v.wake(id, nil)
	}
}

// dropNode forgets a node and all that it reported.
func (v *view) dropNode(node key.Node) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.byNode[node] {
		delete(v.machines, id)
		v.wake(id, nil)
	}
	delete(v.byNode, node)
	delete(v.nodes, node)
}

// node returns what is known of a node; reported is whether it has said hello since
// this controller started.
func (v *view) node(n key.Node) (st nodeStatus, reported bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	st, reported = v.nodes[n]
	return st, reported
}

// allNodes returns a copy of what is known of every node.
func (v *view) allNodes() map[key.Node]nodeStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[key.Node]nodeStatus, len(v.nodes))
	for n, st := range v.nodes {
		out[n] = st
	}
	return out
}

// nodeReported is closed when the next node says hello.
func (v *view) nodeReported() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.onNode
}

// follow subscribes to a Machine until stop is called.
func (v *view) follow(id key.MachineID) (w *waiter, stop func()) {
	w = &waiter{poke: make(chan struct{}, 1)}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.waiters[id] == nil {
		v.waiters[id] = map[*waiter]bool{}
	}
	v.waiters[id][w] = true
	return w, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.waiters[id], w)
		if len(v.waiters[id]) == 0 {
			delete(v.waiters, id)
		}
	}
}

// touch wakes the followers of a Machine whose record changed.
func (v *view) touch(id key.MachineID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wake(id, nil)
}

// wake tells a Machine's followers; s may be nil. v.mu is held.
func (v *view) wake(id key.MachineID, s *seen) {
	for w := range v.waiters[id] {
		w.mu.Lock()
		if s != nil {
			if len(w.all) >= maxWaiting {
				w.all = w.all[1:]
			}
			w.all = append(w.all, s)
		}
		w.mu.Unlock()
		select {
		case w.poke <- struct{}{}:
		default:
		}
	}
}

// take returns the reports since the last take, oldest first.
func (w *waiter) take() []*seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.all
	w.all = nil
	return all
}
