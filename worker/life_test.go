package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/logs"
	"bulkhead/machine"
	"bulkhead/sandbox/fake"
)

const plain = `{"image":"app"}`

func TestLifeOfAMachine(t *testing.T) {
	n := newNode(t)
	n.boot()
	id := key.NewMachineID()
	a := n.assign(n.asg(id, plain))
	r := n.state(a, machine.Started)
	if got := types(r); got != "launch/created start/started" {
		t.Fatalf("events: %s", got)
	}
	s, _ := n.w.get(id)
	if s.obs.PrivateIp != "fdaa:0:5:0:7:0:1:2" || s.obs.InstanceId != a.InstanceId || s.obs.Generation != a.Generation {
		t.Fatalf("observation: %v", s.obs)
	}
	// Stop: the default signal is SIGINT.
	a = n.assign(n.next(a, desired(machine.WantStopped)))
	r = n.state(a, machine.Stopped)
	if x := exits(r); len(x) != 1 || x[0].ExitCode != 130 || x[0].Signal != 2 || !x[0].RequestedStop || x[0].Restarting {
		t.Fatalf("exit events: %+v", x[0])
	}
	n.until(a.MachineId, "no sandbox", func(r *record) bool { return r.Sandbox == "" })
	// Start again.
	a = n.assign(n.next(a, started(1)))
	n.state(a, machine.Started)
	// Restart, by nonce.
	a = n.assign(n.next(a, func(a *internalpb.Assignment) { a.RestartNonce = 1 }))
	n.until(a.MachineId, "restarted", func(r *record) bool { return r.State == machine.Started && r.RestartNonce == 1 })
	if got := n.host.Starts(id); got != 3 {
		t.Fatalf("%d starts", got)
	}
	// Update.
	a = n.assign(n.next(a, func(a *internalpb.Assignment) { a.InstanceId = string(key.NewInstanceID()) }))
	r = n.until(a.MachineId, "updated", func(r *record) bool { return r.State == machine.Started && string(r.Sandbox) == a.InstanceId })
	if got := n.host.Starts(id); got != 4 {
		t.Fatalf("%d starts", got)
	}
	want := "launch/created start/started stop/stopping exit/stopping start/starting start/started restart/restarting exit/restarting start/started update/updating exit/updating start/started"
	if got := types(r); got != want {
		t.Fatalf("events:\n got %s\nwant %s", got, want)
	}
	// Destroy and forget.
	a = n.assign(n.next(a, desired(machine.WantDestroyed)))
	r = n.state(a, machine.Destroyed)
	if r.Slot != 0 || r.Sandbox != "" {
		t.Fatalf("a destroyed machine holds %+v", r)
	}
	n.w.Forget(id)
	n.vanishes(id)
	if list, _ := n.host.List(context.Background()); len(list) != 0 {
		t.Fatalf("left: %v", list)
	}
}

// vanishes waits until the worker does not know the Machine.
func (n *node) vanishes(id key.MachineID) {
	n.t.Helper()
	if !watch(func() *Worker { return n.w }, id, 40*time.Second, func() bool {
		_, err := n.w.get(id)
		return fault.Is(err, fault.NotFound)
	}) {
		n.t.Fatal("the machine is never forgotten")
	}
}

func TestStopKillsAfterTimeout(t *testing.T) {
	n := newNode(t)
	got := make(chan int, 10)
	n.host.Install("stubborn", func(p *fake.Process) int {
		sig := p.Handle(10)
		p.Stdout.Write([]byte("ready\n"))
		for {
			select {
			case s := <-sig:
				got <- s
			case <-p.Done:
				return 0
			}
		}
	})
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), `{"image":"app","init":{"cmd":["stubborn"]},"stop_config":{"signal":"SIGUSR1","timeout":"150ms"}}`))
	n.state(a, machine.Started)
	n.line(a, "ready")
	began := time.Now()
	a = n.assign(n.next(a, desired(machine.WantStopped)))
	r := n.state(a, machine.Stopped)
	if d := time.Since(began); d < 150*time.Millisecond {
		t.Fatalf("killed after %v", d)
	}
	if x := exits(r); x[0].ExitCode != 137 || x[0].Signal != 9 {
		t.Fatalf("exit: %+v", x[0])
	}
	if len(got) != 1 || <-got != 10 {
		t.Fatal("the stop signal did not arrive once")
	}
}

