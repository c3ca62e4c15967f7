package supervisor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxLine bounds one line of a role's log; the rest of a longer one is dropped.
const maxLine = 64 << 10

// tailLines is how many of a role's last lines are kept to explain its failure.
const tailLines = 20

// logWriter writes whole lines of several processes to one place.
type logWriter struct {
	mu   sync.Mutex
	w    io.Writer
	text bool // render JSON lines for people
}

// line writes one line, given without its end.
func (l *logWriter) line(b []byte) {
	out := append(bytes.Clone(b), '\n')
	if l.text {
		out = append(renderLine(b), '\n')
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.Write(out)
}

// Write takes what a slog.JSONHandler writes: one line at a time.
func (l *logWriter) Write(b []byte) (int, error) {
	l.line(bytes.TrimSuffix(b, []byte("\n")))
	return len(b), nil
}

// NewLog returns a logger to w. format is "json" or "text".
func NewLog(w io.Writer, format string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(&logWriter{w: w, text: format == "text"}, nil)).With("role", "bulkheadd")
}

// renderLine makes of a JSON log line "15:04:05 WARN  worker  message key=value".
// What is not one is returned as it is. Lines hold what strangers wrote, such as the
// path of a request, and go to root's terminal: what is not to be seen is escaped.
func renderLine(b []byte) []byte {
	var m map[string]any
	if len(b) == 0 || b[0] != '{' || json.Unmarshal(b, &m) != nil {
		return visible(string(b))
	}
	take := func(k string) string {
		v, ok := m[k]
		delete(m, k)
		if !ok {
			return ""
		}
		return fmt.Sprint(v)
	}
	at := take("time")
	if t, err := time.Parse(time.RFC3339Nano, at); err == nil {
		at = t.Local().Format("15:04:05.000")
	}
	level, who, msg := take("level"), take("role"), take("msg")
	delete(m, "node")
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var out strings.Builder
	fmt.Fprintf(&out, "%s %-5s %-10s %s", at, level, who, msg)
	for _, k := range keys {
		v := fmt.Sprint(m[k])
		if strings.ContainsAny(v, " \"\n") {
			v = fmt.Sprintf("%q", v)
		}
		fmt.Fprintf(&out, " %s=%s", k, v)
	}
	return visible(out.String())
}

// visible returns s with everything escaped that a terminal might obey.
func visible(s string) []byte {
	out := make([]byte, 0, len(s))
	for _, r := range s {
		if unicode.IsPrint(r) || r == '\t' {
			out = utf8.AppendRune(out, r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		out = append(out, q[1:len(q)-1]...)
	}
	return out
}

// tail keeps the last lines of a role.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines = append(t.lines, line); len(t.lines) > tailLines {
		t.lines = t.lines[1:]
	}
}

func (t *tail) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.lines)
}
