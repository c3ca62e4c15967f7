package worker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/sandbox/fake"
)

// MachineAPI answers with what it gets.
func (b *brain) MachineAPI(s grpc.BidiStreamingServer[internalpb.MachineBytes, internalpb.MachineBytes]) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.calls[m.GetMachineId()]++
	refuse := b.refuse
	b.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	if err := s.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		if err := s.Send(&internalpb.MachineBytes{Data: m.GetData()}); err != nil {
			return err
		}
		if m, err = s.Recv(); err != nil {
			return nil
		}
	}
}

func (b *brain) called(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[id]
}

// apiRig is a cluster whose Machines run a program that connects when the test says so.
type apiRig struct {
	*cluster
	mu    sync.Mutex
	procs map[key.MachineID]*fake.Process
}

func newAPIRig(t *testing.T, prepare ...func(*node)) *apiRig {
	r := &apiRig{cluster: newCluster(t, prepare...), procs: map[key.MachineID]*fake.Process{}}
	r.node.host.Install("sleep", func(p *fake.Process) int {
		r.mu.Lock()
		r.procs[p.Spec.Machine] = p
		r.mu.Unlock()
		<-p.Done
		return 0
	})
	r.startController()
	return r
}

// machine starts a Machine.
func (r *apiRig) machine() string {
	r.t.Helper()
	id := key.NewMachineID()
	a := r.node.asg(id, `{"image":"app"}`)
	r.brain.assign(a)
	r.brain.hears(r.t, string(id), "a start", inState("started"))
	return string(id)
}

// connect connects as the Machine, once the worker listens.
func (r *apiRig) connect(id string) net.Conn {
	r.t.Helper()
	var c net.Conn
	await.True(r.t, "machine "+id+" reaches its API", func() bool {
		r.mu.Lock()
		p := r.procs[key.MachineID(id)]
		r.mu.Unlock()
		if p == nil {
			return false
		}
		var err error
		c, err = p.Connect()
		return err == nil
	})
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// ask sends a line and returns the answer's first.
func (r *apiRig) ask(id, line string) string {
	r.t.Helper()
	c := r.connect(id)
	fmt.Fprintln(c, line)
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		r.t.Fatalf("machine %s asks %q: %v", id, line, err)
	}
	return strings.TrimSpace(answer)
}

// TestMachineAPIIsCarried: bytes go to the controller and back untouched, under the
// Machine's own name, also for the worker that comes after, and while the controller is
// away the Machine is told so.
func TestMachineAPIIsCarried(t *testing.T) {
	r := newAPIRig(t)
	a, b := r.machine(), r.machine()
	if got := r.ask(a, "hello"); got != "hello" || r.brain.called(a) != 1 || r.brain.called(b) != 0 {
		t.Errorf("%q came back, %d and %d calls", got, r.brain.called(a), r.brain.called(b))
	}
	sent := make([]byte, 3<<20)
	rand.Read(sent)
	c := r.connect(b)
	go c.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what comes back of 3 MiB is not the same, %v", err)
	}
	r.stopController()
	if got := r.ask(a, "x"); !strings.HasPrefix(got, "HTTP/1.1 503 ") {
		t.Errorf("without a controller: %q", got)
	}
	r.startController()
	for deadline := time.Now().Add(40 * time.Second); ; {
		if got := r.ask(a, "again"); got == "again" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("when the controller is back: %q", got)
		}
	}
	r.brain.mu.Lock()
	r.brain.refuse = fault.New(fault.TooMany, "slower")
	r.brain.mu.Unlock()
	if got := r.ask(a, "x"); !strings.HasPrefix(got, "HTTP/1.1 429 ") {
		t.Errorf("when the controller takes no more: %q", got)
	}
	r.brain.mu.Lock()
	r.brain.refuse = nil
	r.brain.mu.Unlock()
	r.node.down()
	r.node.boot()
	if got := r.ask(a, "later"); got != "later" {
		t.Errorf("with the next worker: %q", got)
	}
}

// TestMachineAPIIsBounded: a Machine that holds as many connections as it may, gets no
// more until one ends; silent ones are no calls; its neighbour goes on.
func TestMachineAPIIsBounded(t *testing.T) {
	r := newAPIRig(t)
	greedy, neighbour := r.machine(), r.machine()
	var held []net.Conn
	for range apiConns {
		c := r.connect(greedy)
		fmt.Fprintln(c, "hold")
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	p := r.procs[key.MachineID(greedy)]
	if c, err := p.Connect(); err == nil {
		c.Close()
		t.Errorf("a machine holds more than %d connections", apiConns)
	}
	if got := r.ask(neighbour, "hello"); got != "hello" {
		t.Errorf("the neighbour gets %q", got)
	}
	held[0].Close()
	if c := r.connect(greedy); c == nil {
		t.Error("a place that is free is not given")
	}
	if n := r.brain.called(greedy); n != apiConns {
		t.Errorf("%d calls were made for %d connections that spoke", n, apiConns)
	}
}

// TestBucket: what is more than the burst waits.
func TestBucket(t *testing.T) {
	b := newBucket(1000, 10)
	began := time.Now()
	for range 110 {
		if err := b.take(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 95*time.Millisecond {
		t.Errorf("110 passed in %v at 1000 a second", took)
	}
	slow := newBucket(1, 1)
	slow.take(t.Context(), 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if slow.take(ctx, 100) == nil {
		t.Error("it waits for a context that has ended")
	}
}

// TestListenerThatBreaks: what goes wrong with a listener is tried again.
func TestListenerThatBreaks(t *testing.T) {
	var mu sync.Mutex
	tried := map[key.MachineID]int{}
	r := newAPIRig(t, func(n *node) {
		n.host.Before = func(op string, id key.MachineID) error {
			mu.Lock()
			defer mu.Unlock()
			if op != "listen" {
				return nil
			}
			switch tried[id]++; tried[id] {
			case 1:
				return fault.New(fault.Unavailable, "the warden is restarted")
			case 2: // as it says, too, when it has no file left to reach the shim with
				return fault.New(fault.NotFound, "machine %s is not running", id)
			}
			return nil
		}
	})
	id := r.machine()
	if got := r.ask(id, "hello"); got != "hello" {
		t.Errorf("got %q", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if tried[key.MachineID(id)] != 3 {
		t.Errorf("%d tries", tried[key.MachineID(id)])
	}
}
