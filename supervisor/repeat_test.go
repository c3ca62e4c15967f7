package supervisor

import (
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/role"
)

// TestARoleThatKeepsFailingSaysItOnce breaks the worker while the platform runs: its
// reason, and what it says besides, stand in the log once, however often it is
// tried, and so does that it is over.
func TestARoleThatKeepsFailingSaysItOnce(t *testing.T) {
	const why = "the worker's journal /d/journal.db is damaged; restore it"
	n := newNode(t)
	tm := fastTiming
	tm.healthy = 100 * time.Millisecond
	r := n.begin(tm)
	if err := r.await(); err != nil {
		t.Fatal(err)
	}
	n.behave(role.Worker, behaviour{FailStarts: 12, Say: "the worker looks around", EndWith: why})
	syscall.Kill(n.pid(role.Worker), syscall.SIGKILL)
	n.eventually("it was tried a dozen times", func() bool { return startCount(n, role.Worker) >= 13 })
	n.eventually("it is over", func() bool { return strings.Contains(n.stderr.String(), `"over: the worker does not keep running"`) })
	log := n.stderr.String()
	if c := strings.Count(log, `"the worker does not keep running","role":"bulkheadd","why":"it ended with exit code 1: `+why); c != 1 {
		t.Errorf("the reason is said %d times", c)
	}
	// Once by the first that failed, once by the one that works.
	if c := strings.Count(log, "the worker looks around"); c != 2 {
		t.Errorf("what the process says besides is there %d times", c)
	}
	if !strings.Contains(log, `"times":11`) {
		t.Error("the count is missing")
	}
	if t.Failed() {
		t.Log(log)
	}
}

// TestARoleThatDoesNotStartSaysWhy: the first start ends with the role's own
// sentence and not with its log.
func TestARoleThatDoesNotStartSaysWhy(t *testing.T) {
	n := newNode(t)
	n.behave(role.Worker, behaviour{FailStarts: 100, Say: "the worker looks around", EndWith: "no disk in the drive"})
	err := n.begin(fastTiming).await()
	if err == nil || err.Error() != "the worker does not start: it ended with exit code 1: no disk in the drive" {
		t.Errorf("%v", err)
	}
	if c := strings.Count(n.stderr.String(), "no disk in the drive"); c != 2 { // its own line and bulkheadd's
		t.Errorf("said %d times:\n%s", c, n.stderr.String())
	}
}

// TestKillForMemoryIsToldApart: a role that the kernel ended for want of memory is
// told apart from one that somebody killed.
func TestKillForMemoryIsToldApart(t *testing.T) {
	cmd := exec.Command("sh", "-c", "kill -9 $$")
	p := &process{err: cmd.Run(), voice: newVoice(nil, false), kills: oomKills()}
	if got := p.why().Error(); got != "it was killed by signal 9 (killed)" {
		t.Errorf("a kill: %s", got)
	}
	p.kills -= 2
	if got := p.why().Error(); !strings.Contains(got, "for want of memory") {
		t.Errorf("for memory: %s", got)
	}
	p.err = errors.New("it cannot be waited for")
	if got := p.why(); got != p.err {
		t.Errorf("%v", got)
	}
}
