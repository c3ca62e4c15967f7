package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// What the runtime and the image store do with every call.
const (
	hangs = "hangs" // no answer for as long as the caller waits
	fails = "fails" // an error at once that may pass
	works = "works"
)

// brokenRuntime is a runtime that hangs or fails until it is healed.
type brokenRuntime struct {
	mu    sync.Mutex
	how   string
	boxes map[key.MachineID]*emptyBox
	tried map[key.MachineID]time.Time // the last call about a Machine
	// deaf Machines' calls do not even end with their context: the seeded fault.
	deaf    map[key.MachineID]bool
	release chan struct{}

	strays  []sandbox.Info // found by the census
	resists key.MachineID  // calls about it hang
	signals string         // what Signal does, when it is another thing
}

func newBrokenRuntime(how string) *brokenRuntime {
	return &brokenRuntime{how: how, boxes: map[key.MachineID]*emptyBox{}, tried: map[key.MachineID]time.Time{}, deaf: map[key.MachineID]bool{}, release: make(chan struct{})}
}

func (b *brokenRuntime) heal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.how = works
}

func (b *brokenRuntime) call(ctx context.Context, id key.MachineID) error {
	b.mu.Lock()
	how, deaf := b.how, b.deaf[id]
	if id != "" && id == b.resists {
		how = hangs
	}
	b.tried[id] = time.Now()
	b.mu.Unlock()
	switch {
	case deaf:
		<-b.release
		return fault.New(fault.Unavailable, "released")
	case how == hangs:
		<-ctx.Done()
		return fault.Wrap(fault.Timeout, ctx.Err(), "the call was given up")
	case how == fails:
		return fault.New(fault.Unavailable, "the warden cannot be reached")
	}
	return nil
}

// emptyBox is a sandbox without output, that runs until it is removed.
type emptyBox struct{ ended chan struct{} }

func (e *emptyBox) Stdout() *os.File { return nil }
func (e *emptyBox) Stderr() *os.File { return nil }
func (e *emptyBox) Close() error     { return nil }
func (e *emptyBox) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-e.ended:
		return sandbox.Exit{Code: 137, Signal: 9, At: time.Now()}, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

func (b *brokenRuntime) Start(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
	if err := b.call(ctx, s.Machine); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.boxes[s.Machine] != nil {
		return nil, fault.New(fault.Conflict, "machine %s has a sandbox already", s.Machine)
	}
	box := &emptyBox{ended: make(chan struct{})}
	b.boxes[s.Machine] = box
	return box, nil
}

func (b *brokenRuntime) Listen(ctx context.Context, id key.MachineID) (net.Listener, error) {
	return nil, fault.New(fault.Unavailable, "there is no API here")
}

func (b *brokenRuntime) Attach(ctx context.Context, id key.MachineID) (sandbox.Sandbox, error) {
	if err := b.call(ctx, id); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if box := b.boxes[id]; box != nil {
		return box, nil
	}
	return nil, fault.New(fault.NotFound, "machine %s has no sandbox", id)
}

func (b *brokenRuntime) end(id key.MachineID, forget bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if box := b.boxes[id]; box != nil {
		select {
		case <-box.ended:
		default:
			close(box.ended)
		}
	}
	if forget {
		delete(b.boxes, id)
	}
}

func (b *brokenRuntime) Signal(ctx context.Context, id key.MachineID, _ int) error {
	if b.signals == hangs {
		<-ctx.Done()
		return fault.Wrap(fault.Timeout, ctx.Err(), "the call was given up")
	}
	err := b.call(ctx, id)
	if err == nil {
		b.end(id, false)
	}
	return err
}

func (b *brokenRuntime) Remove(ctx context.Context, id key.MachineID) error {
	err := b.call(ctx, id)
	if err == nil {
		b.end(id, true)
	}
	return err
}

func (b *brokenRuntime) Exec(ctx context.Context, id key.MachineID, _ sandbox.ExecSpec) (sandbox.ExecResult, error) {
	return sandbox.ExecResult{}, b.call(ctx, id)
}

func (b *brokenRuntime) Processes(ctx context.Context, id key.MachineID) ([]sandbox.Process, error) {
	return nil, b.call(ctx, id)
}

// List is answered: what hangs is each Machine's own.
func (b *brokenRuntime) List(context.Context) ([]sandbox.Info, error) { return b.strays, nil }

// stay is a Machine's time in one state.
type stay struct {
	state machine.State
	since time.Time
}

