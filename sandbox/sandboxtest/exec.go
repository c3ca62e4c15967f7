package sandboxtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/sandbox"
)

// exec runs App with args in a running Machine and returns what it wrote.
func (s *suite) exec(spec sandbox.Spec, stdin io.Reader, args ...string) (r sandbox.ExecResult, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	e := execSpec(append([]string{spec.Args[0]}, args...)...)
	e.Stdin, e.Stdout, e.Stderr = stdin, &out, &errs
	r, err := s.rt.Exec(s.ctx, spec.Machine, e)
	if err != nil {
		s.t.Fatalf("exec %q: %v", args, err)
	}
	return r, out.String(), errs.String()
}

func testExec(t *testing.T, s *suite) {
	spec, _ := s.startReady("sleep")
	if r, out, errs := s.exec(spec, nil, "print", "hello"); out != "hello\n" || errs != "" || r.Code != 0 {
		t.Errorf("print: %+v %q %q", r, out, errs)
	}
	if r, out, errs := s.exec(spec, nil, "complain", "hello"); errs != "hello\n" || out != "" {
		t.Errorf("complain: %+v %q %q", r, out, errs)
	}
	if r, _, _ := s.exec(spec, nil, "exit", "9"); r.Code != 9 || r.Signal != 0 {
		t.Errorf("exit 9: %+v", r)
	}
	if r, out, errs := s.exec(spec, nil, "cat"); r.Code != 0 || out != "" || errs != "" {
		t.Errorf("without input: %+v %q %q", r, out, errs)
	}
	// Nobody wants the output: the command does not wait.
	e := execSpec(spec.Args[0], "flood", "300000")
	if r, err := s.rt.Exec(s.ctx, spec.Machine, e); err != nil || r.Code != 0 {
		t.Errorf("without writers: %+v, %v", r, err)
	}
}

// testExecStreams: bytes that are no text come out as they went in, more than any buffer
// holds, and a reader that is slow makes the command wait.
func testExecStreams(t *testing.T, s *suite) {
	spec, _ := s.startReady("sleep")
	const size = 5<<20 + 7
	in, sum := rand.NewChaCha8([32]byte{1}), sha256.New()
	e := execSpec(spec.Args[0], "cat")
	e.Stdin = io.TeeReader(io.LimitReader(in, size), sum)
	got, slow := sha256.New(), 0
	e.Stdout = writer(func(b []byte) (int, error) {
		if slow++; slow < 20 {
			time.Sleep(10 * time.Millisecond)
		}
		return got.Write(b)
	})
	r, err := s.rt.Exec(s.ctx, spec.Machine, e)
	if err != nil || r.Code != 0 || !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		t.Errorf("%d bytes through cat: %+v, %v, same: %t", size, r, err, bytes.Equal(got.Sum(nil), sum.Sum(nil)))
	}
	// Input that nobody ends does not keep a command from ending.
	r2, w := io.Pipe()
	defer w.Close()
	if r, out, _ := s.exec(spec, r2, "print", "done"); r.Code != 0 || out != "done\n" {
		t.Errorf("with input that stays open: %+v %q", r, out)
	}
	var out bytes.Buffer
	e = execSpec(spec.Args[0], "flood", "3000000")
	e.Stdout = &out
	if r, err := s.rt.Exec(s.ctx, spec.Machine, e); err != nil || r.Code != 0 || strings.Count(out.String(), "x") != 3000000 {
		t.Errorf("flood gave %d bytes, %+v, %v", out.Len(), r, err)
	}
}

// testExecGivenUp: a command whose caller has left, or whose output is not taken, is killed.
func testExecGivenUp(t *testing.T, s *suite) {
	spec, _ := s.startReady("sleep")
	ctx, cancel := context.WithCancel(s.ctx)
	e := execSpec(spec.Args[0], "sleep")
	e.Stdout = writer(func(b []byte) (int, error) { cancel(); return len(b), nil })
	_, err := s.rt.Exec(ctx, spec.Machine, e)
	s.kind("exec whose caller left", err, fault.Timeout)
	full := errors.New("the disk is full")
	e = execSpec(spec.Args[0], "flood", "3000000")
	e.Stdout = writer(func([]byte) (int, error) { return 0, full })
	_, err = s.rt.Exec(s.ctx, spec.Machine, e)
	s.kind("exec whose output is not taken", err, fault.Timeout)
	for {
		list, err := s.rt.Processes(s.ctx, spec.Machine)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 2 {
			return
		}
		if s.ctx.Err() != nil {
			t.Fatalf("processes are %+v", list)
		}
	}
}

// writer is an io.Writer of a function.
type writer func([]byte) (int, error)

// Write implements io.Writer.
func (w writer) Write(b []byte) (int, error) { return w(b) }
