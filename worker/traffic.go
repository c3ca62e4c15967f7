package worker

import (
	"context"
	"slices"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// What an edge may ask of a Machine: to start for a request that waits, and to stop
// because no request came. The Machine's own config decides, then the user's last
// word, and nobody else is asked: it works without the controller. What comes of it
// is journaled by the Machine's actor like everything else, as a local wish
// (record.Local), and holds until a user says something new.

// reasons are told in the events of starts and stops that traffic caused.
var reasons = map[machine.Desired]string{
	machine.WantStarted: "woken by a request",
	machine.WantStopped: "no request came for a while",
}

const (
	// maxAsks bounds the asks that wait for one Machine's actor.
	maxAsks = 64
	// wakeLimit bounds a Wake, whatever deadline the caller has, and idleLimit an Idle.
	wakeLimit = 2 * time.Minute
	idleLimit = 10 * time.Second
	// wakeEvery bounds how often requests start a Machine whose process ends by itself:
	// who calls an app may be anybody, and a start costs the host more than a request.
	wakeEvery = 2 * time.Second
)

// ask is a local wish on its way to the actor.
type ask struct {
	want machine.Desired
	ctx  context.Context
	done chan asked // holds one
}

// asked is the actor's answer: the sequence number of the record that holds the wish.
type asked struct {
	seq int64
	err error
}

// group is whose running Machines are counted together for min_machines_running.
type group struct{ app, name string }

// trafficOf is what an assignment's config lets traffic do.
func trafficOf(a *internalpb.Assignment) machine.Traffic {
	cfg, err := configOf(a)
	if err != nil {
		return machine.Traffic{}
	}
	return cfg.Traffic()
}

// count adds n to those that run with s, if its Machine runs, is to, and is routed
// to. w.mu is held.
func (w *Worker) count(s *seen, n int) {
	if s.may.Group == "" || s.rec.State != machine.Started || s.asg.GetCordoned() || s.rec.SelfDestroy || s.rec.wanted(s.asg) != machine.WantStarted {
		return
	}
	g := group{s.asg.GetApp(), s.may.Group}
	if w.awake[g] += n; w.awake[g] == 0 {
		delete(w.awake, g)
	}
}

// mayWake refuses to wake a Machine that is not to be woken. It is asked again by the
// actor, whose word counts.
func mayWake(r *record, a *internalpb.Assignment, may machine.Traffic, now time.Time) error {
	switch {
	case !may.Autostart:
		return fault.New(fault.Denied, "machine %s has no service with autostart", r.Machine)
	case r.SelfDestroy || a.GetDesired() == string(machine.WantDestroyed):
		return fault.New(fault.Conflict, "machine %s is being destroyed", r.Machine)
	case a.GetCordoned():
		return fault.New(fault.Conflict, "machine %s is cordoned", r.Machine)
	}
	switch r.State {
	case machine.Started, machine.Starting, machine.Restarting, machine.Updating, machine.Stopping:
		return nil
	case machine.Creating:
		if r.wanted(a) == machine.WantStarted {
			return nil
		}
	case machine.Stopped, machine.Suspended:
		if err := notLeased(r, a, now); err != nil {
			return err
		}
		// An end that nobody wanted, and not long after the start. The edge asks again.
		if ago := now.Sub(r.StartedAt); r.wanted(a) == machine.WantStarted && !r.Asked && ago >= 0 && ago < wakeEvery {
			return fault.New(fault.Unavailable, "machine %s ended a moment after its start; it is woken again in %s", r.Machine, wakeEvery-ago)
		}
		return nil
	}
	return fault.New(fault.Conflict, "machine %s is %s, which a request does not change", r.Machine, r.State)
}

// notLeased refuses what traffic would do to a Machine that somebody holds.
func notLeased(r *record, a *internalpb.Assignment, now time.Time) error {
	ttl := time.Duration(a.GetLeaseTtlMs()) * time.Millisecond
	if machine.LeaseHolds(time.UnixMilli(a.GetLeaseUntilMs()), ttl, now) {
		return fault.New(fault.Conflict, "machine %s is leased", r.Machine)
	}
	return nil
}

// mayIdle refuses to stop a Machine that is to run on without traffic.
func (w *Worker) mayIdle(r *record, a *internalpb.Assignment, may machine.Traffic) error {
	switch {
	case !may.Autostop:
		return fault.New(fault.Denied, "machine %s has a service without autostop", r.Machine)
	case r.State != machine.Started || r.SelfDestroy || a.GetCordoned() || r.wanted(a) != machine.WantStarted:
		return fault.New(fault.Conflict, "machine %s does not run for traffic now", r.Machine)
	}
	if err := notLeased(r, a, w.now()); err != nil {
		return err
	}
	w.mu.Lock()
	n := w.awake[group{a.GetApp(), may.Group}]
	w.mu.Unlock()
	if n <= may.Min {
		return fault.New(fault.Precondition, "%d machines of app %s run, and min_machines_running is %d", n, a.GetApp(), may.Min)
	}
	return nil
}

// ask hands a local wish to the Machine's actor and waits for its answer.
func (w *Worker) ask(ctx context.Context, id key.MachineID, want machine.Desired) (int64, error) {
	w.mu.Lock()
	a := w.actors[id]
	w.mu.Unlock()
	if a == nil {
		return 0, fault.New(fault.NotFound, "machine %s is not on this node", id)
	}
	q := &ask{want: want, ctx: ctx, done: make(chan asked, 1)}
	a.mu.Lock()
	a.asks = slices.DeleteFunc(a.asks, func(q *ask) bool { return q.ctx.Err() != nil })
	if len(a.asks) >= maxAsks {
		a.mu.Unlock()
		return 0, fault.New(fault.Unavailable, "too many ask for machine %s", id)
	}
	a.asks = append(a.asks, q)
	a.poke()
	a.mu.Unlock()
	select {
	case r := <-q.done:
		return r.seq, r.err
	case <-a.over:
		return 0, fault.New(fault.Unavailable, "machine %s is gone, or the worker is stopping", id)
	case <-ctx.Done():
		return 0, fault.Wrap(fault.Timeout, ctx.Err(), "machine %s was %s for too long", id, want)
	}
}

// answer takes up what the edges ask, between two steps. A Machine on its way down is
// let down first: a user's stop stops it, whoever waits to wake it then.
func (a *actor) answer() {
	a.mu.Lock()
	asks := a.asks
	a.asks = nil
	a.mu.Unlock()
	for _, q := range asks {
		if q.ctx.Err() != nil {
			continue
		}
		if q.want == machine.WantStarted && a.rec.State != machine.Stopped && a.rec.State != machine.Suspended &&
			a.rec.wanted(a.asg) == machine.WantStopped && mayWake(a.rec, a.asg, trafficOf(a.asg), a.w.now()) == nil {
			a.mu.Lock()
			a.asks = append(a.asks, q)
			a.mu.Unlock()
			continue
		}
		seq, err := a.take(q.want)
		q.done <- asked{seq, err}
	}
}

// take journals a local wish, if the Machine may have it and has it not yet.
func (a *actor) take(want machine.Desired) (int64, error) {
	may := trafficOf(a.asg)
	if want == machine.WantStopped {
		a.w.idling.Lock() // until the count knows of this one
		defer a.w.idling.Unlock()
		if err := a.w.mayIdle(a.rec, a.asg, may); err != nil {
			return 0, err
		}
		a.w.metrics.idles.Inc()
		return a.wish("idle", want)
	}
	if err := mayWake(a.rec, a.asg, may, a.w.now()); err != nil {
		return 0, err
	}
	if a.rec.State != machine.Stopped && a.rec.State != machine.Suspended || a.rec.Asked && a.rec.wanted(a.asg) == want {
		return a.rec.Seq, nil
	}
	// Taken now and not at the start: one that finds no room stays as it was, stopped.
	if err := a.w.capacity.take(a.id, guestMB(a.asg)); err != nil {
		return 0, err
	}
	a.w.metrics.wakes.Inc()
	seq, err := a.wish("wake", want)
	if err != nil && a.rec.Sandbox == "" {
		a.w.capacity.release(a.id)
	}
	return seq, err
}

// wish writes a local wish down. Crash point: before it nothing has happened, and the
// edge asks again; after it the next worker acts on it.
func (a *actor) wish(name string, want machine.Desired) (int64, error) {
	err := a.update(name, func(r *record) error {
		r.Local, r.Wish, r.Asked = want, a.asg.GetWish(), true
		return nil
	})
	return a.rec.Seq, err
}

// Wake implements internalpb.WorkerServer.
func (s *service) Wake(ctx context.Context, req *internalpb.WakeRequest) (*internalpb.WakeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, wakeLimit)
	defer cancel()
	k, id, err := s.known(req.GetMachineId())
	if err != nil {
		return nil, err
	}
	if err := mayWake(k.rec, k.asg, k.may, s.w.now()); err != nil {
		return nil, err
	}
	if !k.up() {
		seq, err := s.w.ask(ctx, id, machine.WantStarted)
		if err != nil {
			return nil, err
		}
		if k, err = s.w.untilUp(ctx, id, seq); err != nil {
			return nil, err
		}
	}
	return &internalpb.WakeResponse{Seq: k.rec.Seq}, nil
}