// stays notes, from the worker's log, how long each Machine was in each state.
type stays struct {
	mu     *sync.Mutex
	now    map[string]stay
	late   *[]string
	seen   map[machine.State]int // stays that ended
	longer time.Duration
	id     string
}

func newStays() *stays {
	return &stays{mu: new(sync.Mutex), now: map[string]stay{}, late: new([]string), seen: map[machine.State]int{}, longer: retryMax + time.Second}
}

func (s *stays) Enabled(context.Context, slog.Level) bool { return true }
func (s *stays) WithGroup(string) slog.Handler            { return s }
func (s *stays) WithAttrs(as []slog.Attr) slog.Handler {
	c := *s
	for _, a := range as {
		if a.Key == "machine" {
			c.id = a.Value.String()
		}
	}
	return &c
}

func (s *stays) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "state" {
		return nil
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "to" {
			s.enter(s.id, machine.State(a.Value.String()))
		}
		return true
	})
	return nil
}

// enter ends a Machine's stay and begins another.
func (s *stays) enter(id string, to machine.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.check(id)
	if was, ok := s.now[id]; ok {
		s.seen[was.state]++
	}
	s.now[id] = stay{to, time.Now()}
}

// check complains of a stay that is longer than its deadline and the wait between two
// tries. s.mu is held.
func (s *stays) check(id string) {
	st, ok := s.now[id]
	if !ok || !machine.Passing(st.state) {
		return
	}
	if d := time.Since(st.since); d > machine.Deadline(st.state)+s.longer {
		*s.late = append(*s.late, fmt.Sprintf("%s was %s for %v, longer than %v", id, st.state, d, machine.Deadline(st.state)))
	}
}

// complaints looks at the stays that go on, too.
func (s *stays) complaints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.now {
		s.check(id)
	}
	return *s.late
}

// wish is something that the controller may want next.
type wish struct {
	name string
	do   func(a *internalpb.Assignment)
}

var wishes = []wish{
	{"start", func(a *internalpb.Assignment) { a.Desired = string(machine.WantStarted); a.StartNonce++ }},
	{"stop", desired(machine.WantStopped)},
	{"restart", func(a *internalpb.Assignment) { a.Desired = string(machine.WantStarted); a.RestartNonce++ }},
	{"update", func(a *internalpb.Assignment) { a.InstanceId = string(key.NewInstanceID()) }},
	{"destroy", desired(machine.WantDestroyed)},
	{"destroy --force", func(a *internalpb.Assignment) { a.Desired, a.Force = string(machine.WantDestroyed), true }},
}

// trouble is one Machine of the test.
type trouble struct {
	what   string
	asg    *internalpb.Assignment
	wishes []wish
	held   bool // a sandbox of it may exist
}

// pairsEvery is how many sequences of two wishes there are for each that is tried.
const pairsEvery = 5

