package supervisor

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// TestLogsCannotDriveATerminal: what strangers get into a log line does not reach
// root's terminal as anything but text.
func TestLogsCannotDriveATerminal(t *testing.T) {
	const evil = "/\x1b]0;owned\a\u009b2J\r\n\u202e"
	var out bytes.Buffer
	log := NewLog(&out, "text")
	log.Info("request "+evil, slog.String("path", evil), slog.String(evil, "x"))
	(&logWriter{w: &out, text: true}).line([]byte("panic: " + strings.ReplaceAll(evil, "\n", "")))
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "owned") || !strings.Contains(lines[1], "owned") {
		t.Errorf("lines are %q", lines)
	}
	for _, l := range lines {
		if i := strings.IndexAny(l, "\x1b\a\r\u009b\u202e"); i >= 0 {
			t.Errorf("control character at %d of %q", i, l)
		}
	}
	out.Reset()
	log.Info("größer", slog.String("name", "日本"))
	if !strings.Contains(out.String(), "größer") || !strings.Contains(out.String(), "日本") {
		t.Errorf("letters are lost: %q", out.String())
	}
}
