package worker

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/image/imagetest"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
	"bulkhead/sandbox/fake"
)

// brain is a controller for tests: it keeps assignments and what it hears.
type brain struct {
	internalpb.UnimplementedControllerServer

	mu       sync.Mutex
	assigned map[string]*internalpb.Assignment
	heard    map[string]*internalpb.Observation
	news     chan struct{} // closed when more was heard
	hellos   []*internalpb.Hello
	down     chan *internalpb.ToWorker // to the worker of the present stream
	blobs    map[string][]byte
	cut      int            // FetchBlob streams that break after a few bytes
	calls    map[string]int // connections to the API, by Machine
	refuse   error          // of the next ones
}

func newBrain() *brain {
	return &brain{news: make(chan struct{}), assigned: map[string]*internalpb.Assignment{}, heard: map[string]*internalpb.Observation{}, blobs: map[string][]byte{}, calls: map[string]int{}}
}

// tell wakes those who wait for what was heard. b.mu is held.
func (b *brain) tell() {
	close(b.news)
	b.news = make(chan struct{})
}

// Sync takes a hello, sends the snapshot, and then both ways.
func (b *brain) Sync(s grpc.BidiStreamingServer[internalpb.FromWorker, internalpb.ToWorker]) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	down := make(chan *internalpb.ToWorker, 100)
	snap := &internalpb.Snapshot{}
	b.mu.Lock()
	b.hellos = append(b.hellos, m.GetHello())
	for _, o := range m.GetHello().GetObservations() {
		b.heard[o.MachineId] = o
	}
	b.tell()
	for _, a := range b.assigned {
		snap.Assignments = append(snap.Assignments, a)
	}
	b.down = down
	b.mu.Unlock()
	if err := s.Send(&internalpb.ToWorker{Kind: &internalpb.ToWorker_Snapshot{Snapshot: snap}}); err != nil {
		return err
	}
	up := make(chan error, 1)
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				up <- err
				return
			}
			b.mu.Lock()
			if o := m.GetObservation(); o != nil && o.Seq >= b.heard[o.MachineId].GetSeq() {
				b.heard[o.MachineId] = o
				b.tell()
			}
			b.mu.Unlock()
		}
	}()
	for {
		select {
		case err := <-up:
			return err
		case m := <-down:
			if err := s.Send(m); err != nil {
				return err
			}
		}
	}
}

// hold puts an image into the brain's registry.
func (b *brain) hold(t *testing.T, img v1.Image) key.Digest {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	digest := imagetest.Digest(t, img)
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	b.blobs[string(digest)] = raw
	config, _ := img.ConfigName()
	b.blobs[config.String()], _ = img.RawConfigFile()
	layers, _ := img.Layers()
	for _, l := range layers {
		d, _ := l.Digest()
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b.blobs[d.String()], _ = io.ReadAll(r)
	}
	return digest
}

func (b *brain) FetchManifest(_ context.Context, r *internalpb.FetchManifestRequest) (*internalpb.FetchManifestResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m, ok := b.blobs[r.Digest]; ok && json.Valid(m) {
		return &internalpb.FetchManifestResponse{Content: m}, nil
	}
	return &internalpb.FetchManifestResponse{Content: []byte(r.Repository + r.Digest + r.MachineId), MediaType: "t"}, nil
}

func (b *brain) FetchBlob(r *internalpb.FetchBlobRequest, s grpc.ServerStreamingServer[internalpb.BlobChunk]) error {
	b.mu.Lock()
	data, ok := b.blobs[r.Digest]
	cut := b.cut > 0
	b.cut--
	b.mu.Unlock()
	if !ok {
		return fault.New(fault.NotFound, "there is no blob %s", r.Digest)
	}
	data = data[r.Offset:]
	for i := 0; len(data) > 0; i++ {
		n := min(1000, len(data))
		if err := s.Send(&internalpb.BlobChunk{Data: data[:n]}); err != nil {
			return err
		}
		if data = data[n:]; cut && i == 2 {
			return fault.New(fault.Unavailable, "the controller is restarted")
		}
	}
	return nil
}

// assign changes what is assigned and tells the connected worker.
func (b *brain) assign(a *internalpb.Assignment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.assigned[a.MachineId] = a
	if b.down != nil {
		b.down <- &internalpb.ToWorker{Kind: &internalpb.ToWorker_Assignment{Assignment: a}}
	}
}

func (b *brain) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.assigned, id)
	delete(b.heard, id)
	b.down <- &internalpb.ToWorker{Kind: &internalpb.ToWorker_Forget{Forget: &internalpb.Forget{MachineId: id}}}
}

