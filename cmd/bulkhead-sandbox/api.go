package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/fspath"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/socket/unix/transport"
	syscalls "gvisor.dev/gvisor/pkg/sentry/syscalls/linux"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/pkg/syserr"
	"gvisor.dev/gvisor/runsc/cmd/sandboxsetup"
	"gvisor.dev/gvisor/runsc/flag"
)

// The platform's API inside a Machine: a socket in a file system of its own, which
// package warden/runsc mounts.
const (
	apiDir  = "/.fly"
	apiPath = apiDir + "/api"
)

// apiGuestFD marks the shim's socket among the files that "start" hands to "boot". It
// is no descriptor of the app's: boot takes the mapping away before it is used.
const apiGuestFD = 1 << 20

// takeAPI takes the shim's socket out of boot's flags. It is -1 when there is none.
func takeAPI(f *flag.FlagSet) int {
	mappings, ok := f.Lookup("pass-fd").Value.(*sandboxsetup.FDMappings)
	if !ok {
		return -1
	}
	for i, m := range *mappings {
		if m.Guest == apiGuestFD {
			*mappings = append((*mappings)[:i], (*mappings)[i+1:]...)
			return m.Host
		}
	}
	return -1
}

// beforeFirstCall has do called once, before the first system call of all; other
// threads' calls wait for it. gVisor has no hook between mounting and starting.
func beforeFirstCall(do func(*kernel.Task)) {
	var once sync.Once
	for _, table := range []*kernel.SyscallTable{syscalls.AMD64, syscalls.ARM64} {
		for no, call := range table.Table {
			fn := call.Fn
			call.Fn = func(t *kernel.Task, no uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
				once.Do(func() { do(t) })
				return fn(t, no, args)
			}
			table.Table[no] = call
		}
		table.Init()
	}
}

// makeAPI makes the socket, and the token's file, and closes its file system, so that nobody removes it or
// puts another in its place.
func makeAPI(t *kernel.Task, d *doors, token bool) error {
	mns := t.MountNamespace()
	if mns == nil {
		return fmt.Errorf("the first process has no mounts")
	}
	k := t.Kernel()
	ctx := k.SupervisorContext()
	root := mns.Root(ctx)
	defer root.DecRef(ctx)
	creds := auth.NewRootCredentials(k.RootUserNamespace())
	at := func(path string) *vfs.PathOperation {
		return &vfs.PathOperation{Root: root, Start: root, Path: fspath.Parse(path), FollowFinalSymlink: true}
	}
	dir, err := k.VFS().GetDentryAt(ctx, creds, at(apiDir), &vfs.GetDentryOptions{CheckSearchable: true})
	if err != nil {
		return err
	}
	defer dir.DecRef(ctx)
	if dir.Mount() == root.Mount() {
		return fmt.Errorf("%s is no file system of its own", apiDir)
	}
	pop := &vfs.PathOperation{Root: dir, Start: dir, Path: fspath.Parse("api")}
	if err := k.VFS().MknodAt(ctx, creds, pop, &vfs.MknodOptions{Mode: linux.S_IFSOCK | 0o666, Endpoint: &apiEndpoint{doors: d}}); err != nil {
		return err
	}
	if token {
		if err := mountToken(ctx, k, creds, dir, &tokenFile{ask: d.askToken, now: time.Now}); err != nil {
			return fmt.Errorf("%s: %w", tokenName, err)
		}
	}
	return k.VFS().SetMountReadOnly(dir.Mount(), true)
}

// apiEndpoint is the listening end of the socket: whoever connects gets a connection
// that the worker has made.
type apiEndpoint struct{ doors *doors }

// BidirectionalConnect implements transport.BoundEndpoint.
func (e *apiEndpoint) BidirectionalConnect(_ context.Context, ce transport.ConnectingEndpoint, returnConnect func(transport.Receiver, transport.Sender)) *syserr.Error {
	if ce.Type() != linux.SOCK_STREAM {
		return syserr.ErrWrongProtocolForSocket
	}
	if err := connectable(ce); err != nil {
		ce.Unlock()
		return err
	}
	ce.Unlock()
	fd, err := e.doors.connect() // waits
	if err != nil {
		return err
	}
	if err := connectable(ce); err != nil {
		ce.Unlock()
		unix.Close(fd)
		return err
	}
	c, err := transport.NewSCMSender(fd, ce.WaiterQueue(), apiPath)
	if err != nil {
		ce.Unlock()
		unix.Close(fd)
		return err
	}
	returnConnect(apiConn{c}, apiConn{c})
	ce.Unlock()
	return syserr.FromError(c.Init())
}

