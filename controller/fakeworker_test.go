package controller_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/pki"
	"bulkhead/privnet"
)

// fakeWorker keeps a worker's side of the contract without running anything: it
// takes assignments, moves each Machine through machine.Next, and reports.
type fakeWorker struct {
	internalpb.UnimplementedWorkerServer
	internalpb.UnimplementedTelemetryServer
	node key.Node

	mu         sync.Mutex
	machines   map[key.MachineID]*fakeMachine
	slots      privnet.Slot
	out        chan *internalpb.FromWorker // of the open Sync; nil when there is none
	forgot     map[key.MachineID]bool
	signals    []int32
	deaf       bool // takes assignments without acting on them
	memory     int64
	mute       bool   // does not say its metrics
	renewed    int    // grants that came for a generation that was known under another
	execsBegun int    // commands that run until they are killed
	execsEnded int    // commands that were killed
	refused    int    // how often Sync said that the node was removed
	reserve    func() // if set, called in the middle of each Reserve

	controller internalpb.ControllerClient // for Reserve to look at images with
	reserveErr error                       // of the last look
}

// fakeMachine is one Machine of a fakeWorker.
type fakeMachine struct {
	a     *internalpb.Assignment
	obs   *internalpb.Observation
	slot  privnet.Slot
	state machine.State
}

func newFakeWorker(node key.Node) *fakeWorker {
	return &fakeWorker{node: node, machines: map[key.MachineID]*fakeMachine{}, forgot: map[key.MachineID]bool{}, memory: 1 << 20}
}

// serve answers the controller's calls on l.
func (w *fakeWorker) serve(t testing.TB, id *pki.Identity, l net.Listener) {
	srv := rpc.NewServer(id, slog.New(slog.DiscardHandler), nil)
	internalpb.RegisterWorkerServer(srv, w)
	internalpb.RegisterTelemetryServer(srv, w)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
}

// sync keeps a Sync open, again and again, until ctx ends.
func (w *fakeWorker) sync(ctx context.Context, conn *grpc.ClientConn) {
	for ctx.Err() == nil {
		err := w.syncOnce(ctx, internalpb.NewControllerClient(conn))
		if f := new(fault.Error); errors.As(err, &f) && f.Status == rpc.NodeRemoved {
			w.mu.Lock()
			clear(w.machines)
			w.refused++
			w.mu.Unlock()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (w *fakeWorker) syncOnce(ctx context.Context, c internalpb.ControllerClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Sync(ctx)
	if err != nil {
		return err
	}
	hello := &internalpb.Hello{Node: string(w.node), Capacity: &internalpb.Capacity{Cpus: 4, MemoryMb: w.memory}}
	out := make(chan *internalpb.FromWorker, 1000)
	w.mu.Lock()
	for _, m := range w.machines {
		hello.Observations = append(hello.Observations, copyObservation(m.obs))
	}
	w.out = out
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.out = nil
		w.mu.Unlock()
	}()
	if err := stream.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: hello}}); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case m := <-out:
				if stream.Send(m) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch k := m.Kind.(type) {
		case *internalpb.ToWorker_Snapshot:
			for _, a := range k.Snapshot.Assignments {
				w.assign(a)
			}
		case *internalpb.ToWorker_Assignment:
			w.assign(k.Assignment)
		case *internalpb.ToWorker_Forget:
			w.mu.Lock()
			delete(w.machines, key.MachineID(k.Forget.MachineId))
			w.forgot[key.MachineID(k.Forget.MachineId)] = true
			w.mu.Unlock()
		}
	}
}

// assign takes one assignment and acts on it at once.
func (w *fakeWorker) assign(a *internalpb.Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := key.MachineID(a.MachineId)
	m := w.machines[id]
	if m == nil {
		w.slots++
		m = &fakeMachine{slot: w.slots, state: machine.Created, obs: &internalpb.Observation{MachineId: a.MachineId}}
		w.machines[id] = m
	}
	if m.a != nil && a.Generation == m.a.Generation && !w.deaf {
		if !bytes.Equal(a.Grant, m.a.Grant) {
			w.renewed++
		}
		m.a = a // under the same grant, or a younger one
	}
	if m.a != nil && a.Generation <= m.a.Generation || w.deaf {
		return
	}
	m.a = a
	m.obs.Generation = a.Generation
	w.report(m, "", "")
	w.act(m)
}

