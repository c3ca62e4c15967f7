package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// dropPrivileges takes from every thread what a program that parses the public's
// bytes must not have: capabilities, and ways to get new ones. Started as it should be,
// it has no capability to drop.
func dropPrivileges() error {
	held, err := capabilities()
	if err != nil {
		return err
	}
	// The header and data of capset(2): version 3, this thread, all sets empty.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	for _, step := range []struct {
		what string
		call func() (uintptr, uintptr, syscall.Errno)
	}{
		{"forbid new privileges", func() (uintptr, uintptr, syscall.Errno) {
			return syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
		}},
		{"clear ambient capabilities", func() (uintptr, uintptr, syscall.Errno) {
			return syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
		}},
		{"drop capabilities", func() (uintptr, uintptr, syscall.Errno) {
			return syscall.AllThreadsSyscall(unix.SYS_CAPSET, pointer(&header), pointer(&none), 0)
		}},
	} {
		_, _, errno := step.call()
		if errno == syscall.ENOTSUP && held == 0 {
			return nil // built with cgo, where threads cannot be reached; there is nothing to drop
		}
		if errno != 0 {
			return fmt.Errorf("%s: %w", step.what, errno)
		}
	}
	if held, err = capabilities(); err != nil || held != 0 {
		return errors.Join(fmt.Errorf("capabilities %#x are left", held), err)
	}
	return nil
}

// capabilities returns the permitted set of this process.
func capabilities() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapPrm:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status does not name capabilities")
}

// confine leaves the edge its own directory, and of the rest only what its metrics
// read. A kernel without landlock has file permissions alone, as before.
func confine(dataDir string) error {
	return landlock.V5.BestEffort().RestrictPaths(
		landlock.RWDirs(dataDir),
		landlock.RODirs("/proc"),
		landlock.ROFiles("/etc/localtime").IgnoreIfMissing(),
	)
}

// sizeMemory trades memory for processor time: garbage is collected when the heap
// has grown fivefold, but earlier where a quarter of the machine's memory would be
// passed. GOGC and GOMEMLIMIT, where set, win.
func sizeMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		var si unix.Sysinfo_t
		if unix.Sysinfo(&si) == nil {
			debug.SetMemoryLimit(max(int64(si.Totalram)*int64(si.Unit)/4, 128<<20))
		}
	}
}
