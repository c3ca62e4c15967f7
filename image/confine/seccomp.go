package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that pass whatever their arguments are. None of
// them makes a descriptor, names a path, touches another process or changes an
// identity; the tests find the ones that the Go runtime needs.
var allowed = []uintptr{
	// Bytes of open descriptors.
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV,
	unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_LSEEK,
	unix.SYS_FSTAT, unix.SYS_FALLOCATE, unix.SYS_CLOSE,
	// Memory.
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MPROTECT, unix.SYS_MINCORE, unix.SYS_BRK,
	// Threads and waiting.
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_NANOSLEEP,
	unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_RESTART_SYSCALL,
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL,
	unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	// Signals to oneself.
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	// Others that change nothing.
	unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE,
}

// constrained is a system call that passes when one argument is as given.
type constrained struct {
	nr     uintptr
	arg    uint32 // index of the argument, of which the lower 32 bits are compared
	is     uint32
	ignore uint32 // bits that may be anything
}

func constraints() []constrained {
	const prSetVMA = 0x53564d41
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	return []constrained{
		{unix.SYS_CLONE, 0, thread, unix.CLONE_SETTLS}, // a thread, never a process
		{unix.SYS_TGKILL, 0, uint32(unix.Getpid()), 0}, // its own threads: how Go interrupts one
		{unix.SYS_PRCTL, 0, prSetVMA, 0},               // Go names its memory
		{unix.SYS_FCNTL, 1, unix.F_GETFL, 0},           // never F_DUPFD
	}
}

// Offsets in struct seccomp_data.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// filter assembles the program.
func filter() ([]bpf.RawInstruction, error) {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("there is no filter for %s", runtime.GOARCH)
	}
	kill := bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	// The numbers of the x32 ABI, which shares amd64's architecture, are on no list
	// and so end at the last instruction.
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		kill,
		bpf.LoadAbsolute{Off: offNr, Size: 4},
	}
	for _, nr := range allowed {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(nr), SkipTrue: 1}, allow)
	}
	for _, c := range constraints() {
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(c.nr), SkipTrue: 5},
			bpf.LoadAbsolute{Off: offArgs + 8*c.arg, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^c.ignore},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: c.is, SkipTrue: 1},
			allow,
			kill)
	}
	return bpf.Assemble(append(prog, kill))
}

// loadFilter puts the filter on every thread of the process.
func loadFilter() error {
	raw, err := filter()
	if err != nil {
		return err
	}
	insns := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		insns[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]}
	const setModeFilter, tsync = 1, 1
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, tsync, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(insns)
	if errno != 0 {
		return errno
	}
	if tid != 0 {
		return fmt.Errorf("thread %d has a filter of its own", tid)
	}
	return nil
}