// line waits until the Machine has printed a line.
func (n *node) line(a *internalpb.Assignment, text string) {
	n.t.Helper()
	await.True(n.t, fmt.Sprintf("line %q came", text), func() bool {
		lines, err := n.w.logs.Read(key.MachineID(a.MachineId), 0)
		if err != nil {
			n.t.Fatal(err)
		}
		return slices.ContainsFunc(lines, func(l logs.Line) bool { return string(l.Text) == text })
	})
}

// TestDestroyInterruptsALongStop: a forced destroy does not wait for a stop timeout.
func TestDestroyInterruptsALongStop(t *testing.T) {
	n := newNode(t)
	n.host.Install("deaf", func(p *fake.Process) int { p.Handle(2); p.Stdout.Write([]byte("ready\n")); <-p.Done; return 0 })
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), `{"image":"app","init":{"cmd":["deaf"]},"stop_config":{"timeout":"5m"}}`))
	n.state(a, machine.Started)
	n.line(a, "ready")
	a = n.assign(n.next(a, desired(machine.WantStopped)))
	n.state(a, machine.Stopping)
	a = n.assign(n.next(a, desired(machine.WantDestroyed), func(a *internalpb.Assignment) { a.Force = true }))
	n.state(a, machine.Destroyed)
}

func TestExitsAndPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		codes  []int // of each run; the last run sleeps when it is -1
		end    machine.State
		starts int
	}{
		"clean end stays":    {`{"image":"a","init":{"cmd":["run"]}}`, []int{0}, machine.Stopped, 1},
		"no never restarts":  {`{"image":"a","init":{"cmd":["run"]},"restart":{"policy":"no"}}`, []int{3}, machine.Stopped, 1},
		"crash, then well":   {`{"image":"a","init":{"cmd":["run"]}}`, []int{1, -1}, machine.Started, 2},
		"always":             {`{"image":"a","init":{"cmd":["run"]},"restart":{"policy":"always"}}`, []int{0, -1}, machine.Started, 2},
		"gives up":           {`{"image":"a","init":{"cmd":["run"]},"restart":{"max_retries":1}}`, []int{1, 1}, machine.Failed, 2},
		"auto_destroy":       {`{"image":"a","init":{"cmd":["run"]},"auto_destroy":true}`, []int{0}, machine.Destroyed, 1},
		"auto_destroy crash": {`{"image":"a","init":{"cmd":["run"]},"auto_destroy":true,"restart":{"policy":"no"}}`, []int{5}, machine.Destroyed, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			var runs atomic.Int32
			n.host.Install("run", func(p *fake.Process) int {
				code := c.codes[int(runs.Add(1))-1]
				fmt.Fprintf(p.Stdout, "run ends with %d", code) // no newline: the last words count too
				if code < 0 {
					<-p.Done
				}
				return code
			})
			n.boot()
			a := n.assign(n.asg(key.NewMachineID(), c.config))
			r := n.until(a.MachineId, "the end", func(r *record) bool { return r.State == c.end && int(runs.Load()) == c.starts })
			if len(c.codes) > 0 && c.codes[0] >= 0 {
				x := exits(r)
				if last := x[len(x)-1]; last.ExitCode != c.codes[0] || last.RequestedStop || last.Signal != -1 || last.Restarting != (c.starts > 1) {
					t.Fatalf("first exit: %+v", last)
				}
				n.line(a, fmt.Sprintf("run ends with %d", c.codes[0]))
			}
			if c.end == machine.Failed && !strings.Contains(r.Error, "retries are used up") {
				t.Fatalf("error: %q", r.Error)
			}
			if c.end != machine.Started {
				n.until(a.MachineId, "no sandbox", func(r *record) bool { return r.Sandbox == "" })
			}
		})
	}
}

func TestOOMAndVanishing(t *testing.T) {
	n := newNode(t)
	n.boot()
	id := key.NewMachineID()
	a := n.assign(n.asg(id, plain))
	n.state(a, machine.Started)
	n.host.OOM(id)
	r := n.until(a.MachineId, "second run", func(r *record) bool { return r.State == machine.Started && len(exits(r)) == 1 })
	if x := exits(r)[0]; !x.OOMKilled || x.ExitCode != 137 {
		t.Fatalf("%+v", x)
	}
	n.host.Vanish(id)
	r = n.until(a.MachineId, "third run", func(r *record) bool { return r.State == machine.Started && len(exits(r)) == 2 })
	if x := exits(r)[0]; x.ExitCode != -1 {
		t.Fatalf("%+v", x)
	}
	if got := types(r); !strings.Contains(got, "exit/restarting restart/starting start/started") {
		t.Fatalf("events: %s", got)
	}
}

