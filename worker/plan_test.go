package worker

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bulkhead/api/internalpb"
	"bulkhead/key"
	"bulkhead/machine"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// drawRecord is any record that the journal could hold.
func drawRecord(t *rapid.T) (*record, *internalpb.Assignment) {
	v := []key.InstanceID{"01J00000000000000000000001", "01J00000000000000000000002"}
	r := &record{
		Machine: "0123456789abcd", Slot: 1,
		State:        rapid.SampledFrom(machine.States()).Draw(t, "state"),
		Since:        t0.Add(-time.Duration(rapid.IntRange(0, 100).Draw(t, "age")) * time.Second),
		Instance:     rapid.SampledFrom(v).Draw(t, "instance"),
		Sandbox:      rapid.SampledFrom(append(v, "")).Draw(t, "sandbox"),
		Ended:        rapid.Bool().Draw(t, "ended"),
		Launched:     rapid.Bool().Draw(t, "launched"),
		SelfDestroy:  rapid.Bool().Draw(t, "self destroy"),
		Retry:        rapid.Bool().Draw(t, "retry"),
		Wanted:       rapid.SampledFrom([]machine.Desired{"", machine.WantStarted, machine.WantStopped, machine.WantDestroyed}).Draw(t, "wanted"),
		StartNonce:   rapid.Int64Range(0, 1).Draw(t, "start nonce"),
		RestartNonce: rapid.Int64Range(0, 1).Draw(t, "restart nonce"),
		NextStart:    t0.Add(time.Duration(rapid.IntRange(-10, 10).Draw(t, "next start")) * time.Second),
	}
	a := &internalpb.Assignment{
		InstanceId: string(v[1]), StartNonce: 1, RestartNonce: 1, Config: []byte(plain),
		Desired: string(rapid.SampledFrom([]machine.Desired{machine.WantStarted, machine.WantStopped, machine.WantDestroyed}).Draw(t, "desired")),
	}
	return r, a
}

// TestPlanIsLegal: whatever the journal holds, what is planned can be done in that
// state, a wait ends, and passing states never wait for nothing.
func TestPlanIsLegal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, a := drawRecord(t)
		s := plan(r, a, t0)
		switch s.do {
		case actMove:
			if !machine.Can(r.State, s.on) {
				t.Fatalf("%s is planned in %s", s.on, r.State)
			}
		case actEnd:
			if s.then != "" && !machine.Can(r.State, s.then) {
				t.Fatalf("%s is planned in %s", s.then, r.State)
			}
			if s.then == "" && r.Sandbox == "" {
				t.Fatalf("in %s a sandbox is to be ended and there is none", r.State)
			}
		case actPrepare, actStart, actWatch:
			if a.Desired != string(machine.WantStarted) || r.SelfDestroy {
				t.Fatalf("%v is planned for a machine that is wanted %s", s.do, a.Desired)
			}
		case actWait:
			if !s.wake.IsZero() && !s.wake.After(t0) {
				t.Fatalf("a wait until %v, which is past", s.wake)
			}
			if machine.Passing(r.State) && s.wake.IsZero() {
				t.Fatalf("%s waits for nothing", r.State)
			}
		}
	})
}

// TestPlanConverges: carried out without failures, the plan reaches what is wanted
// and rests there, from whatever the journal holds.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, a := drawRecord(t)
		if r.State == machine.Replacing || r.State == machine.Suspended {
			return // never written by this version
		}
		now, trace := t0, ""
		for n := range 40 {
			s := plan(r, a, now)
			trace += fmt.Sprintf("%s: %v %s%s\n", r.State, s.do, s.on, s.then)
			if s.do == actWait && s.wake.IsZero() || s.do == actWatch {
				checkRest(t, r, a, trace)
				return
			}
			now = pretend(t, r, a, s, now)
			if n == 39 {
				t.Fatalf("no rest:\n%s", trace)
			}
		}
	})
}

// checkRest: at rest the Machine is what is wanted, or failed, or ended by itself.
func checkRest(t *rapid.T, r *record, a *internalpb.Assignment, trace string) {
	ok := map[machine.Desired][]machine.State{
		machine.WantStarted:   {machine.Started, machine.Failed, machine.Stopped, machine.Destroyed},
		machine.WantStopped:   {machine.Stopped, machine.Created, machine.Destroyed},
		machine.WantDestroyed: {machine.Destroyed},
	}[machine.Desired(a.Desired)]
	for _, s := range ok {
		if r.State == s {
			if (s == machine.Stopped || s == machine.Failed || s == machine.Destroyed) && r.Sandbox != "" && s != machine.Destroyed {
				t.Fatalf("%s with a sandbox left:\n%s", s, trace)
			}
			return
		}
	}
	t.Fatalf("wanted %s, rests %s:\n%s", a.Desired, r.State, trace)
}

// pretend does to the record what a successful step does.
func pretend(t *rapid.T, r *record, a *internalpb.Assignment, s step, now time.Time) time.Time {
	go1 := func(in machine.Input) {
		if err := r.move(in, now); err != nil {
			t.Fatal(err)
		}
	}
	act := &actor{asg: a}
	switch s.do {
	case actWait:
		return s.wake
	case actMove:
		go1(s.on)
		r.Retry = false
		if s.on == machine.InLaunch || s.on == machine.InTimeout {
			r.Instance = instanceOf(a)
		}
		act.noted(r)
	case actNote:
		act.noted(r)
		r.Instance = instanceOf(a)
	case actPrepare:
		if r.Instance != instanceOf(a) {
			r.Instance = instanceOf(a)
		} else {
			go1(machine.InBegin)
		}
	case actStart:
		r.Sandbox, r.Ended = r.Instance, false
		go1(machine.InUp)
	case actEnd:
		r.Sandbox, r.Ended = "", false
		if s.then != "" {
			go1(s.then)
		}
	case actUpdate:
		r.Sandbox, r.Instance = "", instanceOf(a)
		act.noted(r)
		if a.Desired == string(machine.WantStarted) {
			go1(machine.InBegin)
		} else {
			go1(machine.InDown)
		}
	case actTeardown:
		r.Sandbox = ""
		go1(machine.InGone)
	case actFetchNext:
		r.Fetched = instanceOf(a)
	}
	return now
}
