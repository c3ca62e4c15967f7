package worker

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/logs"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// TestPowerCutOfANode: everything that ran runs again without a controller or a
// registry, what was stopped stays stopped, and slots stay what they were.
func TestPowerCutOfANode(t *testing.T) {
	n := newNode(t)
	n.boot()
	var running, stopped []*internalpb.Assignment
	slots := map[string]uint32{}
	policies := []string{"no", "on-failure", "always"}
	for i := range 12 {
		a := n.assign(n.asg(key.NewMachineID(), fmt.Sprintf(`{"image":"a","restart":{"policy":%q}}`, policies[i%3])))
		running = append(running, a)
	}
	for _, a := range running {
		slots[a.MachineId] = uint32(n.state(a, machine.Started).Slot)
	}
	for _, a := range running[9:] {
		a = n.assign(n.next(a, desired(machine.WantStopped)))
		n.until(a.MachineId, "stopped", func(r *record) bool { return r.State == machine.Stopped && r.Sandbox == "" })
		stopped = append(stopped, a)
	}
	running = running[:9]
	n.down()
	n.host.PowerCut()
	n.images.mu.Lock()
	n.images.ensure = func(context.Context, machine.ImageRef) error {
		return fault.New(fault.Unavailable, "the controller is out of reach")
	}
	n.images.mu.Unlock()
	n.boot()
	for _, a := range running {
		r := n.until(a.MachineId, "running again", func(r *record) bool { return r.State == machine.Started && len(exits(r)) == 1 })
		if uint32(r.Slot) != slots[a.MachineId] || n.host.Starts(key.MachineID(a.MachineId)) != 2 {
			t.Errorf("%s: slot %d, was %d; %d starts", a.MachineId, r.Slot, slots[a.MachineId], n.host.Starts(key.MachineID(a.MachineId)))
		}
	}
	for _, a := range stopped {
		if s, _ := n.w.get(key.MachineID(a.MachineId)); s.rec.State != machine.Stopped || n.host.Starts(key.MachineID(a.MachineId)) != 1 {
			t.Errorf("a stopped machine is %s", s.rec.State)
		}
	}
	list, _ := n.host.List(t.Context())
	if len(list) != len(running) {
		t.Errorf("%d sandboxes, want %d", len(list), len(running))
	}
}

// TestRestartOfTheWorkerTouchesNothing: machines run on, their output is read on,
// and what ended meanwhile is noticed.
func TestRestartOfTheWorkerTouchesNothing(t *testing.T) {
	n := newNode(t)
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	b := n.assign(n.asg(key.NewMachineID(), `{"image":"a","restart":{"policy":"no"}}`))
	seq := n.state(a, machine.Started).Seq
	n.state(b, machine.Started)
	n.down()
	if err := n.host.Signal(t.Context(), key.MachineID(b.MachineId), 15); err != nil {
		t.Fatal(err)
	}
	n.boot()
	r := n.until(b.MachineId, "its end", func(r *record) bool { return r.State == machine.Stopped })
	if x := exits(r); x[0].ExitCode != 143 || x[0].Signal != 15 {
		t.Fatalf("%+v", x[0])
	}
	if s, _ := n.w.get(key.MachineID(a.MachineId)); s.rec.State != machine.Started || s.rec.Seq != seq || n.host.Starts(key.MachineID(a.MachineId)) != 1 {
		t.Fatalf("%s after a restart of the worker, %d starts", s.rec.State, n.host.Starts(key.MachineID(a.MachineId)))
	}
}

