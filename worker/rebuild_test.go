package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/logs"
	"bulkhead/machine"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/sandbox/fake"
)

// damages are ways in which a journal is lost. After those that leave records to be
// read, slots are salvaged.
var damages = map[string]struct {
	salvaged bool
	do       func(t *testing.T, path string)
}{
	"a flipped bit in every page's number but the metas'": {true, func(t *testing.T, path string) {
		change(t, path, func(b []byte) []byte {
			for at := 2 * os.Getpagesize(); at < len(b); at += os.Getpagesize() {
				if n := at / os.Getpagesize(); binary.NativeEndian.Uint64(b[at:]) == uint64(n) { // else it is a value's
					b[at] ^= 0x40
				}
			}
			return b
		})
	}},
	"no meta pages": {true, func(t *testing.T, path string) {
		change(t, path, func(b []byte) []byte { clear(b[:2*os.Getpagesize()]); return b })
	}},
	"cut short": {false, func(t *testing.T, path string) {
		change(t, path, func(b []byte) []byte { return b[:2*os.Getpagesize()] })
	}},
	"garbage": {false, func(t *testing.T, path string) {
		change(t, path, func(b []byte) []byte { return bytes.Repeat([]byte("garbage "), 4096) })
	}},
	"empty": {false, func(t *testing.T, path string) {
		change(t, path, func(b []byte) []byte { return nil })
	}},
	"gone": {false, func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}},
	"a record that is none": {false, func(t *testing.T, path string) {
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketMachines)
			k, v := b.Cursor().First()
			v = bytes.Clone(v)
			v[len(v)-1] = '['
			return b.Put(k, v)
		}); err != nil {
			t.Fatal(err)
		}
	}},
}

func change(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lost is a node with a Machine of each kind that matters when its journal is lost.
type lost struct {
	*node
	all   map[string]*internalpb.Assignment
	slots map[string]privnet.Slot
	snap  *internalpb.Snapshot // what the controller knows
}

func newLost(t *testing.T) *lost {
	l := &lost{node: newNode(t), all: map[string]*internalpb.Assignment{}, slots: map[string]privnet.Slot{}, snap: &internalpb.Snapshot{}}
	l.host.Install("done", func(*fake.Process) int { return 0 })
	l.boot()
	l.assign(l.asg(key.NewMachineID(), plain)) // takes the first slot, and leaves it free
	for _, m := range []struct {
		name, config string
		then         machine.State
	}{
		{"server", `{"image":"a","restart":{"policy":"always"}}`, machine.Started},
		{"default", plain, machine.Started},
		{"job", `{"image":"a","restart":{"policy":"no"}}`, machine.Started},
		{"done job", `{"image":"a","init":{"cmd":["done"]},"restart":{"policy":"no"}}`, machine.Stopped},
		{"done default", `{"image":"a","init":{"cmd":["done"]}}`, machine.Stopped},
		{"once", `{"image":"a","auto_destroy":true}`, machine.Started},
		{"stopped", plain, machine.Started},
		{"doomed", plain, machine.Started},
	} {
		a := l.assign(l.asg(key.NewMachineID(), m.config))
		l.all[m.name] = a
		l.slots[m.name] = l.state(a, m.then).Slot
	}
	l.all["stopped"] = l.assign(l.next(l.all["stopped"], desired(machine.WantStopped)))
	for name, a := range l.all {
		if name == "stopped" || strings.HasPrefix(name, "done") {
			l.until(a.MachineId, "no sandbox", func(r *record) bool { return r.State == machine.Stopped && r.Sandbox == "" })
		}
	}
	for _, id := range l.others() {
		l.assign(l.next(l.w.seen[id].asg, desired(machine.WantDestroyed)))
		l.until(string(id), "destruction", func(r *record) bool { return r.State == machine.Destroyed })
		l.w.Forget(id)
		l.vanishes(id)
	}
	for _, a := range l.all {
		s, _ := l.w.get(key.MachineID(a.MachineId))
		l.snap.Observed = append(l.snap.Observed, s.obs)
	}
	l.down()
	// Asked for while the worker is down.
	l.all["doomed"] = l.next(l.all["doomed"], desired(machine.WantDestroyed))
	for _, a := range l.all {
		l.snap.Assignments = append(l.snap.Assignments, a)
	}
	return l
}

// others are the Machines without a name.
func (l *lost) others() (out []key.MachineID) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	for id := range l.w.seen {
		named := false
		for _, a := range l.all {
			named = named || a.MachineId == string(id)
		}
		if !named {
			out = append(out, id)
		}
	}
	return out
}

