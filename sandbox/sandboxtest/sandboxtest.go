// Package sandboxtest is the suite that every sandbox.Runtime passes: one test for
// each clause of that interface. It runs App (as the program testapp, for a real
// runtime) in the sandboxes that it starts.
package sandboxtest

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sandbox"
)

// Timeout bounds every wait of the suite.
const Timeout = 60 * time.Second

// Grant signs another grant for a spec, of a generation and an end; the zero time is none.
type Grant func(s sandbox.Spec, generation int64, ends time.Time) sandbox.Spec

// Run runs the suite. open returns a runtime, a function that returns a good
// spec of a fresh Machine: a new id, a free slot, a valid grant, and as Args the
// test program and args, and what signs other grants. open is called once for each
// clause and cleans up with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) (sandbox.Runtime, func(args ...string) sandbox.Spec, Grant)) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s *suite)
	}{
		{"ExitCode", testExitCode},
		{"Output", testOutput},
		{"OutputBlocks", testOutputBlocks},
		{"Environment", testEnvironment},
		{"Secrets", testSecrets},
		{"SecretFiles", testSecretFiles},
		{"SignalEnds", testSignalEnds},
		{"SignalHandled", testSignalHandled},
		{"WaitAgain", testWaitAgain},
		{"WaitGivesUp", testWaitGivesUp},
		{"StartTwice", testStartTwice},
		{"StartRefused", testStartRefused},
		{"StartByGrant", testStartByGrant},
		{"StartCancelled", testStartCancelled},
		{"SlotTaken", testSlotTaken},
		{"Attach", testAttach},
		{"AttachEnded", testAttachEnded},
		{"NotFound", testNotFound},
		{"Exec", testExec},
		{"ExecStreams", testExecStreams},
		{"ExecGivenUp", testExecGivenUp},
		{"ExecTimeout", testExecTimeout},
		{"ExecRefused", testExecRefused},
		{"Processes", testProcesses},
		{"Listen", testListen},
		{"Remove", testRemove},
		{"RemoveKills", testRemoveKills},
		{"List", testList},
		{"Concurrent", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) {
			rt, spec, regrant := open(t)
			ctx, cancel := context.WithTimeout(context.Background(), Timeout)
			defer cancel()
			c.test(t, &suite{t: t, ctx: ctx, rt: rt, spec: spec, grant: regrant})
		})
	}
}

// suite is one clause's surroundings.
type suite struct {
	t     *testing.T
	ctx   context.Context
	rt    sandbox.Runtime
	spec  func(args ...string) sandbox.Spec
	grant Grant
}

// start starts a Machine and removes it at the end.
func (s *suite) start(spec sandbox.Spec) sandbox.Sandbox {
	s.t.Helper()
	sb, err := s.rt.Start(s.ctx, spec)
	if err != nil {
		s.t.Fatalf("start %q: %v", spec.Args, err)
	}
	s.t.Cleanup(func() {
		sb.Close()
		if err := s.rt.Remove(context.Background(), spec.Machine); err != nil {
			s.t.Errorf("remove: %v", err)
		}
	})
	return sb
}

// startReady starts a Machine and waits for it to say "ready".
func (s *suite) startReady(args ...string) (sandbox.Spec, sandbox.Sandbox) {
	s.t.Helper()
	spec := s.spec(args...)
	sb := s.start(spec)
	s.ready(sb)
	return spec, sb
}

// ready reads the line "ready", byte by byte so as to take no more.
func (s *suite) ready(sb sandbox.Sandbox) {
	s.t.Helper()
	sb.Stdout().SetReadDeadline(time.Now().Add(Timeout))
	var line []byte
	for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); line = append(line, b...) {
		if _, err := sb.Stdout().Read(b); err != nil {
			s.t.Fatalf("read stdout after %q: %v", line, err)
		}
	}
	if string(line) != "ready\n" {
		s.t.Fatalf("stdout is %q, want ready", line)
	}
}

// wait waits for the end.
func (s *suite) wait(sb sandbox.Sandbox) sandbox.Exit {
	s.t.Helper()
	e, err := sb.Wait(s.ctx)
	if err != nil {
		s.t.Fatalf("wait: %v", err)
	}
	return e
}

// kind checks the kind of an error.
func (s *suite) kind(what string, err error, want ...fault.Kind) {
	s.t.Helper()
	if !slices.Contains(want, fault.KindOf(err)) {
		s.t.Errorf("%s: error %v is %q, want %q", what, err, fault.KindOf(err), want)
	}
}

// gone checks that nothing is left of a Machine.
func (s *suite) gone(id key.MachineID) {
	s.t.Helper()
	_, err := s.rt.Attach(s.ctx, id)
	s.kind("attach to what is gone", err, fault.NotFound)
	list, err := s.rt.List(s.ctx)
	if err != nil {
		s.t.Errorf("list: %v", err)
	}
	for _, i := range list {
		if i.Machine == id {
			s.t.Errorf("machine %s is still listed: %+v", id, i)
		}
	}
}

