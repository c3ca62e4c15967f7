package worker

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/logs"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// Bounds of the service's calls.
const (
	defaultExec = 60 * time.Second
	maxExec     = 5 * time.Minute
	resolveTime = 30 * time.Second
)

// Register adds the worker's services to a server of package rpc, which has
// checked who calls.
func (w *Worker) Register(s grpc.ServiceRegistrar) {
	internalpb.RegisterWorkerServer(s, &service{w: w})
	internalpb.RegisterTelemetryServer(s, telemetry{registry: w.metrics.registry})
}

// service is the Worker service.
type service struct {
	internalpb.UnimplementedWorkerServer
	w *Worker
}

// Reserve resolves the image and checks that the Machine fits. It holds nothing.
func (s *service) Reserve(ctx context.Context, req *internalpb.ReserveRequest) (*internalpb.ReserveResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	id, err := key.ParseMachineID(req.GetMachineId())
	if err != nil {
		return nil, err
	}
	cfg := new(machine.Config)
	if err := json.Unmarshal(req.GetConfig(), cfg); err != nil {
		return nil, fault.New(fault.Invalid, "the config cannot be read: %w", err)
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := s.w.notWhole(); err != nil {
		return nil, err
	}
	if err := s.w.fits(id, int64(cfg.EffectiveGuest().MemoryMB)); err != nil {
		return nil, err
	}
	ref := machine.ImageRef{Repository: req.GetRepository()}
	if req.GetDigest() == "" {
		if ref, err = s.w.images.Resolve(ctx, cfg.Image); err != nil {
			return nil, err
		}
	} else {
		if ref.Digest, err = key.ParseDigest(req.GetDigest()); err != nil {
			return nil, err
		}
		if err := s.w.images.Check(ctx, id, ref, req.GetManifest()); err != nil {
			return nil, err
		}
	}
	b, err := json.Marshal(ref)
	if err != nil {
		return nil, err
	}
	return &internalpb.ReserveResponse{ImageRef: b}, nil
}

// fits checks a Machine's memory against what the others take or are wanted to take.
func (w *Worker) fits(id key.MachineID, mb int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	sum, kind := mb, fault.Precondition
	for other, s := range w.seen {
		if other == id {
			kind = fault.Conflict // the Machine is bound to this node
			continue
		}
		wanted := s.rec.wanted(s.asg) == machine.WantStarted && s.rec.State != machine.Destroyed && s.rec.State != machine.Stopped && s.rec.State != machine.Failed
		if wanted || s.rec.Sandbox != "" {
			sum += guestMB(s.asg)
		}
	}
	if sum > w.capacity.limit {
		return fault.New(kind, noMemory).WithStatus("insufficient_capacity")
	}
	return nil
}

// known finds a Machine of this node.
func (s *service) known(id string) (*seen, key.MachineID, error) {
	m, err := key.ParseMachineID(id)
	if err != nil {
		return nil, "", err
	}
	k, err := s.w.get(m)
	return k, m, err
}

// running finds a Machine that has a process.
func (s *service) running(id string) (*seen, key.MachineID, error) {
	k, m, err := s.known(id)
	if err != nil {
		return nil, "", err
	}
	if k.rec.Sandbox == "" || k.rec.Ended {
		return nil, "", fault.New(fault.Conflict, "machine %s is %s, not started", m, k.rec.State)
	}
	return k, m, nil
}

// gone turns the runtime's "no sandbox" into what the caller understands.
func gone(id key.MachineID, err error) error {
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Conflict, "machine %s does not run", id)
	}
	return err
}

// Signal sends a signal to the Machine's first process.
func (s *service) Signal(ctx context.Context, req *internalpb.SignalRequest) (*internalpb.SignalResponse, error) {
	_, id, err := s.running(req.GetMachineId())
	if err != nil {
		return nil, err
	}
	if n := req.GetSignal(); n < 1 || n > 64 {
		return nil, fault.New(fault.Invalid, "signal %d is not between 1 and 64", n)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return &internalpb.SignalResponse{}, gone(id, s.w.runtime.Signal(ctx, id, int(req.GetSignal())))
}

// execSpec takes environment, user and directory from what the Machine was started
// with.
func (w *Worker) execSpec(id key.MachineID, k *seen) (sandbox.ExecSpec, error) {
	img, ok := w.images.Lookup(k.rec.Image)
	if !ok {
		return sandbox.ExecSpec{}, fault.New(fault.Unavailable, "the image of machine %s is being replaced; try again", id)
	}
	a := &actor{w: w, id: id, rec: k.rec, asg: k.asg}
	s, err := a.spec(img)
	if err != nil {
		return sandbox.ExecSpec{}, err
	}
	secrets, err := a.heldEnvironment()
	s.Env = append(s.Env, roleVariables(id, s.Env, secrets)...)
	return sandbox.ExecSpec{Env: s.Env, Secrets: secrets, Cwd: s.Cwd, UID: s.UID, GID: s.GID, Groups: s.Groups}, err
}

// Processes lists the processes of the Machine. Times are in milliseconds: stime is
// when a process started (Unix), rtime how long it has run, cpu what it used.
func (s *service) Processes(ctx context.Context, req *internalpb.ProcessesRequest) (*internalpb.ProcessesResponse, error) {
	_, id, err := s.running(req.GetMachineId())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ps, err := s.w.runtime.Processes(ctx, id)
	if err != nil {
		return nil, gone(id, err)
	}
	out := &internalpb.ProcessesResponse{}
	for _, p := range ps {
		q := &internalpb.Process{Pid: p.PID, Command: p.Command, Cpu: p.CPU.Milliseconds(), Rss: p.RSS}
		if !p.Started.IsZero() {
			q.Stime, q.Rtime = p.Started.UnixMilli(), time.Since(p.Started).Milliseconds()
		}
		out.Processes = append(out.Processes, q)
	}
	return out, nil
}

// Logs streams the Machine's output. A follower's stream ends when the Machine is
// forgotten or the caller leaves.
func (s *service) Logs(req *internalpb.LogsRequest, out grpc.ServerStreamingServer[internalpb.LogLine]) error {
	id, err := key.ParseMachineID(req.GetMachineId())
	if err != nil {
		return err
	}
	_, err = s.w.get(id)
	retired := err != nil && s.w.logs.Retired(id)
	if err != nil && !retired {
		return err
	}
	send := func(l logs.Line) error {
		return out.Send(&internalpb.LogLine{TimeNs: l.Time.UnixNano(), Stream: l.Stream, Line: l.Text})
	}
	tail := max(0, int(req.GetTail()))
	if req.GetFollow() && !retired {
		ctx, cancel := context.WithCancel(out.Context())
		defer cancel()
		stop := context.AfterFunc(s.w.life, cancel)
		defer stop()
		err := s.w.logs.Follow(ctx, id, tail, send)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	lines, err := s.w.logs.Read(id, tail)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if err := send(l); err != nil {
			return err
		}
	}
	return nil
}
