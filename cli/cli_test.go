package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/machine"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ünïcode\t→": "plain, ünïcode\t→",
		"\x1b[31mred\x07":   `\x1b[31mred\x07`,
		"a\nb\rc":           `a\x0ab\x0dc`,
		"\u009b1m":          `\x9b1m`,
		"a\u202eb":          `a\u202eb`,
	} {
		if got := clean(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestLogsOnATerminal: an app cannot drive the terminal of who reads its logs, and
// a file gets the bytes that it wrote.
func TestLogsOnATerminal(t *testing.T) {
	l := client.LogLine{Message: "\x1b]0;owned\x07", Machine: "m", Stream: "stdout"}
	for tty, want := range map[bool]string{true: `\x1b]0;owned\x07`, false: "\x1b]0;owned\x07"} {
		s := &session{ui: &ui{outTTY: tty}}
		if got := s.logText(l); !strings.HasSuffix(got, want) {
			t.Errorf("terminal %v: %q", tty, got)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("any"), 1},
		{fault.New(fault.Internal, "x"), 1},
		{fault.New(fault.Invalid, "x"), 1},
		{usagef("x"), 2},
		{fault.New(fault.NotFound, "x"), 3},
		{fault.New(fault.Unauthenticated, "x"), 4},
		{fault.New(fault.Denied, "x"), 4},
		{fault.New(fault.Conflict, "x"), 5},
		{fault.New(fault.Precondition, "x"), 5},
		{fault.New(fault.Unprocessable, "x").WithStatus("name_taken"), 5},
		{fault.New(fault.Unprocessable, "x"), 1},
		{fault.New(fault.Timeout, "x"), 6},
		{&startError{late: true}, 6},
		{&startError{}, 1},
		{fault.New(fault.Unavailable, "x"), 7},
		{fault.New(fault.TooMany, "x"), 7},
		{context.Canceled, 130},
		{fmt.Errorf("wrapped: %w", context.Canceled), 130},
		{exitStatus(42), 42},
		{hint(fault.New(fault.NotFound, "x"), "do that"), 3},
	} {
		u := &ui{out: &bytes.Buffer{}, err: &bytes.Buffer{}}
		if got := u.finish(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

// TestErrorForms: one sentence and one hint, or one JSON document.
func TestErrorForms(t *testing.T) {
	err := hint(fault.New(fault.NotFound, "there is no \x1bapp"), "make one")
	var out, serr bytes.Buffer
	(&ui{out: &out, err: &serr}).finish(err)
	if out.Len() != 0 || serr.String() != "bulkhead: error: there is no \\x1bapp\nhint: make one\n" {
		t.Errorf("%q, %q", out.String(), serr.String())
	}
	out.Reset()
	serr.Reset()
	(&ui{out: &out, err: &serr, json: true}).finish(err)
	if serr.Len() != 0 || out.String() != "{\n  \"error\": \"there is no \\u001bapp\",\n  \"kind\": \"not_found\",\n  \"hint\": \"make one\"\n}\n" {
		t.Errorf("%q, %q", out.String(), serr.String())
	}
}

// TestConfigWriteKeepsTheOldFile: a write that cannot be finished leaves what was there.
func TestConfigWriteKeepsTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "config.json")
	if err := writeConfig(path, &configFile{Default: "one"}); err != nil {
		t.Fatal(err)
	}
	// A directory of the same name cannot be replaced by a file.
	other := filepath.Join(t.TempDir(), "config.json")
	if err := os.MkdirAll(filepath.Join(other, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeConfig(other, &configFile{}); err == nil {
		t.Error("a folder was replaced")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(other), ".config-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), "one") {
		t.Errorf("%s, %v", b, err)
	}
}

func TestCrashed(t *testing.T) {
	exit := func(asked bool) machine.Event {
		return machine.Event{Type: "exit", Request: &machine.EventRequest{ExitEvent: &machine.ExitEvent{ExitCode: 1, RequestedStop: asked}}}
	}
	launch, start, update := machine.Event{Type: "launch"}, machine.Event{Type: "start", Source: "flyd"}, machine.Event{Type: "update"}
	again := machine.Event{Type: "start", Source: "user"}
	for _, tc := range []struct {
		name   string
		events []machine.Event // newest first
		want   bool
	}{
		{"runs", []machine.Event{start, launch}, false},
		{"ended", []machine.Event{exit(false), start, launch}, true},
		{"ended and was restarted", []machine.Event{start, exit(false), start, launch}, true},
		{"was stopped for the update", []machine.Event{start, exit(true), update, launch}, false},
		{"ended before the update", []machine.Event{start, update, exit(false), start, launch}, false},
		{"ended before it was started again", []machine.Event{start, again, exit(false), start, launch}, false},
		{"no events", nil, false},
	} {
		if got := crashed(client.Machine{Events: tc.events}); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, most, begun := 0, 0, 0
		var mu sync.Mutex
		fail := errors.New("third")
		err := concurrently(t.Context(), 10, 2, func(_ context.Context, i int) error {
			mu.Lock()
			begun++
			running++
			most = max(most, running)
			mu.Unlock()
			defer func() { mu.Lock(); running--; mu.Unlock() }()
			if i == 2 {
				return fail
			}
			time.Sleep(time.Second) // longer than it takes for the failure to be known
			return nil
		})
		if err != fail || most != 2 || begun > 4 {
			t.Errorf("%v, %d at once, %d begun", err, most, begun)
		}
	})
	fail := errors.New("ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fail)
	if err := concurrently(ctx, 3, 1, func(context.Context, int) error { t.Error("begun"); return nil }); err != fail {
		t.Errorf("%v", err)
	}
}

func TestIsLocal(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, d := range []string{"nginx", "layout"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"layout/oci-layout", "file"} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for in, want := range map[string]bool{
		"nginx": false, "nginx:1.2": false, "registry.example.com/a/b@sha256:00": false, "layout": true, "file": true,
		"./nginx": true, "./none": true, "../x": true, "/abs/x": true, "none.tar": true, "a.tgz": true, `C:\img`: true, ".": true,
	} {
		if got := isLocal(in); got != want {
			t.Errorf("isLocal(%q) is %v", in, got)
		}
	}
}

// TestVerifier has the seeded faults beside the good stream.
func TestVerifier(t *testing.T) {
	data := []byte("layer")
	h, n, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	see := func(parts ...string) error {
		v := newVerifier(h, n)
		for i, p := range parts {
			if err := v.see([]byte(p), i == len(parts)-1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := see("la", "yer", ""); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]string{{"Layer"}, {"laye"}, {"layer!"}, {"layers", "more"}, {""}} {
		if see(bad...) == nil {
			t.Errorf("%q was taken for the layer", bad)
		}
	}
}

func TestWantsJSON(t *testing.T) {
	for in, want := range map[string]bool{"apps list --json": true, "machine exec x -- ls --json": false, "--json=true": true, "x": false} {
		if wantsJSON(strings.Fields(in)) != want {
			t.Errorf("%s: not %v", in, want)
		}
	}
}

// TestLogsAreInOrder: past lines of several Machines are merged by time, and the
// tail counts for all of them together.
func TestLogsAreInOrder(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, l := range []string{"a1 10:00:01", "a4 10:00:04", "b2 10:00:02", "b3 10:00:03"} {
			msg, at, _ := strings.Cut(l, " ")
			fmt.Fprintf(w, `{"timestamp":"2026-01-01T%sZ","machine":"m","stream":"stdout","message":%q}`+"\n", at, msg)
		}
	}))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	var out, serr bytes.Buffer
	env := map[string]string{"BULKHEAD_URL": "https://api.x.localhost:" + port, "BULKHEAD_PIN": client.PinOf(srv.Certificate()), "BULKHEAD_TOKEN": "t"}
	code := Run(t.Context(), Env{Args: []string{"logs", "--app", "x", "-n", "3"}, Stdout: &out, Stderr: &serr, Getenv: func(k string) string { return env[k] }})
	var got []string
	for _, l := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		got = append(got, l[strings.LastIndex(l, " ")+1:])
	}
	if code != 0 || strings.Join(got, " ") != "b2 b3 a4" {
		t.Errorf("exit code %d, %v, %s", code, got, serr.String())
	}
}

func TestHuman(t *testing.T) {
	var got []string
	for _, n := range []int64{0, 1023, 1024, 1536 << 10, 3 << 30} {
		got = append(got, human(n))
	}
	if !slices.Equal(got, []string{"0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 GiB"}) {
		t.Errorf("%q", got)
	}
}
