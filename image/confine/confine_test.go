package confine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/coredump"
)

// deeds are what a process tries after it has confined itself. They run in a
// process of their own: this test binary, started with its deed in the
// environment.
var deeds = map[string]func() error{
	"nothing": func() error { return nil },
	// What unpacking needs.
	"work":    work,
	"read":    func() error { _, err := os.NewFile(3, "").ReadAt(make([]byte, 5), 0); return err },
	"write":   func() error { _, err := os.NewFile(3, "").WriteAt([]byte("12345"), 100); return err },
	"crash":   func() error { panic("as planned") },
	"threads": threads,
	// What a taken-over process would try.
	"open":         func() error { _, err := os.Open("/etc/passwd"); return err },
	"open (raw)":   func() error { return raw(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0) },
	"openat2":      func() error { return raw(unix.SYS_OPENAT2, 0, 0, 0) },
	"create":       func() error { return os.WriteFile("/tmp/bulkhead-confine-test", nil, 0o600) },
	"unlink":       func() error { return os.Remove("/tmp/bulkhead-confine-none") },
	"mkdir":        func() error { return os.Mkdir("/tmp/bulkhead-confine-test", 0o700) },
	"stat":         func() error { _, err := os.Stat("/"); return err },
	"socket":       func() error { _, err := net.Dial("tcp", "127.0.0.1:1"); return err },
	"unix socket":  func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"socketpair":   func() error { return raw(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0) },
	"sendmsg":      func() error { return raw(unix.SYS_SENDMSG, 1, 0, 0) },
	"exec":         func() error { return syscall.Exec("/bin/true", []string{"true"}, nil) },
	"execveat":     func() error { return raw(unix.SYS_EXECVEAT, 3, 0, 0) },
	"fork":         func() error { return raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0) },
	"clone3":       func() error { return raw(unix.SYS_CLONE3, 0, 0, 0) },
	"ptrace":       func() error { return raw(unix.SYS_PTRACE, 0, 0, 0) },
	"process_vm":   func() error { return raw(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()), 0, 0) },
	"kill":         func() error { return unix.Kill(os.Getppid(), 0) },
	"tgkill":       func() error { return unix.Tgkill(1, 1, 0) },
	"dup":          func() error { return raw(unix.SYS_DUP, 0, 0, 0) },
	"fcntl dup":    func() error { _, err := unix.FcntlInt(0, unix.F_DUPFD, 0); return err },
	"pipe":         func() error { return raw(unix.SYS_PIPE2, 0, 0, 0) },
	"memfd":        func() error { return raw(unix.SYS_MEMFD_CREATE, 0, 0, 0) },
	"mount":        func() error { return raw(unix.SYS_MOUNT, 0, 0, 0) },
	"unshare":      func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"setns":        func() error { return raw(unix.SYS_SETNS, 3, 0, 0) },
	"setuid":       func() error { return raw(unix.SYS_SETUID, 0, 0, 0) },
	"bpf":          func() error { return raw(unix.SYS_BPF, 0, 0, 0) },
	"io_uring":     func() error { return raw(unix.SYS_IO_URING_SETUP, 1, 0, 0) },
	"perf":         func() error { return raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0) },
	"userfaultfd":  func() error { return raw(unix.SYS_USERFAULTFD, 0, 0, 0) },
	"keyctl":       func() error { return raw(unix.SYS_KEYCTL, 0, 0, 0) },
	"ioctl":        func() error { return raw(unix.SYS_IOCTL, 0, unix.TIOCSTI, 0) },
	"prctl":        func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"ftruncate":    func() error { return raw(unix.SYS_FTRUNCATE, 3, 0, 0) },
	"fchmod":       func() error { return raw(unix.SYS_FCHMOD, 3, 0o777, 0) },
	"other thread": func() error { return onThread(func() error { return raw(unix.SYS_SETUID, 0, 0, 0) }) },
	// Limits.
	"memory": func() error { return eat(1 << 30) },
	"output": func() error { _, err := os.NewFile(3, "").WriteAt([]byte("x"), 2<<20); return err },
	"cpu": func() error {
		for {
			runtime.Gosched()
		}
	},
}

func raw(nr, a, b, c uintptr) error {
	_, _, errno := unix.Syscall(nr, a, b, c)
	if errno != 0 {
		return errno
	}
	return nil
}

// work exercises the runtime: memory, collections, goroutines, timers, blocking.
func work() error {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				b := make([]byte, 1<<20)
				b[i] = 1
				<-time.After(100 * time.Microsecond) // a timer: what is confined must have them
				runtime.GC()
			}
		})
	}
	for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); { // to be interrupted
	}
	wg.Wait()
	debug.FreeOSMemory()
	return nil
}

// threads needs more threads than there are, all at once.
func threads() error {
	var started, wg sync.WaitGroup
	release := make(chan struct{})
	for range 30 {
		started.Add(1)
		wg.Go(func() {
			runtime.LockOSThread() // and never unlocks: the thread ends, too
			started.Done()
			<-release
		})
	}
	started.Wait()
	close(release)
	wg.Wait()
	return nil
}

// onThread calls f on another thread, one that was there before.
func onThread(f func() error) error {
	runtime.LockOSThread()
	err := make(chan error)
	go func() { runtime.LockOSThread(); err <- f() }()
	return <-err
}

func eat(n int) error {
	var keep [][]byte
	for range n >> 20 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
	return fmt.Errorf("%d MiB were to be had", len(keep))
}

