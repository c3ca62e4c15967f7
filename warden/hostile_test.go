package warden

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/sandbox"
)

// TestWardenReadsNoTrapOfAMachine: the directory in which gVisor leaves a command's
// pid belongs to the Machine's user, who may put anything there: also a pipe that
// never says anything, held open.
func TestWardenReadsNoTrapOfAMachine(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	trap := filepath.Join(w.server.runDir(spec.Machine), stateDir, "exec-trap.pid")
	if err := unix.Mkfifo(trap, 0o666); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(trap, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.server.killExec(t.Context(), spec.Machine, trap)
	}()
	select {
	case <-done:
		held.Close()
	case <-time.After(5 * time.Second):
		t.Error("the warden waits for a pipe that a Machine holds open")
		held.Close()
		<-done
	}
}

// TestCommandsAreBounded: no caller fills the host with processes that wait for
// commands; the Machine goes on, and so do commands in others.
func TestCommandsAreBounded(t *testing.T) {
	w := newWorld(t).start()
	spec, other := w.spec("sleep"), w.spec("sleep")
	w.begin(spec)
	w.begin(other)
	var wg sync.WaitGroup
	refused, ran := make(chan error, 3*maxCommands), make(chan struct{}, 3*maxCommands)
	for range 3 * maxCommands {
		wg.Go(func() {
			r, err := w.client.Exec(testContext(t), spec.Machine, sandbox.ExecSpec{Args: []string{appPath, "sleep"}, Cwd: "/", Timeout: 3 * time.Second})
			switch {
			case err != nil:
				refused <- err
			case r.Signal != 9:
				t.Errorf("a command that took too long ended with %+v", r)
			default:
				ran <- struct{}{}
			}
		})
	}
	if code, out := w.run(other.Machine, "print", "x"); code != 0 {
		t.Errorf("another Machine's command: %d %q", code, out)
	}
	wg.Wait()
	if len(ran) != maxCommands || len(refused) != 2*maxCommands {
		t.Errorf("%d commands ran and %d were refused, the bound is %d", len(ran), len(refused), maxCommands)
	}
	for range len(refused) {
		if err := <-refused; !fault.Is(err, fault.TooMany) {
			t.Errorf("refused with %v", err)
		}
	}
	if code, out := w.run(spec.Machine, "print", "x"); code != 0 || !strings.Contains(out, "x") {
		t.Errorf("afterwards: %d %q", code, out)
	}
}