// act moves a Machine to where its assignment wants it.
func (w *fakeWorker) act(m *fakeMachine) {
	if m.state == machine.Destroyed {
		return
	}
	a := m.a
	var conf machine.Config
	json.Unmarshal(a.Config, &conf)
	newVersion := m.obs.InstanceId != "" && m.obs.InstanceId != a.InstanceId
	switch machine.Desired(a.Desired) {
	case machine.WantDestroyed:
		w.step(m, machine.InDestroy, "destroy")
		w.step(m, machine.InGone, "destroy")
	case machine.WantStopped:
		if m.state == machine.Started {
			w.step(m, machine.InStop, "stop")
			w.exit(m, 0)
			w.step(m, machine.InDown, "exit")
		}
		m.obs.InstanceId = a.InstanceId
	case machine.WantStarted:
		if m.state == machine.Created {
			w.step(m, machine.InLaunch, "launch")
			if strings.Contains(conf.Image, "broken") {
				m.obs.Error = "fetch image: the layer's digest does not match"
				w.step(m, machine.InLaunchFail, "launch")
				w.step(m, machine.InGone, "destroy")
				return
			}
		}
		if m.state == machine.Started {
			switch {
			case newVersion:
				w.step(m, machine.InUpdate, "update")
			case a.RestartNonce != m.obs.RestartNonce:
				w.step(m, machine.InRestart, "restart")
			}
		}
		m.obs.InstanceId, m.obs.StartNonce, m.obs.RestartNonce = a.InstanceId, a.StartNonce, a.RestartNonce
		if m.state != machine.Started {
			m.obs.PrivateIp = privnet.MachineAddr(1, 1, m.slot).String()
			w.step(m, machine.InBegin, "start")
			if strings.Contains(conf.Image, "unstartable") {
				m.obs.Error = "command /nothing: no such file"
				w.step(m, machine.InFail, "start")
				return
			}
			w.step(m, machine.InUp, "start")
		}
	}
	w.report(m, "", "")
}

// exit lets a Machine's process end.
func (w *fakeWorker) exit(m *fakeMachine, code int) {
	e := machine.Event{ID: string(key.NewInstanceID()), Type: "exit", Status: "stopped", Source: "flyd", Timestamp: time.Now().UnixMilli(),
		Request: &machine.EventRequest{ExitEvent: &machine.ExitEvent{ExitCode: code, ExitedAt: time.Now().UTC()}}}
	b, _ := json.Marshal(e)
	m.obs.Events = append([][]byte{b}, m.obs.Events...)
}

// step is the door for transitions.
func (w *fakeWorker) step(m *fakeMachine, in machine.Input, event string) {
	next, err := machine.Next(m.state, in)
	if err != nil {
		panic(fmt.Sprintf("fake worker: %v", err))
	}
	m.state = next
	w.report(m, event, next)
}

// report sends an observation; event may be empty.
func (w *fakeWorker) report(m *fakeMachine, event string, st machine.State) {
	if event != "" {
		b, _ := json.Marshal(machine.Event{ID: string(key.NewInstanceID()), Type: event, Status: string(st), Source: "flyd", Timestamp: time.Now().UnixMilli()})
		m.obs.Events = append([][]byte{b}, m.obs.Events...)
		m.obs.Events = m.obs.Events[:min(50, len(m.obs.Events))]
	}
	m.obs.Seq++
	m.obs.State = string(m.state)
	m.obs.UpdatedAtMs = time.Now().UnixMilli()
	if w.out != nil {
		w.out <- &internalpb.FromWorker{Kind: &internalpb.FromWorker_Observation{Observation: copyObservation(m.obs)}}
	}
}

func copyObservation(o *internalpb.Observation) *internalpb.Observation {
	return &internalpb.Observation{
		MachineId: o.MachineId, Seq: o.Seq, Generation: o.Generation, InstanceId: o.InstanceId, State: o.State, PrivateIp: o.PrivateIp,
		Events: append([][]byte{}, o.Events...), UpdatedAtMs: o.UpdatedAtMs, Error: o.Error, StartNonce: o.StartNonce, RestartNonce: o.RestartNonce,
		Local: o.Local, Wish: o.Wish,
	}
}

// die lets a Machine's process end by itself.
func (w *fakeWorker) die(id string, code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[key.MachineID(id)]
	w.exit(m, code)
	w.step(m, machine.InExit, "exit")
}

// Reserve implements internalpb.WorkerServer.
func (w *fakeWorker) Reserve(ctx context.Context, in *internalpb.ReserveRequest) (*internalpb.ReserveResponse, error) {
	var conf machine.Config
	if err := json.Unmarshal(in.Config, &conf); err != nil {
		return nil, err
	}
	if w.reserve != nil {
		w.reserve()
	}
	if strings.Contains(conf.Image, "missing") {
		return nil, fault.New(fault.Unprocessable, "image %s: not found in its registry", conf.Image)
	}
	ref := machine.ImageRef{Registry: "docker.example", Repository: "library/app", Tag: "1", Digest: key.Digest("sha256:" + strings.Repeat("ab", 32))}
	if in.Digest != "" {
		w.mu.Lock()
		c := w.controller
		w.mu.Unlock()
		_, err := c.FetchManifest(ctx, &internalpb.FetchManifestRequest{MachineId: in.MachineId, Repository: in.Repository, Digest: in.Digest})
		w.mu.Lock()
		w.reserveErr = err
		w.mu.Unlock()
		ref = machine.ImageRef{Repository: in.Repository, Digest: key.Digest(in.Digest)}
	}
	b, _ := json.Marshal(ref)
	return &internalpb.ReserveResponse{ImageRef: b}, nil
}

