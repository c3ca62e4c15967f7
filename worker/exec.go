package worker

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sandbox"
	"bulkhead/secret"
)

// Bounds of commands.
const (
	maxOutput = 1 << 20  // bytes of each stream that Exec returns
	execChunk = 32 << 10 // bytes of one message of ExecStream
)

// Exec runs a command in the Machine, as its user, with its environment.
func (s *service) Exec(ctx context.Context, req *internalpb.ExecRequest) (*internalpb.ExecResponse, error) {
	timeout := time.Duration(req.GetTimeoutMs()) * time.Millisecond
	if timeout == 0 {
		timeout = defaultExec
	}
	if timeout < 0 || timeout > maxExec {
		return nil, fault.New(fault.Invalid, "timeout is %v; it must be at most %v", timeout, maxExec)
	}
	id, spec, err := s.execOf(req, timeout)
	if err != nil {
		return nil, err
	}
	if len(spec.Secrets) > 0 {
		defer secret.Forget()
	}
	var stdout, stderr collected
	spec.Stdin, spec.Stdout, spec.Stderr = bytes.NewReader(req.GetStdin()), &stdout, &stderr
	ctx, cancel := context.WithTimeout(ctx, timeout+callTimeout)
	defer cancel()
	r, err := s.w.runtime.Exec(ctx, id, spec)
	if err != nil {
		return nil, gone(id, err)
	}
	for name, c := range map[string]*collected{"stdout": &stdout, "stderr": &stderr} {
		if c.size > maxOutput {
			return nil, fault.New(fault.TooLarge, "the command ended with code %d and wrote %d bytes to %s, over the limit of %d; stream its output instead",
				r.Code, c.size, name, maxOutput)
		}
	}
	return &internalpb.ExecResponse{ExitCode: int32(r.Code), ExitSignal: int32(r.Signal), Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}, nil
}

// collected keeps what is written to it, up to maxOutput, and counts all of it: the command
// does not end in the middle of its work because it says too much.
type collected struct {
	bytes.Buffer
	size int64
}

// Write implements io.Writer.
func (c *collected) Write(b []byte) (int, error) {
	c.size += int64(len(b))
	c.Buffer.Write(b[:min(len(b), maxOutput-c.Len())])
	return len(b), nil
}

// execOf checks a request and makes what the sandbox runs, without streams.
func (s *service) execOf(req *internalpb.ExecRequest, timeout time.Duration) (key.MachineID, sandbox.ExecSpec, error) {
	k, id, err := s.running(req.GetMachineId())
	if err != nil {
		return "", sandbox.ExecSpec{}, err
	}
	if len(req.GetCommand()) == 0 {
		return "", sandbox.ExecSpec{}, fault.New(fault.Invalid, "command is empty; give the command to run")
	}
	spec, err := s.w.execSpec(id, k)
	spec.Args, spec.Timeout = req.GetCommand(), timeout
	return id, spec, err
}

// ExecStream runs a command and carries its bytes while it runs.
func (s *service) ExecStream(stream grpc.BidiStreamingServer[internalpb.ExecInput, internalpb.ExecOutput]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	req := first.GetBegin()
	timeout := time.Duration(req.GetTimeoutMs()) * time.Millisecond
	if timeout < 0 || timeout > sandbox.MaxExec {
		return fault.New(fault.Invalid, "timeout is %v; it must be at most %v", timeout, sandbox.MaxExec)
	}
	id, spec, err := s.execOf(req, timeout)
	if err != nil {
		return err
	}
	if len(spec.Secrets) > 0 {
		defer secret.Forget()
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stop := context.AfterFunc(s.w.life, cancel)
	defer stop()
	var mu sync.Mutex // of Send
	send := func(o *internalpb.ExecOutput) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(o)
	}
	spec.Stdin = &execInput{stream: stream, cancel: cancel}
	spec.Stdout = execOutput(func(b []byte) error { return send(&internalpb.ExecOutput{Stdout: b}) })
	spec.Stderr = execOutput(func(b []byte) error { return send(&internalpb.ExecOutput{Stderr: b}) })
	r, err := s.w.runtime.Exec(ctx, id, spec)
	if err != nil {
		return gone(id, err)
	}
	return send(&internalpb.ExecOutput{End: &internalpb.ExecEnd{ExitCode: int32(r.Code), ExitSignal: int32(r.Signal)}})
}

// execInput is the standard input that comes up a stream. The stream ends with the call, and
// so does every Read.
type execInput struct {
	stream grpc.BidiStreamingServer[internalpb.ExecInput, internalpb.ExecOutput]
	cancel func()
	rest   []byte
	ended  bool
}

// Read implements io.Reader.
func (r *execInput) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		m, err := r.stream.Recv()
		if err != nil {
			r.ended = true
			if err != io.EOF {
				r.cancel() // the caller has left
			}
			return 0, io.EOF
		}
		r.rest, r.ended = m.GetStdin(), m.GetEnd()
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// execOutput sends what is written to it.
type execOutput func([]byte) error

// Write implements io.Writer.
func (o execOutput) Write(b []byte) (int, error) {
	for at := 0; at < len(b); at += execChunk {
		if err := o(b[at:min(len(b), at+execChunk)]); err != nil {
			return at, err
		}
	}
	return len(b), nil
}
