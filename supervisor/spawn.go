package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// spawner starts processes from one thread that lives as long as bulkheadd. Two
// things need that: the signal of the parent's death is tied to the thread that
// forked, and a network namespace is entered by a thread.
type spawner struct {
	calls chan func()
}

func newSpawner() *spawner {
	s := &spawner{calls: make(chan func())}
	go func() {
		// Never unlocked: were the goroutine to end, the thread would end with it.
		runtime.LockOSThread()
		for f := range s.calls {
			f()
		}
	}()
	return s
}

// start starts cmd, in the network namespace bound at netns unless that is "".
func (s *spawner) start(cmd *exec.Cmd, netns string) error {
	var err error
	s.do(func() {
		if netns == "" {
			err = cmd.Start()
		} else {
			err = startIn(cmd, netns)
		}
	})
	return err
}

// do runs f on the spawner's thread and returns when it has.
func (s *spawner) do(f func()) {
	done := make(chan struct{})
	s.calls <- func() { f(); close(done) }
	<-done
}

// startIn starts cmd from inside a network namespace and brings the calling
// thread, which must be locked, back.
func startIn(cmd *exec.Cmd, netns string) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("the router's network namespace is not there: %w", err)
	}
	defer other.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netns, err)
	}
	err = cmd.Start()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		// Everything started from here on would be in the wrong place.
		panic(fmt.Sprintf("supervisor: cannot return from network namespace %s: %v", netns, back))
	}
	return err
}