// troubles makes a Machine for every state, with and without a sandbox that may exist,
// and every sequence of up to depth wishes; a destruction is the last of any. Of the
// sequences of two, every state has some that a seed chooses, or all of them when
// BULKHEAD_STATES is "all".
func troubles(t *testing.T, depth int) (out []*trouble) {
	seed, err := strconv.ParseUint(os.Getenv("BULKHEAD_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64N(1e9) // not of the time, which is the bubble's
	}
	t.Logf("seed %d", seed)
	pairs := rand.New(rand.NewPCG(seed, 1)).IntN(pairsEvery)
	all := os.Getenv("BULKHEAD_STATES") == "all"
	var sequences [][]wish
	var grow func(prefix []wish)
	grow = func(prefix []wish) {
		sequences = append(sequences, prefix)
		if len(prefix) == depth || len(prefix) > 0 && strings.HasPrefix(prefix[len(prefix)-1].name, "destroy") && prefix[len(prefix)-1].name != "destroy" {
			return
		}
		for _, w := range wishes {
			if len(prefix) > 0 && (prefix[0].name == "destroy" && w.name != "destroy --force" || w.name == prefix[0].name) {
				continue // it cannot be taken back, or is nothing new
			}
			grow(append(append([]wish(nil), prefix...), w))
		}
	}
	grow(nil)
	for _, s := range machine.States() {
		for _, held := range []bool{false, true} {
			if held && (s == machine.Destroyed || s == machine.Created) {
				continue
			}
			for _, seq := range sequences {
				if len(seq) > 1 {
					if pairs++; pairs%pairsEvery != 0 && !all {
						continue
					}
				}
				names := make([]string, len(seq))
				for i, w := range seq {
					names[i] = w.name
				}
				out = append(out, &trouble{what: fmt.Sprintf("%s (sandbox %v) + %s", s, held, strings.Join(names, ", ")), wishes: seq, held: held})
				out[len(out)-1].asg = &internalpb.Assignment{Region: string(s)} // completed by plant
			}
		}
	}
	return out
}

// plant writes a Machine into the journal as a worker would have left it.
func plant(t *testing.T, j *journal, tr *trouble) {
	t.Helper()
	id, inst := key.NewMachineID(), key.NewInstanceID()
	ref, _ := json.Marshal(machine.ImageRef{Repository: "app", Digest: digestA})
	state := machine.State(tr.asg.Region)
	tr.asg = &internalpb.Assignment{
		MachineId: string(id), App: "web", Name: "m", Generation: 1, InstanceId: string(inst), Region: "local",
		Config: []byte(`{"image":"app","guest":{"cpu_kind":"shared","cpus":1,"memory_mb":1}}`), ImageRef: ref, Desired: string(machine.WantStarted),
	}
	switch state {
	case machine.Stopping, machine.Stopped:
		tr.asg.Desired = string(machine.WantStopped)
	case machine.Destroying, machine.Destroyed:
		tr.asg.Desired = string(machine.WantDestroyed)
	}
	tr.asg.Grant, _ = json.Marshal(grant.Grant{Machine: id, Instance: inst, Network: 5, Node: "n1"})
	now := time.Now()
	r := &record{Machine: id, Seq: 1, State: machine.Created, Since: now, Instance: inst, UpdatedAt: now}
	if err := j.create(r, tr.asg); err != nil {
		t.Fatal(err)
	}
	r.State, r.Wanted = state, machine.Desired(tr.asg.Desired)
	if tr.held {
		r.Sandbox, r.Ran, r.Launched, r.Image, r.StartedAt = inst, state != machine.Starting, true, digestA, now
	}
	was := r.Slot
	if state == machine.Destroyed {
		r.Slot = 0
	}
	if err := j.put("plant", r, was, tr.asg); err != nil {
		t.Fatal(err)
	}
}

// brokenWorld is a worker whose runtime and image store are broken, with Machines in
// every state. It is made and used inside a bubble of synctest, whose clock it has.
type brokenWorld struct {
	t     *testing.T
	w     *Worker
	rt    *brokenRuntime
	stays *stays
	all   []*trouble
}

func newBrokenWorld(t *testing.T, dir, how string, depth int) *brokenWorld {
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &brokenWorld{t: t, rt: newBrokenRuntime(how), stays: newStays(), all: troubles(t, depth)}
	if err := j.rebuild(nil); err != nil { // what is planted is all of it
		t.Fatal(err)
	}
	for _, tr := range b.all {
		plant(t, j, tr)
	}
	if _, err := j.load(); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	images := newFakeImages()
	images.ensure = func(ctx context.Context, ref machine.ImageRef) error { return b.rt.call(ctx, "") }
	b.w = New(Options{
		Dir: dir, Node: "n1", Host: 7, Runtime: b.rt, Images: images, MemoryMB: 1 << 40,
		Nameservers: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, Log: slog.New(b.stays),
	})
	for _, tr := range b.all {
		b.stays.enter(tr.asg.MachineId, b.planted(tr))
	}
	if err := b.w.Open(); err != nil {
		t.Fatal(err)
	}
	return b
}

// planted is the state that a Machine was written in.
func (b *brokenWorld) planted(tr *trouble) machine.State {
	s, _, _ := strings.Cut(tr.what, " ")
	return machine.State(s)
}

func (b *brokenWorld) assign(tr *trouble, w wish) {
	a := cloneAsg(tr.asg)
	w.do(a)
	a.Generation++
	tr.asg = a
	if err := b.w.Assign(a); err != nil {
		b.t.Fatal(err)
	}
}

func (b *brokenWorld) state(tr *trouble) machine.State {
	s, err := b.w.get(key.MachineID(tr.asg.MachineId))
	if err != nil {
		b.t.Fatalf("%s: %v", tr.what, err)
	}
	return s.rec.State
}

// TestNoStateIsForEver puts Machines into every state, breaks every call to the
// runtime and the image store for hours, and lets the user want each thing, and some
// sequences of two ("make soak-states": all), at the same time: each Machine leaves
// each passing state by its deadline, one that holds nothing is destroyed at once, one
// that holds something is tried again and again; and when what was broken is healed,
// all of them get where they are wanted.
func TestNoStateIsForEver(t *testing.T) {
	for how, depth := range map[string]int{hangs: 2, fails: 1} {
		t.Run(how, func(t *testing.T) {
			dir := memoryDir(t)
			synctest.Test(t, func(t *testing.T) { testNoStateIsForEver(t, dir, how, depth) })
		})
	}
}

func testNoStateIsForEver(t *testing.T, dir, how string, depth int) {
	b := newBrokenWorld(t, dir, how, depth)
	for i := range 2 {
		time.Sleep(90 * time.Second)
		for _, tr := range b.all {
			if i < len(tr.wishes) {
				b.assign(tr, tr.wishes[i])
			}
		}
	}
	// Every deadline passes, some of them several times.
	time.Sleep(50 * time.Minute)
	synctest.Wait()
	gone := 0
	for _, tr := range b.all {
		wanted, s := machine.Desired(tr.asg.Desired), b.state(tr)
		if s == machine.Destroyed {
			gone++
			continue
		}
		if wanted != machine.WantDestroyed {
			continue
		}
		if k, _ := b.w.get(key.MachineID(tr.asg.MachineId)); k.rec.Sandbox == "" {
			t.Errorf("%s: it holds nothing and is not destroyed but %s", tr.what, s)
		}
		b.rt.mu.Lock()
		since := time.Since(b.rt.tried[key.MachineID(tr.asg.MachineId)])
		b.rt.mu.Unlock()
		if since > failedRetryMax+time.Minute {
			t.Errorf("%s: it is %s, and was last tried %v ago", tr.what, s, since)
		}
	}
	b.rt.heal()
	// Whoever asks again is heard at once.
	var asked []*trouble
	for i, tr := range b.all {
		if i%2 == 0 && b.state(tr) != machine.Destroyed {
			b.assign(tr, wishes[len(wishes)-1])
			asked = append(asked, tr)
		}
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	for _, tr := range asked {
		if s := b.state(tr); s != machine.Destroyed {
			t.Errorf("%s: a minute after destroy --force was asked of what works again it is %s", tr.what, s)
		}
	}
	time.Sleep(failedRetryMax + 5*time.Minute)
	synctest.Wait()
	for _, tr := range b.all {
		if s := b.state(tr); !arrived(tr, s) {
			t.Errorf("%s: healed, it is %s and wanted %s", tr.what, s, tr.asg.Desired)
		}
	}
	for _, late := range b.stays.complaints() {
		t.Error(late)
	}
	for _, s := range machine.States() {
		if machine.Passing(s) && b.stays.seen[s] == 0 {
			t.Errorf("no machine was ever %s: the test shows nothing of it", s)
		}
	}
	t.Logf("%d machines, %d destroyed while everything %s; stays by state: %v", len(b.all), gone, how, b.stays.seen)
	if err := b.w.Close(); err != nil {
		t.Error(err)
	}
}

// arrived reports whether a Machine rests where it is wanted.
func arrived(tr *trouble, s machine.State) bool {
	switch machine.Desired(tr.asg.Desired) {
	case machine.WantDestroyed:
		return s == machine.Destroyed
	case machine.WantStopped:
		return s == machine.Stopped || s == machine.Created || s == machine.Destroyed
	}
	return !machine.Passing(s)
}

// TestNoStateIsForEverSeesAFault is the control: a call that does not even end with
// its deadline is noticed.
func TestNoStateIsForEverSeesAFault(t *testing.T) {
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBrokenWorld(t, dir, hangs, 0)
		var victim *trouble
		for _, tr := range b.all {
			if tr.what == "stopping (sandbox true) + " {
				victim = tr
			}
		}
		b.rt.mu.Lock()
		b.rt.deaf[key.MachineID(victim.asg.MachineId)] = true
		b.rt.mu.Unlock()
		time.Sleep(time.Hour)
		synctest.Wait()
		found := b.stays.complaints()
		if len(found) != 1 || !strings.Contains(found[0], victim.asg.MachineId) {
			t.Errorf("a machine that hangs for ever: %q", found)
		}
		close(b.rt.release)
		if err := b.w.Close(); err != nil {
			t.Error(err)
		}
	})
}