const deedVariable = "BULKHEAD_CONFINE_TEST"

// program is this test binary, built as programs that confine themselves are:
// without cgo, and without the race detector, which needs far more.
var program string

func TestMain(m *testing.M) {
	deed := os.Getenv(deedVariable)
	if deed == "" {
		os.Exit(runTests(m))
	}
	limits := Limits{Memory: 256 << 20, Output: 1 << 20, CPU: 20 * time.Second}
	if deed == "cpu" {
		limits.CPU = time.Second
	}
	if rest, unconfined := strings.CutPrefix(deed, "unconfined "); unconfined {
		deed = rest
	} else if _, err := Enter(limits); err != nil {
		fmt.Println("cannot confine:", err)
		os.Exit(7)
	}
	fmt.Println("entered")
	if err := deeds[deed](); err != nil {
		fmt.Println("failed:", err)
		os.Exit(8)
	}
	fmt.Println("did it")
	os.Exit(0)
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bulkhead-confine-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "confine.test")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "bulkhead/image/confine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the program that confines itself: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// try runs a deed and returns what the process said and how it ended.
func try(t *testing.T, deed string) (string, syscall.WaitStatus) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = []string{deedVariable + "=" + deed}
	cmd.ExtraFiles = []*os.File{f}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.Discard
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.Sys().(syscall.WaitStatus)
}

func TestWorkGoesOnInside(t *testing.T) {
	for _, deed := range []string{"nothing", "work", "threads", "read", "write"} {
		t.Run(deed, func(t *testing.T) {
			if out, ws := try(t, deed); ws.ExitStatus() != 0 {
				t.Errorf("it ended with %#x: %s", ws, out)
			}
		})
	}
	// A crash must end as crashes do, not as a forbidden call, or the list has a gap.
	if _, ws := try(t, "crash"); ws.ExitStatus() != 2 {
		t.Errorf("a panic ended with %#x", ws)
	}
}

// TestForbiddenCallsKill: each forbidden deed kills the process there and then.
func TestForbiddenCallsKill(t *testing.T) {
	fine := map[string]bool{"nothing": true, "work": true, "threads": true, "read": true, "write": true, "crash": true, "memory": true, "output": true, "cpu": true}
	for deed := range deeds {
		if fine[deed] {
			continue
		}
		t.Run(deed, func(t *testing.T) {
			out, ws := try(t, deed)
			if out != "entered\n" || !ws.Signaled() || ws.Signal() != unix.SIGSYS {
				t.Errorf("it ended with %#x: %s", ws, out)
			}
		})
	}
}

// TestUnconfinedControl: without Enter the same deeds work or are refused by the
// kernel in the usual way, so that it is Enter that killed them above.
func TestUnconfinedControl(t *testing.T) {
	for _, deed := range []string{"open", "stat", "unix socket", "dup", "pipe", "openat2", "fork", "other thread"} {
		if out, ws := try(t, "unconfined "+deed); ws.Signaled() || !strings.HasPrefix(out, "entered\n") || out == "entered\n" {
			t.Errorf("%s: it ended with %#x: %s", deed, ws, out)
		}
	}
}

func TestLimitsHold(t *testing.T) {
	// Go gives up when it gets no more memory.
	if out, ws := try(t, "memory"); ws.ExitStatus() != 2 || out != "entered\n" {
		t.Errorf("memory: it ended with %#x: %s", ws, out)
	}
	if out, ws := try(t, "output"); ws.ExitStatus() == 0 && !ws.Signaled() {
		t.Errorf("output: it ended with %#x: %s", ws, out)
	}
	if _, ws := try(t, "cpu"); !ws.Signaled() {
		t.Errorf("cpu: it ended with %#x", ws)
	}
}

// TestCoreLimit: where dumps are handed to a program, the kernel refuses at 1 and not at 0.
func TestCoreLimit(t *testing.T) {
	if out, ws := try(t, "unconfined core limit"); ws.ExitStatus() != 0 {
		t.Errorf("it ended with %#x: %s", ws, out)
	}
}

// TestLandlockAlone: with the paths denied and no filter in the way, nothing opens.
func TestLandlockAlone(t *testing.T) {
	if out, ws := try(t, "unconfined landlock"); ws.ExitStatus() != 0 {
		t.Errorf("it ended with %#x: %s", ws, out)
	}
}

func init() {
	deeds["core limit"] = func() error {
		var before, after unix.Rlimit
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}) // as far as the tests may
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &before); err != nil {
			return err
		}
		if err := setLimits(Limits{Memory: 1 << 30, Output: 1 << 20, CPU: time.Minute}); err != nil {
			return err
		}
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &after); err != nil {
			return err
		}
		if want := min(before.Max, coredump.Limit); after != (unix.Rlimit{Cur: want, Max: want}) {
			return fmt.Errorf("the limit is %+v, want %d", after, want)
		}
		return nil
	}
	deeds["landlock"] = func() error {
		if err := denyPaths(); err != nil {
			return err
		}
		for _, p := range []string{"/etc/passwd", "/proc/self/status", "/dev/null"} {
			if f, err := os.Open(p); !errors.Is(err, unix.EACCES) {
				f.Close()
				return fmt.Errorf("opening %s: %v", p, err)
			}
		}
		// Not net.Listen, which makes an MPTCP socket: landlock lets those pass.
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{}); !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("binding: %v", err)
		}
		return nil
	}
}
