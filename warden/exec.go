package warden

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sandbox"
	"bulkhead/warden/client"
	"bulkhead/warden/runsc"
	"bulkhead/warden/wire"
)

const (
	// commandTimeout bounds commands to the sandbox that do not wait for a tenant.
	commandTimeout = 15 * time.Second
	// outputGrace is how long the answer of a command of our own is awaited.
	outputGrace = 200 * time.Millisecond
	// maxCommands is how many commands may run at a time for one Machine: each is a
	// process on the host, beside the shim.
	maxCommands = 8
	// maxProcessList bounds the sandbox's answer, in bytes.
	maxProcessList = 4 << 20
	// maxPID bounds the sandbox's word for a command's pid, in bytes.
	maxPID = 16
	// maxSignal is the last real-time signal.
	maxSignal = 64
)

// checkRunning reports whether commands can be sent to the Machine's sandbox.
func (s *Server) checkRunning(id key.MachineID) error {
	r, err := s.get(id)
	if err != nil {
		return err
	}
	if !r.running() {
		return fault.New(fault.NotFound, "machine %s is not running", id)
	}
	return nil
}

// beginCommand takes one of the places for commands that run while others do, in a
// Machine that runs. done gives it back.
func (s *Server) beginCommand(id key.MachineID) (done func(), err error) {
	if err := s.checkRunning(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.commands[id] >= maxCommands {
		return nil, fault.New(fault.TooMany, "%d commands run in machine %s already; wait for one of them to end", maxCommands, id)
	}
	s.commands[id]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.commands[id]--; s.commands[id] == 0 {
			delete(s.commands, id)
		}
	}, nil
}

// ask sends a request to the Machine's shim and waits for the reply.
func (s *Server) ask(ctx context.Context, id key.MachineID, args []string, files ...*os.File) (wire.ShimReply, error) {
	return s.askAndClose(ctx, id, args, nil, files...)
}

// askAndClose is ask, and closes some of the files once they are sent.
func (s *Server) askAndClose(ctx context.Context, id key.MachineID, args []string, sent []*os.File, files ...*os.File) (wire.ShimReply, error) {
	var reply wire.ShimReply
	nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(s.runDir(id), controlFile), Net: "unix"})
	if err != nil {
		return reply, fault.Wrap(fault.NotFound, err, "machine %s is not running", id)
	}
	defer nc.Close() // the shim then kills what still runs
	c := client.Conn{UnixConn: nc}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := wire.Send(c, wire.ShimRequest{Args: args}.Marshal(), files...); err != nil {
		return reply, fault.Wrap(fault.NotFound, err, "machine %s has just ended", id)
	}
	closeFiles(sent)
	body, replyFiles, err := wire.ReceiveAtMost(c, wire.MaxShimReply)
	closeFiles(replyFiles)
	if err == nil {
		reply, err = wire.ParseShimReply(body)
	}
	switch {
	case ctx.Err() != nil:
		return reply, ctx.Err()
	case err != nil:
		return reply, fault.Wrap(fault.NotFound, err, "machine %s has just ended", id)
	}
	return reply, nil
}

