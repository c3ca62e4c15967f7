package controller

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/store"
)

// helloLimit is how long a worker may take to open its Sync.
const helloLimit = 10 * time.Second

// internalServer serves internalpb.Controller. Which roles may call a method is
// decided before it runs, by rpc.Policy; what of it they may see, here.
type internalServer struct {
	internalpb.UnimplementedControllerServer
	c *Controller
}

// Sync implements internalpb.ControllerServer.
func (s internalServer) Sync(stream grpc.BidiStreamingServer[internalpb.FromWorker, internalpb.ToWorker]) error {
	id, err := rpc.Peer(stream.Context())
	if err != nil {
		return err
	}
	hello, err := recvHello(stream)
	if err != nil {
		return err
	}
	if hello.Node != string(id.Node) {
		return fault.New(fault.Denied, "%s may not sync as node %q", id, hello.Node)
	}
	ctx, end, err := s.c.sessions.begin(stream.Context(), id.Node)
	if err != nil {
		return err
	}
	holds := len(hello.Observations)
	if hello.Rebuilding {
		holds++ // it cannot say what it holds
	}
	over := make(chan error, 1)
	s.c.receivers.Go(func() {
		defer end()
		// Once more: a removal that came since has not seen this session, or sees it now.
		if err := s.c.takeBack(ctx, id.Node, holds); err != nil {
			over <- err
			return
		}
		ses := &session{c: s.c, node: id.Node, stream: stream, wake: make(chan struct{}, 1), todo: map[key.MachineID]bool{}}
		over <- ses.run(ctx, hello)
	})
	select {
	case err := <-over:
		return err
	case <-ctx.Done(): // what is being sent to a worker that does not read ends with the stream
		return context.Cause(ctx)
	}
}

func recvHello(stream grpc.BidiStreamingServer[internalpb.FromWorker, internalpb.ToWorker]) (*internalpb.Hello, error) {
	type first struct {
		m   *internalpb.FromWorker
		err error
	}
	got := make(chan first, 1)
	go func() {
		m, err := stream.Recv() // ends with the stream at the latest
		got <- first{m, err}
	}()
	select {
	case f := <-got:
		if f.err != nil {
			return nil, f.err
		}
		if h := f.m.GetHello(); h != nil {
			return h, nil
		}
		return nil, fault.New(fault.Invalid, "a sync begins with a hello")
	case <-time.After(helloLimit):
		return nil, fault.New(fault.Timeout, "no hello within %v", helloLimit)
	}
}

// sessions holds the one Sync of each node: a newer one ends the older.
type sessions struct {
	mu  sync.Mutex
	cur map[key.Node]*sessionSlot
}

type sessionSlot struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// begin waits until the node's older session is over.
func (m *sessions) begin(parent context.Context, n key.Node) (ctx context.Context, end func(), err error) {
	ctx, cancel := context.WithCancelCause(parent)
	slot := &sessionSlot{cancel: cancel, done: make(chan struct{})}
	m.mu.Lock()
	old := m.cur[n]
	m.cur[n] = slot
	m.mu.Unlock()
	end = func() {
		m.mu.Lock()
		if m.cur[n] == slot {
			delete(m.cur, n)
		}
		m.mu.Unlock()
		cancel(nil)
		close(slot.done)
	}
	if old != nil {
		old.cancel(fault.New(fault.Conflict, "the node has a newer sync"))
		select {
		case <-old.done:
		case <-ctx.Done():
			end()
			return nil, nil, context.Cause(ctx)
		}
	}
	return ctx, end, nil
}

// drop ends a node's session and waits until it is over.
func (m *sessions) drop(ctx context.Context, n key.Node, cause error) error {
	m.mu.Lock()
	slot := m.cur[n]
	m.mu.Unlock()
	if slot == nil {
		return nil
	}
	slot.cancel(cause)
	select {
	case <-slot.done:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Timeout, ctx.Err(), "the connection of node %s does not end", n)
	}
}

