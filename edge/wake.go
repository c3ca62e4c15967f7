package edge

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/edge/route"
	"bulkhead/fault"
)

// waker has Machines woken for requests that wait: the edge asks the worker, and the
// controller is not needed. There is one flight for an app at a time, whatever the
// number of requests; they wait for it, bounded in time and number.
type waker struct {
	worker atomic.Pointer[internalpb.WorkerClient]

	mu      sync.Mutex
	flights map[string]*waking // by app
	held    int                // requests that wait, of all apps
	work    sync.WaitGroup
}

// waking is one flight. fail is set before done is closed.
type waking struct {
	done chan struct{}
	held int
	fail *failure
}

const (
	// wakeTries is how many Machines of an app one flight tries.
	wakeTries = 3
	// doubtEvery bounds how often a Machine that cannot be reached is asked after.
	doubtEvery = 2 * time.Second
)

// WakeWith gives the edge the worker that it asks to wake and to stop Machines.
func (s *Server) WakeWith(c internalpb.WorkerClient) { s.waker.worker.Store(&c) }

// wait returns when no flight is under way. New ones end at once: the background
// context is over.
func (w *waker) wait() { w.work.Wait() }

// begin joins the app's flight or starts one. The caller does not wait.
func (w *waker) begin(s *Server, app string, of func(*route.App) *route.Service) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flight(s, app, of)
}

// flight returns the app's flight; one is started if there is none. w.mu is held.
func (w *waker) flight(s *Server, app string, of func(*route.App) *route.Service) *waking {
	if f := w.flights[app]; f != nil {
		return f
	}
	f := &waking{done: make(chan struct{})}
	if w.flights == nil {
		w.flights = map[string]*waking{}
	}
	w.flights[app] = f
	w.work.Go(func() {
		f.fail = s.fly(app, of)
		w.mu.Lock()
		delete(w.flights, app)
		w.mu.Unlock()
		close(f.done)
	})
	return f
}

// hold keeps a request until a Machine of its app was woken; nil means look again. r is
// the route that the request has looked at.
func (w *waker) hold(ctx context.Context, s *Server, r *route.App, of func(*route.App) *route.Service) *failure {
	app := r.Name
	if len(of(r).Asleep) == 0 {
		return &failure{status: 503, code: "PR03", text: "no machine of app " + app + " takes requests"}
	}
	late := func() *failure {
		return &failure{status: 503, code: "PM03", text: "app " + app + " did not start in time", cause: ctx.Err()}
	}
	if ctx.Err() != nil {
		return late()
	}
	w.mu.Lock()
	// A flight that ended between the look at the route and here has changed the route.
	if s.table.Lookup(app) != r {
		w.mu.Unlock()
		return nil
	}
	f, held := w.flights[app], 0
	if f != nil {
		held = f.held
	}
	// No app takes more than it leaves: some place is always left for the next.
	if held >= min(s.Limits.MaxHeld, s.Limits.MaxHeldAll-w.held) {
		w.mu.Unlock()
		return &failure{status: 503, code: "PL02", text: "too many requests wait for app " + app + " to start"}
	}
	f = w.flight(s, app, of)
	f.held++
	w.held++
	w.mu.Unlock()
	s.m.held.Inc()
	defer func() {
		s.m.held.Dec()
		w.mu.Lock()
		f.held--
		w.held--
		w.mu.Unlock()
	}()
	for {
		select {
		case <-f.done:
			return f.fail
		case <-r.Replaced: // a Machine may run now, whatever becomes of the flight
			if r = s.table.Lookup(app); r == nil || of(r) == nil || len(of(r).Targets) > 0 || len(of(r).Asleep) == 0 {
				return nil
			}
		case <-ctx.Done():
			return late()
		}
	}
}

