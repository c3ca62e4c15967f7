package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/pki"
	"bulkhead/role"
	"bulkhead/store"
)

const (
	// lastSeenEvery is how often the store hears that a node is still there.
	lastSeenEvery = 5 * time.Minute
	// hostNote bounds one such note at the end of a session.
	hostNote = 5 * time.Second
	// removeLimit bounds the removal of a node with all its Machines; what it does not
	// get done the collector does.
	removeLimit = 90 * time.Second
)

// Node is a node as the API answers it. These endpoints are Bulkhead's own:
//
//	GET    /v1/platform/nodes
//	DELETE /v1/platform/nodes/{node}?force=true
//	POST   /v1/platform/nodes/{node}/readmit
type Node struct {
	Name         key.Node `json:"name"`
	Region       string   `json:"region"`
	State        string   `json:"state"` // "connected", "unreachable", "unknown", "removed" or "readmitting"
	FirstSeen    string   `json:"first_seen,omitempty"`
	LastSeen     string   `json:"last_seen,omitempty"` // of a connected node: now
	Machines     int      `json:"machines"`
	CPUs         int      `json:"cpus,omitempty"`
	MemoryMB     int64    `json:"memory_mb,omitempty"`
	UsedMemoryMB int64    `json:"used_memory_mb"`
	RemovedAt    string   `json:"removed_at,omitempty"`
	RemovedBy    string   `json:"removed_by,omitempty"`
}

// States of a Node beside those of a Machine's host.
const (
	nodeConnected   = "connected"
	nodeJoined      = "joined" // has an identity, and its worker has never reported
	nodeRemoved     = "removed"
	nodeReadmitting = "readmitting" // removed, and let in when it comes back empty
)

// NodeRemoval is the answer to a removal.
type NodeRemoval struct {
	Name      key.Node        `json:"name"`
	Destroyed []key.MachineID `json:"destroyed"` // Machines that were the node's
}

// admit refuses every call of a node that was removed. On the controller's own node
// only the worker is: its edge serves the cluster whoever runs the Machines.
func (c *Controller) admit(ctx context.Context, id pki.ID) error {
	if id.Node == c.cfg.Role.Node && id.Role != role.Worker {
		return nil
	}
	gone, _, err := record.Get[record.Removal](ctx, c.store, record.RemovedKey(id.Node))
	if err != nil || gone == nil || gone.Readmit {
		return err // one that is to be readmitted is looked at by takeBack
	}
	return gone.Refusal()
}

// notRemoved is the refusal of a removed node, or nil.
func (c *Controller) notRemoved(ctx context.Context, n key.Node) error {
	gone, _, err := record.Get[record.Removal](ctx, c.store, record.RemovedKey(n))
	if err != nil || gone == nil {
		return err
	}
	return gone.Refusal()
}

// noteHost writes down that a node is there now, unless it was removed.
func (c *Controller) noteHost(ctx context.Context, n key.Node) error {
	return retry(ctx, func() error {
		h, rev, err := record.Get[record.Host](ctx, c.store, record.HostKey(n))
		if err != nil {
			return err
		}
		if err := c.notRemoved(ctx, n); err != nil {
			return err
		}
		t := now()
		if h == nil {
			h = &record.Host{Node: n, FirstSeen: t}
		}
		h.LastSeen = t
		_, err = c.store.Txn(ctx, []store.Cond{record.At(record.HostKey(n), rev), record.At(record.RemovedKey(n), 0)}, []store.Op{record.Put(record.HostKey(n), h)})
		return err
	})
}

// stillThere keeps the note of a connected node young, and writes it a last time when
// the connection ends.
func (s *session) stillThere(ctx context.Context) error {
	tick := time.NewTicker(lastSeenEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.note(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), hostNote)
			defer cancel()
			s.note(last)
			return ctx.Err()
		}
	}
}