// session is one worker's Sync. Five goroutines share it: one receives, one
// follows the store, one sends, one notes that the node is there, one has its grants made
// anew; todo is what the sender has yet to say.
type session struct {
	c      *Controller
	node   key.Node
	stream grpc.BidiStreamingServer[internalpb.FromWorker, internalpb.ToWorker]
	signed time.Time // the end of the grants that were sent last; see renewGrants

	mu   sync.Mutex
	todo map[key.MachineID]bool // true: forget it; false: send its assignment
	wake chan struct{}
}

// run takes the hello, answers with the snapshot, and serves until the stream ends.
func (s *session) run(ctx context.Context, hello *internalpb.Hello) error {
	s.signed = grant.End(s.node, now())
	mine, rev, err := s.assignments(ctx)
	if err != nil {
		return err
	}
	var remembered map[key.MachineID]*seen
	if hello.Rebuilding {
		remembered = s.remember(hello, mine)
	}
	if err := s.takeHello(ctx, hello, mine); err != nil {
		return err
	}
	defer s.c.view.bye(s.node)
	if err := s.note(ctx); err != nil {
		return err
	}
	s.c.log.Info("worker connected", "worker", s.node, "machines", len(mine), "observations", len(hello.Observations))
	defer func() { s.c.log.Info("worker disconnected", "worker", s.node) }()

	if err := s.sendSnapshot(ctx, mine, remembered); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { cancel(s.follow(ctx, rev)) })
	wg.Go(func() { cancel(s.send(ctx)) })
	wg.Go(func() { cancel(s.stillThere(ctx)) })
	wg.Go(func() { cancel(s.renewGrants(ctx)) })
	s.c.receivers.Go(func() { cancel(s.receive(ctx)) }) // ends with the stream, which ends when run returns
	<-ctx.Done()
	return context.Cause(ctx)
}

// assignments reads everything assigned to the node, and the revision to follow from.
func (s *session) assignments(ctx context.Context) (map[key.MachineID]*record.Machine, int64, error) {
	kvs, rev, err := s.c.store.List(ctx, record.NodePrefix(s.node))
	if err != nil {
		return nil, 0, err
	}
	out := make(map[key.MachineID]*record.Machine, len(kvs))
	for _, kv := range kvs {
		a, err := record.Decode[record.Assigned](kv)
		if err != nil {
			return nil, 0, err
		}
		id := key.MachineID(record.LastPart(kv.Key))
		r, _, err := record.Get[record.Machine](ctx, s.c.store, record.MachineKey(a.App, id))
		if err != nil {
			return nil, 0, err
		}
		if r != nil && r.Gone == nil { // else: removed since; follow reports it
			out[id] = r
		}
	}
	return out, rev, nil
}

