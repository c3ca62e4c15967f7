//go:build linux

package coredump

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// value is what a victim keeps in its memory. It is not in its arguments nor in its
// environment, but comes through a pipe.
var value []byte

// signals end a process with a dump.
var signals = []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV, syscall.SIGQUIT}

// victim does to itself what the case says, and waits to be killed. It takes the Go
// runtime's own handling of the signals away, which would print traces and exit: a dump
// is made when the kernel ends a process, as it does with GOTRACEBACK=crash, too.
func victim(what string) {
	value = make([]byte, 16)
	if _, err := os.Stdin.Read(value); err != nil {
		os.Exit(3)
	}
	limit := uint64(unix.RLIM_INFINITY)
	fmt.Sscan(strings.TrimPrefix(what, "limit "), &limit)
	var err error
	switch what {
	case "Forbid":
		err = Forbid()
	case "ForbidBelow":
		err = ForbidBelow()
	case "ForbidBelow, after an exec":
		if os.Getenv("AGAIN") == "" {
			if err = ForbidBelow(); err == nil {
				err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), "AGAIN=1"))
			}
		}
	default:
		err = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: limit, Max: limit})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	for _, sig := range signals {
		var act [4]uintptr // SIG_DFL
		if _, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); e != 0 {
			os.Exit(3)
		}
	}
	fmt.Println("ready")
	select {}
}

func TestMain(m *testing.M) {
	if what := os.Getenv("VICTIM"); what != "" {
		victim(what)
	}
	os.Exit(m.Run())
}

// crash ends a victim with a signal, in an empty directory of its own with a core limit
// of "unlimited" before it starts, and returns what it left there, and whether the kernel
// says that it was dumped.
func crash(t testing.TB, what string, sig syscall.Signal) (left []byte, dumped bool) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 16)
	rand.Read(secret)
	in, give, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir, cmd.Env, cmd.Stdin = dir, []string{"VICTIM=" + what, "GOMAXPROCS=1"}, in
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	give.Write(bytes.Repeat(secret, 2)) // an exec reads it again
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	give.Close()
	in.Close()
	b := make([]byte, 6)
	if n, err := out.Read(b); string(b[:n]) != "ready\n" {
		t.Fatalf("the victim is not ready: %q, %v", b[:n], err)
	}
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	st := cmd.ProcessState.Sys().(syscall.WaitStatus)
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if left, err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(left, secret) {
			t.Errorf("%s after %v: %s, %d bytes, does not hold what the process had in memory", what, sig, f, len(left))
		}
		t.Logf("%s after %v: %s, %d KiB, holds %s…", what, sig, filepath.Base(f), len(left)>>10, hex.EncodeToString(secret[:2]))
	}
	return left, st.CoreDump()
}

// unlimited lets what the test starts dump all that it has.
func unlimited(t testing.TB) {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		t.Fatalf("run it as root, or with ulimit -c unlimited: %v", err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_CORE, &l) })
}

// TestNoCore crashes processes that forbade it as hard as one can, and, as the control,
// some that did not. Where dumps go to a program the kernel's word is all that is seen of
// them; what a limit of 0 is worth there BenchmarkPatterns shows.
func TestNoCore(t *testing.T) {
	unlimited(t)
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	here := pattern[0] != '|' && pattern[0] != '/' && pattern[0] != '@'
	// Once: with the race detector its dump is large.
	if left, dumped := crash(t, "control", syscall.SIGABRT); !dumped || here && left == nil {
		t.Errorf("the control left no dump (%d bytes, dumped is %v): nothing is shown", len(left), dumped)
	}
	forbidden := []string{"Forbid", "ForbidBelow", "ForbidBelow, after an exec", "limit 1"}
	if pattern[0] == '@' {
		forbidden = forbidden[:2] // the kernel asks no limit
		t.Log("dumps are sent to a socket here, which no limit forbids")
	}
	for _, sig := range signals {
		for _, what := range forbidden {
			if left, dumped := crash(t, what, sig); dumped || left != nil {
				t.Errorf("%s after %v: dumped is %v, %d bytes", what, sig, dumped, len(left))
			}
		}
	}
}

// BenchmarkPatterns shows what holds for each kernel.core_pattern. It measures nothing, and
// is no test since it changes that of the whole host for a moment:
//
//	BULKHEAD_CORE_PATTERN=1 go test ./coredump -run '^$' -bench Patterns -benchtime 1x -v
func BenchmarkPatterns(b *testing.B) {
	if os.Getenv("BULKHEAD_CORE_PATTERN") != "1" {
		b.Skip("it changes kernel.core_pattern of this host for a moment: BULKHEAD_CORE_PATTERN=1 allows it")
	}
	const file = "/proc/sys/kernel/core_pattern"
	old, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	back := func() {
		if err := os.WriteFile(file, old, 0); err != nil {
			b.Errorf("kernel.core_pattern could not be put back to %q: %v", old, err)
		}
	}
	b.Cleanup(back)
	unlimited(b)
	socket := "@" + listen(b)
	for _, c := range []struct {
		pattern, what string
		dumped        bool
	}{
		{"core", "control", true}, {"core", "limit 0", false}, {"core", "limit 1", false}, {"core", "Forbid", false},
		{"|/bin/true", "control", true}, {"|/bin/true", "limit 0", true}, {"|/bin/true", "limit 1", false}, {"|/bin/true", "Forbid", false},
		{socket, "control", true}, {socket, "limit 0", true}, {socket, "limit 1", true}, {socket, "Forbid", false}, // Linux 6.16 and later
	} {
		if err := os.WriteFile(file, []byte(c.pattern), 0); err != nil {
			b.Fatal(err)
		}
		_, dumped := crash(b, c.what, syscall.SIGABRT)
		back()
		b.Logf("core_pattern %s, %s: dumped is %v", c.pattern, c.what, dumped)
		if dumped != c.dumped {
			b.Errorf("%s, %s: dumped is %v", c.pattern, c.what, dumped)
		}
	}
}

// listen takes what is sent to a socket, which is dumps, and throws it away.
func listen(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "dumps")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	return path
}