// up reports whether the Machine runs and is to.
func (s *seen) up() bool {
	return s.rec.State == machine.Started && s.rec.wanted(s.asg) == machine.WantStarted
}

// rests reports whether nothing is left to do for the Machine that would bring it up: a
// user's word that came meanwhile may do that as well.
func (s *seen) rests(now time.Time) bool {
	if s.asg.GetDesired() == string(machine.WantDestroyed) {
		return true
	}
	return !machine.Passing(s.rec.State) && plan(s.rec, s.asg, now).do == actWait
}

// untilUp waits until a Machine that was woken runs, or will not. seq is that of the
// record that holds the wish.
func (w *Worker) untilUp(ctx context.Context, id key.MachineID, seq int64) (*seen, error) {
	for {
		k, err := w.get(id)
		switch {
		case err != nil:
			return nil, err
		case k.rec.Seq < seq: // not published yet
		case k.up():
			return k, nil
		case k.rests(w.now()):
			return nil, fault.New(fault.Conflict, "machine %s was woken and is %s%s", id, k.rec.State, because(k.rec.Error))
		}
		select {
		case <-k.next:
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Timeout, ctx.Err(), "machine %s is %s and did not come up in time%s", id, k.rec.State, because(k.rec.Error))
		case <-w.life.Done():
			return nil, fault.New(fault.Unavailable, "the worker is stopping")
		}
	}
}

// Idle implements internalpb.WorkerServer.
func (s *service) Idle(ctx context.Context, req *internalpb.IdleRequest) (*internalpb.IdleResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, idleLimit)
	defer cancel()
	k, id, err := s.known(req.GetMachineId())
	if err != nil {
		return nil, err
	}
	if err := s.w.mayIdle(k.rec, k.asg, k.may); err != nil {
		return nil, err
	}
	seq, err := s.w.ask(ctx, id, machine.WantStopped)
	if err != nil {
		return nil, err
	}
	return &internalpb.IdleResponse{Seq: seq}, nil
}