// TestFailuresForGood: a first start that cannot work ends destroyed with the
// reason, a later one failed.
func TestFailuresForGood(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		setup  func(n *node)
		say    string
	}{
		"image cannot be used": {plain, func(n *node) {
			n.images.ensure = func(context.Context, machine.ImageRef) error {
				return fault.New(fault.Unprocessable, "layer 2: its digest does not match")
			}
		}, "layer 2: its digest does not match"},
		"no such command": {`{"image":"a","init":{"cmd":["nonsense"]}}`, nil, `the command "nonsense" does not exist in the image`},
		"no such user":    {`{"image":"a","processes":[{"user":"nobody"}]}`, nil, `user "nobody" is not in the image's /etc/passwd`},
		"no room":         {`{"image":"a","guest":{"memory_mb":8192}}`, nil, noMemory},
		"not granted": {plain, func(n *node) {
			n.host.Before = func(op string, _ key.MachineID) error {
				if op == "start" {
					return fault.New(fault.Denied, "the machine's grant is not signed by the controller")
				}
				return nil
			}
		}, "the machine's grant is not signed by the controller"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			if c.setup != nil {
				c.setup(n)
			}
			n.boot()
			a := n.assign(n.asg(key.NewMachineID(), c.config))
			r := n.state(a, machine.Destroyed)
			if r.Error != c.say {
				t.Fatalf("error %q, want %q", r.Error, c.say)
			}
			if got := types(r); got != "launch/created launch/launch_failed destroy/destroyed" {
				t.Fatalf("events: %s", got)
			}
		})
	}
}

func TestALaterStartFails(t *testing.T) {
	n := newNode(t)
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	n.state(a, machine.Started)
	// The new version names a command that does not exist.
	a = n.assign(n.next(a, func(a *internalpb.Assignment) {
		a.InstanceId = string(key.NewInstanceID())
		a.Config = []byte(`{"image":"a","init":{"cmd":["nonsense"]}}`)
	}))
	r := n.state(a, machine.Failed)
	if !strings.Contains(r.Error, "nonsense") || string(r.Instance) != a.InstanceId {
		t.Fatalf("%q, %s", r.Error, r.Instance)
	}
	n.until(a.MachineId, "no sandbox", func(r *record) bool { return r.Sandbox == "" })
	// A good version mends it.
	a = n.assign(n.next(a, func(a *internalpb.Assignment) {
		a.InstanceId = string(key.NewInstanceID())
		a.Config = []byte(plain)
	}))
	n.state(a, machine.Started)
	// An image that cannot be had leaves it failed as well, and does not loop.
	bad, _ := json.Marshal(machine.ImageRef{Repository: "app", Digest: digestB})
	n.images.mu.Lock()
	n.images.ensure = func(_ context.Context, ref machine.ImageRef) error {
		if ref.Digest == digestB {
			return fault.New(fault.NotFound, "there is no image")
		}
		return nil
	}
	n.images.mu.Unlock()
	a = n.assign(n.next(a, func(a *internalpb.Assignment) {
		a.InstanceId = string(key.NewInstanceID())
		a.ImageRef = bad
	}))
	r = n.until(a.MachineId, "at rest", func(r *record) bool {
		return r.State == machine.Failed && r.Sandbox == "" && string(r.Instance) == a.InstanceId
	})
	seq := r.Seq
	a = n.assign(n.next(a, desired(machine.WantStopped)))
	r = n.state(a, machine.Stopped)
	if r.Seq > seq+4 {
		t.Fatalf("%d changes while it should have been at rest", r.Seq-seq)
	}
}

// TestPassingFailuresAreTriedAgain: what is down comes back, and the user is told
// once, not at every try.
func TestPassingFailuresAreTriedAgain(t *testing.T) {
	n := newNode(t)
	var tries atomic.Int32
	n.host.Before = func(op string, _ key.MachineID) error {
		if op == "start" && tries.Add(1) <= 3 {
			return fault.New(fault.Unavailable, "the warden does not answer")
		}
		return nil
	}
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	r := n.state(a, machine.Started)
	if got := types(r); got != "launch/created start/starting start/started" {
		t.Fatalf("events: %s", got)
	}
	if r.Events[1].Request.Error != "the warden does not answer" || r.Error != "" {
		t.Fatalf("%+v, now %q", r.Events[1].Request, r.Error)
	}
}

