package worker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox/fake"
)

// sleepy is a config that lets traffic start and stop the Machine.
const sleepy = `{"image":"app","services":[{"internal_port":80,"autostart":true,"autostop":"stop"}]}`

// says is a user's next word.
func says(d machine.Desired) func(*internalpb.Assignment) {
	return func(a *internalpb.Assignment) {
		a.Desired, a.Wish = string(d), a.Wish+1
		if d == machine.WantStarted {
			a.StartNonce++
		}
	}
}

func (n *node) wake(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := (&service{w: n.w}).Wake(ctx, &internalpb.WakeRequest{MachineId: id})
	return err
}

func (n *node) idle(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := (&service{w: n.w}).Idle(ctx, &internalpb.IdleRequest{MachineId: id})
	return err
}

// quick lets a Machine with services stop at once.
func quick(w *Worker) { w.opt.RouteGrace = time.Microsecond }

// TestWhatAnEdgeMayDo: of all Machines an edge starts those that may be woken, and
// stops those that may be idle.
func TestWhatAnEdgeMayDo(t *testing.T) {
	n := newNode(t)
	n.tune = quick
	n.boot()
	const start, stop = `{"image":"app","services":[{"internal_port":80,"autostart":true}]}`, `{"image":"app","services":[{"internal_port":80,"autostop":true}]}`
	cordoned := func(a *internalpb.Assignment) { a.Cordoned = true }
	leased := func(a *internalpb.Assignment) { a.LeaseUntilMs = time.Now().Add(time.Hour).UnixMilli() }
	back := func(a *internalpb.Assignment) { // a lease of a minute, taken before the clock was set back an hour
		a.LeaseUntilMs, a.LeaseTtlMs = time.Now().Add(time.Hour+time.Minute).UnixMilli(), time.Minute.Milliseconds()
	}
	over := func(a *internalpb.Assignment) { a.LeaseUntilMs = time.Now().Add(-time.Second).UnixMilli() }
	for _, c := range []struct {
		what, config string
		state        machine.State // in which it is asked
		change       func(*internalpb.Assignment)
		wake, idle   fault.Kind // "" is yes
	}{
		{"autostart, stopped", start, machine.Stopped, nil, "", fault.Denied},
		{"autostart, started", start, machine.Started, nil, "", fault.Denied},
		{"autostop, started", stop, machine.Started, nil, fault.Denied, ""},
		{"autostop, stopped", stop, machine.Stopped, nil, fault.Denied, fault.Conflict},
		{"neither, stopped", `{"image":"app","services":[{"internal_port":80}]}`, machine.Stopped, nil, fault.Denied, fault.Denied},
		{"neither, started", `{"image":"app","services":[{"internal_port":80}]}`, machine.Started, nil, fault.Denied, fault.Denied},
		{"no service", plain, machine.Stopped, nil, fault.Denied, fault.Denied},
		{"one service of two has autostop", `{"image":"app","services":[{"internal_port":80,"autostop":true},{"internal_port":81}]}`, machine.Started, nil, fault.Denied, fault.Denied},
		{"cordoned, stopped", sleepy, machine.Stopped, cordoned, fault.Conflict, fault.Conflict},
		{"cordoned, started", sleepy, machine.Started, cordoned, fault.Conflict, fault.Conflict},
		{"leased, stopped", sleepy, machine.Stopped, leased, fault.Conflict, fault.Conflict},
		{"leased, started", sleepy, machine.Started, leased, "", fault.Conflict},
		{"a lease that is over", sleepy, machine.Stopped, over, "", ""},
		{"a lease of another clock", sleepy, machine.Stopped, back, "", ""},
		{"never started", sleepy, machine.Created, nil, fault.Conflict, fault.Conflict},
		{"destroyed", sleepy, machine.Destroyed, nil, fault.Conflict, fault.Conflict},
		{"at the minimum", `{"image":"app","services":[{"internal_port":80,"autostop":true,"min_machines_running":1}]}`, machine.Started, nil, fault.Denied, fault.Precondition},
	} {
		t.Run(c.what, func(t *testing.T) {
			id := key.NewMachineID()
			app := func(a *internalpb.Assignment) { a.App = string(id) } // alone in its app
			first := machine.WantStarted
			if c.state == machine.Created {
				first = machine.WantStopped
			}
			a := n.assign(n.asg(id, c.config, app, desired(first)))
			switch c.state {
			case machine.Stopped:
				n.state(a, machine.Started)
				a = n.assign(n.next(a, says(machine.WantStopped)))
			case machine.Destroyed:
				a = n.assign(n.next(a, desired(machine.WantDestroyed)))
			}
			n.state(a, c.state)
			if c.change != nil {
				a = n.assign(n.next(a, c.change))
				n.until(a.MachineId, "the change", func(*record) bool { k, _ := n.w.get(id); return k.asg.Generation == a.Generation })
			}
			now := c.state
			check := func(what string, err error, want fault.Kind, then machine.State) {
				t.Helper()
				if want != "" {
					if fault.KindOf(err) != want {
						t.Errorf("%s: %v; want %s", what, err, want)
					}
				} else if now = then; err != nil {
					t.Errorf("%s: %v", what, err)
				}
				n.state(a, now)
			}
			check("wake", n.wake(string(id)), c.wake, machine.Started)
			check("idle", n.idle(string(id)), c.idle, machine.Stopped)
			n.assign(n.next(a, desired(machine.WantDestroyed)))
		})
	}
	if err := n.wake(string(key.NewMachineID())); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown machine: %v", err)
	}
	if err := n.wake("../../etc"); !fault.Is(err, fault.Invalid) {
		t.Errorf("no id: %v", err)
	}
}