// takeHello replaces what is known of the node. What the worker holds and the
// controller does not know stays where it is, unless it is destroyed: then the
// worker may forget it.
func (s *session) takeHello(ctx context.Context, h *internalpb.Hello, mine map[key.MachineID]*record.Machine) error {
	var known []*seen
	for _, o := range h.Observations {
		o := seenOf(s.node, o)
		if mine[o.Machine] != nil {
			known = append(known, o)
			continue
		}
		if o.State == machine.Destroyed {
			s.later(o.Machine, true)
			continue
		}
		s.c.log.Warn("worker holds a machine that is not assigned to it; left alone", "worker", s.node, "machine", o.Machine, "state", o.State)
	}
	cap := nodeStatus{CPUs: int(h.Capacity.GetCpus()), MemoryMB: h.Capacity.GetMemoryMb()}
	s.c.view.hello(s.node, cap, known)
	s.c.ledger.heard(known...)
	for id := range mine {
		if s.c.view.get(id) == nil { // nothing is known of it any more
			s.c.ledger.heard(&seen{Machine: id, Node: s.node})
		}
	}
	for _, r := range mine {
		s.c.routes.dirty(r.App)
	}
	for _, o := range known {
		if o.State == machine.Destroyed {
			if err := s.c.bury(ctx, mine[o.Machine].App, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// later queues a message about a Machine.
func (s *session) later(id key.MachineID, forget bool) {
	s.mu.Lock()
	s.todo[id] = s.todo[id] || forget
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// follow turns changes of the node's assignments into messages.
func (s *session) follow(ctx context.Context, rev int64) error {
	return s.c.store.Watch(ctx, record.NodePrefix(s.node), rev, func(es []store.Event) error {
		for _, e := range es {
			s.later(key.MachineID(record.LastPart(e.Key)), e.Deleted)
		}
		return nil
	})
}

// send says what is queued. An assignment is read when it is sent: however often it
// changed, the worker gets the newest, once.
func (s *session) send(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		s.mu.Lock()
		todo := s.todo
		s.todo = map[key.MachineID]bool{}
		s.mu.Unlock()
		for id, forget := range todo {
			m, err := s.message(ctx, id, forget)
			if err != nil {
				return err
			}
			if m == nil {
				continue
			}
			if err := s.stream.Send(m); err != nil {
				return err
			}
		}
	}
}

func (s *session) message(ctx context.Context, id key.MachineID, forget bool) (*internalpb.ToWorker, error) {
	if forget {
		return &internalpb.ToWorker{Kind: &internalpb.ToWorker_Forget{Forget: &internalpb.Forget{MachineId: string(id)}}}, nil
	}
	a, _, err := record.Get[record.Assigned](ctx, s.c.store, record.NodeKey(s.node, id))
	if err != nil || a == nil {
		return nil, err
	}
	r, _, err := record.Get[record.Machine](ctx, s.c.store, record.MachineKey(a.App, id))
	if err != nil || r == nil {
		return nil, err
	}
	as, err := s.c.assignment(ctx, r)
	if err != nil {
		return nil, err
	}
	return &internalpb.ToWorker{Kind: &internalpb.ToWorker_Assignment{Assignment: as}}, nil
}

// receive takes the worker's observations.
func (s *session) receive(ctx context.Context) error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		o := m.GetObservation()
		if o == nil {
			return fault.New(fault.Invalid, "after its hello a worker sends observations")
		}
		if err := s.observe(ctx, seenOf(s.node, o)); err != nil {
			return err
		}
	}
}

// observe takes one observation. One of a Machine that is another node's is refused,
// and ends the stream; one of a Machine that nobody knows is noted and left.
func (s *session) observe(ctx context.Context, o *seen) error {
	p, _, err := record.Get[record.Place](ctx, s.c.store, record.IDKey(o.Machine))
	if err != nil {
		return err
	}
	if p == nil {
		if o.State == machine.Destroyed {
			s.later(o.Machine, true)
		}
		return nil
	}
	if p.Node != s.node {
		return fault.New(fault.Denied, "machine %s is not assigned to node %s", o.Machine, s.node)
	}
	s.c.metrics.observations.Inc()
	s.c.view.observe(o)
	if newest := s.c.view.get(o.Machine); newest != nil {
		s.c.ledger.heard(newest)
	}
	s.c.routes.dirty(p.App)
	if o.State == machine.Destroyed {
		return s.c.bury(ctx, p.App, o)
	}
	return nil
}

// bury turns a destroyed Machine's record into a tombstone, and frees its name, its
// lease and its place. The worker is told to forget it when the node's key goes.
func (c *Controller) bury(ctx context.Context, appName key.AppName, o *seen) error {
	err := retry(ctx, func() error {
		k := record.MachineKey(appName, o.Machine)
		r, rev, err := record.Get[record.Machine](ctx, c.store, k)
		if err != nil || r == nil || r.Gone != nil {
			return err
		}
		t := now()
		r.Gone, r.UpdatedAt, r.Desired = &t, t, machine.WantDestroyed
		r.Last = &record.LastSeen{Events: newest(o.Events), Error: o.Error, PrivateIP: o.PrivateIP}
		_, err = c.store.Txn(ctx, []store.Cond{record.At(k, rev)}, []store.Op{
			record.Put(k, r),
			store.Delete(record.NodeKey(r.Node, r.ID)),
			store.Delete(record.NameKey(r.App, r.Name)),
			store.Delete(record.LeaseKey(r.App, r.ID)),
			store.Put(record.TombKey(t, r.App, r.ID), nil),
		})
		return err
	})
	if err != nil {
		c.finishLater() // it may have been written for all that, and nobody comes back to it
		return err
	}
	c.view.forget(o.Machine)
	if err := c.finishApp(ctx, appName); err != nil {
		// Not the worker's fault, and no reason to end its Sync: the collector does it, also
		// when it was the Sync that ended meanwhile.
		c.finishLater()
		if ctx.Err() != nil {
			return nil
		}
		c.log.Error("a deleted app is not cleared away yet; it is tried again later", "app", appName, "err", err)
	}
	return nil
}

// maxLastEvents bounds the events of a tombstone, in bytes of JSON: with the config
// it has to fit into the store (maxConfig).
const maxLastEvents = 128 << 10

// newest returns as many events, newest first, as a tombstone takes.
func newest(events []machine.Event) []machine.Event {
	size := 0
	for i, e := range events {
		b, err := json.Marshal(e)
		if size += len(b); err != nil || size > maxLastEvents {
			return events[:i]
		}
	}
	return events
}

// assignment is what a worker is told of a Machine.
func (c *Controller) assignment(ctx context.Context, r *record.Machine) (*internalpb.Assignment, error) {
	config, err := json.Marshal(r.Config)
	if err != nil {
		return nil, err
	}
	ref, err := json.Marshal(r.ImageRef)
	if err != nil {
		return nil, err
	}
	encoded, sig, err := c.signGrant(r)
	if err != nil {
		return nil, err
	}
	as := &internalpb.Assignment{
		MachineId: string(r.ID), App: string(r.App), Name: r.Name, Generation: r.Generation,
		InstanceId: string(r.Instance), Config: config, ImageRef: ref, Desired: string(r.Desired),
		StartNonce: r.StartNonce, RestartNonce: r.RestartNonce, StopSignal: r.StopSignal, StopTimeoutMs: r.StopTimeout,
		Force: r.Force, Grant: encoded, GrantSignature: sig, Region: r.Region, Cordoned: r.Cordoned, Wish: r.Wish,
	}
	if underTraffic(r) {
		l, rev, err := record.Get[record.Lease](ctx, c.store, record.LeaseKey(r.App, r.ID))
		if err != nil {
			return nil, err
		}
		if l != nil {
			as.LeaseUntilMs, as.LeaseTtlMs, as.LeaseRevision = l.ExpiresAt.UnixMilli(), l.TTL.Milliseconds(), rev
		}
	}
	return as, c.assignSecrets(ctx, r, as)
}

// awaitWorker waits until the worker has taken up a record's generation, at most
// ackLimit. It gives no error: a wish holds also when the worker is away.
func (c *Controller) awaitWorker(ctx context.Context, r *record.Machine) *seen {
	return c.awaitReport(ctx, r, func(s *seen) bool { return s.Generation >= r.Generation })
}

// awaitReport waits like awaitWorker until the worker has sent a report that is enough.
func (c *Controller) awaitReport(ctx context.Context, r *record.Machine, enough func(*seen) bool) *seen {
	w, stop := c.view.follow(r.ID)
	defer stop()
	limit := time.NewTimer(c.cfg.AckLimit)
	defer limit.Stop()
	for {
		s := c.view.get(r.ID)
		if s != nil && enough(s) {
			return s
		}
		if st, _ := c.view.node(r.Node); !st.Connected {
			return s
		}
		if cur, _, err := record.Get[record.Machine](ctx, c.store, record.MachineKey(r.App, r.ID)); err != nil || cur == nil || cur.Gone != nil {
			return s
		}
		select {
		case <-w.poke:
		case <-limit.C:
			return s
		case <-ctx.Done():
			return s
		}
	}
}
