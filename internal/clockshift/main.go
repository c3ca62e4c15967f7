// Command clockshift writes an overlay for "go build -overlay" that gives programs a
// clock of their own: time.Now adds the seconds that the file "clock" holds in the
// directory that BULKHEAD_FAILPOINTS names (package failpoint). Tests set the clock of
// a platform with it, and of nothing else on the machine; what is released is never
// built with it. "make clock" builds such programs into build/clock.
//
// What the programs do not read by package time keeps the machine's own clock: the times
// of files, which the kernel sets, and gVisor's sandboxes.
//
// The toolchain's time.go is patched, not copied, and clockshift fails when that
// version of Go has another Now.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// now is the beginning of time.Now as clockshift knows it, and shifted what it becomes.
const (
	now     = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	shifted = now + "\tsec += clockShift(mono)\n"
)

// source is the file that is added to package time. It reads the setting at most every
// 50 ms of the monotonic clock, which is not shifted: what waits, waits as long as ever.
// Now is called by timers too, on a stack of the runtime's on which nothing may be
// allocated and no goroutine may give way: hence the raw system calls and fixed buffers.
const source = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var (
	clockPath              [4096]byte // ends with a zero
	clockText              [32]byte
	clockBusy              atomic.Bool
	clockRead, clockOffset atomic.Int64
)

func init() {
	if dir, ok := syscall.Getenv("BULKHEAD_FAILPOINTS"); ok && len(dir) < 4000 {
		copy(clockPath[copy(clockPath[:], dir):], "/clock")
	}
}

func clockShift(mono int64) int64 {
	last := clockRead.Load()
	if clockPath[0] == 0 || last != 0 && mono-last < 50e6 || !clockBusy.CompareAndSwap(false, true) {
		return clockOffset.Load()
	}
	const cwd, cloexec = ^uintptr(99), 0x80000
	if fd, _, e := syscall.RawSyscall6(syscall.SYS_OPENAT, cwd, uintptr(unsafe.Pointer(&clockPath[0])), cloexec, 0, 0, 0); e == 0 {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&clockText[0])), uintptr(len(clockText)))
		syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
		if e == 0 && n > 0 {
			clockOffset.Store(clockNumber(clockText[:n]))
		}
	}
	clockRead.Store(mono)
	clockBusy.Store(false)
	return clockOffset.Load()
}

func clockNumber(b []byte) int64 {
	var v, sign int64 = 0, 1
	for _, c := range b {
		switch {
		case c == '-':
			sign = -1
		case '0' <= c && c <= '9':
			v = 10*v + int64(c-'0')
		}
	}
	return sign * v
}
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: clockshift DIRECTORY")
		os.Exit(2)
	}
	if err := overlay(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "clockshift:", err)
		os.Exit(1)
	}
}

// overlay writes the files and overlay.json into dir. What did not change is left, so
// that nothing is compiled again for it.
func overlay(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	pkg := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	original, err := os.ReadFile(filepath.Join(pkg, "time.go"))
	if err != nil {
		return err
	}
	patched, err := patch(string(original))
	if err != nil {
		return fmt.Errorf("%s/time.go: %w", pkg, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": patched, "clockshift.go": source} {
		replace[filepath.Join(pkg, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "overlay.json"), b, 0o644)
}

// patch gives the source of package time's time.go with a shifted Now.
func patch(text string) (string, error) {
	if n := strings.Count(text, now); n != 1 {
		return "", fmt.Errorf("there are %d places like this, want 1: this version of Go has another time.Now, and internal/clockshift must learn it:\n%s", n, now)
	}
	return strings.Replace(text, now, shifted, 1), nil
}
