package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// Reconnecting to the controller: the wait doubles from syncFirst to syncMax, and
// each is spread over half to all of it, so that a cluster's workers do not come
// back at the same instant.
const (
	syncFirst = 100 * time.Millisecond
	syncMax   = 15 * time.Second
	// syncSteady is how long a connection must have held for the wait to begin anew.
	syncSteady = 10 * time.Second
	// removedWait is the wait of a removed node that still has Machines to destroy.
	removedWait = 2 * time.Second
	// maxHello bounds the first message; above it, events follow in messages of
	// their own.
	maxHello = 8 << 20
)

// outOfReach is what the board calls a controller that does not answer.
const outOfReach = "the controller is out of reach; machines run on"

// Sync keeps the worker in touch with the controller until ctx is done: it sends
// what is observed and takes over what is assigned. Without a controller the
// worker does everything but hear of new wishes.
func (w *Worker) Sync(ctx context.Context, controller internalpb.ControllerClient) {
	wait, told := syncFirst, false
	for ctx.Err() == nil {
		began := time.Now()
		err := w.syncOnce(ctx, controller)
		w.metrics.connected.Set(0)
		w.online.Store(false)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > syncSteady {
			wait = syncFirst
		}
		refused := removed(err)
		if refused {
			wait = syncMax
			w.abandonUnknown(ctx)
			if w.abandon(err) > 0 {
				wait = removedWait
			}
		}
		d := wait/2 + rand.N(wait/2)
		switch {
		case !refused && err != nil:
			w.board.Trouble(outOfReach, err)
		case refused && !told: // once, however often it asks
			w.log.Error("this node was removed from the cluster; its machines are destroyed, and it asks to be taken back", "err", err)
		}
		told = refused
		if sleep(ctx, d) != nil {
			return
		}
		wait = min(2*wait, syncMax)
		if failpoint.Enabled { // controllers die by the hundred, and tests wait for each
			wait = min(wait, time.Second)
		}
	}
}

// removed reports whether the controller's refusal says that this node is no longer
// one of the cluster's.
func removed(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Kind == fault.Denied && f.Status == rpc.NodeRemoved
}

// abandon destroys and forgets every Machine of a node that was removed from the
// cluster: others may run in their place by now, and nobody will ask for these again.
// It is called at each refusal, does what is left to do, and returns how many Machines
// there are left.
func (w *Worker) abandon(why error) int {
	w.outcast.Store(true)
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, a := range w.actors {
		asg := w.seen[id].asg
		if machine.Desired(asg.GetDesired()) != machine.WantDestroyed || !asg.GetForce() {
			w.log.Error("this node was removed from the cluster: a machine of it is destroyed", "machine", id, "err", why)
			end := proto.Clone(asg).(*internalpb.Assignment)
			end.Desired, end.Force = string(machine.WantDestroyed), true
			a.supersede(end)
		}
		a.release()
	}
	return len(w.actors)
}

// syncOnce is one connection.
func (w *Worker) syncOnce(ctx context.Context, controller internalpb.ControllerClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := controller.Sync(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: w.hello()}}); err != nil {
		return recvError(stream, err)
	}
	received := make(chan error, 1)
	go func() { received <- w.receive(stream) }()
	for {
		select {
		case err := <-received:
			return err
		case <-w.changed:
		}
		for _, o := range w.takeDirty() {
			if err := stream.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Observation{Observation: o}}); err != nil {
				cancel()
				return <-received
			}
		}
	}
}

// recvError is the stream's own error behind a failed send.
func recvError(stream grpc.BidiStreamingClient[internalpb.FromWorker, internalpb.ToWorker], err error) error {
	if _, rerr := stream.Recv(); rerr != nil {
		return rerr
	}
	return err
}

// receive takes over what the controller sends.
func (w *Worker) receive(stream grpc.BidiStreamingClient[internalpb.FromWorker, internalpb.ToWorker]) error {
	all, first := &internalpb.Snapshot{}, true // all is for a journal that is not whole
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		w.metrics.connected.Set(1)
		w.online.Store(true)
		w.board.Over(outOfReach)
		switch k := m.GetKind().(type) {
		case *internalpb.ToWorker_Snapshot:
			if first {
				w.mu.Lock()
				clear(w.late) // all that counts is in the snapshot
				w.mu.Unlock()
				first = false
			}
			if err := w.snapshot(stream.Context(), all, k.Snapshot); err != nil {
				return err
			}
			w.link.Do(func() { close(w.linked) })
		case *internalpb.ToWorker_Assignment:
			w.assign(k.Assignment, false)
		case *internalpb.ToWorker_Forget:
			w.Forget(key.MachineID(k.Forget.GetMachineId()))
		}
	}
}

// snapshot takes over one part of a snapshot; while the journal is not whole all parts
// are collected in all, and taken over together.
func (w *Worker) snapshot(ctx context.Context, all, part *internalpb.Snapshot) error {
	if w.notWhole() == nil {
		for _, a := range part.GetAssignments() {
			w.assign(a, false)
		}
		return nil
	}
	all.Assignments = append(all.Assignments, part.GetAssignments()...)
	all.Observed = append(all.Observed, part.GetObserved()...)
	if part.GetMore() {
		return nil
	}
	return w.rebuild(ctx, all)
}

// assignAgain is the wait before an assignment that could not be journaled is tried
// again.
const assignAgain = time.Second

// assign takes over an assignment. The controller sends it once: one that cannot be
// journaled now is tried again until it is, or until anything else came for its
// Machine. A late one is such a try.
func (w *Worker) assign(a *internalpb.Assignment, late bool) {
	what := "an assignment of machine " + a.GetMachineId() + " is not taken over"
	err := w.take(a, late)
	if err == nil {
		w.board.Over(what)
		return
	}
	if !errors.Is(err, errJournal) {
		w.board.Trouble(what, err, "machine", a.GetMachineId())
	}
	if fault.Is(err, fault.Invalid) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.done.Go(func() {
		if sleep(w.life, assignAgain) == nil {
			w.assign(a, true)
		}
	})
}

// hello is the first message: everything that is observed. What is dirty is part
// of it, and sent again in full when the message had to be made shorter.
func (w *Worker) hello() *internalpb.Hello {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &internalpb.Hello{
		Node:     string(w.opt.Node),
		Capacity: &internalpb.Capacity{Cpus: int32(runtime.NumCPU()), MemoryMb: w.capacity.limit}, Rebuilding: w.notWhole() != nil,
	}
	size := 0
	for _, s := range w.seen {
		h.Observations = append(h.Observations, s.obs)
		size += proto.Size(s.obs)
	}
	clear(w.dirty)
	if size <= maxHello {
		return h
	}
	for i, o := range h.Observations {
		short := proto.Clone(o).(*internalpb.Observation)
		short.Events = nil
		h.Observations[i] = short
		w.dirty[key.MachineID(o.GetMachineId())] = true
	}
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return h
}

// takeDirty returns the observations that have not been sent: the newest of each
// Machine, however many there were.
func (w *Worker) takeDirty() []*internalpb.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*internalpb.Observation, 0, len(w.dirty))
	for id := range w.dirty {
		if s := w.seen[id]; s != nil {
			out = append(out, s.obs)
		}
	}
	clear(w.dirty)
	return out
}

// sleep waits for d or for ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