// hears waits for an observation.
func (b *brain) hears(t *testing.T, id, what string, ok func(o *internalpb.Observation) bool) *internalpb.Observation {
	t.Helper()
	end := time.NewTimer(40 * time.Second)
	defer end.Stop()
	for {
		b.mu.Lock()
		o, news := b.heard[id], b.news
		b.mu.Unlock()
		if o != nil && ok(o) {
			return o
		}
		select {
		case <-news:
		case <-end.C:
			t.Fatalf("the controller never hears of %s; last: %v", what, o)
		}
	}
}

func inState(s machine.State) func(*internalpb.Observation) bool {
	return func(o *internalpb.Observation) bool { return o.State == string(s) }
}

// cluster is a controller and a worker that speak over mutual TLS.
type cluster struct {
	t     *testing.T
	dir   string
	ca    *pki.CA
	brain *brain
	node  *node
	id    *pki.Identity // the worker's
	ctrl  *grpc.Server
	admit []rpc.Admit // of the next controller
}

// newCluster starts one; prepare changes the node before its worker starts.
func newCluster(t *testing.T, prepare ...func(*node)) *cluster {
	c := &cluster{t: t, dir: t.TempDir(), ca: pkitest.CA(t, "test", "bulkhead.localhost"), brain: newBrain(), node: newNode(t)}
	c.id = pkitest.Identity(t, c.ca, pki.ID{Cluster: "test", Role: role.Worker, Node: "n1"})
	cc := c.dial(c.id, c.socket("internal"), role.Controller)
	c.node.opt.API = internalpb.NewControllerClient(cc)
	for _, f := range prepare {
		f(c.node)
	}
	c.node.boot()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.node.w.Sync(ctx, internalpb.NewControllerClient(cc)); close(done) }()
	t.Cleanup(func() { cancel(); <-done; c.stopController() })
	c.serveWorker()
	return c
}

func (c *cluster) socket(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) dial(id *pki.Identity, socket, want string) *grpc.ClientConn {
	c.t.Helper()
	cc, err := rpc.Dial(id, socket, want, "")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cc.Close() })
	return cc
}

// serveWorker serves the worker's own services.
func (c *cluster) serveWorker() {
	l, err := net.Listen("unix", c.socket("worker"))
	if err != nil {
		c.t.Fatal(err)
	}
	s := rpc.NewServer(c.id, slog.New(slog.DiscardHandler), nil)
	c.node.w.Register(s)
	go s.Serve(l)
	c.t.Cleanup(s.Stop)
}

func (c *cluster) startController() {
	c.t.Helper()
	l, err := net.Listen("unix", c.socket("internal"))
	if err != nil {
		c.t.Fatal(err)
	}
	id := pkitest.Identity(c.t, c.ca, pki.ID{Cluster: "test", Role: role.Controller, Node: "n1"})
	c.ctrl = rpc.NewServer(id, slog.New(slog.DiscardHandler), nil, c.admit...)
	internalpb.RegisterControllerServer(c.ctrl, c.brain)
	go c.ctrl.Serve(l)
}

func (c *cluster) stopController() {
	if c.ctrl != nil {
		c.ctrl.Stop()
		c.ctrl = nil
	}
}

// as returns a client of the worker with a role's identity.
func (c *cluster) as(roleName string) internalpb.WorkerClient {
	id := pkitest.Identity(c.t, c.ca, pki.ID{Cluster: "test", Role: roleName, Node: "n1"})
	return internalpb.NewWorkerClient(c.dial(id, c.socket("worker"), role.Worker))
}

// TestSyncOverTheWire: assignments down, observations up, with the controller away
// in between, while a Machine is restarted without it.
func TestSyncOverTheWire(t *testing.T) {
	c := newCluster(t)
	c.startController()
	id := key.NewMachineID()
	a := c.node.asg(id, plain)
	c.brain.assign(a)
	o := c.brain.hears(t, a.MachineId, "the start", inState(machine.Started))
	if o.PrivateIp == "" || o.InstanceId != a.InstanceId || len(o.Events) == 0 {
		t.Fatalf("%v", o)
	}
	select {
	case <-c.node.w.Connected():
	default:
		t.Fatal("the worker does not know that it is connected")
	}

	c.stopController()
	c.node.host.OOM(id) // restarted by policy, without a controller
	c.node.until(a.MachineId, "second run", func(r *record) bool { return r.State == machine.Started && len(exits(r)) == 1 })
	if c.node.host.Starts(id) != 2 {
		t.Fatal("not restarted")
	}
	// Meanwhile the user stops it, and another Machine is unknown to the controller's
	// snapshot: it stays.
	other := c.node.assign(c.node.asg(key.NewMachineID(), plain))
	c.node.state(other, machine.Started)
	a = c.node.next(a, desired(machine.WantStopped))
	c.brain.mu.Lock()
	c.brain.assigned[a.MachineId], c.brain.down = a, nil
	c.brain.mu.Unlock()
	c.startController()
	o = c.brain.hears(t, a.MachineId, "the stop", inState(machine.Stopped))
	if !strings.Contains(string(o.Events[0])+string(o.Events[1]), `"requested_stop":true`) {
		t.Fatalf("%s", o.Events[0])
	}
	c.brain.hears(t, other.MachineId, "the other one", inState(machine.Started))

	a = c.node.next(a, desired(machine.WantDestroyed))
	c.brain.assign(a)
	c.brain.hears(t, a.MachineId, "the destruction", inState(machine.Destroyed))
	c.brain.forget(a.MachineId)
	c.node.vanishes(id)
	c.brain.mu.Lock()
	defer c.brain.mu.Unlock()
	if n := len(c.brain.hellos); n != 2 || c.brain.hellos[1].Capacity.MemoryMb != 4096 || c.brain.hellos[0].Node != "n1" {
		t.Fatalf("%d hellos, last %v", n, c.brain.hellos[n-1].Capacity)
	}
}

