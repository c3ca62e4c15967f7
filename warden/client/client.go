package client

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sandbox"
	"bulkhead/warden/wire"
)

// Client is a sandbox.Runtime that asks the warden behind a unix socket. It holds no
// connection between operations, so it needs no care when the warden restarts.
type Client struct{ path string }

var _ sandbox.Runtime = (*Client)(nil)

// New returns a client of the warden that listens at path.
func New(path string) *Client { return &Client{path: path} }

// dialTimeout bounds the wait for the socket to take a connection. bulkheadd holds
// the socket open while the warden restarts, so it usually takes it at once.
const dialTimeout = 5 * time.Second

// undoTimeout bounds the wait for a start that was given up to be undone.
const undoTimeout = 40 * time.Second

// call carries out one operation. finish, unless it is nil, is called on the
// connection after a successful response.
func (c *Client) call(ctx context.Context, req Request, finish func(*net.UnixConn) error, with ...*os.File) (resp Response, files []*os.File, err error) {
	d := net.Dialer{Timeout: dialTimeout}
	nc, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return resp, nil, unavailable(ctx, err)
	}
	conn := nc.(*net.UnixConn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() {
		if req.Op == OpStart {
			// Tells the warden to undo the start; its answer says that it has.
			conn.CloseWrite()
			conn.SetDeadline(time.Now().Add(undoTimeout))
		} else {
			conn.SetDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	// The warden may refuse a request before it has read it to its end; then its
	// answer is there although sending failed.
	serr := Send(conn, req, with...)
	closeAll(with) // so that a pipe among them ends when the command does
	files, err = Receive(conn, &resp)
	if err != nil {
		return resp, nil, unavailable(ctx, errors.Join(serr, err))
	}
	if err = resp.Error.Err(); err == nil && finish != nil {
		if ferr := finish(conn); ferr != nil || ctx.Err() != nil {
			io.Copy(io.Discard, conn) // the warden hangs up when it is done undoing
			err = unavailable(ctx, ferr)
		}
	}
	if err != nil {
		closeAll(files)
		return resp, nil, err
	}
	return resp, files, nil
}

// unavailable is the error of a call that got no answer.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.Wrap(fault.Timeout, ctx.Err(), "the call to the warden was given up")
	}
	return fault.Wrap(fault.Unavailable, err, "the warden cannot be reached; bulkheadd restarts it")
}

// Ping reports whether the warden answers.
func (c *Client) Ping(ctx context.Context) error {
	_, files, err := c.call(ctx, Request{Op: OpPing}, nil)
	closeAll(files)
	return err
}

// Metrics returns what the warden has counted since it started.
func (c *Client) Metrics(ctx context.Context) (*Metrics, error) {
	resp, files, err := c.call(ctx, Request{Op: OpMetrics}, nil)
	closeAll(files)
	if err != nil {
		return nil, err
	}
	if resp.Metrics == nil {
		return nil, fault.New(fault.Internal, "the warden answered without metrics")
	}
	return resp.Metrics, nil
}

// Start implements sandbox.Runtime.
func (c *Client) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	with, err := secretFile(spec.Secrets, spec.SecretFiles)
	if err != nil {
		return nil, err
	}
	defer closeAll(with)
	_, files, err := c.call(ctx, Request{Op: OpStart, Machine: spec.Machine, Spec: &spec}, func(conn *net.UnixConn) error {
		return Send(conn, Request{Op: OpAck})
	}, with...)
	if err != nil {
		return nil, err
	}
	return newHandle(files)
}

// Attach implements sandbox.Runtime.
func (c *Client) Attach(ctx context.Context, id key.MachineID) (sandbox.Sandbox, error) {
	_, files, err := c.call(ctx, Request{Op: OpAttach, Machine: id}, nil)
	if err != nil {
		return nil, err
	}
	return newHandle(files)
}

// Signal implements sandbox.Runtime.
func (c *Client) Signal(ctx context.Context, id key.MachineID, signal int) error {
	_, files, err := c.call(ctx, Request{Op: OpSignal, Machine: id, Signal: signal}, nil)
	closeAll(files)
	return err
}

// Exec implements sandbox.Runtime.
func (c *Client) Exec(ctx context.Context, id key.MachineID, spec sandbox.ExecSpec) (sandbox.ExecResult, error) {
	secrets, err := secretFile(spec.Secrets, nil)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	defer closeAll(secrets)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := newPipes(spec, cancel)
	if err != nil {
		return sandbox.ExecResult{}, fault.System(err, "no pipes can be made for the command")
	}
	resp, files, err := c.call(ctx, Request{Op: OpExec, Machine: id, Exec: &spec}, nil, append(p.theirs, secrets...)...)
	closeAll(files)
	if werr := p.finish(); werr != nil {
		return sandbox.ExecResult{}, fault.Wrap(fault.Timeout, werr, "what the command wrote was not taken")
	}
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	if resp.Exec == nil {
		return sandbox.ExecResult{}, fault.New(fault.Internal, "the warden answered an exec without a result")
	}
	return *resp.Exec, nil
}

