package fake

import (
	"context"
	"os"
	"syscall"

	"bulkhead/fault"
	"bulkhead/sandbox"
)

// handle makes a Sandbox with read ends of its own.
func (h *Host) handle(b *box) (sandbox.Sandbox, error) {
	s := &handle{b: b}
	for i := range 2 {
		fd, err := dup(b.out[i])
		if err != nil {
			return nil, fault.New(fault.NotFound, "machine %s has no sandbox", b.spec.Machine)
		}
		s.out[i] = fd
	}
	return s, nil
}

// dup copies a descriptor; the copy does not keep the original blocking.
func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var derr error
	if err := raw.Control(func(p uintptr) { fd, derr = syscall.Dup(int(p)) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// handle is a sandbox.Sandbox.
type handle struct {
	b   *box
	out [2]*os.File
}

func (s *handle) Stdout() *os.File { return s.out[0] }
func (s *handle) Stderr() *os.File { return s.out[1] }

func (s *handle) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-s.b.done:
		return s.b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

func (s *handle) Close() error {
	s.out[0].Close()
	return s.out[1].Close()
}