// TestTrafficsWordHolds: what a wake and an idle stop made of a user's wish outlives the
// worker, a power cut and changes that say nothing about it, and gives way to the
// user's next word.
func TestTrafficsWordHolds(t *testing.T) {
	n := newNode(t)
	n.tune = quick
	n.boot()
	id := key.NewMachineID()
	a := n.assign(n.asg(id, sleepy))
	n.state(a, machine.Started)
	a = n.assign(n.next(a, says(machine.WantStopped)))
	n.state(a, machine.Stopped)
	if err := n.wake(a.MachineId); err != nil {
		t.Fatal(err)
	}
	again := func(s machine.State, local machine.Desired) {
		t.Helper()
		n.down()
		n.host.PowerCut()
		n.boot()
		n.assign(a) // the snapshot
		a = n.assign(n.next(a, func(a *internalpb.Assignment) { a.Name += "x" }))
		n.state(a, s)
		k, _ := n.w.get(id)
		if k.obs.Local != string(local) || local != "" && k.obs.Wish != a.Wish {
			t.Fatalf("observed %s by %q, wish %d of %d", k.obs.State, k.obs.Local, k.obs.Wish, a.Wish)
		}
	}
	again(machine.Started, machine.WantStarted)
	n.until(a.MachineId, "running after the power cut", func(r *record) bool { return n.host.Starts(id) == 3 && r.State == machine.Started })
	if err := n.idle(a.MachineId); err != nil {
		t.Fatal(err)
	}
	n.state(a, machine.Stopped)
	again(machine.Stopped, machine.WantStopped)
	if err := n.wake(a.MachineId); err != nil {
		t.Fatal(err)
	}
	a = n.assign(n.next(a, says(machine.WantStopped)))
	n.state(a, machine.Stopped)
	again(machine.Stopped, "")
	a = n.assign(n.next(a, says(machine.WantStarted)))
	n.state(a, machine.Started)
	if err := n.idle(a.MachineId); err != nil {
		t.Fatal(err)
	}
	r := n.state(a, machine.Stopped)
	a = n.assign(n.next(a, says(machine.WantStarted)))
	n.state(a, machine.Started)
	var told []string
	for _, e := range r.Events {
		if e.Request != nil && e.Request.Reason != "" {
			told = append(told, e.Type+" by "+e.Source+": "+e.Request.Reason)
		}
	}
	want := "stop by flyd: no request came for a while, start by flyd: woken by a request, stop by flyd: no request came for a while, start by flyd: woken by a request"
	if got := strings.Join(told, ", "); got != want {
		t.Errorf("events:\n got %s\nwant %s", got, want)
	}
}