func TestSkipLaunchAndLaterStart(t *testing.T) {
	n := newNode(t)
	n.boot()
	id := key.NewMachineID()
	a := n.assign(n.asg(id, plain, desired(machine.WantStopped)))
	n.until(a.MachineId, "noted", func(r *record) bool { return r.Wanted == machine.WantStopped })
	if s, _ := n.w.get(id); s.rec.State != machine.Created {
		t.Fatalf("it is %s", s.rec.State)
	}
	// A new version of what never ran is only noted.
	a = n.assign(n.next(a, func(a *internalpb.Assignment) { a.InstanceId = string(key.NewInstanceID()) }))
	n.until(a.MachineId, "new version", func(r *record) bool { return string(r.Instance) == a.InstanceId && r.State == machine.Created })
	a = n.assign(n.next(a, started(1)))
	n.state(a, machine.Started)
	// Stopped, updated while stopped, started.
	a = n.assign(n.next(a, desired(machine.WantStopped)))
	n.state(a, machine.Stopped)
	a = n.assign(n.next(a, func(a *internalpb.Assignment) { a.InstanceId = string(key.NewInstanceID()) }))
	n.until(a.MachineId, "updated and stopped", func(r *record) bool { return string(r.Instance) == a.InstanceId && r.State == machine.Stopped })
	if n.host.Starts(id) != 1 {
		t.Fatal("an update started a stopped machine")
	}
	a = n.assign(n.next(a, started(2)))
	n.state(a, machine.Started)
}

// TestForgettingIsTriedAgain: a Machine is forgotten although the journal could not be
// written at first, and nobody asks a second time.
func TestForgettingIsTriedAgain(t *testing.T) {
	n := newNode(t)
	refused := 0
	n.tune = func(w *Worker) {
		w.point = func(name string) error {
			if name == "before forget" && refused < 2 {
				refused++
				return errors.New("no")
			}
			return nil
		}
	}
	n.boot()
	id := key.NewMachineID()
	a := n.assign(n.asg(id, plain))
	n.state(a, machine.Started)
	n.state(n.assign(n.next(a, desired(machine.WantDestroyed))), machine.Destroyed)
	n.w.Forget(id)
	n.vanishes(id)
	if refused != 2 {
		t.Errorf("the journal refused %d times, want 2", refused)
	}
}

// TestAnEndIsNotedLater: the end of a process that could not be journaled when it came
// is noted by the next try, with its code: one that came by itself, and a stop's.
func TestAnEndIsNotedLater(t *testing.T) {
	for _, write := range []string{"before exit", "before ended"} {
		t.Run(write, func(t *testing.T) {
			n := newNode(t)
			var refused atomic.Bool
			n.tune = func(w *Worker) {
				w.point = func(name string) error {
					if name == write && refused.CompareAndSwap(false, true) {
						return errors.New("no")
					}
					return nil
				}
			}
			end, handles := make(chan struct{}), make(chan struct{}, 1)
			n.host.Install("run", func(p *fake.Process) int {
				stop := p.Handle(2, 15)
				handles <- struct{}{}
				select {
				case <-end:
				case <-p.Done:
				case <-stop:
				}
				return 7
			})
			n.boot()
			a := n.assign(n.asg(key.NewMachineID(), `{"image":"a","init":{"cmd":["run"]},"restart":{"policy":"no"},"stop_config":{"timeout":"5m"}}`))
			n.state(a, machine.Started)
			<-handles // a signal that came before would end it with another code
			if write == "before ended" {
				a = n.assign(n.next(a, desired(machine.WantStopped)))
			} else {
				close(end)
			}
			r := n.state(a, machine.Stopped)
			if x := exits(r); len(x) != 1 || x[0].ExitCode != 7 {
				t.Errorf("the exits are %+v, want one of code 7", x)
			}
			if !refused.Load() {
				t.Error("nothing was refused")
			}
		})
	}
}