func testExitCode(t *testing.T, s *suite) {
	for _, code := range []string{"0", "7", "255"} {
		e := s.wait(s.start(s.spec("exit", code)))
		if e.Code != number(code) || e.Signal != 0 || e.OOM || e.At.IsZero() || time.Since(e.At) > Timeout {
			t.Errorf("exit %s gave %+v", code, e)
		}
	}
	// A code that looks like a signal's is a code.
	if e := s.wait(s.start(s.spec("exit", "143"))); e.Code != 143 || e.Signal != 0 {
		t.Errorf("exit 143 gave %+v", e)
	}
}

func testOutput(t *testing.T, s *suite) {
	for _, c := range []struct{ verb, stdout, stderr string }{{"print", "one two\n", ""}, {"complain", "", "one two\n"}} {
		sb := s.start(s.spec(c.verb, "one", "two"))
		s.wait(sb)
		// What was written before the end is read after it, up to the end of the stream.
		for _, o := range []struct {
			f    io.Reader
			want string
		}{{sb.Stdout(), c.stdout}, {sb.Stderr(), c.stderr}} {
			if b, err := io.ReadAll(o.f); err != nil || string(b) != o.want {
				t.Errorf("%s: got %q, %v, want %q", c.verb, b, err, o.want)
			}
		}
	}
}

func testOutputBlocks(t *testing.T, s *suite) {
	const n = 300000 // more than any pipe holds
	sb := s.start(s.spec("flood", "300000"))
	b := make([]byte, n)
	if _, err := io.ReadFull(sb.Stdout(), b); err != nil || strings.Trim(string(b), "x") != "" {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	if line, err := bufio.NewReader(sb.Stderr()).ReadString('\n'); line != "end\n" {
		t.Errorf("stderr is %q, %v", line, err)
	}
	if e := s.wait(sb); e.Code != 0 {
		t.Errorf("exit is %+v", e)
	}
}

func testEnvironment(t *testing.T, s *suite) {
	spec := s.spec("getenv", "COLOUR")
	spec.Env = append(spec.Env, "COLOUR=deep blue")
	sb := s.start(spec)
	s.wait(sb)
	if b, _ := io.ReadAll(sb.Stdout()); string(b) != "deep blue\n" {
		t.Errorf("variable is %q", b)
	}
}

// testSecrets: they are variables of the process, over its environment, and of commands
// that bring them; large ones too.
func testSecrets(t *testing.T, s *suite) {
	large := strings.Repeat("s", 64<<10)
	spec := s.spec("getenv", "COLOUR")
	spec.Env = append(spec.Env, "COLOUR=deep blue")
	spec.Secrets = []string{"COLOUR=top secret", "LARGE=" + large}
	sb := s.start(spec)
	s.wait(sb)
	if b, _ := io.ReadAll(sb.Stdout()); string(b) != "top secret\n" {
		t.Errorf("variable is %q", b)
	}
	spec, _ = s.startReady("sleep")
	for name, want := range map[string]string{"COLOUR": "top secret\n", "LARGE": large + "\n", "SHAPE": "round\n"} {
		e := execSpec(spec.Args[0], "getenv", name)
		e.Env = append(e.Env, "COLOUR=deep blue", "SHAPE=round")
		e.Secrets = []string{"COLOUR=top secret", "LARGE=" + large}
		var out bytes.Buffer
		e.Stdout = &out
		if _, err := s.rt.Exec(s.ctx, spec.Machine, e); err != nil || out.String() != want {
			t.Errorf("%s in a command is %.40q, %v", name, out.String(), err)
		}
	}
}

func testSignalEnds(t *testing.T, s *suite) {
	for _, sig := range []int{9, 15} {
		spec, sb := s.startReady("sleep")
		if err := s.rt.Signal(s.ctx, spec.Machine, sig); err != nil {
			t.Fatalf("signal %d: %v", sig, err)
		}
		if e := s.wait(sb); e.Code != 128+sig || e.Signal != sig || e.OOM {
			t.Errorf("signal %d gave %+v", sig, e)
		}
		s.kind("signal what has ended", s.rt.Signal(s.ctx, spec.Machine, sig), fault.NotFound)
	}
}

func testSignalHandled(t *testing.T, s *suite) {
	spec, sb := s.startReady("term", "3")
	if err := s.rt.Signal(s.ctx, spec.Machine, 15); err != nil {
		t.Fatal(err)
	}
	if e := s.wait(sb); e.Code != 3 || e.Signal != 0 {
		t.Errorf("exit is %+v", e)
	}
	if b, _ := io.ReadAll(sb.Stdout()); string(b) != "terminated\n" {
		t.Errorf("stdout is %q", b)
	}
}

func testWaitAgain(t *testing.T, s *suite) {
	sb := s.start(s.spec("exit", "4"))
	first := s.wait(sb)
	if again := s.wait(sb); again != first {
		t.Errorf("the second wait gave %+v, the first %+v", again, first)
	}
}

func testWaitGivesUp(t *testing.T, s *suite) {
	_, sb := s.startReady("sleep")
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Millisecond)
	defer cancel()
	if e, err := sb.Wait(ctx); err == nil {
		t.Errorf("wait gave %+v while the process runs", e)
	}
	// And works afterwards.
	ctx2, cancel2 := context.WithTimeout(s.ctx, 20*time.Millisecond)
	defer cancel2()
	if _, err := sb.Wait(ctx2); err == nil {
		t.Error("the second wait ended while the process runs")
	}
}

