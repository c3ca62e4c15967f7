package notice

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func board() (*Board, *bytes.Buffer, *time.Time) {
	var out bytes.Buffer
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	b := New(slog.New(slog.NewTextHandler(&out, nil)))
	b.now = func() time.Time { return now }
	return b, &out, &now
}

// TestSaidOnceThenCounted: a reason that stays is one line, then one now and then
// with the count, and one when it is over.
func TestSaidOnceThenCounted(t *testing.T) {
	b, out, now := board()
	for i := range 1000 {
		b.Trouble("the journal cannot be written", fmt.Errorf("pid %d: no space left on device", i))
		*now = now.Add(time.Second)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], "times=601 since=2026-01-01T00:00:00Z") {
		t.Fatalf("%d lines:\n%s", len(lines), out)
	}
	out.Reset()
	b.Over("the journal cannot be written")
	b.Over("the journal cannot be written")
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "over: the journal cannot be written") || !strings.Contains(got, "times=1000") || !strings.Contains(got, "16m40s") {
		t.Errorf("healed: %s", got)
	}
	if b.Lasting() != 0 {
		t.Error("it lasts")
	}
}

// TestAnotherReasonIsNews: what changes is said at once.
func TestAnotherReasonIsNews(t *testing.T) {
	b, out, _ := board()
	for range 3 {
		b.Trouble("x", errors.New("disk full"))
	}
	b.Trouble("x", errors.New("disk broken"))
	b.Trouble("y", errors.New("disk broken"))
	if got := out.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, `before="disk full" before_times=3`) {
		t.Errorf("%s", got)
	}
}

// TestRemindersGrow: a day of a failure each second is a handful of lines.
func TestRemindersGrow(t *testing.T) {
	b, out, now := board()
	for range 24 * 3600 {
		b.Trouble("x", errors.New("down"))
		*now = now.Add(time.Second)
	}
	if n := strings.Count(out.String(), "\n"); n < 5 || n > 12 {
		t.Errorf("%d lines a day", n)
	}
}

// TestBoundedBoard: strangers' names cannot fill it.
func TestBoundedBoard(t *testing.T) {
	b, _, _ := board()
	for i := range maxTroubles + 100 {
		if !b.Trouble(fmt.Sprint("thing", i), errors.New("x")) {
			t.Fatal("not said")
		}
	}
	if b.Lasting() != maxTroubles {
		t.Errorf("%d kept", b.Lasting())
	}
}