// TestAnAssignmentIsTakenOverLater: one that could not be journaled when it came is
// taken over by itself.
func TestAnAssignmentIsTakenOverLater(t *testing.T) {
	n := newNode(t)
	var refused atomic.Int32
	n.tune = func(w *Worker) {
		w.point = func(name string) error {
			if name == "before create" && refused.Add(1) <= 2 {
				return errors.New("no")
			}
			return nil
		}
	}
	n.boot()
	a := n.asg(key.NewMachineID(), plain)
	n.w.assign(a, false)
	n.state(a, machine.Started)
}

// TestALateAssignmentBringsNothingBack: one that could not be journaled came again, and
// its Machine was destroyed and forgotten, before it would have been tried again.
func TestALateAssignmentBringsNothingBack(t *testing.T) {
	n := newNode(t)
	var refuse, refused atomic.Bool
	refuse.Store(true)
	n.tune = func(w *Worker) {
		w.point = func(name string) error {
			if name == "before create" && refuse.CompareAndSwap(true, false) {
				refused.Store(true)
				return errors.New("no")
			}
			return nil
		}
	}
	n.boot()
	id := key.NewMachineID()
	a := n.asg(id, plain)
	n.w.assign(a, false)
	if !refused.Load() {
		t.Fatal("nothing was refused")
	}
	n.w.assign(cloneAsg(a), false)
	n.state(a, machine.Started)
	n.state(n.assign(n.next(a, desired(machine.WantDestroyed))), machine.Destroyed)
	n.w.Forget(id)
	n.vanishes(id)
	// One that comes late after it is taken over: the first would have been before.
	refuse.Store(true)
	later := n.asg(key.NewMachineID(), plain)
	n.w.assign(later, false)
	n.state(later, machine.Started)
	if s, err := n.w.get(id); err == nil {
		t.Errorf("the machine is back: %+v", s.rec)
	}
}

func TestStaleAssignmentsAreIgnored(t *testing.T) {
	n := newNode(t)
	n.boot()
	first := n.assign(n.asg(key.NewMachineID(), plain))
	n.state(first, machine.Started)
	stop := n.next(first, desired(machine.WantStopped))
	again := n.next(first, started(9))
	n.assign(again)
	n.assign(stop)  // older than again
	n.assign(first) // and a repetition
	r := n.until(first.MachineId, "noted", func(r *record) bool { return r.StartNonce == 9 })
	if r.State != machine.Started {
		t.Fatalf("a stale assignment made it %s", r.State)
	}
}

// TestEndedBySelfStartsOnlyWhenAsked: desired stays "started" when a process ends by
// itself; only a new start nonce brings it back.
func TestEndedBySelfStartsOnlyWhenAsked(t *testing.T) {
	n := newNode(t)
	n.host.Install("once", func(p *fake.Process) int { return 0 })
	n.boot()
	id := key.NewMachineID()
	a := n.assign(n.asg(id, `{"image":"a","init":{"cmd":["once"]}}`))
	n.until(a.MachineId, "at rest", func(r *record) bool { return r.State == machine.Stopped && r.Sandbox == "" })
	a = n.assign(n.next(a, func(a *internalpb.Assignment) { a.Cordoned = true }))
	n.until(a.MachineId, "accepted", func(r *record) bool { s, _ := n.w.get(id); return s.asg.Cordoned })
	n.down()
	n.boot()
	a = n.assign(n.next(a, started(1)))
	n.until(a.MachineId, "second run", func(r *record) bool { return r.State == machine.Stopped && len(exits(r)) == 2 })
	if got := n.host.Starts(id); got != 2 {
		t.Fatalf("%d starts", got)
	}
}

func TestDestroyOfAnUnknownMachine(t *testing.T) {
	n := newNode(t)
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain, desired(machine.WantDestroyed)))
	n.state(a, machine.Destroyed)
}

func TestAssignRefusesNonsense(t *testing.T) {
	n := newNode(t)
	n.boot()
	for _, a := range []*internalpb.Assignment{
		{MachineId: "../../etc/passwd", InstanceId: string(key.NewInstanceID()), Desired: "started"},
		{MachineId: "0123456789abcd", InstanceId: "x", Desired: "started"},
		{MachineId: "0123456789abcd", InstanceId: string(key.NewInstanceID()), Desired: "dancing"},
	} {
		if err := n.w.Assign(a); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", a, err)
		}
	}
}