// TestWakesAreBounded: a Machine whose process ends as soon as it was started is not
// started as often as somebody asks, and is woken again when a moment has passed; a
// user starts it at once.
func TestWakesAreBounded(t *testing.T) {
	n := newNode(t)
	n.tune = quick
	// A clock that stands still but for the moment that passes between two looks.
	var passed atomic.Int64
	began := time.Now()
	n.opt.Now = func() time.Time { return began.Add(time.Duration(passed.Add(int64(time.Microsecond)))) }
	n.boot()
	n.host.Install("sleep", func(*fake.Process) int { return 0 })
	a := n.assign(n.asg(key.NewMachineID(), sleepy))
	id := key.MachineID(a.MachineId)
	n.until(a.MachineId, "its end", func(r *record) bool { return r.State == machine.Stopped && r.Sandbox == "" })
	starts := n.host.Starts(id)
	for range 3 {
		for range 20 {
			if err := n.wake(a.MachineId); !fault.Is(err, fault.Unavailable) {
				t.Errorf("a moment after its start it is woken again: %v", err)
			}
		}
		if got := n.host.Starts(id); got != starts {
			t.Errorf("it was started %d times, want %d", got, starts)
		}
		passed.Add(int64(wakeEvery))
		_ = n.wake(a.MachineId) // which may see its end before it sees its start
		starts++
		n.until(a.MachineId, "the next end", func(r *record) bool {
			return n.host.Starts(id) == starts && r.State == machine.Stopped && r.Sandbox == ""
		})
	}
	n.assign(n.next(a, says(machine.WantStarted)))
	n.until(a.MachineId, "the user's start", func(r *record) bool { return n.host.Starts(id) == starts+1 && r.State == machine.Stopped })
}

// TestManyWakeOnce: however many ask, the Machine is started once, also when it was
// still on its way down.
func TestManyWakeOnce(t *testing.T) {
	n := newNode(t)
	n.tune = quick
	n.boot()
	id := key.NewMachineID()
	a := n.assign(n.asg(id, sleepy))
	n.state(a, machine.Started)
	if err := n.idle(a.MachineId); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range maxAsks {
		all.Go(func() {
			if err := n.wake(a.MachineId); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := n.host.Starts(id); got != 2 {
		t.Errorf("%d starts, want 2", got)
	}
}

// TestAWakeAndAUser: a user who starts a Machine that is just being woken does not make
// the waking fail.
func TestAWakeAndAUser(t *testing.T) {
	n := newNode(t)
	var a *internalpb.Assignment
	var woken, began sync.Once
	answered := make(chan struct{})
	n.tune = func(w *Worker) {
		quick(w)
		w.point = func(name string) error {
			switch name {
			case "after wake":
				woken.Do(func() { a = n.next(a, says(machine.WantStarted)); w.Assign(a) })
			case "before begin": // the edge sees it as the user's word has left it
				if k, err := w.get(key.MachineID(a.MachineId)); err == nil && k.rec.State == machine.Stopped && k.asg.GetWish() == 2 {
					began.Do(func() { // an edge that took this for the end would be answered now
						select {
						case <-answered:
						case <-time.After(200 * time.Millisecond):
						}
					})
				}
			}
			return nil
		}
	}
	n.boot()
	a = n.assign(n.asg(key.NewMachineID(), sleepy))
	n.state(a, machine.Started)
	a = n.assign(n.next(a, says(machine.WantStopped)))
	n.state(a, machine.Stopped)
	if err := n.wake(a.MachineId); err != nil {
		t.Error(err)
	}
	close(answered)
	n.state(a, machine.Started)
}

// TestAWakeThatFindsNoRoom: it is refused, the Machine stays stopped, and comes up when
// there is room; what a wake took and a stop made useless is given back.
func TestAWakeThatFindsNoRoom(t *testing.T) {
	n := newNode(t)
	n.tune = quick
	n.opt.MemoryMB = 400
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), sleepy))
	n.state(a, machine.Started)
	if err := n.idle(a.MachineId); err != nil {
		t.Fatal(err)
	}
	n.until(a.MachineId, "no sandbox", func(r *record) bool { return r.State == machine.Stopped && r.Sandbox == "" })
	b := n.assign(n.asg(key.NewMachineID(), sleepy))
	n.state(b, machine.Started)
	if err := n.wake(a.MachineId); !fault.Is(err, fault.Precondition) {
		t.Fatalf("a wake without room: %v", err)
	}
	n.state(a, machine.Stopped)
	if err := n.idle(b.MachineId); err != nil {
		t.Fatal(err)
	}
	n.until(b.MachineId, "no sandbox", func(r *record) bool { return r.State == machine.Stopped && r.Sandbox == "" })
	if err := n.wake(a.MachineId); err != nil {
		t.Fatal(err)
	}
}

