package warden

import (
	"context"
	"net"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"bulkhead/key"
	"bulkhead/sandbox"
	"bulkhead/warden/client"
)

// workerUID is the user that these tests' workers run as.
const workerUID = 4242

// workerClient calls the warden as the worker's user: it dials from a thread that
// has become that user.
type workerClient struct{ *client.Client }

// as runs f on a thread whose effective user is uid.
func as(uid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		// The raw system call changes this thread alone.
		if _, _, err := syscall.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); err != 0 {
			panic(err)
		}
		f()
		if _, _, err := syscall.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); err != 0 {
			panic(err)
		}
		runtime.UnlockOSThread()
	}()
	<-done
}

func (c workerClient) Ping(ctx context.Context) (err error) {
	as(workerUID, func() { err = c.Client.Ping(ctx) })
	return err
}

func (c workerClient) Start(ctx context.Context, spec sandbox.Spec) (sb sandbox.Sandbox, err error) {
	as(workerUID, func() { sb, err = c.Client.Start(ctx, spec) })
	return sb, err
}

func (c workerClient) Attach(ctx context.Context, id key.MachineID) (sb sandbox.Sandbox, err error) {
	as(workerUID, func() { sb, err = c.Client.Attach(ctx, id) })
	return sb, err
}

func (c workerClient) Signal(ctx context.Context, id key.MachineID, signal int) (err error) {
	as(workerUID, func() { err = c.Client.Signal(ctx, id, signal) })
	return err
}

func (c workerClient) Exec(ctx context.Context, id key.MachineID, e sandbox.ExecSpec) (r sandbox.ExecResult, err error) {
	as(workerUID, func() { r, err = c.Client.Exec(ctx, id, e) })
	return r, err
}

func (c workerClient) Processes(ctx context.Context, id key.MachineID) (list []sandbox.Process, err error) {
	as(workerUID, func() { list, err = c.Client.Processes(ctx, id) })
	return list, err
}

func (c workerClient) Remove(ctx context.Context, id key.MachineID) (err error) {
	as(workerUID, func() { err = c.Client.Remove(ctx, id) })
	return err
}

func (c workerClient) List(ctx context.Context) (list []sandbox.Info, err error) {
	as(workerUID, func() { list, err = c.Client.List(ctx) })
	return list, err
}

func (c workerClient) Listen(ctx context.Context, id key.MachineID) (l net.Listener, err error) {
	as(workerUID, func() { l, err = c.Client.Listen(ctx, id) })
	return l, err
}
