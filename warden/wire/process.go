package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process, for all time until the next boot.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot: field 22 of /proc/<pid>/stat
}

// Identify returns the process that has pid now.
func Identify(pid int) (Process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The second field is the name in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return Process{}, fmt.Errorf("/proc/%d/stat cannot be read", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start}, nil
}

// OpenProcess returns a pidfd of the process, or an error when it is no more. The pidfd is
// readable when the process has ended. It is non-blocking, for WaitProcess.
func OpenProcess(id Process) (*os.File, error) {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return nil, err
	}
	// Between a look at /proc and the opening the pid may have been reused; not after.
	now, err := Identify(id.PID)
	if err != nil || now != id {
		unix.Close(fd)
		return nil, errors.Join(unix.ESRCH, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// WaitProcess returns when the process behind pidfd has ended, or when ctx is done. Only one
// WaitProcess may run on a pidfd at a time.
func WaitProcess(ctx context.Context, pidfd *os.File) error {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if err := pidfd.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("wait for a process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var perr error
	err = rc.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(p, 0)
			if err == unix.EINTR {
				continue
			}
			perr = err
			return err != nil || n > 0
		}
	})
	if ctx.Err() != nil && err != nil {
		return ctx.Err()
	}
	return errors.Join(err, perr)
}
