package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"bulkhead/coredump"
)

// StageCommand is the first argument with which bulkheadd runs itself between
// fork and the role's program. Its main (and a test's) hands the rest to Stage.
const StageCommand = "exec-role"

// stage is what happens in a new process before it becomes a role: everything
// that must be taken away is taken away here, in a process that has run nothing of
// the role yet.
type stage struct {
	Parent   int      `json:"parent"` // bulkheadd; when it is gone already, the role must not run
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups"`
	KeepCaps []int    `json:"keep_caps"` // capability bounding set
	NoFile   uint64   `json:"no_file"`   // limit of open files
	Args     []string `json:"args"`      // program and arguments
}

// Stage does what its one argument says and becomes the role's program. It
// returns only when that fails.
func Stage(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s is for bulkheadd's own use", StageCommand)
	}
	var s stage
	if err := json.Unmarshal([]byte(args[0]), &s); err != nil {
		return fmt.Errorf("%s is for bulkheadd's own use: %w", StageCommand, err)
	}
	// Capabilities, no_new_privs and the parent's death signal are a thread's, and
	// the thread that calls execve is the one that lives on.
	runtime.LockOSThread()
	if err := s.restrict(); err != nil {
		return err
	}
	return fmt.Errorf("start %s: %w", s.Args[0], syscall.Exec(s.Args[0], s.Args, os.Environ()))
}

// restrict gives up everything the role is not to have.
func (s *stage) restrict() error {
	if err := keepFiles(os.Getenv("LISTEN_FDS")); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: s.NoFile, Max: s.NoFile}); err != nil {
		return fmt.Errorf("set the limit of open files to %d: %w", s.NoFile, err)
	}
	if err := coredump.ForbidBelow(); err != nil {
		return err
	}
	unix.Umask(0o077)
	if err := dropBounding(s.KeepCaps); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	groups := make([]int, len(s.Groups))
	for i, g := range s.Groups {
		groups[i] = int(g)
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("set groups: %w", err)
	}
	if err := syscall.Setresgid(int(s.GID), int(s.GID), int(s.GID)); err != nil {
		return fmt.Errorf("set group %d: %w", s.GID, err)
	}
	if err := syscall.Setresuid(int(s.UID), int(s.UID), int(s.UID)); err != nil {
		return fmt.Errorf("set user %d: %w", s.UID, err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// The change of user has cleared it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the signal of the parent's death: %w", err)
	}
	if os.Getppid() != s.Parent {
		return fmt.Errorf("bulkheadd (process %d) is gone", s.Parent)
	}
	return nil
}

// keepFiles lets no descriptor past the standard ones and the count that LISTEN_FDS
// names through to the role. bulkheadd inherits what whoever started it left open,
// and everything below would inherit that in turn, down to the shims of Machines.
func keepFiles(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return fmt.Errorf("LISTEN_FDS is %q", count)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= 3+n {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// dropBounding removes every capability but keep from the bounding set, so that
// no execve can give it back.
func dropBounding(keep []int) error {
	kept := map[int]bool{}
	for _, c := range keep {
		kept[c] = true
	}
	for c := 0; c < 64; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			return nil // past the last capability of this kernel
		}
		if has == 0 || kept[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// wardenCaps is the most that the warden may ever have; it drops what it does not
// need itself. What is missing here reaches past the machine's tenants: modules,
// raw devices, the clock, the kernel log, the audit and mandatory access systems.
var wardenCaps = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE,
	unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN,
	unix.CAP_SYS_RESOURCE, unix.CAP_SYS_NICE, unix.CAP_MKNOD, unix.CAP_SETFCAP,
}
