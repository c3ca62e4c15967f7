package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/handover"
	"bulkhead/role"
)

// RestartSignal asks a running bulkheadd to replace its program.
const RestartSignal = syscall.SIGUSR2

// awaitEnd returns when bulkheadd is to end (false) or to replace its program (true).
// A program that cannot run is found before anything stops.
func (s *Supervisor) awaitEnd(ctx context.Context) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-s.Restart:
			if err := tryProgram(ctx, ownPath()); err != nil {
				s.log.Error("bulkheadd goes on with its old program", "why", err.Error())
				s.state.Refused, s.state.Refusals = err.Error(), s.state.Refusals+1
				if err := s.keepState(); err != nil {
					s.log.Error("\"bulkheadd restart\" does not learn of it", "why", err.Error())
				}
				continue
			}
			return true
		}
	}
}

// ownPath is where this program was started from. After an installation the new one is
// there.
func ownPath() string {
	if filepath.IsAbs(os.Args[0]) {
		return os.Args[0] // may be a link that leads elsewhere by now
	}
	path, _ := os.Executable()
	return path
}

// tryProgram asks a program for its version.
func tryProgram(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := exec.CommandContext(ctx, path, "version").Run(); err != nil {
		return fmt.Errorf("%s version: %w", path, err)
	}
	return nil
}

// replace executes the program again, with the TCP sockets open. The roles have ended:
// each dies with the thread that started it, and no thread but one outlives execve.
func (s *Supervisor) replace() error {
	if err := s.fault.at("replace"); err != nil {
		return err
	}
	files := map[string]*os.File{}
	for name := range s.sockets.addrs {
		files[name] = s.sockets.files[name]
	}
	// Until the new program listens to it, the signal must not end the process.
	signal.Ignore(RestartSignal)
	env := os.Environ()
	if s.notify.socket != "" {
		env = append(env, "NOTIFY_SOCKET="+s.notify.socket)
	}
	return handover.Exec(ownPath(), os.Args, env, files)
}

// storeSockets gives the TCP sockets to the service manager, which keeps them while it
// restarts bulkheadd, and takes back the unused ones.
func (s *Supervisor) storeSockets(unused []string) {
	if len(unused) > 0 {
		s.log.Info("sockets that were left are not those wanted, and are closed", "sockets", strings.Join(unused, " "))
	}
	if s.notify.socket == "" {
		return
	}
	var errs []error
	for _, name := range unused {
		errs = append(errs, handover.Forget(s.notify.socket, name))
	}
	for _, name := range slices.Sorted(maps.Keys(s.sockets.addrs)) {
		errs = append(errs, handover.Store(s.notify.socket, name, s.sockets.files[name]))
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Warn("the service manager does not keep the sockets: its restart of bulkheadd refuses connections", "why", err.Error())
	}
}

// Restart makes the bulkheadd that runs on a data directory replace its program by the
// installed one, and returns when the platform is ready again. It needs root.
func Restart(ctx context.Context, c Config) error {
	if os.Geteuid() != 0 {
		return errors.New("bulkheadd restart must run as root")
	}
	if err := checkDataDir(c.DataDir); err != nil {
		return err
	}
	before, err := readState(c.DataDir)
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(before.PID, 0)
	if err == nil {
		defer unix.Close(process)
	}
	lock, lerr := takeLock(c.DataDir, false)
	if lerr == nil {
		if lock != nil {
			lock.Close()
		}
		return fmt.Errorf("no bulkheadd runs on %s; start it with bulkheadd up", c.DataDir)
	}
	// The state is written later than the lock is taken: only together they name a process.
	if b, _ := os.ReadFile(filepath.Join(c.DataDir, lockFile)); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(before.PID) {
		return fmt.Errorf("bulkheadd still starts on %s; try again when it is ready", c.DataDir)
	}
	if before.Start == "" {
		return fmt.Errorf("process %d of bulkheadd is of an earlier version, which cannot replace its program; stop and start it", before.PID)
	}
	if err := unix.PidfdSendSignal(process, RestartSignal, nil, 0); err != nil {
		return err
	}
	a := newAdmin(socketPath(before.RunDir, role.SocketAdmin))
	for {
		now, err := readState(c.DataDir)
		switch {
		case err != nil:
		case now.Start == before.Start && now.Refusals > before.Refusals:
			return fmt.Errorf("bulkheadd goes on with its old program: %s", now.Refused)
		case now.Start != before.Start:
			if _, err := a.answers(ctx, now); err == nil {
				return nil
			}
		}
		ended := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		if n, _ := unix.Poll(ended, 50); n > 0 {
			return errors.New("bulkheadd ended instead of starting again; its log says why")
		}
		if ctx.Err() != nil {
			return fmt.Errorf("bulkheadd is not ready with its new program: %w; its log says why", ctx.Err())
		}
	}
}
