package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode"
)

// The rules of output:
//
//   - Results go to standard output, and nothing else does. Progress, warnings and
//     hints go to standard error.
//   - An error is one lower-case sentence on standard error, "bulkhead: error: …",
//     and where there is a next step, a second line "hint: …".
//   - With --json a result is one JSON document on standard output (one per line for
//     logs), and so is an error: {"error", "kind", "hint", "details"}.
//   - Only a terminal gets moving progress and escape sequences; everything else
//     gets plain lines.
//   - What an app or a server wrote never reaches a terminal with its control
//     characters: see clean.
type ui struct {
	out, err       io.Writer
	outTTY, errTTY bool
	json, quiet    bool

	mu        sync.Mutex // serializes lines on err
	transient bool       // the line on err is to be written over; under mu
	waits     int        // calls of waiting that have not ended; under mu
	bars      bool       // somebody else draws on err; under mu
}

// checked is a writer that remembers its first error: not everything that prints looks.
type checked struct {
	w  io.Writer
	mu sync.Mutex
	e  error
}

// Write implements io.Writer.
func (c *checked) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.e == nil {
			c.e = err
		}
	}
	return n, err
}

// failed returns the first error.
func (c *checked) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.e
}

// result prints a command's result: v with --json, else what text writes.
func (u *ui) result(v any, text func(w io.Writer)) error {
	if !u.json {
		text(u.out)
		return nil
	}
	e := json.NewEncoder(u.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// line prints one entry of a result that is a stream.
func (u *ui) line(v any, text string) error {
	if u.json {
		return json.NewEncoder(u.out).Encode(v)
	}
	_, err := io.WriteString(u.out, text+"\n")
	return err
}

// table writes rows below a header, in aligned columns. Cells are cleaned.
func table(w io.Writer, header []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = clean(r[i])
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// progress says what the command is doing.
func (u *ui) progress(format string, args ...any) {
	if !u.quiet {
		u.note("", format, args...)
	}
}

// warn says what the user should know although the command goes on.
func (u *ui) warn(format string, args ...any) { u.note("bulkhead: warning: ", format, args...) }

// note writes one cleaned line to standard error.
func (u *ui) note(prefix, format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wipe()
	fmt.Fprintln(u.err, prefix+clean(fmt.Sprintf(format, args...)))
}

// wipe takes a transient line away. u.mu is held.
func (u *ui) wipe() {
	if u.transient {
		io.WriteString(u.err, "\r\x1b[K")
		u.transient = false
	}
}

// waitShown is after how long a wait is shown; then it is shown each second. A command is
// never silent for longer on a terminal.
const waitShown = 900 * time.Millisecond

// waiting shows on a terminal, until stop is called, what the command waits for and since
// when. A wait inside another one is not shown: the outer one says more. Nothing else may
// write to the terminal but through u, or after u.drawn(true).
func (u *ui) waiting(what string) (stop func()) {
	if !u.errTTY || u.json || u.quiet {
		return func() {}
	}
	u.mu.Lock()
	u.waits++
	inner := u.waits > 1
	u.mu.Unlock()
	if inner {
		return func() { u.mu.Lock(); u.waits--; u.mu.Unlock() }
	}
	began, end, ended := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(waitShown)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				tick.Reset(time.Second)
				u.mu.Lock()
				if !u.bars {
					u.wipe()
					fmt.Fprintf(u.err, "… %s (%s)", clean(what), max(time.Since(began).Round(time.Second), time.Second))
					u.transient = true
				}
				u.mu.Unlock()
			case <-end:
				u.mu.Lock()
				u.wipe()
				u.mu.Unlock()
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		u.mu.Lock()
		u.waits--
		u.mu.Unlock()
	}
}

// drawn says that somebody else draws on the terminal, or does so no more.
func (u *ui) drawn(bars bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wipe()
	u.bars = bars
}

// finish reports how the command ended and returns its exit code.
func (u *ui) finish(err error) int {
	if err == nil {
		return ExitOK
	}
	f := classify(err)
	if f.silent {
		return f.exit
	}
	if u.json {
		e := json.NewEncoder(u.out)
		e.SetIndent("", "  ")
		e.Encode(struct {
			Error   string `json:"error"`
			Kind    string `json:"kind"`
			Hint    string `json:"hint,omitempty"`
			Details any    `json:"details,omitempty"`
		}{f.msg, f.kind, f.hint, f.details})
		return f.exit
	}
	u.note("bulkhead: error: ", "%s", f.msg)
	for _, m := range f.more {
		u.note("bulkhead: error: ", "%s", m)
	}
	if f.hint != "" && !u.quiet {
		u.note("hint: ", "%s", f.hint)
	}
	return f.exit
}

// clean makes a string from elsewhere harmless to a terminal: control characters,
// among them those that start escape sequences, are shown as \x1b and the like, and
// so are characters that turn the direction of text around. Tabs stay.
func clean(s string) string {
	bad := func(r rune) bool {
		return r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r))
	}
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !bad(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