// oneMachine is a worker without Machines, over a runtime that works, and a fresh
// Machine to be assigned to it.
func oneMachine(t *testing.T, dir string, change func(*brokenRuntime, *fakeImages)) (*Worker, *brokenRuntime, func(registry string) *internalpb.Assignment) {
	rt, images := newBrokenRuntime(works), newFakeImages()
	change(rt, images)
	w := New(Options{Dir: dir, Node: "n1", Host: 7, Runtime: rt, Images: images, MemoryMB: 1 << 20, Nameservers: []netip.Addr{netip.MustParseAddr("9.9.9.9")}})
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	settle(t, w)
	return w, rt, func(registry string) *internalpb.Assignment {
		id, inst := key.NewMachineID(), key.NewInstanceID()
		ref, _ := json.Marshal(machine.ImageRef{Registry: registry, Repository: "app", Digest: digestA})
		a := &internalpb.Assignment{MachineId: string(id), App: "web", Generation: 1, InstanceId: string(inst), Config: []byte(plain), ImageRef: ref, Desired: string(machine.WantStarted)}
		a.Grant, _ = json.Marshal(grant.Grant{Machine: id, Instance: inst, Network: 5, Node: "n1"})
		if err := w.Assign(a); err != nil {
			t.Fatal(err)
		}
		return a
	}
}