// Processes implements sandbox.Runtime.
func (c *Client) Processes(ctx context.Context, id key.MachineID) ([]sandbox.Process, error) {
	resp, files, err := c.call(ctx, Request{Op: OpProcesses, Machine: id}, nil)
	closeAll(files)
	return resp.Processes, err
}

// Listen implements sandbox.Runtime.
func (c *Client) Listen(ctx context.Context, id key.MachineID) (net.Listener, error) {
	_, files, err := c.call(ctx, Request{Op: OpListen, Machine: id}, nil)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	if len(files) != 1 {
		return nil, fault.New(fault.Internal, "the warden sent %d files", len(files))
	}
	return newListener(files[0], id)
}

// Remove implements sandbox.Runtime.
func (c *Client) Remove(ctx context.Context, id key.MachineID) error {
	_, files, err := c.call(ctx, Request{Op: OpRemove, Machine: id}, nil)
	closeAll(files)
	return err
}

// List implements sandbox.Runtime.
func (c *Client) List(ctx context.Context) ([]sandbox.Info, error) {
	resp, files, err := c.call(ctx, Request{Op: OpList}, nil)
	closeAll(files)
	return resp.List, err
}

// handle is a sandbox.Sandbox. After it is made it needs no warden: everything it
// says comes from the files.
type handle struct {
	stdout, stderr, exit *os.File

	mu    sync.Mutex // guards what follows
	pidfd *os.File   // nil when the sandbox has ended
	// waiting is closed when the one goroutine that watches pidfd has finished; nil
	// before the first Wait.
	waiting chan struct{}
	stop    context.CancelFunc
}

// newHandle takes the files of a Response.
func newHandle(files []*os.File) (_ *handle, err error) {
	if len(files) <= FileExit || len(files) > FilePID+1 {
		closeAll(files)
		return nil, fault.New(fault.Internal, "the warden sent %d files", len(files))
	}
	for i, f := range files {
		if i != FileExit {
			if files[i], err = pollable(f); err != nil {
				closeAll(files)
				return nil, fault.Wrap(fault.Internal, err, "the warden's files are of no use")
			}
		}
	}
	h := &handle{stdout: files[FileStdout], stderr: files[FileStderr], exit: files[FileExit]}
	if len(files) > FilePID {
		h.pidfd = files[FilePID]
	}
	return h, nil
}

// pollable makes f a file whose reads wait in Go's poller and can be interrupted by
// Close and deadlines. Sending has made it blocking.
func pollable(f *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return f, err
	}
	f.Close()
	syscall.CloseOnExec(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return f, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (h *handle) Stdout() *os.File { return h.stdout }
func (h *handle) Stderr() *os.File { return h.stderr }

// Wait implements sandbox.Sandbox.
func (h *handle) Wait(ctx context.Context) (sandbox.Exit, error) {
	if done := h.watch(); done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			return sandbox.Exit{}, fault.Wrap(fault.Timeout, ctx.Err(), "the sandbox still ran")
		}
	}
	buf := make([]byte, 256)
	n, err := h.exit.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return sandbox.Exit{}, fault.Wrap(fault.Internal, err, "the exit status cannot be read")
	}
	e, err := wire.ParseExit(buf[:n])
	if err != nil {
		// Ended from outside, without a word.
		return sandbox.Exit{Code: -1}, nil
	}
	return sandbox.Exit{Code: e.Code, Signal: e.Signal, OOM: e.OOM, At: e.At}, nil
}

// watch returns a channel that is closed when the sandbox has ended, nil when it
// ended before the handle was made.
func (h *handle) watch() chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil && h.pidfd != nil {
		h.waiting = make(chan struct{})
		var ctx context.Context
		ctx, h.stop = context.WithCancel(context.Background())
		go func(done chan struct{}) {
			if wire.WaitProcess(ctx, h.pidfd) == nil {
				close(done)
			}
		}(h.waiting)
	}
	return h.waiting
}

// Close implements sandbox.Sandbox.
func (h *handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stop != nil {
		h.stop()
	}
	closeAll([]*os.File{h.stdout, h.stderr, h.exit, h.pidfd})
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