// reboot starts a worker and tells it nothing.
func (l *lost) reboot() {
	l.t.Helper()
	l.w = l.make(l.host, l.images)
	if err := l.w.Open(); err != nil {
		l.t.Fatal(err)
	}
}

// TestJournalIsRebuilt: whatever happened to the journal, whether the sandboxes run on
// and whether the controller remembers anything: nothing happens before the controller
// is there; then every Machine is where it is wanted, nothing has run twice, nothing
// is destroyed, and each Machine's events say it.
func TestJournalIsRebuilt(t *testing.T) {
	n := 0
	for how, d := range damages {
		for _, run := range []bool{true, false} {
			for _, remembered := range []bool{true, false} {
				n++
				t.Run(fmt.Sprintf("%s, sandboxes run %v, remembered %v", how, run, remembered), func(t *testing.T) {
					t.Parallel()
					l := newLost(t)
					d.do(t, filepath.Join(l.dir, "journal.db"))
					if !run {
						l.host.PowerCut()
					}
					if !remembered {
						l.snap.Observed = nil
					}
					l.rebuilt(t, run, remembered, d.salvaged)
				})
			}
		}
	}
	t.Logf("%d cases", n)
}

func (l *lost) rebuilt(t *testing.T, run, remembered, salvaged bool) {
	before, _ := l.host.List(t.Context())
	// Whatever is fetched now fails for good: that must destroy nothing.
	l.images.mu.Lock()
	clear(l.images.sealed)
	l.images.ensure = func(context.Context, machine.ImageRef) error { return fault.New(fault.NotFound, "no such image") }
	l.images.mu.Unlock()
	l.reboot()
	if a := l.all["server"]; !fault.Is(l.w.Assign(a), fault.Unavailable) {
		t.Error("an assignment is taken over before the snapshot is")
	}
	if _, err := l.w.get(key.MachineID(l.all["server"].MachineId)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("asked about a machine before it is known: %v", err)
	}
	if h := l.w.hello(); !h.Rebuilding || len(h.Observations) > 0 {
		t.Errorf("hello: %v", h)
	}
	// Killed before it has heard of the controller: the next one waits as well.
	l.down()
	l.reboot()
	l.w.mu.Lock()
	if n := len(l.w.actors); n > 0 {
		t.Errorf("%d machines are led before the controller was there", n)
	}
	l.w.mu.Unlock()
	if now, _ := l.host.List(t.Context()); len(now) != len(before) {
		t.Fatalf("%d sandboxes before the controller was there, had %d", len(now), len(before))
	}
	if err := l.w.rebuildOnce(t.Context(), l.snap); err != nil {
		t.Fatal(err)
	}
	if l.w.hello().Rebuilding {
		t.Error("it is rebuilding still")
	}
	if !run {
		for _, name := range []string{"server", "default"} {
			if r := l.state(l.all[name], machine.Failed); !strings.Contains(r.Error, "no such image") {
				t.Errorf("%s failed of %q", name, r.Error)
			}
		}
		l.images.mu.Lock()
		l.images.ensure = nil
		l.images.mu.Unlock()
		for _, name := range []string{"server", "default"} {
			l.all[name] = l.assign(l.next(l.all[name], func(a *internalpb.Assignment) { a.StartNonce++ }))
		}
	}
	starts := 1
	if !run {
		starts = 2
	}
	l.ends(t, "server", machine.Started, starts)
	l.ends(t, "default", machine.Started, starts)
	l.ends(t, "done job", machine.Stopped, 1)
	l.ends(t, "stopped", machine.Stopped, 1)
	l.ends(t, "doomed", machine.Destroyed, 1)
	for _, name := range []string{"job", "once"} {
		if run {
			l.ends(t, name, machine.Started, 1)
		} else if r := l.ends(t, name, machine.Stopped, 1); !strings.Contains(r.Events[0].Request.Reason, rebuiltJob) {
			t.Errorf("%s: %+v", name, r.Events[0].Request)
		}
	}
	if remembered { // else it is started again: that it had ended nobody knows
		l.ends(t, "done default", machine.Stopped, 1)
	}
	for name, a := range l.all {
		s, err := l.w.get(key.MachineID(a.MachineId))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(s.rec.Events, func(e machine.Event) bool { return e.Type == "rebuild" })
		if i < 0 {
			t.Errorf("no event of %s says that the journal was rebuilt: %s", name, types(s.rec))
			continue
		}
		why := s.rec.Events[i].Request.Reason
		sure := salvaged || remembered || run && (name == "server" || name == "default" || name == "job" || name == "once" || name == "doomed")
		if s.rec.Slot != l.slots[name] && name != "doomed" && (sure || !strings.Contains(why, "address")) {
			t.Errorf("%s had slot %d and has %d: %q", name, l.slots[name], s.rec.Slot, why)
		}
		if sure && strings.Contains(why, "address") {
			t.Errorf("%s keeps its slot: %q", name, why)
		}
		if i := slices.IndexFunc(l.snap.Observed, func(o *internalpb.Observation) bool { return o.MachineId == a.MachineId }); i >= 0 && s.rec.Seq <= l.snap.Observed[i].Seq {
			t.Errorf("%s: numbered %d after %d", name, s.rec.Seq, l.snap.Observed[i].Seq)
		}
	}
	l.whole(t)
}

