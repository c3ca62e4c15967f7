package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/role"
)

// TestAFullDiskEndsNoStart starts on a full disk with a worker that cannot: what can
// run does, it is said once, bulkheadd does not end for it however often the worker is
// tried, and with room again the platform gets ready by itself.
func TestAFullDiskEndsNoStart(t *testing.T) {
	n := newNode(t)
	if err := os.MkdirAll(n.config.DataDir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.config.DataDir, "tmpfs", 0, "size=100m,mode=0711"); err != nil {
		t.Fatalf("mount a file system: %v (run the tests as root)", err)
	}
	t.Cleanup(func() { unix.Unmount(n.config.DataDir, unix.MNT_DETACH) })
	tm := fastTiming
	tm.platform = 3 * time.Second
	first := n.begin(tm)
	if err := first.await(); err != nil {
		t.Fatal(err)
	}
	first.stop()
	fill := filepath.Join(n.config.DataDir, ".fill")
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := 1 << 20; chunk > 0; {
		if _, err := f.Write(make([]byte, chunk)); err != nil {
			chunk /= 2
		}
	}
	f.Close()
	n.behave(role.Worker, behaviour{FailStarts: 1 << 20, EndWith: "the worker's journal cannot be made"})
	n.behave(role.Controller, behaviour{NotReady: true})
	before, starts := len(n.stderr.String()), startCount(n, role.Worker)
	r := n.begin(tm)
	n.eventually("the worker was tried a dozen times, the edge runs and the platform is late", func() bool {
		log := n.stderr.String()[before:]
		return startCount(n, role.Worker) >= starts+4*tm.attempts && strings.Contains(log, `"what":"edge"`) && strings.Contains(log, "does not answer after 3s")
	})
	log := n.stderr.String()[before:]
	for _, said := range []string{`"the disk is low, and something is refused"`, `"` + noPlatform + `"`, "the worker's journal cannot be made"} {
		if c := strings.Count(log, said); c < 1 || c > 2 { // by why: that the worker does not start, then that the API does not answer
			t.Errorf("%s is said %d times", said, c)
		}
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	n.behave(role.Worker, behaviour{})
	n.behave(role.Controller, behaviour{})
	syscall.Kill(n.pid(role.Controller), syscall.SIGKILL)
	if err := r.await(); err != nil {
		t.Fatal(err)
	}
	if t.Failed() {
		t.Log(log)
	}
}
