package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"bulkhead/warden/router"
)

// spawner starts processes from one thread that lives as long as bulkheadd. Two
// things need that: the signal of the parent's death is tied to the thread that
// forked, and a network namespace is entered by a thread.
type spawner struct {
	calls chan func()
	home  string // the thread's network namespace
}

func newSpawner() *spawner {
	s := &spawner{calls: make(chan func())}
	go func() {
		// Never unlocked: were the goroutine to end, the thread would end with it.
		runtime.LockOSThread()
		s.home = threadNetNS()
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
			err = router.StartIn(netns, cmd)
			s.checkHome()
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

// checkHome ends bulkheadd when its thread could not return from a namespace:
// everything started from here on would be in the wrong place. Sandboxes do not
// notice, and the service manager starts bulkheadd again.
func (s *spawner) checkHome() {
	if now := threadNetNS(); now != s.home {
		panic(fmt.Sprintf("supervisor: the thread is in network namespace %s instead of %s", now, s.home))
	}
}

func threadNetNS() string {
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		panic(fmt.Sprintf("supervisor: %v", err))
	}
	return ns
}
