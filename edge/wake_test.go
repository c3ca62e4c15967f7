package edge_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/edge"
	"bulkhead/fault"
	"bulkhead/internal/await"
)

// sleeper plays a worker with Machines that sleep: their address takes no connection
// until they are woken.
type sleeper struct {
	internalpb.WorkerClient // of which the edge calls two methods

	mu      sync.Mutex
	awake   map[string]bool // by machine
	seq     int64
	took    time.Duration // of a waking
	now     chan struct{} // closed: those that are under way end
	err     error
	wakes   atomic.Int64
	idles   atomic.Int64
	idled   chan string // gets every Machine that is reported idle
	failed  chan string // gets every address of an awake Machine that takes no connection
	refuse  error       // of Idle
	refused []time.Time // when
	frozen  bool        // nothing is answered
}

// freeze waits for the caller to give up, as if the worker were frozen.
func (s *sleeper) freeze(ctx context.Context) error {
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	if !frozen {
		return nil
	}
	<-ctx.Done()
	return fault.Wrap(fault.Timeout, ctx.Err(), "no answer")
}

func (s *sleeper) Wake(ctx context.Context, r *internalpb.WakeRequest, _ ...grpc.CallOption) (*internalpb.WakeResponse, error) {
	s.wakes.Add(1)
	if err := s.freeze(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	took, err := s.took, s.err
	s.mu.Unlock()
	select {
	case <-time.After(took):
	case <-s.now:
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Timeout, ctx.Err(), "too long")
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	s.awake[r.GetMachineId()] = true
	return &internalpb.WakeResponse{Seq: s.seq}, nil
}

func (s *sleeper) Idle(ctx context.Context, r *internalpb.IdleRequest, _ ...grpc.CallOption) (*internalpb.IdleResponse, error) {
	s.idles.Add(1)
	select {
	case s.idled <- r.GetMachineId():
	default:
	}
	if err := s.freeze(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		s.refused = append(s.refused, time.Now())
		return nil, s.refuse
	}
	s.seq++
	s.awake[r.GetMachineId()] = false
	return &internalpb.IdleResponse{Seq: s.seq}, nil
}

// sleepyAt is a Machine at addr that traffic starts and stops.
func sleepyAt(addr string, asleep bool, seq int64) *internalpb.Backend {
	b := at(addr)
	b.Asleep, b.Seq, b.Autostart, b.Autostop = asleep, seq, true, true
	return b
}

// newSleeper starts an edge whose Machines are the sleeper's.
func newSleeper(t *testing.T, limits edge.Limits) (*world, *sleeper) {
	t.Helper()
	s := &sleeper{awake: map[string]bool{}, seq: 100, took: 50 * time.Millisecond,
		idled: make(chan string, 100), failed: make(chan string, 100)}
	w := newWorldWithoutEdge(t)
	w.dial = func(ctx context.Context, addr string) (net.Conn, error) {
		s.mu.Lock()
		up := s.awake["m-"+addr]
		s.mu.Unlock()
		if !up {
			return nil, &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			select {
			case s.failed <- addr:
			default:
			}
		}
		return c, err
	}
	w.startEdge(limits)
	t.Cleanup(func() { w.stop() })
	w.edge.WakeWith(s)
	return w, s
}

func hi(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hi") }

// TestOneWakeForAll: requests that come while an app sleeps wait for one waking, in
// bounded number, and are answered.
func TestOneWakeForAll(t *testing.T) {
	bothVersions(t, func(t *testing.T, h2 bool) {
		w, s := newSleeper(t, edge.Limits{MaxHeld: 20, WakeTimeout: time.Minute, IdleAfter: time.Hour})
		s.took, s.now = time.Minute, make(chan struct{})
		w.route("app", web(sleepyAt(serve(t, hi), true, 1))...)
		var ok, full atomic.Int64
		var all sync.WaitGroup
		c := w.client(h2)
		for range 50 {
			all.Go(func() {
				resp, body := get(t, c, "https://app."+domain+"/")
				switch {
				case resp.StatusCode == 200 && body == "hi":
					ok.Add(1)
				case resp.StatusCode == 503 && resp.Header.Get("Bulkhead-Error") == "PL02":
					full.Add(1)
				default:
					t.Errorf("%d %s", resp.StatusCode, body)
				}
			})
		}
		// The Machine is up when all have come: 20 wait, the others were told.
		await.True(t, "requests without a place are refused", func() bool { return full.Load() >= 30 })
		close(s.now)
		all.Wait()
		if ok.Load() != 20 || full.Load() != 30 || s.wakes.Load() != 1 {
			t.Errorf("%d answered, %d refused, %d wakings; want 20 answered, 30 refused, 1 waking", ok.Load(), full.Load(), s.wakes.Load())
		}
	})
}

// TestNoAppTakesAllPlaces: requests for apps that do not start leave places in which
// another app's requests wait.
func TestNoAppTakesAllPlaces(t *testing.T) {
	w, s := newSleeper(t, edge.Limits{MaxHeld: 20, MaxHeldAll: 40, WakeTimeout: time.Minute, IdleAfter: time.Hour})
	s.took, s.now = time.Minute, make(chan struct{})
	apps := []string{"greedy1", "greedy2", "greedy3", "modest"}
	for i, app := range apps {
		w.route(app, web(sleepyAt(serve(t, hi), true, int64(i+1)))...)
	}
	c := w.client(false)
	var all sync.WaitGroup
	var refused atomic.Int64
	for _, app := range apps[:3] {
		for range 60 {
			all.Go(func() {
				if resp, _ := get(t, c, "https://"+app+"."+domain+"/"); resp.StatusCode == 503 {
					refused.Add(1)
				}
			})
		}
	}
	// 35 of them wait at most: the others were refused, and there is room for one more.
	await.True(t, "145 requests are refused", func() bool { return refused.Load() >= 145 })
	s.mu.Lock()
	s.took = 0
	s.mu.Unlock()
	if resp, body := get(t, c, "https://modest."+domain+"/"); resp.StatusCode != 200 {
		t.Errorf("the modest app: %d %s", resp.StatusCode, body)
	}
	close(s.now)
	all.Wait()
}

// TestWakingThatFails: who waits is told, in time, and a Machine that does not come up
// is left alone for a while.
func TestWakingThatFails(t *testing.T) {
	w, s := newSleeper(t, edge.Limits{WakeTimeout: 300 * time.Millisecond, IdleAfter: time.Hour})
	w.route("app", web(sleepyAt(serve(t, hi), true, 1))...)
	c := w.client(false)
	s.err = fault.New(fault.Conflict, "it is cordoned")
	for range 20 {
		if resp, _ := get(t, c, "https://app."+domain+"/"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Fatalf("a refused waking: %d %v", resp.StatusCode, resp.Header)
		}
	}
	if n := s.wakes.Load(); n > 5 {
		t.Errorf("20 requests asked %d times for a machine that is not to be woken", n)
	}
	s.mu.Lock()
	s.err, s.took = nil, time.Hour
	s.mu.Unlock()
	w.route("slow", web(sleepyAt(serve(t, hi), true, 1))...)
	began := time.Now()
	resp, _ := get(t, c, "https://slow."+domain+"/")
	if took := time.Since(began); resp.StatusCode != 503 || resp.Header.Get("Bulkhead-Error") != "PM03" || took > 10*time.Second {
		t.Errorf("a waking without end: %d %s after %v", resp.StatusCode, resp.Header.Get("Bulkhead-Error"), took)
	}
	s.mu.Lock()
	s.took = 0
	s.mu.Unlock()
	await.True(t, "the machine is woken again", func() bool { resp, _ := get(t, c, "https://app."+domain+"/"); return resp.StatusCode == 200 })
}

// TestAMachineThatWentDownUnheard: with the controller away nobody tells that a Machine
// sleeps; it is found out, also by an edge that starts from its cache.
func TestAMachineThatWentDownUnheard(t *testing.T) {
	w, s := newSleeper(t, edge.Limits{IdleAfter: time.Hour})
	w.route("app", web(sleepyAt(serve(t, hi), false, 1))...)
	c := w.client(false)
	ask := func() {
		t.Helper()
		if resp, body := get(t, c, "https://app."+domain+"/"); resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	ask()
	if s.wakes.Load() != 1 {
		t.Fatalf("%d wakings", s.wakes.Load())
	}
	w.ctl.srv.Stop()
	w.stop()
	s.mu.Lock()
	clear(s.awake)
	s.mu.Unlock()
	w.startEdge(edge.Limits{IdleAfter: time.Hour})
	defer w.stop()
	w.edge.WakeWith(s)
	c = w.client(false)
	ask()
	if s.wakes.Load() != 2 {
		t.Errorf("%d wakings by an edge from its cache", s.wakes.Load()-1)
	}
}

// TestIdleMachinesAreReported: one without requests, and not one with a request under
// way; a refusal is not repeated at once, and a word that comes late changes nothing.
func TestIdleMachinesAreReported(t *testing.T) {
	const idleAfter = 300 * time.Millisecond
	w, s := newSleeper(t, edge.Limits{IdleAfter: idleAfter})
	began, release := make(chan struct{}), make(chan struct{})
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(began)
			<-release
		}
		hi(w, r)
	})
	s.awake["m-"+addr] = true
	// Traffic may stop it from when the request is under way.
	runs := sleepyAt(addr, false, 7)
	runs.Autostop = false
	w.route("app", web(runs)...)
	c := w.client(false)
	slow := make(chan error, 1)
	go func() {
		resp, err := c.Get("https://app." + domain + "/slow")
		if err == nil && resp.StatusCode != 200 {
			err = errors.New(resp.Status)
		}
		if err == nil {
			resp.Body.Close()
		}
		slow <- err
	}()
	<-began
	w.route("app", web(sleepyAt(addr, false, 7))...)
	// Machines that came later are reported, so this one could have been.
	for i := range 3 {
		other := serve(t, hi)
		s.mu.Lock()
		s.awake["m-"+other] = true
		s.mu.Unlock()
		app := fmt.Sprintf("other%d", i)
		w.route(app, web(sleepyAt(other, false, 7))...)
		await.True(t, "the other is reported", func() bool { return s.idles.Load() == int64(i+1) })
		if got := <-s.idled; got != "m-"+other {
			t.Errorf("reported is %s, want the one without requests, m-%s", got, other)
		}
	}
	s.idles.Store(0)
	close(release)
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	await.True(t, "the idle machine is reported", func() bool { return s.idles.Load() == 1 })
	s.mu.Lock() // which waits until that is answered
	s.refuse = fault.New(fault.Precondition, "min_machines_running")
	s.mu.Unlock()
	// What the controller said before the machine slept arrives now.
	w.route("app", web(sleepyAt(addr, false, 8))...)
	if resp, _ := get(t, c, "https://app."+domain+"/"); resp.StatusCode != 200 || s.wakes.Load() != 1 || w.metric(`bulkhead_edge_wakes_total{result="doubt"}`) != 0 {
		t.Errorf("after a late word: %d, %d wakings, %v doubts", resp.StatusCode, s.wakes.Load(), w.metric(`bulkhead_edge_wakes_total{result="doubt"}`))
	}
	var refused []time.Time
	await.True(t, "a machine that must run on is reported again and again", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		refused = s.refused
		return len(refused) >= 4
	})
	for i := range 3 {
		// The edge counts from when it has heard, which is after this clock was read.
		if gap := refused[i+1].Sub(refused[i]); gap < idleAfter {
			t.Errorf("a machine that must run on was reported again after %v", gap)
		}
	}
	if resp, _ := get(t, c, "https://app."+domain+"/"); resp.StatusCode != 200 || s.wakes.Load() != 1 {
		t.Errorf("a machine that runs on: %d, %d wakings", resp.StatusCode, s.wakes.Load())
	}
}