// Signal implements internalpb.WorkerServer.
func (w *fakeWorker) Signal(_ context.Context, in *internalpb.SignalRequest) (*internalpb.SignalResponse, error) {
	w.mu.Lock()
	w.signals = append(w.signals, in.Signal)
	w.mu.Unlock()
	return &internalpb.SignalResponse{}, nil
}

// Exec implements internalpb.WorkerServer.
func (w *fakeWorker) Exec(ctx context.Context, in *internalpb.ExecRequest) (*internalpb.ExecResponse, error) {
	if in.Command[0] == "sleep" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if in.Command[0] == "false" {
		return &internalpb.ExecResponse{ExitCode: 1, Stderr: []byte("no\xff")}, nil
	}
	return &internalpb.ExecResponse{Stdout: []byte(strings.Join(in.Command, "|") + string(in.Stdin))}, nil
}

// ExecStream implements internalpb.WorkerServer: "cat" gives back what comes in, "flood N" writes
// N bytes for as long as they are taken, "fail" is refused.
func (w *fakeWorker) ExecStream(s internalpb.Worker_ExecStreamServer) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	code, command := int32(0), first.Begin.Command
	switch command[0] {
	case "fail":
		return fault.New(fault.Unprocessable, "the command %q does not exist in the image", command[0])
	case "sleep":
		w.mu.Lock()
		w.execsBegun++
		w.mu.Unlock()
		s.Send(&internalpb.ExecOutput{Stdout: []byte("ready\n")})
		<-s.Context().Done()
		w.mu.Lock()
		w.execsEnded++
		w.mu.Unlock()
		return s.Context().Err()
	case "flood":
		n, _ := strconv.Atoi(command[1])
		for at := 0; at < n; at += 32 << 10 {
			if err := s.Send(&internalpb.ExecOutput{Stdout: bytes.Repeat([]byte{0xff}, min(32<<10, n-at))}); err != nil {
				return err
			}
		}
	case "cat":
		for {
			in, err := s.Recv()
			if err != nil || in.End {
				break
			}
			if err := s.Send(&internalpb.ExecOutput{Stdout: in.Stdin}); err != nil {
				return err
			}
		}
		code = 3
	}
	return s.Send(&internalpb.ExecOutput{End: &internalpb.ExecEnd{ExitCode: code}})
}

// Processes implements internalpb.WorkerServer.
func (w *fakeWorker) Processes(context.Context, *internalpb.ProcessesRequest) (*internalpb.ProcessesResponse, error) {
	return &internalpb.ProcessesResponse{Processes: []*internalpb.Process{
		{Pid: 1, Command: "app", Directory: "/", Rss: 32 << 20, Cpu: 5, ListenSockets: []*internalpb.ListenSocket{{Proto: "tcp", Address: "[::]:8080"}}},
		{Pid: 7, Command: "child", Rss: 64 << 20},
	}}, nil
}

// Logs implements internalpb.WorkerServer.
func (w *fakeWorker) Logs(in *internalpb.LogsRequest, stream grpc.ServerStreamingServer[internalpb.LogLine]) error {
	n := 5
	if in.Tail > 0 {
		n = int(in.Tail)
	}
	for i := range n {
		if err := stream.Send(&internalpb.LogLine{TimeNs: int64(i) * 1e9, Stream: "stdout", Line: fmt.Appendf(nil, "line %d <&>", i)}); err != nil {
			return err
		}
	}
	if in.Follow {
		<-stream.Context().Done()
	}
	return nil
}

// Metrics implements internalpb.TelemetryServer.
func (w *fakeWorker) Metrics(context.Context, *internalpb.MetricsRequest) (*internalpb.MetricsResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mute {
		return nil, errors.New("mute")
	}
	return &internalpb.MetricsResponse{Text: []byte("# HELP fake_total Counted.\n# TYPE fake_total counter\nfake_total{a=\"b\"} 3\n" +
		"# TYPE bulkhead_machine_processes gauge\nbulkhead_machine_processes{app=\"shop\",machine=\"m1\"} 7\n" +
		"bulkhead_machine_processes{app=\"else\",machine=\"m2\"} 8\nbulkhead_machine_processes{app=\"gone\",machine=\"m3\"} 9\n")}, nil
}
