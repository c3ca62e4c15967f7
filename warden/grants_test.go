package warden

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/sandbox"
)

// thief is who stole a worker: it has every grant that the worker was ever given, and
// shows the warden what it likes.
type thief struct {
	*world
	ahead atomic.Int64
}

func (th *thief) clock() time.Time        { return time.Now().Add(time.Duration(th.ahead.Load())) }
func (th *thief) forward(d time.Duration) { th.ahead.Add(int64(d)) }

// given is a grant as the controller made it at a time.
func (th *thief) given(s sandbox.Spec, generation int64, at time.Time) sandbox.Spec {
	return th.regrant(s, generation, grant.End(th.config.Node, at))
}

// start starts s and takes it away again; err says why not.
func (th *thief) start(s sandbox.Spec) error {
	th.t.Helper()
	ctx := testContext(th.t)
	sb, err := th.client.Start(ctx, s)
	if err != nil {
		return err
	}
	if _, err := sb.Wait(ctx); err != nil {
		th.t.Error(err)
	}
	sb.Close()
	if err := th.client.Remove(ctx, s.Machine); err != nil {
		th.t.Error(err)
	}
	return nil
}

// replay is one attempt to start what was granted once and is not any more.
type replay struct {
	name string
	spec sandbox.Spec
	says []string
	kind fault.Kind
}

// replays leads Machines through their lives and returns what a thief has of them a day
// after the last change.
func (th *thief) replays() []replay {
	th.t.Helper()
	changed, deleted, moved := th.spec("exit", "0"), th.spec("exit", "0"), th.spec("exit", "0")
	v2 := changed
	v2.Instance = key.NewInstanceID()
	begin := th.clock()
	for _, s := range []sandbox.Spec{th.given(changed, 1, begin), th.given(v2, 2, begin), th.given(deleted, 3, begin), th.given(moved, 4, begin)} {
		if err := th.start(s); err != nil {
			th.t.Fatal(err)
		}
	}
	th.forward(24 * time.Hour)
	there := grant.Grant{Node: "node-2", Network: 7, CPUs: 1, MemoryMB: 128, MaxPIDs: 1024, DiskMB: 512, Generation: 5, Ends: grant.End("node-2", th.clock()).Unix()}
	return []replay{
		{"a deleted machine", th.given(deleted, 3, begin), []string{"ended at"}, fault.Unavailable},
		{"a machine that was moved away", th.given(moved, 4, begin), []string{"ended at"}, fault.Unavailable},
		{"an earlier version", th.given(changed, 1, begin), nil, ""}, // whose end comes first depends on when
		{"what it was granted elsewhere", th.grant(moved, there), []string{`is for node "node-2"`}, fault.Denied},
		{"a grant that ends in a hundred years", th.regrant(th.spec("exit", "0"), 1, begin.AddDate(100, 0, 0)), []string{"the clock of this node is wrong"}, fault.Unavailable},
		{"a grant without an end", th.regrant(th.spec("exit", "0"), 1, time.Time{}), []string{"older version of Bulkhead"}, fault.Unavailable},
	}
}

// accepted shows the warden all replays and returns those that it starts.
func (th *thief) accepted(all []replay) (out []string) {
	th.t.Helper()
	for _, r := range all {
		err := th.start(r.spec)
		if err == nil {
			out = append(out, r.name)
			continue
		}
		if r.kind != "" && fault.KindOf(err) != r.kind {
			th.t.Errorf("%s: %v, want kind %q", r.name, err, r.kind)
		}
		for _, s := range r.says {
			if !strings.Contains(err.Error(), s) {
				th.t.Errorf("%s: %v does not say %q", r.name, err, s)
			}
		}
	}
	return out
}

// reboot starts the next warden.
func (th *thief) reboot() { th.stop(); th.world.start() }

// newThief makes an installation whose warden has the thief's clock.
func newThief(t *testing.T) *thief {
	th := &thief{world: newWorld(t)}
	th.config.Now = th.clock
	th.world.start()
	return th
}