// signal signals the first process.
func (s *Server) signal(ctx context.Context, id key.MachineID, sig int) error {
	if sig < 1 || sig > maxSignal {
		return fault.New(fault.Invalid, "signal %d is not between 1 and %d", sig, maxSignal)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.checkRunning(id); err != nil {
		return err
	}
	if sig == int(unix.SIGSTOP) || sig == int(unix.SIGCONT) {
		// bulkhead-init cannot pass the first on: all processes stop, and go on.
		return s.command(ctx, id, "kill", "--all", string(id), strconv.Itoa(sig))
	}
	err = s.command(ctx, id, "kill", string(id), strconv.Itoa(sig))
	if fault.Is(err, fault.NotFound) {
		return nil // it ran when it was asked, and the signal may be what ended it
	}
	return err
}

// command runs a command of bulkhead-sandbox that says nothing when all is well.
func (s *Server) command(ctx context.Context, id key.MachineID, args ...string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	reply, err := s.ask(ctx, id, args, null, null, null)
	if err != nil {
		return err
	}
	if reply.Code != 0 {
		if err := s.checkRunning(id); err != nil {
			return fault.New(fault.NotFound, "machine %s has just ended", id)
		}
		return fault.Wrap(fault.Internal, fmt.Errorf("%s", reply.Log), "the sandbox of machine %s refused %q", id, args[0])
	}
	return nil
}

// processes lists the processes.
func (s *Server) processes(ctx context.Context, id key.MachineID) ([]sandbox.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	done, err := s.beginCommand(id)
	if err != nil {
		return nil, err
	}
	defer done()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, err := newCollector(maxProcessList)
	if err != nil {
		return nil, err
	}
	reply, err := s.ask(ctx, id, []string{"processes", string(id)}, null, out.w, null)
	b := out.finish()
	if err != nil {
		return nil, err
	}
	if reply.Code != 0 {
		return nil, fault.Wrap(fault.Internal, fmt.Errorf("%s", reply.Log), "the sandbox of machine %s gave no process list", id)
	}
	return runsc.ParseProcesses(b, time.Now())
}

// listen makes a door to the Machine's API: one end for the sandbox, one for the worker.
func (s *Server) listen(ctx context.Context, id key.MachineID) ([]*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	done, err := s.beginCommand(id)
	if err != nil {
		return nil, err
	}
	defer done()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	inside, outside := os.NewFile(uintptr(fds[0]), "door"), os.NewFile(uintptr(fds[1]), "door")
	defer inside.Close()
	reply, err := s.ask(ctx, id, []string{wire.ShimDoor}, inside)
	if err == nil && reply.Code != 0 {
		err = fault.Wrap(fault.Internal, fmt.Errorf("%s", reply.Log), "the shim of machine %s takes no door", id)
	}
	if err != nil {
		outside.Close()
		return nil, err
	}
	return []*os.File{outside}, nil
}

// exec runs a command and waits for it. It does not hold the Machine's lock: a
// command may take hours, and the Machine must be stoppable until then. Its streams go
// straight between the worker and the sandbox.
func (s *Server) exec(ctx context.Context, id key.MachineID, e *sandbox.ExecSpec, with brought) (*sandbox.ExecResult, error) {
	if err := checkExec(e); err != nil {
		return nil, err
	}
	done, err := s.beginCommand(id)
	if err != nil {
		return nil, err
	}
	defer done()
	description, err := runsc.ExecProcess(*e)
	if err != nil {
		return nil, err
	}
	process, err := memfile("process", description)
	if err != nil {
		return nil, err
	}
	defer process.Close()
	pid, pidw, err := pidPipe()
	if err != nil {
		return nil, err
	}
	defer pid.Close()
	defer pidw.Close()
	timeout := e.Timeout
	if timeout == 0 {
		timeout = sandbox.MaxExec
	}
	ectx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := []string{"exec", "--internal-pid-file=/proc/self/fd/5", "--process=/proc/self/fd/4"}
	files := append(slices.Clone(with.streams), process, pidw)
	if with.secrets != nil {
		args, files = append(args, "--secrets-fd=6"), append(files, with.secrets)
	}
	// A command that is given up is killed by its pid, which comes when it has started; only
	// then is the process that waits for it ended.
	actx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ectx, func() {
		s.killExec(actx, id, pid)
		end()
	})
	defer stop()
	// The streams end with the command, so our copies go as soon as they are sent.
	sent := append(slices.Clone(with.streams), pidw)
	reply, err := s.askAndClose(actx, id, append(args, string(id)), sent, files...)
	res := &sandbox.ExecResult{}
	switch {
	case ctx.Err() != nil:
		return nil, fault.Wrap(fault.Timeout, ctx.Err(), "the caller gave the command up")
	case ectx.Err() != nil:
		res.Code, res.Signal = 128+int(syscall.SIGKILL), int(syscall.SIGKILL)
		return res, nil
	case fault.Is(err, fault.NotFound): // the shim ended before it could reply
		if why := s.endedUnder(ctx, id); why != nil {
			return nil, why
		}
		return nil, err
	case err != nil:
		return nil, err
	case !reply.Known:
		return nil, s.noResult(ctx, id, runsc.StartError(reply.Log, e.Args[0]))
	}
	status := syscall.WaitStatus(reply.Status)
	res.Code = status.ExitStatus()
	if status.Signaled() {
		res.Signal = int(status.Signal())
		res.Code = 128 + res.Signal
	}
	return res, nil
}