// fly wakes one Machine of the app: one that it may wake, and another when that does
// not come up.
func (s *Server) fly(app string, of func(*route.App) *route.Service) *failure {
	ctx, cancel := context.WithTimeout(s.background, s.Limits.WakeTimeout)
	defer cancel()
	var last *failure
	for range wakeTries {
		b := s.sleeper(app, of)
		if b == nil {
			break
		}
		began := time.Now()
		seq, err := s.askToWake(ctx, b.Machine)
		if err == nil {
			s.m.wakes.WithLabelValues("ok").Inc()
			s.m.wakeTime.Observe(time.Since(began).Seconds())
			s.table.Awoke(app, b.Machine, seq)
			s.touch(app)
			return nil
		}
		b.WakeFailed(time.Now())
		last = wakeFailure(app, err)
		s.m.wakes.WithLabelValues(last.code).Inc()
		s.tell(app, last)
		if ctx.Err() != nil {
			break
		}
	}
	if last == nil {
		last = &failure{status: 503, code: "PM11", text: "app " + app + " did not start a moment ago; it is tried again soon"}
	}
	return last
}

// sleeper chooses a Machine to wake; nil when none may be.
func (s *Server) sleeper(app string, of func(*route.App) *route.Service) *route.Backend {
	a := s.table.Lookup(app)
	if a == nil || of(a) == nil || len(of(a).Asleep) == 0 {
		return nil
	}
	all, now := of(a).Asleep, time.Now()
	at := rand.IntN(len(all))
	for i := range all { // those that failed a moment ago are passed over
		if b := all[(at+i)%len(all)].Backend; b.MayWake(now) {
			return b
		}
	}
	return nil
}

// askToWake asks the worker until it answers or ctx ends: a worker that restarts is
// waited for.
func (s *Server) askToWake(ctx context.Context, machine string) (int64, error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := error(fault.New(fault.Unavailable, "this edge has no identity yet"))
		if c := s.waker.worker.Load(); c != nil {
			var r *internalpb.WakeResponse
			if r, err = (*c).Wake(ctx, &internalpb.WakeRequest{MachineId: machine}, grpc.WaitForReady(true)); err == nil {
				return r.GetSeq(), nil
			}
		}
		if !fault.Is(err, fault.Unavailable) || !sleep(ctx, pause) {
			return 0, err
		}
	}
}

// wakeFailure says what a refusal means for those who wait.
func wakeFailure(app string, err error) *failure {
	f := &failure{status: 503, code: "PM02", text: "app " + app + " could not be started", cause: err}
	switch fault.KindOf(err) {
	case fault.Timeout, fault.Unavailable:
		f.code, f.text = "PM03", "app "+app+" did not start in time"
	case fault.Conflict, fault.Denied, fault.NotFound, fault.Precondition:
		f.code, f.text = "PM08", "app "+app+" cannot be started now"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		f.code, f.text = "PM03", "app "+app+" did not start in time"
	}
	return f
}

// doubt treats a Machine that may be woken and cannot be reached as asleep, so that it
// is asked to wake: while the controller is away, nobody else tells that one went down.
// One that refuses the connection runs.
func (s *Server) doubt(app string, b *route.Backend, err error) {
	if err == nil || errors.Is(err, syscall.ECONNREFUSED) || !b.Doubt(time.Now(), doubtEvery) {
		return
	}
	s.m.wakes.WithLabelValues("doubt").Inc()
	s.table.Unheard(app, b.Machine)
}

// patience is until when a request goes on trying a Machine: longer for one that has
// just been woken and may not listen yet.
func (s *Server) patience(until time.Time, b *route.Backend) time.Time {
	if woken := b.Woken(); !woken.IsZero() {
		if t := woken.Add(s.Limits.WakeTimeout); t.After(until) {
			return t
		}
	}
	return until
}

// risingPause is how long a request waits for a place at other Machines before it asks
// one again that has just been woken.
const risingPause = 50 * time.Millisecond

// rising reports whether one of the Machines was woken a moment ago: it may not listen yet.
func (s *Server) rising(tried []*route.Backend) bool {
	for _, b := range tried {
		if woken := b.Woken(); !woken.IsZero() && time.Since(woken) < s.Limits.WakeTimeout {
			return true
		}
	}
	return false
}
