package coredump

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Forbid makes this process one that is never dumped, nor looked into by other processes
// of its user.
func Forbid() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}

// ForbidBelow does so for whatever this process starts, too: they have Limit.
func ForbidBelow() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: Limit, Max: Limit}); err != nil {
		return fmt.Errorf("forbid core dumps: set RLIMIT_CORE to %d: %w", Limit, err)
	}
	return Forbid()
}
