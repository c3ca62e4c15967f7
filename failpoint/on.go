//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Enabled reports whether places can be armed in this program.
const Enabled = true

// HangTime is how long a place with mode Hang is held up.
const HangTime = time.Minute

// ErrInjected is the error of the modes Lost and Refuse.
var ErrInjected = errors.New("failpoint: an injected error")

// Write makes the write f under a name such as "worker/journal/start".
func Write(name string, f func() error) error {
	switch mode := fire(name); mode {
	case "":
		return f()
	case Before:
		die()
	case After:
		err := f()
		die()
		return err
	case Lost:
		return errors.Join(f(), fmt.Errorf("%w at %s", ErrInjected, name))
	case Refuse:
		return fmt.Errorf("%w at %s", ErrInjected, name)
	case Skip:
		return nil
	case Hang:
		time.Sleep(HangTime)
		return f()
	default:
		panic(fmt.Sprintf("failpoint: %s is armed with the unknown mode %q", name, mode))
	}
	return nil
}

// Step is a place between writes.
func Step(name string) error { return Write(name, func() error { return nil }) }

// fire notes that a place is passed and takes its mode away if it is armed and due.
func fire(name string) Mode {
	dir := os.Getenv(Env)
	if dir == "" {
		return ""
	}
	file := strings.ReplaceAll(name, "/", "+")
	if err := note(filepath.Join(dir, "seen", file)); err != nil {
		panic(fmt.Sprintf("failpoint: %v", err))
	}
	armed := filepath.Join(dir, "armed", file)
	b, err := os.ReadFile(armed)
	if err != nil {
		return "" // not armed
	}
	mode, count, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if n, _ := strconv.Atoi(count); n > 0 {
		// Two processes may count at once: a test that counts arms places of one process.
		if err := os.WriteFile(armed, []byte(mode+" "+strconv.Itoa(n-1)), 0o666); err != nil {
			panic(fmt.Sprintf("failpoint: %v", err))
		}
		return ""
	}
	if os.Remove(armed) != nil {
		return "" // another process was faster
	}
	return Mode(mode)
}

// note makes an empty file that any role may make again.
func note(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// die ends the process as a kill does: nothing is flushed, nothing is deferred.
func die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