func testNotFound(t *testing.T, s *suite) {
	id := key.NewMachineID()
	_, err := s.rt.Attach(s.ctx, id)
	s.kind("attach", err, fault.NotFound)
	s.kind("signal", s.rt.Signal(s.ctx, id, 15), fault.NotFound)
	_, err = s.rt.Exec(s.ctx, id, execSpec("/bin/true"))
	s.kind("exec", err, fault.NotFound)
	_, err = s.rt.Processes(s.ctx, id)
	s.kind("processes", err, fault.NotFound)
	if err := s.rt.Remove(s.ctx, id); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func execSpec(args ...string) sandbox.ExecSpec {
	return sandbox.ExecSpec{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", Timeout: Timeout / 2}
}

func testExecTimeout(t *testing.T, s *suite) {
	spec, _ := s.startReady("sleep")
	e := execSpec(spec.Args[0], "sleep")
	e.Timeout = 300 * time.Millisecond
	began := time.Now()
	r, err := s.rt.Exec(s.ctx, spec.Machine, e)
	if err != nil || r.Code != 137 || r.Signal != 9 {
		t.Errorf("exec gave %+v, %v", r, err)
	}
	if d := time.Since(began); d > Timeout/4 {
		t.Errorf("exec took %s", d)
	}
	// It was killed: only init and its command are left.
	list, err := s.rt.Processes(s.ctx, spec.Machine)
	if err != nil || len(list) != 2 {
		t.Errorf("processes are %+v, %v", list, err)
	}
}

func testExecRefused(t *testing.T, s *suite) {
	spec, sb := s.startReady("sleep")
	_, err := s.rt.Exec(s.ctx, spec.Machine, execSpec("/bin/no-such-command"))
	s.kind("no such command", err, fault.Unprocessable)
	_, err = s.rt.Exec(s.ctx, spec.Machine, sandbox.ExecSpec{Cwd: "/", Timeout: time.Second})
	s.kind("no command", err, fault.Invalid)
	s.rt.Signal(s.ctx, spec.Machine, 9)
	s.wait(sb)
	_, err = s.rt.Exec(s.ctx, spec.Machine, execSpec(spec.Args[0], "exit", "0"))
	s.kind("exec in what has ended", err, fault.NotFound)
}

func testProcesses(t *testing.T, s *suite) {
	spec, _ := s.startReady("sleep")
	list, err := s.rt.Processes(s.ctx, spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	name := spec.Args[0][strings.LastIndexByte(spec.Args[0], '/')+1:]
	if len(list) != 2 || list[0].PID != 1 || !strings.Contains(list[0].Command, "bulkhead-init") || !strings.Contains(list[1].Command, name) {
		t.Errorf("processes are %+v", list)
	}
}

func testRemove(t *testing.T, s *suite) {
	spec := s.spec("exit", "0")
	sb := s.start(spec)
	s.wait(sb)
	for range 3 { // idempotent
		if err := s.rt.Remove(s.ctx, spec.Machine); err != nil {
			t.Fatal(err)
		}
		s.gone(spec.Machine)
	}
}

func testRemoveKills(t *testing.T, s *suite) {
	spec, sb := s.startReady("term", "0") // would not end by itself
	if err := s.rt.Remove(s.ctx, spec.Machine); err != nil {
		t.Fatal(err)
	}
	s.gone(spec.Machine)
	if e := s.wait(sb); e.Code != 137 && e.Code != -1 {
		t.Errorf("exit is %+v", e)
	}
}

func testList(t *testing.T, s *suite) {
	runs, _ := s.startReady("sleep")
	ended := s.spec("exit", "0")
	s.wait(s.start(ended))
	list, err := s.rt.List(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []sandbox.Info{
		{Machine: runs.Machine, Instance: runs.Instance, Slot: runs.Slot, Running: true},
		{Machine: ended.Machine, Instance: ended.Instance, Slot: ended.Slot, Running: false},
	} {
		if !slices.Contains(list, want) {
			t.Errorf("list %+v lacks %+v", list, want)
		}
	}
	if len(list) != 2 {
		t.Errorf("list has %d entries", len(list))
	}
}

func testConcurrent(t *testing.T, s *suite) {
	var wg sync.WaitGroup
	for range 4 {
		spec := s.spec("exit", "6")
		wg.Go(func() {
			sb, err := s.rt.Start(s.ctx, spec)
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			defer sb.Close()
			if e, err := sb.Wait(s.ctx); err != nil || e.Code != 6 {
				t.Errorf("exit is %+v, %v", e, err)
			}
			// Two removals of one Machine at once are carried out one after the other.
			var both sync.WaitGroup
			for range 2 {
				both.Go(func() {
					if err := s.rt.Remove(s.ctx, spec.Machine); err != nil {
						t.Errorf("remove: %v", err)
					}
				})
			}
			both.Wait()
			s.gone(spec.Machine)
		})
	}
	wg.Wait()
}