// connectable locks ce and says whether it may be connected.
func connectable(ce transport.ConnectingEndpoint) *syserr.Error {
	ce.Lock()
	switch {
	case ce.Connected():
		return syserr.ErrAlreadyConnected
	case ce.ListeningLocked():
		return syserr.ErrInvalidEndpointState
	}
	return nil
}

// UnidirectionalConnect implements transport.BoundEndpoint: there are no datagrams.
func (e *apiEndpoint) UnidirectionalConnect(context.Context) (transport.Sender, *syserr.Error) {
	return nil, syserr.ErrConnectionRefused
}

// Passcred implements transport.BoundEndpoint.
func (e *apiEndpoint) Passcred() bool { return false }

// Release implements transport.BoundEndpoint.
func (e *apiEndpoint) Release(context.Context) {}

// apiConn is a connection. gVisor refuses files that the app sends; none come in
// either, whatever the other end does.
type apiConn struct{ *transport.SCMSender }

// Recv implements transport.Receiver.
func (c apiConn) Recv(ctx context.Context, data [][]byte, args transport.RecvArgs) (transport.RecvOutput, bool, *syserr.Error) {
	args.NumRights = 0
	return c.SCMSender.Recv(ctx, data, args)
}

// knockWait is how long a connect waits for the worker.
const knockWait = time.Second

// doors is where connections come from: the shim sends a door (a socket) each time a
// worker takes the Machine up, and the worker behind it sends a connection for each
// byte that it gets. Nothing is parsed, and no more than what gVisor's filter of
// system calls allows is called.
type doors struct {
	shim int

	mu   sync.Mutex // guards door
	door int        // the newest, -1 for none
}

// connect returns a connection. Refused: no worker is there; TryAgain: it gives none now.
func (d *doors) connect() (int, *syserr.Error) {
	knocked, deadline := -1, time.Now().Add(knockWait)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		fd, err := d.next(&knocked)
		if err != nil || fd >= 0 {
			return fd, err
		}
		if time.Now().After(deadline) {
			return -1, syserr.ErrTryAgain
		}
		time.Sleep(pause) // no thread of the host waits
	}
}

// next returns a connection if there is one, and asks the worker for one unless
// knocked says that it was asked at the same door. It is -1 while there is none.
func (d *doors) next(knocked *int) (int, *syserr.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if door, err := receive(d.shim); err == nil && door >= 0 {
		d.close()
		d.door, *knocked = door, -1
	}
	for d.door >= 0 {
		fd, err := receive(d.door)
		switch {
		case err == unix.EAGAIN && *knocked == d.door:
			return -1, nil
		case err == unix.EAGAIN:
			if err := unix.Sendmsg(d.door, []byte{1}, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err == unix.EAGAIN {
				return -1, syserr.ErrTryAgain // many have knocked
			} else if err == nil {
				*knocked = d.door
				return -1, nil
			}
			d.close()
		case err != nil:
			d.close()
		case fd < 0:
			return -1, syserr.ErrTryAgain // the worker's no
		case hungUp(fd):
			unix.Close(fd) // it was for somebody who did not wait
		default:
			return fd, nil
		}
	}
	return -1, syserr.ErrConnectionRefused
}

func (d *doors) close() {
	if d.door >= 0 {
		unix.Close(d.door)
	}
	d.door = -1
}

// receive takes one file out of a socket: -1 when the message has none.
func receive(from int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(from, make([]byte, 1), oob, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
	if err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, os.ErrClosed
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) == 0 {
		return -1, nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1, nil
	}
	for _, fd := range fds[1:] {
		unix.Close(fd) // the space is for one, rounded up
	}
	return fds[0], nil
}

// hungUp reports whether the other end of a connection has hung up.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Ppoll(p, &unix.Timespec{}, nil)
	return err == nil && n > 0
}
