package worker

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
	"bulkhead/sandbox/fake"
)

// digestA and digestB are images that fakeImages has.
const (
	digestA = key.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	digestB = key.Digest("sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
)

// fakeImages is Images in memory.
type fakeImages struct {
	mu     sync.Mutex
	sealed map[key.Digest]*image.Image
	// ensure, when set, is asked before each Ensure.
	ensure func(ctx context.Context, ref machine.ImageRef) error
	asked  int
	// broken are images that Verify finds damaged; verified counts its calls.
	broken   map[key.Digest]bool
	verified int
}

func newFakeImages() *fakeImages { return &fakeImages{sealed: map[key.Digest]*image.Image{}} }

func (f *fakeImages) Resolve(ctx context.Context, ref string) (machine.ImageRef, error) {
	if strings.Contains(ref, "missing") {
		return machine.ImageRef{}, fault.New(fault.NotFound, "there is no image %s", ref)
	}
	return machine.ImageRef{Registry: "registry.example.com", Repository: ref, Digest: digestA}, nil
}

func (f *fakeImages) Check(ctx context.Context, id key.MachineID, ref machine.ImageRef, manifest []byte) error {
	if strings.Contains(string(manifest), "s390x") {
		return fault.New(fault.Unprocessable, "image %s is for linux/s390x", ref.Digest)
	}
	return nil
}

func (f *fakeImages) Ensure(ctx context.Context, id key.MachineID, ref machine.ImageRef) (*image.Image, error) {
	f.mu.Lock()
	ask := f.ensure
	f.asked++
	f.mu.Unlock()
	if ask != nil {
		if err := ask(ctx, ref); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	img := f.sealed[ref.Digest]
	if img == nil {
		img = &image.Image{Digest: ref.Digest, Size: 1 << 20, Config: image.Config{Cmd: []string{"sleep"}, Env: []string{"FROM_IMAGE=1"}}}
		f.sealed[ref.Digest] = img
	}
	return img, nil
}

func (f *fakeImages) Lookup(d key.Digest) (*image.Image, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	img, ok := f.sealed[d]
	return img, ok
}

func (f *fakeImages) Verify(ctx context.Context, d key.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verified++
	if f.sealed[d] == nil {
		return fault.New(fault.NotFound, "there is no image %s", d)
	}
	if f.broken[d] {
		delete(f.broken, d)
		delete(f.sealed, d)
		return fault.New(fault.Internal, "image %s was damaged on disk and has been removed", d)
	}
	return nil
}

func (f *fakeImages) List() (out []*image.Image) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.sealed {
		out = append(out, i)
	}
	return out
}

func (f *fakeImages) GC(keep func(key.Digest) bool) (removed []key.Digest, err error) {
	for _, i := range f.List() {
		if !keep(i.Digest) {
			f.mu.Lock()
			delete(f.sealed, i.Digest)
			f.mu.Unlock()
			removed = append(removed, i.Digest)
		}
	}
	return removed, nil
}

// node is a node for tests: what outlives a worker, and the worker of now.
type node struct {
	t      testing.TB
	dir    string
	host   *fake.Host
	images *fakeImages
	w      *Worker
	gen    int64
	tune   func(*Worker) // applied to each new worker before it opens
	opt    Options
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t, dir: memoryDir(t), host: fake.NewHost(), images: newFakeImages()}
	t.Cleanup(func() {
		if n.w != nil {
			n.w.Close()
		}
		n.host.PowerCut()
		for _, f := range n.host.Faults() {
			t.Errorf("the worker must never do this: %s", f)
		}
	})
	return n
}

// boot starts a worker on the node's journal.
func (n *node) boot() *Worker {
	n.t.Helper()
	w := n.make(n.host, n.images)
	if err := w.Open(); err != nil {
		n.t.Fatal(err)
	}
	n.w = w
	settle(n.t, w)
	return w
}