// TestAFrozenWorkerCostsNoRequest: a Machine that runs is used, also when the worker
// answers neither the report that it is idle nor the call to wake another.
func TestAFrozenWorkerCostsNoRequest(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		w, s := newSleeper(t, edge.Limits{IdleAfter: 100 * time.Millisecond, WakeTimeout: 20 * time.Second})
		s.frozen = true
		addr := serve(t, hi)
		s.awake["m-"+addr] = true
		w.route("app", web(sleepyAt(addr, false, 1))...)
		await.True(t, "the machine is reported idle", func() bool { return s.idles.Load() > 0 })
		began := time.Now()
		resp, body := get(t, w.client(false), "https://app."+domain+"/")
		if took := time.Since(began); resp.StatusCode != 200 || took > 15*time.Second {
			t.Errorf("while it is reported idle: %d %q after %v", resp.StatusCode, body, took)
		}
	})
	t.Run("full", func(t *testing.T) {
		w, s := newSleeper(t, edge.Limits{IdleAfter: time.Hour, QueueTimeout: 20 * time.Second, WakeTimeout: 20 * time.Second})
		s.frozen = true
		began, release := make(chan struct{}), make(chan struct{})
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(began)
				<-release
			}
			hi(w, r)
		})
		s.awake["m-"+addr] = true
		up := sleepyAt(addr, false, 1)
		up.SoftLimit, up.HardLimit = 1, 1
		w.route("app", web(up, sleepyAt(serve(t, hi), true, 1))...)
		c := w.client(false)
		var all sync.WaitGroup
		all.Go(func() { get(t, c, "https://app."+domain+"/slow") })
		<-began
		all.Go(func() {
			await.True(t, "another is asked to wake", func() bool { return s.wakes.Load() > 0 })
			close(release)
		})
		asked := time.Now()
		resp, body := get(t, c, "https://app."+domain+"/")
		if took := time.Since(asked); resp.StatusCode != 200 || took > 15*time.Second {
			t.Errorf("when a place gets free while another is woken: %d %q after %v", resp.StatusCode, body, took)
		}
		all.Wait()
	})
}