// TestHelloIsBounded: with many Machines the events follow in messages of their own.
func TestHelloIsBounded(t *testing.T) {
	n := newNode(t)
	n.boot()
	n.w.mu.Lock()
	for range 300 {
		id := key.NewMachineID()
		r := &record{Machine: id, State: machine.Stopped}
		for range maxEvents {
			r.event(time.Now(), "exit", byPlatform, &machine.EventRequest{Error: strings.Repeat("x", 800)})
		}
		n.w.setSeen(r, &internalpb.Assignment{})
	}
	n.w.mu.Unlock()
	h := n.w.hello()
	if len(h.Observations) != 300 || len(h.Observations[0].Events) != 0 {
		t.Fatalf("%d observations with %d events", len(h.Observations), len(h.Observations[0].Events))
	}
	if d := n.w.takeDirty(); len(d) != 300 || len(d[0].Events) != maxEvents {
		t.Fatalf("%d observations follow", len(d))
	}
}

func TestService(t *testing.T) {
	c := newCluster(t)
	c.node.host.Install("echo", func(p *fake.Process) int {
		b, _ := io.ReadAll(p.Stdin)
		io.WriteString(p.Stdout, strings.Join(p.Spec.Args[1:], " ")+string(b))
		io.WriteString(p.Stderr, p.Env("FROM_IMAGE"))
		return 4
	})
	c.node.host.Install("talk", func(p *fake.Process) int {
		sig := p.Handle(10)
		io.WriteString(p.Stdout, "one\ntwo\n")
		for {
			select {
			case <-sig:
				io.WriteString(p.Stderr, "three\n")
			case <-p.Done:
				return 0
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w := c.as(role.Controller)
	a := c.node.assign(c.node.asg(key.NewMachineID(), `{"image":"a","init":{"cmd":["talk"]}}`))
	c.node.state(a, machine.Started)
	c.node.line(a, "two")

	t.Run("exec", func(t *testing.T) {
		r, err := w.Exec(ctx, &internalpb.ExecRequest{MachineId: a.MachineId, Command: []string{"echo", "a", "b"}, Stdin: []byte("!")})
		if err != nil || r.ExitCode != 4 || string(r.Stdout) != "a b!" || string(r.Stderr) != "1" {
			t.Fatalf("%v, %v", r, err)
		}
		for _, bad := range []*internalpb.ExecRequest{{MachineId: a.MachineId}, {MachineId: a.MachineId, Command: []string{"echo"}, TimeoutMs: 1 << 40}, {MachineId: "x", Command: []string{"echo"}}} {
			if _, err := w.Exec(ctx, bad); !fault.Is(err, fault.Invalid) {
				t.Errorf("%v: %v", bad, err)
			}
		}
		if _, err := w.Exec(ctx, &internalpb.ExecRequest{MachineId: a.MachineId, Command: []string{"nonsense"}}); !fault.Is(err, fault.Unprocessable) {
			t.Errorf("%v", err)
		}
	})
	t.Run("processes", func(t *testing.T) {
		r, err := w.Processes(ctx, &internalpb.ProcessesRequest{MachineId: a.MachineId})
		if err != nil || len(r.Processes) != 2 || r.Processes[1].Command != "talk" || r.Processes[0].Stime == 0 {
			t.Fatalf("%v, %v", r, err)
		}
	})
	t.Run("logs and signal", func(t *testing.T) {
		s, err := w.Logs(ctx, &internalpb.LogsRequest{MachineId: a.MachineId, Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"stdout one", "stdout two", "stderr three"} {
			if i == 2 {
				if _, err := w.Signal(ctx, &internalpb.SignalRequest{MachineId: a.MachineId, Signal: 10}); err != nil {
					t.Fatal(err)
				}
			}
			l, err := s.Recv()
			if err != nil || l.Stream+" "+string(l.Line) != want || l.TimeNs == 0 {
				t.Fatalf("%v, %v; want %s", l, err, want)
			}
		}
		s, err = w.Logs(ctx, &internalpb.LogsRequest{MachineId: a.MachineId, Tail: 1})
		if err != nil {
			t.Fatal(err)
		}
		if l, err := s.Recv(); err != nil || string(l.Line) != "three" {
			t.Fatalf("%v, %v", l, err)
		}
		if _, err := s.Recv(); err != io.EOF {
			t.Fatalf("%v", err)
		}
	})
	t.Run("unknown and stopped", func(t *testing.T) {
		if _, err := w.Signal(ctx, &internalpb.SignalRequest{MachineId: "ffffffffffffff", Signal: 1}); !fault.Is(err, fault.NotFound) {
			t.Errorf("%v", err)
		}
		if _, err := w.Signal(ctx, &internalpb.SignalRequest{MachineId: a.MachineId, Signal: 99}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v", err)
		}
		a = c.node.assign(c.node.next(a, desired(machine.WantStopped)))
		c.node.state(a, machine.Stopped)
		if _, err := w.Processes(ctx, &internalpb.ProcessesRequest{MachineId: a.MachineId}); !fault.Is(err, fault.Conflict) {
			t.Errorf("%v", err)
		}
	})
	t.Run("metrics", func(t *testing.T) {
		id := pkitest.Identity(t, c.ca, pki.ID{Cluster: "test", Role: role.Controller, Node: "n1"})
		m, err := internalpb.NewTelemetryClient(c.dial(id, c.socket("worker"), role.Worker)).Metrics(ctx, &internalpb.MetricsRequest{})
		if err != nil || !strings.Contains(string(m.Text), `bulkhead_worker_machines{state="stopped"} 1`) || !strings.Contains(string(m.Text), "bulkhead_worker_memory_limit_megabytes 4096") {
			t.Fatalf("%v\n%s", err, m.GetText())
		}
	})
	t.Run("another role is refused", func(t *testing.T) {
		for _, r := range []string{role.Edge, role.Worker} {
			if _, err := c.as(r).Signal(ctx, &internalpb.SignalRequest{MachineId: a.MachineId, Signal: 9}); !fault.Is(err, fault.Denied) {
				t.Errorf("%s: %v", r, err)
			}
		}
	})
}

// TestARemovedNodeDestroysItsMachines: the refusal that a removed node gets ends what
// it runs; no other failure of the controller does.
func TestARemovedNodeDestroysItsMachines(t *testing.T) {
	c := newCluster(t)
	var ids []key.MachineID
	for _, want := range []machine.Desired{machine.WantStarted, machine.WantStopped, machine.WantStarted} {
		a := c.node.assign(c.node.asg(key.NewMachineID(), plain))
		c.node.state(a, machine.Started)
		if want == machine.WantStopped {
			c.node.state(c.node.assign(c.node.next(a, desired(want))), machine.Stopped)
		}
		ids = append(ids, key.MachineID(a.MachineId))
	}
	var asked atomic.Int64
	refuse := func(f *fault.Error) rpc.Admit {
		return func(context.Context, pki.ID) error { asked.Add(1); return f }
	}
	c.admit = []rpc.Admit{refuse(fault.New(fault.Denied, "another reason"))}
	c.startController()
	await.True(t, "the worker asks", func() bool { return asked.Load() >= 3 })
	for _, id := range ids {
		if s, err := c.node.w.get(id); err != nil || s.asg.GetDesired() == string(machine.WantDestroyed) {
			t.Errorf("machine %s is destroyed for another reason (%v)", id, err)
		}
	}
	c.stopController()
	c.admit = []rpc.Admit{refuse(fault.New(fault.Denied, "node n1 was removed").WithStatus(rpc.NodeRemoved))}
	c.startController()
	for _, id := range ids {
		c.node.vanishes(id)
	}
	if all, err := c.node.host.List(context.Background()); err != nil || len(all) != 0 {
		t.Errorf("sandboxes are left: %v, %v", all, err)
	}
	// Taken back, it comes with nothing.
	c.stopController()
	c.admit = nil
	c.startController()
	a := c.node.asg(key.NewMachineID(), plain)
	c.brain.assign(a)
	c.brain.hears(t, a.MachineId, "a new machine", inState(machine.Started))
}