func stateOf(t *testing.T, w *Worker, a *internalpb.Assignment) machine.State {
	t.Helper()
	k, err := w.get(key.MachineID(a.MachineId))
	if err != nil {
		t.Fatal(err)
	}
	return k.rec.State
}

// TestStopOfWhatCannotBeSignalled: a sandbox whose processes are frozen takes no
// signal; it is stopped all the same, soon after the time it had.
func TestStopOfWhatCannotBeSignalled(t *testing.T) {
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		w, rt, assign := oneMachine(t, dir, func(*brokenRuntime, *fakeImages) {})
		a := assign("")
		time.Sleep(time.Minute)
		if s := stateOf(t, w, a); s != machine.Started {
			t.Fatalf("it is %s", s)
		}
		rt.signals = hangs
		a = cloneAsg(a)
		a.Generation, a.Desired, a.StopTimeoutMs = 2, string(machine.WantStopped), 10_000
		began := time.Now()
		if err := w.Assign(a); err != nil {
			t.Fatal(err)
		}
		for stateOf(t, w, a) != machine.Stopped {
			if time.Sleep(100 * time.Millisecond); time.Since(began) > time.Hour {
				t.Fatalf("it is %s", stateOf(t, w, a))
			}
		}
		if took := time.Since(began); took > 10*time.Second+2*killWait+time.Second {
			t.Errorf("it took %v to stop a machine that had 10 s", took)
		}
		w.Close()
	})
}

// TestSlowRegistriesHoldUpOnlyTheirOwn: images of the cluster's registry are fetched
// while all the places for fetches from elsewhere are held by a registry that hangs.
func TestSlowRegistriesHoldUpOnlyTheirOwn(t *testing.T) {
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		w, _, assign := oneMachine(t, dir, func(_ *brokenRuntime, i *fakeImages) {
			i.ensure = func(ctx context.Context, ref machine.ImageRef) error {
				if ref.Registry != "" {
					<-ctx.Done()
					return fault.Wrap(fault.Timeout, ctx.Err(), "the registry hangs")
				}
				return nil
			}
		})
		var slow []*internalpb.Assignment
		for range 10 {
			slow = append(slow, assign("slow.example.com"))
		}
		time.Sleep(10 * time.Second)
		own := assign("")
		time.Sleep(time.Second)
		if s := stateOf(t, w, own); s != machine.Started {
			t.Errorf("beside a slow registry, a machine from the cluster's own is %s", s)
		}
		time.Sleep(machine.Deadline(machine.Creating) + time.Minute)
		for _, a := range slow {
			if s := stateOf(t, w, a); s == machine.Creating {
				// It is tried again, from failed; but not for ever in one go.
				if k, _ := w.get(key.MachineID(a.MachineId)); k.rec.Retries == 0 {
					t.Errorf("a machine whose registry hangs is %s, and was never told so", s)
				}
			}
		}
		w.Close()
	})
}

// TestAStrayThatResistsHoldsNobodyUp: a sandbox that no record names and that cannot be
// removed is tried again and again, while Machines start.
func TestAStrayThatResistsHoldsNobodyUp(t *testing.T) {
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		stray := key.NewMachineID()
		w, rt, assign := oneMachine(t, dir, func(rt *brokenRuntime, _ *fakeImages) {
			rt.strays = []sandbox.Info{{Machine: stray, Slot: 99}}
			rt.resists = stray
		})
		a := assign("")
		time.Sleep(2 * time.Minute)
		rt.mu.Lock()
		if since := time.Since(rt.tried[stray]); since > retryMax+callTimeout+time.Second {
			t.Errorf("the stray was last tried %v ago", since)
		}
		rt.mu.Unlock()
		if s := stateOf(t, w, a); s != machine.Started {
			t.Errorf("beside a stray that resists, a machine is %s", s)
		}
		w.Close()
	})
}