// note is noteHost for a session, which only a removal ends: a store that takes no
// change now is no reason not to hear what the worker says.
func (s *session) note(ctx context.Context) error {
	err := s.c.noteHost(ctx, s.node)
	if err == nil || fault.Is(err, fault.Denied) {
		return err
	}
	s.c.log.Warn("when a node was last there is not noted", "worker", s.node, "err", err)
	return nil
}

// takeBack lets a removed node that is to be readmitted in again, as soon as it holds
// no Machine of before, and refuses every other removed node. The refusal makes its
// worker destroy what it has (worker.abandon), so that none runs twice.
func (c *Controller) takeBack(ctx context.Context, n key.Node, machines int) error {
	gone, rev, err := record.Get[record.Removal](ctx, c.store, record.RemovedKey(n))
	if err != nil || gone == nil {
		return err
	}
	if !gone.Readmit || machines > 0 {
		return gone.Refusal()
	}
	// A removal that was cut off is finished first: what it gave up must not run again.
	left, _, err := c.store.List(ctx, record.NodePrefix(n))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return gone.Refusal()
	}
	if _, err := c.store.Txn(ctx, []store.Cond{record.At(record.RemovedKey(n), rev)}, []store.Op{store.Delete(record.RemovedKey(n))}); err != nil {
		return err
	}
	c.log.Info("a removed node is back", "worker", n)
	return nil
}

// nodes merges what is known of nodes: from the store, and from their workers.
func (c *Controller) nodes(ctx context.Context) (map[key.Node]*Node, error) {
	hosts, _, err := record.List[record.Host](ctx, c.store, record.PrefixHost)
	if err != nil {
		return nil, err
	}
	removals, _, err := record.List[record.Removal](ctx, c.store, record.PrefixRemoved)
	if err != nil {
		return nil, err
	}
	members, _, err := record.List[joined](ctx, c.store, prefixJoined)
	if err != nil {
		return nil, err
	}
	out := map[key.Node]*Node{}
	of := func(n key.Node) *Node {
		if out[n] == nil {
			out[n] = &Node{Name: n, Region: c.cfg.Role.Region, State: hostUnknown, Machines: c.ledger.count(n), UsedMemoryMB: c.ledger.used(n)}
		}
		return out[n]
	}
	for _, m := range members { // also one that has an identity and was never heard of again
		of(m.Node).State = nodeJoined
	}
	for _, h := range hosts {
		n := of(h.Node)
		n.State = hostUnknown
		n.FirstSeen, n.LastSeen = stamp(h.FirstSeen), stamp(h.LastSeen)
	}
	for name, st := range c.view.allNodes() {
		n := of(name)
		n.State, n.CPUs, n.MemoryMB = hostUnreachable, st.CPUs, st.MemoryMB
		if st.Connected {
			n.State, n.LastSeen = nodeConnected, stamp(now())
		}
	}
	for _, name := range c.ledger.nodes() {
		of(name)
	}
	for _, r := range removals {
		n := of(r.Node)
		n.State, n.RemovedAt, n.RemovedBy = nodeRemoved, stamp(r.At), r.By
		if r.Readmit {
			n.State = nodeReadmitting
		}
		if !r.LastSeen.IsZero() {
			n.LastSeen = stamp(r.LastSeen)
		}
	}
	return out, nil
}

