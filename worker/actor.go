package worker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// Back-off of steps whose failure may pass.
const (
	retryFirst = 200 * time.Millisecond
	retryMax   = 15 * time.Second
	// failedRetry is the wait before a Machine that failed of something that may pass
	// is tried again; it doubles up to failedRetryMax.
	failedRetry    = time.Minute
	failedRetryMax = 10 * time.Minute
)

// Why a step was cut short.
var (
	errSuperseded = errors.New("a newer assignment came")
	errLate       = errors.New("the state's deadline passed")
)

// actor drives one Machine: it alone changes the Machine's record, one journaled
// step after another.
type actor struct {
	w   *Worker
	id  key.MachineID
	log *slog.Logger

	// Owned by the goroutine of run.
	rec       *record
	asg       *internalpb.Assignment
	box       sandbox.Sandbox   // the handle, when attached
	exit      chan sandbox.Exit // receives the end of box's process, once
	pumps     *pumps
	api       *apiGate
	signalled time.Time // r.Since of the state in which the stop signal was sent
	failures  int       // of the present step, in a row

	mu     sync.Mutex
	inbox  *internalpb.Assignment // the newest one not yet accepted
	young  *internalpb.Assignment // of a known generation, with another grant or lease; not yet taken over
	grant  []byte                 // the newest one heard of
	lease  int64                  // the revision of the newest one heard of
	cancel context.CancelCauseFunc
	forget bool
	news   []machine.LimitEvent // limits met that no event tells of
	newest int64                // highest generation seen
	wake   chan struct{}        // holds one
	asks   []*ask               // of the edges, not yet answered
	over   chan struct{}        // closed when run has ended
}

func newActor(w *Worker, e entry) *actor {
	return &actor{
		w: w, id: e.rec.Machine, log: w.log.With("machine", e.rec.Machine),
		rec: e.rec, asg: e.asg, newest: e.asg.GetGeneration(), grant: e.asg.GetGrant(), lease: e.asg.GetLeaseRevision(), wake: make(chan struct{}, 1), over: make(chan struct{}),
	}
}

// offer hands the actor an assignment; a stale one is ignored. A step that the new
// one makes pointless is cut short. One of a known generation may bring another grant or
// lease, which cuts nothing short.
func (a *actor) offer(asg *internalpb.Assignment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if asg.GetGeneration() < a.newest {
		return
	}
	if asg.GetGeneration() == a.newest {
		if !bytes.Equal(asg.GetGrant(), a.grant) || asg.GetLeaseRevision() != a.lease {
			a.young, a.grant, a.lease = asg, asg.GetGrant(), asg.GetLeaseRevision()
			a.poke()
		}
		return
	}
	a.newest, a.grant, a.lease = asg.GetGeneration(), asg.GetGrant(), asg.GetLeaseRevision()
	a.inbox = asg
	if a.cancel != nil {
		a.cancel(errSuperseded)
	}
	a.poke()
}

// supersede hands the actor an assignment that comes from nobody but this worker.
func (a *actor) supersede(asg *internalpb.Assignment) {
	a.mu.Lock()
	asg.Generation = a.newest + 1
	a.mu.Unlock()
	a.offer(asg)
}

// release lets the actor drop a Machine that is destroyed.
func (a *actor) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forget = true
	a.poke()
}

// poke wakes the actor. a.mu is held.
func (a *actor) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run is the actor's life. It ends when ctx does, or when the Machine is forgotten.
func (a *actor) run(ctx context.Context) {
	defer close(a.over)
	defer a.detach()
	for ctx.Err() == nil {
		if err := a.accept(); err != nil {
			a.pause(ctx, err)
			continue
		}
		if err := a.renew(); err != nil {
			a.pause(ctx, err)
			continue
		}
		switch gone, err := a.forgotten(); {
		case err != nil:
			a.pause(ctx, err)
			continue
		case gone:
			return
		}
		if err := a.tell(); err != nil {
			a.pause(ctx, err)
			continue
		}
		a.answer()
		s := plan(a.rec, a.asg, a.w.now())
		if s.do == actWait {
			a.wait(ctx, s.wake)
			continue
		}
		if err := a.perform(ctx, s); err != nil && ctx.Err() == nil {
			a.failed(ctx, s, err)
			continue
		}
		a.works()
	}
}

// stands is what the board calls a step of this Machine's that does not work.
func (a *actor) stands() string {
	return "a step of machine " + string(a.id) + " fails and is tried again"
}

// works notes that a step worked.
func (a *actor) works() {
	if a.failures > 0 {
		a.w.board.Over(a.stands(), "machine", a.id)
	}
	a.failures = 0
}