// TestStraysAreRemoved: sandboxes and logs that no record names go.
func TestStraysAreRemoved(t *testing.T) {
	n := newNode(t)
	stray := key.NewMachineID()
	if _, err := n.host.Start(t.Context(), sandbox.Spec{Machine: stray, Instance: key.NewInstanceID(), Slot: 1, Image: digestA, Args: []string{"sleep"}, Cwd: "/"}); err != nil {
		t.Fatal(err)
	}
	s, err := logs.Open(n.dir+"/logs", logs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Append(stray, logs.Line{Time: time.Now(), Stream: logs.Stdout, Text: []byte("x")})
	s.Close()
	n.boot()
	// The first machine gets the stray's slot: it starts only once the stray is gone.
	a := n.assign(n.asg(key.NewMachineID(), plain))
	if r := n.state(a, machine.Started); r.Slot != 1 {
		t.Fatalf("slot %d", r.Slot)
	}
	if list, _ := n.host.List(t.Context()); len(list) != 1 || string(list[0].Machine) != a.MachineId {
		t.Fatalf("%v", list)
	}
	if l, _ := n.w.logs.Read(stray, 0); l != nil {
		t.Fatal("the stray's logs are left")
	}
}

// TestWardenAwayAtBoot: the worker opens without it, and starts machines once it
// answers.
func TestWardenAwayAtBoot(t *testing.T) {
	n := newNode(t)
	n.boot()
	n.down()
	var away atomic.Bool
	away.Store(true)
	n.host.Before = func(string, key.MachineID) error {
		if away.Load() {
			return fault.New(fault.Unavailable, "the warden does not answer")
		}
		return nil
	}
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	n.state(a, machine.Starting)
	away.Store(false)
	n.state(a, machine.Started)
}

// clock is a node's clock that a test can turn forward.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time            { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) forward(d time.Duration)   { c.ahead.Add(int64(d)) }
func (n *node) onClock(c *clock)           { n.opt.Now = c.now }
func beyond(s machine.State) time.Duration { return machine.Deadline(s) + time.Second }
func (n *node) nudge(a *internalpb.Assignment) *internalpb.Assignment {
	return n.assign(n.next(a, func(a *internalpb.Assignment) { a.Cordoned = !a.Cordoned }))
}

// TestDeadlines: a machine leaves a passing state when its deadline has passed, is
// failed with the reason, and is tried again later.
func TestDeadlines(t *testing.T) {
	n := newNode(t)
	c := &clock{}
	n.onClock(c)
	var away atomic.Bool
	away.Store(true)
	n.host.Before = func(op string, _ key.MachineID) error {
		if away.Load() && (op == "start" || op == "remove") {
			return fault.New(fault.Unavailable, "the warden does not answer")
		}
		return nil
	}
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	n.until(a.MachineId, "the complaint", func(r *record) bool { return r.State == machine.Starting && r.Error != "" })
	c.forward(beyond(machine.Starting))
	r := n.state(a, machine.Failed)
	if !r.Retry || !r.NextStart.After(c.now()) || r.Error == "" {
		t.Fatalf("retry %v at %v, error %q", r.Retry, r.NextStart, r.Error)
	}
	away.Store(false)
	c.forward(failedRetry)
	a = n.nudge(a)
	n.state(a, machine.Started)

	// A destruction that cannot be finished is not called destroyed, and goes on later.
	away.Store(true)
	a = n.assign(n.next(a, desired(machine.WantDestroyed), func(a *internalpb.Assignment) { a.Force = true }))
	n.until(a.MachineId, "the complaint", func(r *record) bool { return r.State == machine.Destroying && r.Error != "" })
	c.forward(beyond(machine.Destroying))
	n.state(a, machine.Failed)
	away.Store(false)
	c.forward(failedRetryMax)
	a = n.nudge(a)
	n.state(a, machine.Destroyed)
}

// TestClockSetBackAtReboot: a machine that waited to be tried again does not wait for
// the hour by which the clock is back.
func TestClockSetBackAtReboot(t *testing.T) {
	n := newNode(t)
	c := &clock{}
	c.forward(time.Hour)
	n.onClock(c)
	var away atomic.Bool
	away.Store(true)
	n.host.Before = func(op string, _ key.MachineID) error {
		if away.Load() && op == "start" {
			return fault.New(fault.Unavailable, "the warden does not answer")
		}
		return nil
	}
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	n.until(a.MachineId, "the complaint", func(r *record) bool { return r.State == machine.Starting && r.Error != "" })
	c.forward(beyond(machine.Starting))
	n.state(a, machine.Failed)
	n.down()
	n.host.PowerCut()
	away.Store(false)
	c.forward(-time.Hour)
	n.boot()
	s, err := n.w.get(key.MachineID(a.MachineId))
	if err != nil {
		t.Fatal(err)
	}
	if wait := s.rec.NextStart.Sub(c.now()); wait > failedRetryMax {
		t.Errorf("it is tried again in %v, and no wait is longer than %v", wait, failedRetryMax)
	}
	c.forward(failedRetryMax)
	n.nudge(a)
	n.state(a, machine.Started)
}

// TestNextStart: a wait goes on over a restart, and begins anew when the clock was set
// back; it is never longer than it was.
func TestNextStart(t *testing.T) {
	decided := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ wait, later, left time.Duration }{
		{30 * time.Second, 10 * time.Second, 20 * time.Second},
		{30 * time.Second, time.Hour, 30*time.Second - time.Hour},
		{30 * time.Second, -time.Hour, 30 * time.Second},
		{time.Minute, -time.Second, time.Minute},
		{failedRetryMax, -time.Hour, failedRetryMax},
		{2 * time.Hour, 0, failedRetryMax},
	} {
		now := decided.Add(c.later)
		if got := nextStart(&record{Since: decided, NextStart: decided.Add(c.wait)}, now).Sub(now); got != c.left {
			t.Errorf("a wait of %v, %v later: %v left, want %v", c.wait, c.later, got, c.left)
		}
	}
	if got := nextStart(&record{Since: decided}, decided.Add(-time.Hour)); !got.IsZero() {
		t.Errorf("nothing to wait for became %v", got)
	}
}