// endGrace is how long the end of a Machine is awaited that took a command with it.
const endGrace = 2 * time.Second

// noResult is why a command has no result: the Machine may have ended under it.
func (s *Server) noResult(ctx context.Context, id key.MachineID, failure *fault.Error) error {
	if failure.Kind != fault.Internal {
		return failure
	}
	if why := s.endedUnder(ctx, id); why != nil {
		return why
	}
	return failure
}

// endedUnder says why a Machine ended under a command; nil if it goes on.
func (s *Server) endedUnder(ctx context.Context, id key.MachineID) error {
	r, err := s.get(id)
	if err != nil {
		return fault.New(fault.NotFound, "machine %s ended before the command did", id)
	}
	if f, err := wire.OpenProcess(r.Shim); err == nil {
		ctx, cancel := context.WithTimeout(ctx, endGrace)
		err = wire.WaitProcess(ctx, f)
		cancel()
		f.Close()
		if err != nil {
			return nil
		}
	}
	b, err := os.ReadFile(filepath.Join(s.runDir(id), exitFile))
	if e, perr := wire.ParseExit(b); err == nil && perr == nil && e.OOM {
		return fault.New(fault.Unprocessable, "machine %s ran out of memory while the command ran, and ended: raise guest.memory_mb", id)
	}
	return fault.New(fault.NotFound, "machine %s ended before the command did", id)
}

// killExec kills the command whose pid inside the sandbox comes from a pipe: killing the
// process that waits for it would leave it running.
func (s *Server) killExec(ctx context.Context, id key.MachineID, from *os.File) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	from.SetReadDeadline(time.Now().Add(endGrace))
	number := make([]byte, maxPID)
	n, _ := from.Read(number)
	number = number[:n]
	// Whoever holds the shim may have written anything; it means something inside this
	// sandbox only.
	pid, err := strconv.ParseInt(strings.TrimSpace(string(number)), 10, 32)
	if err != nil || pid < 2 {
		return
	}
	if err := s.command(ctx, id, "kill", "--pid", strconv.FormatInt(pid, 10), string(id), "9"); err != nil {
		s.log.Warn("a command that took too long could not be killed", "machine", id, "err", err)
	}
}

// pidPipe makes the pipe through which the sandbox says a command's pid.
func pidPipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	// The sandbox opens it again by its /proc path, as another user.
	if err := w.Chmod(0o622); err != nil {
		closeFiles([]*os.File{r, w})
		return nil, nil, err
	}
	return r, w, nil
}

// memfile returns a file in memory that holds content.
func memfile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.WriteAt(content, 0); err == nil {
		// The reader opens it again by its /proc path, as another user.
		err = f.Chmod(0o444)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// collector keeps the first bytes that are written to w and drops the rest.
type collector struct {
	w, r *os.File
	done chan []byte
}

func newCollector(limit int64) (*collector, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// The shim may open it again by its /proc path, as another user.
	if err := w.Chmod(0o622); err != nil {
		r.Close()
		w.Close()
		return nil, err
	}
	c := &collector{w: w, r: r, done: make(chan []byte, 1)}
	go func() {
		b, err := io.ReadAll(io.LimitReader(r, limit))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			b = append(b, []byte("\n[output ends here: "+err.Error()+"]\n")...)
		}
		c.done <- b
	}()
	return c, nil
}

// finish closes w and returns what came, at the latest after outputGrace.
func (c *collector) finish() []byte {
	c.w.Close()
	c.r.SetReadDeadline(time.Now().Add(outputGrace))
	b := <-c.done
	c.r.Close()
	return b
}