// accept journals the newest assignment.
func (a *actor) accept() error {
	a.mu.Lock()
	next := a.inbox
	a.mu.Unlock()
	if next == nil {
		return nil
	}
	r := a.rec.clone()
	r.Retries = 0
	if r.State == machine.Failed && r.Retry {
		r.NextStart = time.Time{} // somebody asks: what failed is tried again at once
	}
	if r.Wish != next.GetWish() { // the user's newest word is about what traffic made of the last
		r.Local, r.Wish, r.Asked = "", 0, false
	}
	if err := a.commit("accept", r, next); err != nil {
		return err
	}
	a.works()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inbox == next {
		a.inbox = nil
	}
	return nil
}

// forgotten drops the Machine if the controller has noted its destruction.
func (a *actor) forgotten() (bool, error) {
	a.mu.Lock()
	forget := a.forget && a.inbox == nil
	a.mu.Unlock()
	if !forget || a.rec.State != machine.Destroyed {
		return false, nil
	}
	// As long as the Machine is shown its users may read what it wrote; not on a node that is
	// no longer the cluster's.
	retire := a.w.retireLogs
	if a.w.outcast.Load() {
		retire = a.w.removeLogs
	}
	if err := retire(a.id); err != nil {
		a.log.Warn("a forgotten machine's logs stay for now; their removal is tried again", "err", err)
		a.w.done.Go(func() { a.w.removeLogsLater(a.id) })
	}
	if err := a.w.journal.remove(a.id, a.rec.Slot); err != nil {
		return false, err
	}
	a.w.vault.drop(a.id)
	a.w.dropped(a.id, a)
	return true, nil
}

// retireLogs keeps what a Machine wrote until retiredLife is over.
func (w *Worker) retireLogs(id key.MachineID) error {
	return failpoint.Write("worker/logs/retire", func() error { return w.logs.Retire(id) })
}

// Bounds of the logs of Machines that are no more.
const (
	retiredLife  = 24 * time.Hour // as long as the controller shows them (controller.tombstoneLife)
	retiredMost  = 500            // each takes up to 10 MiB; the oldest go first
	retiredEvery = 10 * time.Minute
)

// sweepLogs removes them when their time is over.
func (w *Worker) sweepLogs() {
	for wait := time.Duration(0); sleep(w.life, wait) == nil; wait = retiredEvery {
		if err := w.logs.SweepRetired(time.Now().Add(-retiredLife), retiredMost); err != nil {
			w.log.Warn("logs of destroyed machines could not be removed; tried again later", "err", err)
		}
	}
}

// removeLogs removes what a Machine wrote.
func (w *Worker) removeLogs(id key.MachineID) error {
	return failpoint.Write("worker/logs/remove", func() error { return w.logs.Remove(id) })
}

// removeLogsLater tries until it succeeds. The Machine's slot does not wait for it; at the
// next start logs of Machines that there are not are removed anyway.
func (w *Worker) removeLogsLater(id key.MachineID) {
	for wait := retryFirst; sleep(w.life, wait) == nil; wait = min(2*wait, retryMax) {
		if w.removeLogs(id) == nil {
			return
		}
	}
}

// commit journals r, and a's assignment when it changed, and only then makes them
// the truth and tells the controller.
func (a *actor) commit(name string, r *record, asg *internalpb.Assignment) error {
	r.Seq = a.rec.Seq + 1
	r.UpdatedAt = a.w.now()
	if err := a.w.journal.put(name, r, a.rec.Slot, asg); err != nil {
		return err
	}
	a.log.Debug("trace", "step", "journaled", "why", name)
	if r.State != a.rec.State {
		a.log.Info("state", "from", a.rec.State, "to", r.State, "why", name)
		a.w.metrics.transitions.WithLabelValues(string(r.State)).Inc()
	}
	a.rec = r
	if asg != nil {
		a.asg = asg
	}
	if r.Sandbox == "" && !r.Asked && r.State != machine.Started && !machine.Passing(r.State) {
		a.w.capacity.release(a.id) // what a wake took, and did not come to use
	}
	a.w.publish(a.rec, a.asg)
	return nil
}

// update journals one change of the record.
func (a *actor) update(name string, change func(r *record) error) error {
	r := a.rec.clone()
	if err := change(r); err != nil {
		return err
	}
	return a.commit(name, r, nil)
}

// perform carries out a step, within the state's deadline and until a newer
// assignment comes.
func (a *actor) perform(parent context.Context, s step) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	if machine.Passing(a.rec.State) {
		left := machine.Deadline(a.rec.State) - a.w.now().Sub(a.rec.Since)
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, left, errLate)
		defer stop()
	}
	a.mu.Lock()
	if a.inbox != nil {
		a.mu.Unlock()
		return nil // accept it first
	}
	a.cancel = cancel
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.cancel = nil
		a.mu.Unlock()
	}()
	err := a.act(ctx, s)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errSuperseded):
		return errSuperseded
	case errors.Is(context.Cause(ctx), errLate):
		return fault.Wrap(fault.Timeout, err, "%s took longer than %v%s", s.do, machine.Deadline(a.rec.State), because(a.rec.Error))
	}
	return err
}