// ends waits until a Machine is in a state, and counts its starts.
func (l *lost) ends(t *testing.T, name string, s machine.State, starts int) *record {
	t.Helper()
	r := l.state(l.all[name], s)
	if n := l.host.Starts(r.Machine); n != starts {
		t.Errorf("%s was started %d times, want %d", name, n, starts)
	}
	return r
}

// whole checks that the next worker finds a journal that is whole, with all Machines.
func (l *lost) whole(t *testing.T) {
	l.down()
	j, entries, err := openAndLoad(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if j.mark != nil || len(entries) != len(l.all) {
		t.Errorf("mark %v, %d machines", j.mark, len(entries))
	}
}

// TestSandboxesNobodyKnows: those that the controller does not assign are removed
// once it has been heard, also when it has removed the node; logs are kept until then.
func TestSandboxesNobodyKnows(t *testing.T) {
	for _, removed := range []bool{false, true} {
		t.Run(fmt.Sprintf("removed %v", removed), func(t *testing.T) {
			l := newLost(t)
			s, err := logs.Open(filepath.Join(l.dir, "logs"), logs.Options{})
			if err != nil {
				t.Fatal(err)
			}
			id := key.MachineID(l.all["server"].MachineId)
			if err := s.Append(id, logs.Line{Time: time.Now(), Stream: logs.Stdout, Text: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			s.Close()
			damages["garbage"].do(t, filepath.Join(l.dir, "journal.db"))
			l.reboot()
			if got, _ := l.w.logs.Read(id, 0); len(got) == 0 {
				t.Error("logs are gone before anybody knows whose they are")
			}
			if removed {
				l.w.abandonUnknown(t.Context())
			} else if err := l.w.rebuildOnce(t.Context(), &internalpb.Snapshot{}); err != nil {
				t.Fatal(err)
			}
			<-l.w.survey
			if left, _ := l.host.List(t.Context()); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if got, _ := l.w.logs.Read(id, 0); len(got) > 0 {
				t.Error("logs are left")
			}
		})
	}
}

// TestEndWhileTheJournalWasLost: a job that ended meanwhile ended, and its code is told.
func TestEndWhileTheJournalWasLost(t *testing.T) {
	l := newLost(t)
	id := key.MachineID(l.all["job"].MachineId)
	if err := l.host.Signal(t.Context(), id, 15); err != nil {
		t.Fatal(err)
	}
	damages["garbage"].do(t, filepath.Join(l.dir, "journal.db"))
	l.reboot()
	if err := l.w.rebuildOnce(t.Context(), l.snap); err != nil {
		t.Fatal(err)
	}
	r := l.ends(t, "job", machine.Stopped, 1)
	if x := exits(r); len(x) != 1 || x[0].ExitCode != 143 {
		t.Errorf("%+v", x)
	}
}

// TestRebuiltRecord: what the controller last saw decides where it can.
func TestRebuiltRecord(t *testing.T) {
	n := &node{t: t}
	const old, wish = "01HZZZZZZZZZZZZZZZZZZZZZZZ", 3
	for _, c := range []struct {
		what   string
		config string
		runs   bool // the sandbox of the assignment's version, or of the version before when was is set
		was    string
		asg    func(*internalpb.Assignment)
		obs    *internalpb.Observation
		next   action
		on     machine.Input
	}{
		{what: "nothing is known", next: actMove, on: machine.InBegin},
		{what: "it runs", runs: true, next: actWatch},
		{what: "it runs and is to be stopped", runs: true, asg: desired(machine.WantStopped), next: actMove, on: machine.InStop},
		{what: "it runs and is to be destroyed", runs: true, asg: desired(machine.WantDestroyed), next: actMove, on: machine.InDestroy},
		{what: "an older version runs", runs: true, was: old, next: actFetchNext},
		{what: "idle", obs: &internalpb.Observation{State: "stopped", Local: "stopped", Wish: wish}, next: actWait},
		{what: "idle before the newest wish", obs: &internalpb.Observation{State: "stopped", Local: "stopped", Wish: wish - 1, StartNonce: 4}, next: actMove, on: machine.InBegin},
		{what: "woken", runs: true, asg: desired(machine.WantStopped), obs: &internalpb.Observation{State: "started", Local: "started", Wish: wish}, next: actWatch},
		{what: "a restart that is not done", runs: true, asg: func(a *internalpb.Assignment) { a.RestartNonce = 6 }, obs: &internalpb.Observation{State: "started", RestartNonce: 5}, next: actMove, on: machine.InRestart},
		{what: "ended, and asked to start", obs: &internalpb.Observation{State: "stopped", StartNonce: 4}, next: actMove, on: machine.InBegin},
		{what: "ended", obs: &internalpb.Observation{State: "stopped", StartNonce: 5}, next: actWait},
		{what: "failed", obs: &internalpb.Observation{State: "failed", StartNonce: 5}, next: actWait},
		{what: "a failed launch", obs: &internalpb.Observation{State: "launch_failed", StartNonce: 5}, next: actMove, on: machine.InDestroy},
		{what: "on its way out by itself", runs: true, obs: &internalpb.Observation{State: "destroying", StartNonce: 5}, next: actMove, on: machine.InDestroy},
		{what: "a job, last seen running", config: `{"restart":{"policy":"no"}}`, obs: &internalpb.Observation{State: "started", StartNonce: 5}, next: actWait},
		{what: "a config that cannot be read", config: `[`, next: actWait},
	} {
		if c.config == "" {
			c.config = plain
		}
		a := n.asg(key.NewMachineID(), c.config, func(a *internalpb.Assignment) { a.StartNonce, a.Wish = 5, wish })
		if c.asg != nil {
			c.asg(a)
		}
		id := key.MachineID(a.MachineId)
		b := &rebuilder{now: time.Now(), host: 7, boxes: map[key.MachineID]sandbox.Info{}, observed: map[key.MachineID]*internalpb.Observation{}, taken: map[privnet.Slot]bool{}}
		if c.obs != nil {
			c.obs.MachineId, c.obs.Seq = a.MachineId, 1<<50
			if c.obs.InstanceId == "" {
				c.obs.InstanceId = a.InstanceId
			}
			b.observed[id] = c.obs
		}
		if c.runs {
			b.boxes[id] = sandbox.Info{Machine: id, Instance: key.InstanceID(orElse(c.was, a.InstanceId)), Slot: 9, Running: true}
		}
		es := b.entries([]*internalpb.Assignment{a}, func(_ *internalpb.Assignment, err error) { t.Errorf("%s: %v", c.what, err) })
		if len(es) != 1 {
			continue
		}
		s := plan(es[0].rec, a, b.now)
		if s.do == actNote { // what was wanted is noted first, and nothing is done for it
			r := es[0].rec.clone()
			(&actor{asg: a}).noted(r)
			s = plan(r, a, b.now)
		}
		if s.do != c.next || s.on != c.on || c.obs != nil && es[0].rec.Seq <= c.obs.Seq || !es[0].rec.Launched {
			t.Errorf("%s: the next step is %s %s, want %s %s; record %+v", c.what, s.do, s.on, c.next, c.on, es[0].rec)
		}
	}
}
