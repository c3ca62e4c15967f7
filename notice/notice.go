// Package notice says a lasting trouble once.
//
// What is tried again and again fails again and again, of the same reason. A Board
// logs the reason when it is new, counts it while it stays the same, reminds of it at
// growing intervals with the count, and says when it is over. Reasons are the same
// when they differ in digits alone: process ids, counts and times come and go.
package notice

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// When a trouble that stays is said again: after RemindFirst, and then each time
// after twice as long, up to RemindMax.
const (
	RemindFirst = 10 * time.Minute
	RemindMax   = 6 * time.Hour
)

// maxTroubles bounds a Board: what is beyond is logged each time.
const maxTroubles = 4096

// Board holds the troubles that last. Its methods may be called at the same time;
// the zero value is not usable, see New.
type Board struct {
	log *slog.Logger
	now func() time.Time

	mu  sync.Mutex
	all map[string]*trouble
}

// trouble is one thing that does not work.
type trouble struct {
	reason string // without digits
	text   string
	since  time.Time
	count  int // how often it came since it was said the first time, that included
	said   time.Time
	remind time.Duration
}

// New returns a Board that writes to log.
func New(log *slog.Logger) *Board { return &Board{log: log, now: time.Now, all: map[string]*trouble{}} }

// Trouble notes that what does not work because of err, and logs it at level Warn
// with args when that is news. what is a short phrase that stays the same as long as
// it is the same thing; args belong to it. It reports whether it was said.
func (b *Board) Trouble(what string, err error, args ...any) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, text := b.now(), err.Error()
	reason := sameness(text)
	t := b.all[what]
	if t != nil && t.reason == reason {
		t.count, t.text = t.count+1, text
		if now.Sub(t.said) < t.remind {
			return false
		}
		t.said, t.remind = now, min(2*t.remind, RemindMax)
		b.log.Warn(what, append([]any{"why", text, "times", t.count, "since", stamp(t.since)}, args...)...)
		return true
	}
	if t == nil && len(b.all) < maxTroubles || t != nil {
		first := &trouble{reason: reason, text: text, since: now, count: 1, said: now, remind: RemindFirst}
		if t != nil && t.count > 1 {
			args = append(args, "before", t.text, "before_times", t.count)
		}
		b.all[what] = first
	}
	b.log.Warn(what, append([]any{"why", text}, args...)...)
	return true
}

// Over notes that what works again, and says so if it did not.
func (b *Board) Over(what string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.all[what]
	if t == nil {
		return
	}
	delete(b.all, what)
	b.log.Info("over: "+what, append([]any{"was", t.text, "times", t.count, "since", stamp(t.since), "after", b.now().Sub(t.since).Round(time.Millisecond).String()}, args...)...)
}

// Forget drops a trouble without a word: the thing is gone.
func (b *Board) Forget(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, what)
}

// Lasting says how many troubles there are.
func (b *Board) Lasting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.all)
}

// Same reports whether two texts tell of the same thing.
func Same(a, b string) bool { return sameness(a) == sameness(b) }

// sameness is the text with every run of digits as one sign.
func sameness(s string) string {
	var out strings.Builder
	digits := false
	for _, r := range s {
		d := r >= '0' && r <= '9'
		if d && !digits {
			out.WriteByte('#')
		} else if !d {
			out.WriteRune(r)
		}
		digits = d
	}
	return out.String()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