// because joins an earlier complaint to a sentence.
func because(msg string) string {
	if msg == "" {
		return ""
	}
	return ": " + msg
}

// act is the switch from a step to the code that does it.
func (a *actor) act(ctx context.Context, s step) error {
	switch s.do {
	case actMove:
		return a.move(s)
	case actNote:
		return a.update("note", func(r *record) error { a.noted(r); return nil })
	case actPrepare:
		return a.prepare(ctx)
	case actStart:
		return a.start(ctx)
	case actWatch:
		return a.watch(ctx)
	case actEnd:
		return a.stop(ctx, s.then)
	case actUpdate:
		return a.takeUp(ctx)
	case actTeardown:
		return a.teardown(ctx)
	case actFetchNext:
		return a.fetchNext(ctx)
	}
	return fault.New(fault.Internal, "no such step %v", s.do)
}

// wait sleeps until something changes or the time at comes.
func (a *actor) wait(ctx context.Context, at time.Time) {
	if at.IsZero() {
		select {
		case <-ctx.Done():
		case <-a.wake:
		}
		return
	}
	t := time.NewTimer(max(at.Sub(a.w.now()), time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-a.wake:
	case <-t.C:
	}
}

// pause waits before something is tried again.
func (a *actor) pause(ctx context.Context, err error) {
	d := retryFirst << min(a.failures, 10)
	a.failures++
	if !errors.Is(err, errJournal) { // the journal has said it for all
		a.w.board.Trouble(a.stands(), err, "machine", a.id, "in", min(d, retryMax))
	}
	if fault.Is(err, fault.Full) {
		a.w.makeRoom()
	}
	a.wait(ctx, a.w.now().Add(min(d, retryMax)))
}

// failed decides what a failed step means.
func (a *actor) failed(ctx context.Context, s step, err error) {
	if errors.Is(err, errSuperseded) {
		return
	}
	if s.do == actMove || s.do == actNote { // only the journal can have failed
		a.pause(ctx, err)
		return
	}
	starting := s.do == actPrepare || s.do == actStart || s.do == actUpdate
	if starting && a.rec.Image != "" && a.imageDamaged(ctx) {
		err = fault.New(fault.Unavailable, "image %s was damaged on this node's disk; it is fetched again", a.rec.Image)
	}
	if starting && forGood(err) {
		if jerr := a.fail(s, err, false); jerr != nil {
			a.pause(ctx, jerr)
		}
		return
	}
	if machine.Passing(a.rec.State) && a.w.now().After(a.rec.Since.Add(machine.Deadline(a.rec.State))) {
		if jerr := a.fail(s, err, true); jerr != nil {
			a.pause(ctx, jerr)
		}
		return
	}
	a.complain(s, err)
	a.pause(ctx, err)
}

// forGood reports whether a start that failed so would fail again: the image, the
// command or the grant are at fault, not something that is down.
func forGood(err error) bool {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.Denied, fault.Unprocessable, fault.NotFound, fault.Unauthenticated, fault.Precondition:
		return true
	}
	return false
}

// fail moves the Machine to where a failure leads: late says that its state's
// deadline passed.
func (a *actor) fail(s step, cause error, late bool) error {
	now := a.w.now()
	a.log.Error("a step failed", "step", s.do, "state", a.rec.State, "late", late, "err", cause)
	return a.update("fail", func(r *record) error {
		in, typ := machine.InFail, "start"
		switch {
		case late:
			in = machine.InTimeout
		case !r.Launched && machine.Can(r.State, machine.InLaunchFail):
			in, typ = machine.InLaunchFail, "launch"
			r.SelfDestroy = true
		}
		was := r.State
		if err := r.move(in, now); err != nil {
			return err
		}
		if was == machine.Updating { // the new version is taken up, and cannot run
			r.Instance, r.Image = instanceOf(a.asg), ""
		}
		r.Error = fault.MessageOf(cause)
		r.Retry = late
		if late {
			typ = s.do.event()
			r.NextStart = now.Add(min(failedRetry<<min(r.Retries, 10), failedRetryMax))
			r.Retries++
			if was == machine.LaunchFailed || was == machine.Destroying {
				r.SelfDestroy = true
			}
		}
		a.noted(r)
		r.event(now, typ, byPlatform, &machine.EventRequest{Error: r.Error, Step: s.do.String()})
		a.say("%s failed: %s", s.do, r.Error)
		return nil
	})
}

// complain tells the user, once, what is in the way of a step that goes on.
func (a *actor) complain(s step, cause error) {
	msg := fault.MessageOf(cause)
	if a.rec.Error == msg || !machine.Passing(a.rec.State) {
		return
	}
	now := a.w.now()
	err := a.update("complain", func(r *record) error {
		r.Error = msg
		r.event(now, s.do.event(), byPlatform, &machine.EventRequest{Error: msg, Step: s.do.String()})
		return nil
	})
	if err != nil {
		a.log.Debug("an event cannot be journaled", "err", err) // the journal's board has it
	}
}
