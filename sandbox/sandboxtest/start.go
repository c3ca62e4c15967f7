package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/sandbox"
)

func testStartTwice(t *testing.T, s *suite) {
	spec, sb := s.startReady("sleep")
	_, err := s.rt.Start(s.ctx, spec)
	s.kind("second start", err, fault.Conflict)
	s.rt.Signal(s.ctx, spec.Machine, 9)
	s.wait(sb)
	_, err = s.rt.Start(s.ctx, spec)
	s.kind("start of what has ended", err, fault.Conflict)
	if err := s.rt.Remove(s.ctx, spec.Machine); err != nil {
		t.Fatal(err)
	}
	s.ready(s.start(spec))
}

func testStartRefused(t *testing.T, s *suite) {
	other := s.spec("exit", "0")
	for _, c := range []struct {
		name   string
		change func(*sandbox.Spec)
		want   fault.Kind
	}{
		{"machine id", func(p *sandbox.Spec) { p.Machine = "../../../etc/x" }, fault.Invalid},
		{"instance id", func(p *sandbox.Spec) { p.Instance = "x" }, fault.Invalid},
		{"slot 0", func(p *sandbox.Spec) { p.Slot = 0 }, fault.Invalid},
		{"slot too high", func(p *sandbox.Spec) { p.Slot = 1 << 20 }, fault.Invalid},
		{"image digest", func(p *sandbox.Spec) { p.Image = "sha256:../../x" }, fault.Invalid},
		{"no command", func(p *sandbox.Spec) { p.Args = nil }, fault.Invalid},
		{"relative directory", func(p *sandbox.Spec) { p.Cwd = "tmp" }, fault.Invalid},
		{"zero byte", func(p *sandbox.Spec) { p.Args = append(p.Args, "a\x00b") }, fault.Invalid},
		{"too many strings", func(p *sandbox.Spec) { p.Env = append(p.Env, "A="+strings.Repeat("x", sandbox.MaxStrings)) }, fault.Invalid},
		{"upper too large", func(p *sandbox.Spec) { p.Upper = make([]byte, sandbox.MaxUpper+1) }, fault.Invalid},
		{"no grant", func(p *sandbox.Spec) { p.Grant, p.GrantSignature = nil, nil }, fault.Denied},
		{"changed grant", func(p *sandbox.Spec) {
			p.Grant = bytes.Replace(p.Grant, []byte(`"memory_mb":`), []byte(`"memory_mb":1`), 1)
		}, fault.Denied},
		{"another machine's grant", func(p *sandbox.Spec) { p.Grant, p.GrantSignature = other.Grant, other.GrantSignature }, fault.Denied},
		{"another instance", func(p *sandbox.Spec) { p.Instance = key.NewInstanceID() }, fault.Denied},
		{"no such command", func(p *sandbox.Spec) { p.Args = []string{"/bin/no-such-command"} }, fault.Unprocessable},
		{"no such command in PATH", func(p *sandbox.Spec) { p.Args = []string{"no-such-command"} }, fault.Unprocessable},
	} {
		spec := s.spec("exit", "0")
		c.change(&spec)
		sb, err := s.rt.Start(s.ctx, spec)
		s.kind(c.name, err, c.want)
		if err == nil {
			sb.Close()
			s.rt.Remove(s.ctx, spec.Machine)
			continue
		}
		if _, perr := key.ParseMachineID(string(spec.Machine)); perr == nil {
			s.gone(spec.Machine)
		}
	}
	// The control: unchanged, the same spec starts.
	if e := s.wait(s.start(s.spec("exit", "0"))); e.Code != 0 {
		t.Errorf("exit is %+v", e)
	}
}

// testStartByGrant: a grant that has ended, has no end, or has one that no grant has yet,
// starts nothing now; one that was replaced never does again.
func testStartByGrant(t *testing.T, s *suite) {
	now := time.Now()
	good := now.Add(grant.Life)
	spec := s.spec("exit", "0")
	for _, c := range []struct {
		name       string
		generation int64
		ends       time.Time
		want       fault.Kind
		status     string
	}{
		{"ended", 1, now.Add(-time.Second), fault.Unavailable, grant.StatusEnded},
		{"without an end", 1, time.Time{}, fault.Unavailable, grant.StatusEnded},
		{"far ahead", 1, now.Add(grant.Life + grant.Period + grant.Skew + time.Minute), fault.Unavailable, grant.StatusAhead},
		{"the last moment", 1, now.Add(30 * time.Second), "", ""},
		{"a newer version", 7, good, "", ""},
		{"the version before", 6, good, fault.Denied, grant.StatusReplaced},
		{"the version before, younger", 6, good.Add(grant.Period), fault.Denied, grant.StatusReplaced},
		{"the first version", 1, good, fault.Denied, grant.StatusReplaced},
		{"the newest again, under the youngest grant there may be", 7, now.Add(grant.Life + grant.Period), "", ""},
	} {
		g := s.grant(spec, c.generation, c.ends)
		sb, err := s.rt.Start(s.ctx, g)
		var f *fault.Error
		if errors.As(err, &f); fault.KindOf(err) != c.want || c.want != "" && f.Status != c.status {
			t.Errorf("%s: %v, want %q and %q", c.name, err, c.want, c.status)
		}
		if err != nil {
			s.gone(spec.Machine)
			continue
		}
		s.wait(sb)
		sb.Close()
		if err := s.rt.Remove(s.ctx, spec.Machine); err != nil {
			t.Fatal(err)
		}
	}
	// Another Machine's generations are its own.
	if e := s.wait(s.start(s.grant(s.spec("exit", "0"), 2, good))); e.Code != 0 {
		t.Errorf("exit is %+v", e)
	}
}

func testStartCancelled(t *testing.T, s *suite) {
	for _, after := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond} {
		spec := s.spec("sleep")
		ctx, cancel := context.WithTimeout(s.ctx, after)
		sb, err := s.rt.Start(ctx, spec)
		cancel()
		if err != nil {
			s.gone(spec.Machine)
			continue
		}
		sb.Close()
		if err := s.rt.Remove(s.ctx, spec.Machine); err != nil {
			t.Fatal(err)
		}
	}
}

func testSlotTaken(t *testing.T, s *suite) {
	spec, _ := s.startReady("sleep")
	second := s.spec("sleep")
	second.Slot = spec.Slot
	_, err := s.rt.Start(s.ctx, second)
	s.kind("start in a taken slot", err, fault.Conflict)
	s.gone(second.Machine)
}

func testAttach(t *testing.T, s *suite) {
	spec, first := s.startReady("term", "5")
	first.Close()
	sb, err := s.rt.Attach(s.ctx, spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	if err := s.rt.Signal(s.ctx, spec.Machine, 15); err != nil {
		t.Fatal(err)
	}
	if e := s.wait(sb); e.Code != 5 {
		t.Errorf("exit is %+v", e)
	}
	if b, _ := io.ReadAll(sb.Stdout()); string(b) != "terminated\n" {
		t.Errorf("stdout is %q", b)
	}
}

func testAttachEnded(t *testing.T, s *suite) {
	spec := s.spec("print", "last words")
	first := s.start(spec)
	want := s.wait(first)
	first.Close()
	sb, err := s.rt.Attach(s.ctx, spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	if e := s.wait(sb); e != want {
		t.Errorf("exit is %+v, was %+v", e, want)
	}
	// Nobody has read it yet, so it is still there.
	if b, _ := io.ReadAll(sb.Stdout()); string(b) != "last words\n" {
		t.Errorf("stdout is %q", b)
	}
}