// settle plays a controller that has assigned nothing to a worker with a new journal.
func settle(t testing.TB, w *Worker) {
	t.Helper()
	if w.notWhole() == nil {
		return
	}
	if err := w.rebuildOnce(t.Context(), &internalpb.Snapshot{}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) make(rt sandbox.Runtime, images Images) *Worker {
	o := n.opt
	o.Dir, o.Node, o.Host, o.Runtime, o.Images = n.dir, "n1", 7, rt, images
	if o.ResolvConfs == nil {
		o.Nameservers = []netip.Addr{netip.MustParseAddr("9.9.9.9")}
	}
	if o.MemoryMB == 0 {
		o.MemoryMB = 4096
	}
	o.Log = slog.New(slog.NewTextHandler(logWriter{n.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w := New(o)
	if n.tune != nil {
		n.tune(w)
	}
	return w
}

// logWriter sends a worker's log to the test's, which shows it on failure.
type logWriter struct{ t testing.TB }

func (l logWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		l.t.Logf("%s", strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// down stops the worker; machines run on.
func (n *node) down() {
	n.t.Helper()
	if err := n.w.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.w = nil
}

// asg is a fresh assignment for a Machine.
func (n *node) asg(id key.MachineID, config string, change ...func(*internalpb.Assignment)) *internalpb.Assignment {
	n.t.Helper()
	n.gen++
	ref, _ := json.Marshal(machine.ImageRef{Repository: "app", Digest: digestA})
	a := &internalpb.Assignment{
		MachineId: string(id), App: "web", Name: "m", Generation: n.gen, InstanceId: string(key.NewInstanceID()),
		Config: []byte(config), ImageRef: ref, Desired: string(machine.WantStarted), Region: "local",
	}
	for _, c := range change {
		c(a)
	}
	a.Grant, _ = json.Marshal(grant.Grant{Machine: id, Instance: key.InstanceID(a.InstanceId), Network: 5, Node: "n1"})
	return a
}

// next is a with a higher generation and a change.
func (n *node) next(a *internalpb.Assignment, change ...func(*internalpb.Assignment)) *internalpb.Assignment {
	n.gen++
	b := *cloneAsg(a)
	b.Generation = n.gen
	for _, c := range change {
		c(&b)
	}
	return cloneAsg(&b)
}

func cloneAsg(a *internalpb.Assignment) *internalpb.Assignment {
	c := &internalpb.Assignment{
		MachineId: a.MachineId, App: a.App, Name: a.Name, Generation: a.Generation, InstanceId: a.InstanceId, Config: a.Config,
		ImageRef: a.ImageRef, Desired: a.Desired, StartNonce: a.StartNonce, RestartNonce: a.RestartNonce, StopSignal: a.StopSignal,
		StopTimeoutMs: a.StopTimeoutMs, Force: a.Force, Grant: a.Grant, GrantSignature: a.GrantSignature, Region: a.Region, Cordoned: a.Cordoned,
		Wish: a.Wish, LeaseUntilMs: a.LeaseUntilMs, LeaseTtlMs: a.LeaseTtlMs, LeaseRevision: a.LeaseRevision,
		SecretsVersion: a.SecretsVersion, MinSecretsVersion: a.MinSecretsVersion, SkipSecrets: a.SkipSecrets,
	}
	return c
}

func desired(d machine.Desired) func(*internalpb.Assignment) {
	return func(a *internalpb.Assignment) { a.Desired = string(d) }
}

func started(nonce int64) func(*internalpb.Assignment) {
	return func(a *internalpb.Assignment) { a.Desired, a.StartNonce = string(machine.WantStarted), nonce }
}

// assign hands an assignment to the worker.
func (n *node) assign(a *internalpb.Assignment) *internalpb.Assignment {
	n.t.Helper()
	if err := n.w.Assign(a); err != nil {
		n.t.Fatal(err)
	}
	return a
}

// memoryDir is a directory without a disk under it: a journal syncs every step.
func memoryDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "bulkhead-worker-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// watch asks ok whenever more becomes known of the Machine, until it returns true or
// the limit has passed. It asks now and then as well: ok may look at what the fake
// runtime says, or at a worker that has died, and neither is announced.
func watch(w func() *Worker, id key.MachineID, limit time.Duration, ok func() bool) bool {
	end, again := time.NewTimer(limit), time.NewTicker(5*time.Millisecond)
	defer end.Stop()
	defer again.Stop()
	for {
		var next chan struct{}
		if s, err := w().get(id); err == nil {
			next = s.next
		}
		if ok() {
			return true
		}
		select {
		case <-next:
		case <-again.C:
		case <-end.C:
			return false
		}
	}
}

// until waits until the Machine's newest truth satisfies ok.
func (n *node) until(id string, what string, ok func(r *record) bool) (r *record) {
	n.t.Helper()
	m := key.MachineID(id)
	if !watch(func() *Worker { return n.w }, m, time.Minute, func() bool {
		s, err := n.w.get(m)
		if err != nil {
			return false
		}
		r = s.rec
		return ok(r)
	}) {
		b, _ := json.MarshalIndent(r, "", " ")
		n.t.Fatalf("waiting for %s, it is\n%s", what, b)
	}
	return r
}

// state waits for a state that the given assignment led to.
func (n *node) state(a *internalpb.Assignment, s machine.State) *record {
	n.t.Helper()
	return n.until(a.MachineId, "state "+string(s), func(r *record) bool {
		k, _ := n.w.get(key.MachineID(a.MachineId))
		return r.State == s && k != nil && k.asg.Generation >= a.Generation
	})
}

// types lists the events' types with their status, oldest first.
func types(r *record) string {
	var out []string
	for i := len(r.Events) - 1; i >= 0; i-- {
		out = append(out, r.Events[i].Type+"/"+r.Events[i].Status)
	}
	return strings.Join(out, " ")
}

// exits lists the exit events, newest first.
func exits(r *record) (out []*machine.ExitEvent) {
	for _, e := range r.Events {
		if e.Type == "exit" {
			out = append(out, e.Request.ExitEvent)
		}
	}
	return out
}