// TestTheMinimumHolds: many report many idle Machines at once, and as many run on as
// min_machines_running says. Machines of another process group are not counted.
func TestTheMinimumHolds(t *testing.T) {
	n := newNode(t)
	n.tune = quick
	n.boot()
	const config = `{"image":"app","metadata":{"fly_process_group":%q},"services":[{"internal_port":80,"autostart":true,"autostop":true,"min_machines_running":2}]}`
	var ids []string
	for i, group := range []string{"web", "web", "web", "web", "web", "other"} {
		a := n.assign(n.asg(key.NewMachineID(), fmt.Sprintf(config, group)))
		n.state(a, machine.Started)
		if i < 5 {
			ids = append(ids, a.MachineId)
		}
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	stopped := 0
	for _, id := range ids {
		for range 4 {
			all.Go(func() {
				if err := n.idle(id); err == nil {
					mu.Lock()
					stopped++
					mu.Unlock()
				}
			})
		}
	}
	all.Wait()
	if stopped != 3 {
		t.Errorf("%d of 5 were stopped; 3 are right", stopped)
	}
}

// trafficStory lets a user stop the Machine, traffic wake it, find it idle and wake it
// again, and asks again when the worker died meanwhile, as an edge does.
func trafficStory(d *driver, at int) error {
	d.n.tune = quick
	if err := d.boot(at); err != nil {
		return err
	}
	d.want(d.n.asg(d.id, sleepy))
	if err := d.until("launch", d.steady(machine.Started)); err != nil {
		return err
	}
	d.want(d.n.next(d.asg, says(machine.WantStopped)))
	if err := d.until("stop", func(r *record) bool { return d.steady(machine.Stopped)(r) && r.Sandbox == "" }); err != nil {
		return err
	}
	ask := func(what string, call func(context.Context, *service) error, done func(r *record) bool) error {
		return d.until(what, func(r *record) bool {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			return !d.m.isDead() && call(ctx, &service{w: d.n.w}) == nil && !d.m.isDead() && done(r)
		})
	}
	wake := func(ctx context.Context, s *service) error {
		_, err := s.Wake(ctx, &internalpb.WakeRequest{MachineId: string(d.id)})
		return err
	}
	up := func(*record) bool {
		k, err := d.n.w.get(d.id)
		return err == nil && k.up() && k.obs.Local == string(machine.WantStarted)
	}
	if err := ask("wake", wake, up); err != nil {
		return err
	}
	err := d.until("idle stop", func(r *record) bool {
		if r.State == machine.Stopped && r.Local == machine.WantStopped && r.Sandbox == "" {
			return true
		}
		if k, err := d.n.w.get(d.id); err == nil && k.up() && !d.m.isDead() {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			(&service{w: d.n.w}).Idle(ctx, &internalpb.IdleRequest{MachineId: string(d.id)})
		}
		return false
	})
	if err != nil {
		return err
	}
	if err := ask("second wake", wake, up); err != nil {
		return err
	}
	if n := d.n.host.Starts(d.id); n != 3 && !(d.power && d.died && n == 4) {
		return fmt.Errorf("its process was started %d times; 3 are right", n)
	}
	d.want(d.n.next(d.asg, desired(machine.WantDestroyed)))
	if err := d.until("destruction", func(r *record) bool { return r.State == machine.Destroyed }); err != nil {
		return err
	}
	return d.forget()
}

// TestTrafficIsKilledAtEveryStep: a wake and an idle stop of which the worker dies, or
// the node loses its power, at any step are taken up by the next worker, once.
func TestTrafficIsKilledAtEveryStep(t *testing.T) {
	for _, power := range []bool{false, true} {
		deaths, err := everyPoint(t, power, nil, trafficStory)
		t.Logf("%d crash points, power cut %v", deaths, power)
		if err != nil {
			t.Fatal(err)
		}
		if deaths < 40 {
			t.Fatalf("only %d crash points", deaths)
		}
	}
}
