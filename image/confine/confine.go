// Package confine takes from the calling process everything but computing on the
// file descriptors that it holds, before it reads the first hostile byte.
//
// Four fences, each enough to keep a taken-over process from the host's files and
// networks:
//
//   - resource limits: no new file descriptor, bounded output, memory and CPU time,
//     and the process is never dumped;
//   - no_new_privs;
//   - landlock: no path may be opened, no TCP port bound or connected (as far as the
//     kernel's version knows how to deny it);
//   - seccomp: the system calls that the Go runtime needs to run and that move bytes
//     between open descriptors; every other one kills the process.
package confine

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"bulkhead/coredump"
)

// Limits of the confined process.
type Limits struct {
	Memory uint64        // bytes of writable memory; the process dies when it needs more
	Output uint64        // bytes: the largest offset that it may write at
	CPU    time.Duration // of all its threads together; rounded up to seconds
}

// Report says what was put up.
type Report struct {
	Landlock int // ABI version of the kernel's landlock; 0 when it has none
}

// Enter confines the process, all its threads, for good. Package-level state that
// needs system calls outside the list must be set up before. An error means that the
// process must not go on. A kernel without landlock is not an error, as seccomp
// alone keeps every path and socket out; one without seccomp is.
func Enter(l Limits) (Report, error) {
	// The runtime follows the cgroup's CPU limit by reading a file now and then,
	// unless the number is set.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	// The runtime sets its poller up with the first timer, which takes descriptors.
	time.Sleep(time.Microsecond)
	if l.Memory > 0 {
		debug.SetMemoryLimit(int64(l.Memory - l.Memory/4))
	}
	var rep Report
	// no_new_privs has to be set on the thread that loads the filter, which hands both
	// to all others.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return rep, fmt.Errorf("setting no_new_privs: %w", err)
	}
	if abi, err := llsys.LandlockGetABIVersion(); err == nil && abi > 0 {
		rep.Landlock = abi
		if err := denyPaths(); err != nil {
			return rep, fmt.Errorf("setting landlock up: %w", err)
		}
	}
	// Whoever is handed core dumps on this host would read hostile memory.
	if err := coredump.Forbid(); err != nil {
		return rep, err
	}
	// After landlock, whose rulesets are descriptors for a moment.
	if err := setLimits(l); err != nil {
		return rep, err
	}
	if err := loadFilter(); err != nil {
		return rep, fmt.Errorf("loading the seccomp filter: %w", err)
	}
	return rep, nil
}

// denyPaths denies every right that the kernel's landlock knows of.
func denyPaths() error {
	// The rulesets are separate so that a kernel that knows only paths still denies those.
	if err := landlock.V11.BestEffort().RestrictPaths(); err != nil {
		return err
	}
	return landlock.V11.BestEffort().RestrictNet()
}

// setLimits sets the resource limits, soft and hard.
func setLimits(l Limits) error {
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return fmt.Errorf("reading RLIMIT_CORE: %w", err)
	}
	limits := []struct {
		name string
		what int
		max  uint64
	}{
		{"NOFILE", unix.RLIMIT_NOFILE, 0},
		{"CORE", unix.RLIMIT_CORE, min(core.Max, coredump.Limit)}, // which is less than 0: see coredump
		{"FSIZE", unix.RLIMIT_FSIZE, l.Output},
		// Writable private memory. RLIMIT_AS would count what Go reserves and never touches.
		{"DATA", unix.RLIMIT_DATA, l.Memory},
		{"CPU", unix.RLIMIT_CPU, uint64((l.CPU + time.Second - 1) / time.Second)},
	}
	for _, x := range limits {
		if x.max == 0 && (x.what == unix.RLIMIT_FSIZE || x.what == unix.RLIMIT_DATA || x.what == unix.RLIMIT_CPU) {
			return errors.New("confine: every limit must be set")
		}
		if err := unix.Setrlimit(x.what, &unix.Rlimit{Cur: x.max, Max: x.max}); err != nil {
			return fmt.Errorf("setting RLIMIT_%s to %d: %w", x.name, x.max, err)
		}
	}
	return nil
}