func (c *Controller) listNodes(r *call) (int, any, error) {
	all, err := c.nodes(r.Context())
	if err != nil {
		return 0, nil, err
	}
	out := struct {
		Nodes []*Node `json:"nodes"`
	}{Nodes: []*Node{}}
	for _, n := range all {
		out.Nodes = append(out.Nodes, n)
	}
	slices.SortFunc(out.Nodes, func(a, b *Node) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return http.StatusOK, out, nil
}

// knownNode is the node that a call names.
func (c *Controller) knownNode(r *call) (*Node, error) {
	name, err := key.ParseNode(r.PathValue("node"))
	if err != nil {
		return nil, err
	}
	all, err := c.nodes(r.Context())
	if err != nil {
		return nil, err
	}
	if all[name] == nil {
		return nil, fault.New(fault.NotFound, "node %q not found; GET /v1/platform/nodes lists them", name)
	}
	return all[name], nil
}

// removeNode takes a node that is gone for good out of the cluster. Its Machines are
// destroyed as far as the cluster goes, and the node is refused from then on.
func (c *Controller) removeNode(r *call) (int, any, error) {
	force, err := r.flag("force")
	if err != nil {
		return 0, nil, err
	}
	n, err := c.knownNode(r)
	if err != nil {
		return 0, nil, err
	}
	switch {
	case force || n.State == nodeRemoved || n.State == nodeReadmitting:
	case n.State == nodeConnected:
		return 0, nil, fault.New(fault.Precondition, "failed_precondition: node %s is connected; stop its worker first, or use force=true", n.Name)
	case n.Machines > 0:
		return 0, nil, fault.New(fault.Precondition, "failed_precondition: node %s has %d machines (%s), last seen %s; destroy them first, or use force=true, which gives them up",
			n.Name, n.Machines, c.someMachines(n.Name), orNever(n.LastSeen))
	}
	// From here on the removal goes on, whether or not the caller is there to hear of it:
	// also a change that is given up may be made.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), removeLimit)
	defer cancel()
	if err := c.refuseNode(ctx, n.Name, r.who.Name, force); err != nil {
		return 0, nil, err
	}
	if _, err := c.revoke(ctx); err != nil { // what is acknowledged is in force
		return 0, nil, err
	}
	out := NodeRemoval{Name: n.Name, Destroyed: []key.MachineID{}}
	if out.Destroyed, err = c.clearNode(ctx, n.Name); err != nil {
		return 0, nil, err
	}
	c.log.Info("node removed", "worker", n.Name, "machines", len(out.Destroyed), "by", r.who.Name)
	return http.StatusOK, out, nil
}

func orNever(s string) string {
	if s == "" {
		return "never"
	}
	return s
}

// someMachines names the first of a node's Machines.
func (c *Controller) someMachines(n key.Node) string {
	ids := c.ledger.some(n, 3)
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return strings.Join(out, ", ")
}

// refuseNode writes down that a node is removed: from then on it is refused, and no
// Machine can be placed on it. Without force a Machine that came meanwhile prevents it.
func (c *Controller) refuseNode(ctx context.Context, n key.Node, by string, force bool) error {
	return retry(ctx, func() error {
		gone, rev, err := record.Get[record.Removal](ctx, c.store, record.RemovedKey(n))
		if err != nil || gone != nil && !gone.Readmit {
			return err
		}
		h, hrev, err := record.Get[record.Host](ctx, c.store, record.HostKey(n))
		if err != nil {
			return err
		}
		if !force {
			kvs, _, err := c.store.List(ctx, record.NodePrefix(n))
			if err != nil {
				return err
			}
			if st, _ := c.view.node(n); len(kvs) > 0 || st.Connected {
				return fault.New(fault.Precondition, "failed_precondition: node %s is in use again; look at it once more, or use force=true", n)
			}
		}
		gone = &record.Removal{Node: n, At: now(), By: by}
		if h != nil {
			gone.LastSeen = h.LastSeen
		}
		_, err = c.store.Txn(ctx, []store.Cond{record.At(record.RemovedKey(n), rev), record.At(record.HostKey(n), hrev)}, []store.Op{
			record.Put(record.RemovedKey(n), gone), store.Delete(record.HostKey(n)),
		})
		return err
	})
}

// clearNode ends a removed node's session and gives up its Machines. It may be cut off
// anywhere and called again. A node that was taken back meanwhile is left alone.
func (c *Controller) clearNode(ctx context.Context, n key.Node) ([]key.MachineID, error) {
	destroyed := []key.MachineID{}
	// The cause is no refusal: whether the node is one still, it hears when it comes again.
	if err := c.sessions.drop(ctx, n, fault.New(fault.Unavailable, "node %s is being removed", n)); err != nil {
		return nil, err
	}
	kvs, _, err := c.store.List(ctx, record.NodePrefix(n))
	if err != nil {
		return nil, err
	}
	// In this order: while the node is removed, nothing can come to what was just read.
	if err := c.notRemoved(ctx, n); err == nil {
		return destroyed, nil
	} else if !fault.Is(err, fault.Denied) {
		return nil, err
	}
	c.peers.drop(n)
	for _, kv := range kvs {
		a, err := record.Decode[record.Assigned](kv)
		if err != nil {
			return nil, err
		}
		id := key.MachineID(record.LastPart(kv.Key))
		if err := c.giveUp(ctx, n, a.App, id); err != nil {
			return nil, err
		}
		destroyed = append(destroyed, id)
	}
	c.view.dropNode(n)
	c.routes.again()
	return destroyed, nil
}

// giveUp notes the end of a Machine whose node was removed.
func (c *Controller) giveUp(ctx context.Context, n key.Node, a key.AppName, id key.MachineID) error {
	// First the wish: a node that is taken back is told of it, and destroys the Machine.
	if err := c.destroy(ctx, a, id, true); err != nil {
		return err
	}
	o := &seen{Machine: id, Node: n}
	if last := c.view.get(id); last != nil {
		c := *last
		o = &c
	}
	t := now()
	why := fmt.Sprintf("node %s was removed from the cluster", n)
	o.State, o.UpdatedAt, o.Error = machine.Destroyed, t, why
	o.Events = append([]machine.Event{{
		ID: ulid.Make().String(), Type: "node_removed", Status: string(machine.Destroyed), Source: "user", Timestamp: t.UnixMilli(),
		Request: &machine.EventRequest{Error: why},
	}}, o.Events...)
	return c.bury(ctx, a, o)
}

// clearRemoved finishes removals that were cut off. One that does not come to its end
// keeps nothing else waiting.
func (c *Controller) clearRemoved(ctx context.Context) error {
	removals, _, err := record.List[record.Removal](ctx, c.store, record.PrefixRemoved)
	if err != nil {
		return err
	}
	var failed error
	for _, r := range removals {
		ctx, cancel := context.WithTimeout(ctx, removeLimit)
		_, err := c.clearNode(ctx, r.Node)
		cancel()
		failed = errors.Join(failed, err)
	}
	return failed
}

// readmitNode lets a removed node come back: when its worker connects and holds no
// Machine of before.
func (c *Controller) readmitNode(r *call) (int, any, error) {
	n, err := c.knownNode(r)
	if err != nil {
		return 0, nil, err
	}
	if n.State != nodeRemoved && n.State != nodeReadmitting {
		return 0, nil, fault.New(fault.Precondition, "failed_precondition: node %s was not removed, it is %s", n.Name, n.State)
	}
	if _, err := c.clearNode(r.Context(), n.Name); err != nil { // its removal may have been cut off
		return 0, nil, err
	}
	err = retry(r.Context(), func() error {
		gone, rev, err := record.Get[record.Removal](r.Context(), c.store, record.RemovedKey(n.Name))
		if err != nil || gone == nil || gone.Readmit {
			return err
		}
		gone.Readmit = true
		_, err = c.store.Txn(r.Context(), []store.Cond{record.At(record.RemovedKey(n.Name), rev)}, []store.Op{record.Put(record.RemovedKey(n.Name), gone)})
		return err
	})
	if err == nil {
		_, err = c.revoke(r.Context())
	}
	if err != nil {
		return 0, nil, err
	}
	c.log.Info("node to be readmitted", "worker", n.Name, "by", r.who.Name)
	return ok()
}