// TestStolenWorkerReplaysGrants: what was replaced stays replaced, for this warden and the
// next; the last grant of a Machine that was deleted or moved is good until it ends, and
// 16 days after nothing that the worker was once given starts anything. Each refusal says
// why and is counted. The controls are a warden whose clock stands still and one that has
// forgotten what it started: the same replays find them out.
func TestStolenWorkerReplaysGrants(t *testing.T) {
	th := newThief(t)
	begin := th.clock()
	all := th.replays()
	const last = "a deleted machine, a machine that was moved away"
	if got := strings.Join(th.accepted(all), ", "); got != last {
		t.Errorf("a day later it starts %s; %s is what there is no help against", got, last)
	}
	early := all[2]
	early.says, early.kind = []string{"generation 1", "generation 2 was started"}, fault.Denied
	th.reboot()
	if got := th.accepted([]replay{early}); len(got) > 0 {
		t.Errorf("the next warden starts %q", got)
	}

	th.forward(15 * 24 * time.Hour)
	if got := th.accepted(all); len(got) > 0 {
		t.Errorf("16 days later it starts %q", got)
	}
	early.spec = th.given(early.spec, 1, th.clock()) // as if the controller had made it
	if got := th.accepted([]replay{early}); len(got) > 0 {
		t.Errorf("16 days later it goes back to %q", got)
	}
	m := th.server.metrics()
	if m.Grants[grant.StatusReplaced] != 2 || m.Grants[grant.StatusEnded] != 4 || m.Grants[grant.StatusAhead] != 1 || m.Operations["start"].Refused != 8 {
		t.Errorf("counted %+v", m)
	}
	if err := th.start(th.given(all[0].spec, 3, th.clock())); err != nil {
		t.Errorf("a grant of now: %v", err)
	}

	th.forward(begin.Sub(th.clock()))
	if got := strings.Join(th.accepted(all[:2]), ", "); got != last {
		t.Errorf("the control, a warden whose clock stands still, starts %q", got)
	}
	th.stop()
	if err := os.Remove(filepath.Join(th.config.DataDir, startedFile)); err != nil {
		t.Fatal(err)
	}
	th.world.start()
	if got := th.accepted(all[2:3]); len(got) != 1 {
		t.Error("the control, a warden that has forgotten, does not start an earlier version")
	}
}

// TestEndsCountAtAStart: what runs runs on after its grant has ended, by this warden and
// the next, can be signalled and has commands run in it; only a start needs a grant.
func TestEndsCountAtAStart(t *testing.T) {
	th := newThief(t)
	s := th.given(th.spec("sleep"), 1, th.clock())
	th.begin(s)
	th.forward(60 * 24 * time.Hour)
	for range 2 {
		if code, out := th.run(s.Machine, "print", "x"); code != 0 {
			t.Errorf("a command: %d %q", code, out)
		}
		th.reboot()
	}
	if list, err := th.client.List(testContext(t)); err != nil || len(list) != 1 || !list[0].Running {
		t.Errorf("two months later: %+v, %v", list, err)
	}
	if err := th.client.Remove(testContext(t), s.Machine); err != nil {
		t.Fatal(err)
	}
	if err := th.start(s); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a start after the end: %v", err)
	}
}

// TestDamagedRegister: starts are refused with what to do, and nothing else; after it is
// done they go on.
func TestDamagedRegister(t *testing.T) {
	th := newThief(t)
	running := th.given(th.spec("sleep"), 1, th.clock())
	th.begin(running)
	path := filepath.Join(th.config.DataDir, startedFile)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	th.reboot()
	s := th.given(th.spec("exit", "0"), 2, th.clock())
	if err := th.start(s); fault.KindOf(err) != fault.Internal || !strings.Contains(err.Error(), "Move the file away") || !strings.Contains(err.Error(), path) {
		t.Errorf("a start with a damaged register: %v", err)
	}
	if code, out := th.run(running.Machine, "print", "x"); code != 0 {
		t.Errorf("a command in what runs: %d %q", code, out)
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		t.Fatal(err)
	}
	if err := th.start(s); err != nil {
		t.Errorf("after the file was moved away: %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the new file: %v, %v", st, err)
	}
}