// TestImagesAreCollected: age and budget decide, what a machine needs stays.
func TestImagesAreCollected(t *testing.T) {
	n := newNode(t)
	c := &clock{}
	n.onClock(c)
	digest := func(i int) key.Digest { return key.Digest(fmt.Sprintf("sha256:%064x", i)) }
	for i := 1; i <= 4; i++ {
		n.images.sealed[digest(i)] = &image.Image{Digest: digest(i), Size: 100}
	}
	n.opt.ImageBudget = 1 << 30
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	n.state(a, machine.Started)
	if got := n.w.collectImages(); len(got) != 0 {
		t.Fatalf("removed %v at once", got)
	}
	// Over budget: the longest unused one first, and no more than needed.
	c.forward(time.Minute)
	for _, i := range []int{1, 3, 4} {
		n.w.used(digest(i))
	}
	n.w.opt.ImageBudget = 1<<20 + 300
	if got := n.w.collectImages(); fmt.Sprint(got) != fmt.Sprint([]key.Digest{digest(2)}) {
		t.Fatalf("removed %v, want the second", got)
	}
	c.forward(25 * time.Hour)
	n.w.sealing.RLock()
	if got := n.w.collectImages(); got != nil {
		t.Fatalf("removed %v while an image is sealed", got)
	}
	n.w.sealing.RUnlock()
	if got := n.w.collectImages(); len(got) != 3 {
		t.Fatalf("removed %v", got)
	}
	if _, ok := n.images.Lookup(digestA); !ok {
		t.Fatal("the image of a running machine is gone")
	}
}

// TestNoRoom: two machines that passed Reserve at the same time do not both start.
func TestNoRoom(t *testing.T) {
	n := newNode(t)
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), `{"image":"a","guest":{"memory_mb":3000}}`))
	n.state(a, machine.Started)
	b := n.assign(n.asg(key.NewMachineID(), `{"image":"a","guest":{"memory_mb":3000}}`))
	if r := n.state(b, machine.Destroyed); r.Error != noMemory {
		t.Fatalf("%q", r.Error)
	}
	a = n.assign(n.next(a, desired(machine.WantStopped)))
	n.until(a.MachineId, "no sandbox", func(r *record) bool { return r.Sandbox == "" })
	c := n.assign(n.asg(key.NewMachineID(), `{"image":"a","guest":{"memory_mb":3000}}`))
	n.state(c, machine.Started)
}
