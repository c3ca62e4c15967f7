package controller

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"bulkhead/api/execstream"
	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/sandbox"
)

// Bounds of commands whose bytes are carried while they run.
const (
	maxExecStreams = 200              // at once; a worker's one connection carries them
	execWrite      = 15 * time.Minute // a reader that takes nothing for so long is cut off
	execHeartbeat  = 15 * time.Second // so that a dead reader is noticed
	execAnswer     = 5 * time.Second  // for the last frame
)

// execEnd is the content of an execstream.Exit.
type execEnd struct {
	ExitCode   int32 `json:"exit_code"`
	ExitSignal int32 `json:"exit_signal"`
}

// execFailure is the content of an execstream.Failed.
type execFailure struct {
	errorBody
	Code int `json:"code"`
}

// readBegin reads the first frame, and keeps the reader for those that follow.
func (r *call) readBegin(in *execRequest) error {
	if r.Header.Get("Content-Type") != execstream.MediaType {
		return fault.New(fault.Invalid, "the content type is %q; it must be %s", fault.Clip(r.Header.Get("Content-Type")), execstream.MediaType)
	}
	r.frames = execstream.NewReader(r.Body)
	r.rc.SetReadDeadline(time.Now().Add(r.bodyTime))
	t, b, err := r.frames.Next()
	r.rc.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.w.Header().Set("Connection", "close")
		return fault.Wrap(fault.Timeout, errSlowBody, "the request's first frame did not come within %v", r.bodyTime)
	case err != nil:
		return fault.New(fault.Invalid, "the request's first frame cannot be read: %v", err)
	case t != execstream.Begin:
		return fault.New(fault.Invalid, "the request's first frame is of type %q; it must be %q", byte(t), byte(execstream.Begin))
	}
	if err := bodyShape.Check(b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, in); err != nil {
		return fault.New(fault.Invalid, "the request's first frame is not the JSON that is wanted: %s", jsonProblem(err))
	}
	if in.Stdin != "" {
		return fault.New(fault.Invalid, "stdin does not belong into the first frame; send it in frames of type %q", byte(execstream.Stdin))
	}
	return nil
}

// streamExec runs one command inside a Machine and carries its bytes while it runs.
func (c *Controller) streamExec(r *call) (int, any, error) {
	m, limit, err := c.execOf(r, sandbox.MaxExec, sandbox.MaxExec)
	if err != nil {
		return 0, nil, err
	}
	if n := c.execStreams.Add(1); n > maxExecStreams {
		c.execStreams.Add(-1)
		return 0, nil, fault.New(fault.TooMany, "%d commands are being carried already; wait for one of them to end", maxExecStreams)
	}
	defer c.execStreams.Add(-1)
	conn, err := c.dial("worker", m.Node)
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit+execSlack)
	defer cancel()
	stop := context.AfterFunc(c.closing, cancel)
	defer stop()
	stream, err := internalpb.NewWorkerClient(conn).ExecStream(ctx)
	if err != nil {
		return 0, nil, err
	}
	begin := &internalpb.ExecRequest{MachineId: string(m.ID), Command: r.cmd.Command, TimeoutMs: limit.Milliseconds()}
	if err := stream.Send(&internalpb.ExecInput{Begin: begin}); err != nil && err != io.EOF {
		return 0, nil, err
	}
	r.rc.EnableFullDuplex() // HTTP/2 always is
	if r.ProtoMajor == 1 {
		r.w.Header().Set("Connection", "close") // frames of the caller may be left
	}
	r.exec = &execWriter{r: r}
	cut := context.AfterFunc(ctx, func() { // whoever waits for the caller does so no longer
		r.rc.SetReadDeadline(time.Now())
		r.rc.SetWriteDeadline(time.Now().Add(execAnswer))
	})
	defer cut()
	var others sync.WaitGroup
	var bad error // of the caller's frames; read after others
	others.Go(func() {
		if bad = carryInput(r.frames, stream); bad != nil {
			cancel()
		}
	})
	others.Go(func() { r.exec.beat(ctx) })
	end, err := carryOutput(stream, r.exec)
	cancel()
	others.Wait()
	if err != nil {
		var f *fault.Error
		if errors.As(bad, &f) {
			err = f
		}
		return 0, nil, err
	}
	return http.StatusOK, end, nil
}

// carryInput takes the caller's frames to the worker. Its error is why the command cannot go
// on: that the caller has left, too.
func carryInput(frames *execstream.Reader, stream internalpb.Worker_ExecStreamClient) error {
	for {
		t, b, err := frames.Next()
		if err == io.EOF {
			stream.CloseSend()
			return nil
		}
		if err != nil {
			return err
		}
		in := &internalpb.ExecInput{}
		switch t {
		case execstream.Stdin:
			in.Stdin = append([]byte(nil), b...)
		case execstream.StdinEnd:
			in.End = true
		default:
			return fault.New(fault.Invalid, "a frame of type %q is not known here", byte(t))
		}
		if stream.Send(in) != nil {
			return nil // carryOutput has the reason
		}
	}
}

// carryOutput takes the worker's messages to the caller, until the command has ended.
func carryOutput(stream internalpb.Worker_ExecStreamClient, out *execWriter) (execEnd, error) {
	for {
		o, err := stream.Recv()
		if err != nil {
			if err == io.EOF {
				err = fault.New(fault.Unavailable, "the node ended the command's stream without its result")
			}
			return execEnd{}, err
		}
		if b := o.GetStdout(); len(b) > 0 {
			err = out.write(execstream.Stdout, b, execWrite)
		}
		if b := o.GetStderr(); len(b) > 0 && err == nil {
			err = out.write(execstream.Stderr, b, execWrite)
		}
		if err != nil {
			return execEnd{}, err
		}
		if e := o.GetEnd(); e != nil {
			return execEnd{e.GetExitCode(), e.GetExitSignal()}, nil
		}
	}
}

// execWriter writes frames of one answer.
type execWriter struct {
	r     *call
	mu    sync.Mutex
	begun bool
}

// write writes one frame, and the head before the first.
func (w *execWriter) write(t execstream.Type, b []byte, within time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.r.rc.SetWriteDeadline(time.Now().Add(within))
	if !w.begun {
		w.begun = true
		w.r.w.Header().Set("Content-Type", execstream.MediaType)
		w.r.w.WriteHeader(http.StatusOK)
	}
	if err := execstream.Write(w.r.w, t, b); err != nil {
		return err
	}
	return w.r.rc.Flush()
}

// beat says now and then that the command still runs, until ctx ends.
func (w *execWriter) beat(ctx context.Context) {
	t := time.NewTicker(execHeartbeat)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.write(execstream.Beat, nil, execWrite)
		}
	}
}

// end writes the last frame. It reports false when nothing was written yet and the answer is
// an error: that is answered as everywhere.
func (w *execWriter) end(body any, err error) bool {
	if err != nil && !w.begun { // nobody else writes any more
		return false
	}
	t := execstream.Exit
	if err != nil {
		code, b := errorAnswer(err)
		t, body = execstream.Failed, execFailure{b, code}
	}
	b, merr := json.Marshal(body)
	if merr == nil {
		w.write(t, b, execAnswer)
	}
	return true
}