// TestAFloodWakesOneOfTwo: who comes while the flight lands does not start the next.
func TestAFloodWakesOneOfTwo(t *testing.T) {
	w, s := newSleeper(t, edge.Limits{IdleAfter: time.Hour})
	s.took = 0
	one, two := sleepyAt(serve(t, hi), true, 1), sleepyAt(serve(t, hi), true, 1)
	one.SoftLimit, two.SoftLimit = 1000, 1000
	w.route("app", web(one, two)...)
	c := w.client(false)
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if resp, body := get(t, c, "https://app."+domain+"/"); resp.StatusCode != 200 {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
		})
	}
	all.Wait()
	if n := s.wakes.Load(); n != 1 {
		t.Errorf("%d wakings; want 1", n)
	}
}

// TestAWokenMachineThatDoesNotListenYet: it is asked again while all others are full.
func TestAWokenMachineThatDoesNotListenYet(t *testing.T) {
	w, s := newSleeper(t, edge.Limits{IdleAfter: time.Hour, QueueTimeout: 20 * time.Second})
	began, release := make(chan struct{}), make(chan struct{})
	busy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-release
		hi(w, r)
	})
	s.awake["m-"+busy] = true
	late, open := refusing(t)
	var on []*internalpb.Backend
	for i, addr := range []string{busy, late} {
		b := sleepyAt(addr, i > 0, 1)
		b.SoftLimit, b.HardLimit = 1, 1
		on = append(on, b)
	}
	w.route("app", web(on...)...)
	c := w.client(false)
	var all sync.WaitGroup
	all.Go(func() { get(t, c, "https://app."+domain+"/slow") })
	<-began
	all.Go(func() {
		for range 3 { // it is woken, and asked too early
			select {
			case <-s.failed:
			case <-t.Context().Done():
				return
			}
		}
		srv := &http.Server{Handler: http.HandlerFunc(hi)}
		t.Cleanup(func() { srv.Close() })
		go srv.Serve(open())
	})
	asked := time.Now()
	resp, body := get(t, c, "https://app."+domain+"/")
	if took := time.Since(asked); resp.StatusCode != 200 || took > 18*time.Second || s.wakes.Load() != 1 {
		t.Errorf("%d %q after %v, %d wakings", resp.StatusCode, body, took, s.wakes.Load())
	}
	close(release)
	all.Wait()
}
