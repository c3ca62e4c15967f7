package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/internal/await"
	"bulkhead/role"
)

// TestRolesAreRestarted kills each role: another takes its place, the sockets stay
// the same, and the wait doubles up to its bound.
func TestRolesAreRestarted(t *testing.T) {
	n := newNode(t)
	n.up()
	for _, name := range []string{role.Warden, role.Controller, role.Worker, role.Edge} {
		sock := filepath.Join(n.config.RunDir, "internal.sock")
		before, err := os.Stat(sock)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"20ms", "40ms", "80ms", "160ms", "160ms"} {
			pid := n.pid(name)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			n.eventually(name+" is back", func() bool { return n.pid(name) != pid })
			n.eventually("it is logged", func() bool {
				e := lastRestart(n, name)
				return e["in"] == want && e["why"] == "it was killed by signal 9 (killed)"
			})
			n.eventually("it is ready", func() bool { return readyCount(n, name) == startCount(n, name) })
		}
		after, err := os.Stat(sock)
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("the socket was replaced")
		}
	}
	if _, err := Token(context.Background(), n.config); err != nil {
		t.Errorf("the platform does not answer after all that: %v", err)
	}
}

func startCount(n *node, name string) (c int) {
	for _, e := range n.events() {
		if strings.HasPrefix(e, "start "+name+" ") {
			c++
		}
	}
	return c
}

func readyCount(n *node, name string) (c int) {
	for _, l := range strings.Split(n.stderr.String(), "\n") {
		if strings.Contains(l, `"a role is ready"`) && strings.Contains(l, `"what":"`+name+`"`) {
			c++
		}
	}
	return c
}

func lastRestart(n *node, name string) (last map[string]any) {
	for _, l := range strings.Split(n.stderr.String(), "\n") {
		var m map[string]any
		if json.Unmarshal([]byte(l), &m) == nil && m["what"] == name && m["msg"] == "a role ended and is started again" {
			last = m
		}
	}
	return last
}

// TestBackOffStartsAnew shows that a role that was healthy for long enough is
// started again after the shortest wait.
func TestBackOffStartsAnew(t *testing.T) {
	n := newNode(t)
	tm := fastTiming
	tm.healthy = time.Nanosecond
	r := n.begin(tm)
	if err := r.await(); err != nil {
		t.Fatal(err)
	}
	for i := 2; i < 5; i++ {
		syscall.Kill(n.pid(role.Worker), syscall.SIGKILL)
		n.eventually("the worker is back", func() bool { return readyCount(n, role.Worker) == i })
		if in := lastRestart(n, role.Worker)["in"]; in != "20ms" {
			t.Errorf("restart %d after %v, want 20ms", i, in)
		}
	}
}

// TestFailingStartsAreRetried lets a role fail twice before it starts.
func TestFailingStartsAreRetried(t *testing.T) {
	n := newNode(t)
	n.behave(role.Controller, behaviour{FailStarts: 2})
	n.up()
	if c := startCount(n, role.Controller); c != 3 {
		t.Errorf("%d starts, want 3", c)
	}
}

// TestConnectionsWaitForARestart connects to the API while no edge runs.
func TestConnectionsWaitForARestart(t *testing.T) {
	n := newNode(t)
	tm := fastTiming
	tm.min, tm.max = 500*time.Millisecond, 500*time.Millisecond
	r := n.begin(tm)
	if err := r.await(); err != nil {
		t.Fatal(err)
	}
	l, err := newAdmin(filepath.Join(n.config.RunDir, "admin.sock")).login(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(n.pid(role.Edge), syscall.SIGKILL)
	n.eventually("the edge is dead", func() bool { return lastRestart(n, role.Edge) != nil })
	if err := probeAPI(context.Background(), n.ready().HTTPSAddr, "bulkhead.localhost", l); err != nil {
		t.Errorf("a request during the edge's restart: %v", err)
	}
}

// TestStopDeadline stops a role that does not listen.
func TestStopDeadline(t *testing.T) {
	n := newNode(t)
	n.behave(role.Worker, behaviour{IgnoreTerm: true})
	tm := fastTiming
	tm.stop = 100 * time.Millisecond
	r := n.begin(tm)
	if err := r.await(); err != nil {
		t.Fatal(err)
	}
	pid := n.pid(role.Worker)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if alive(pid) {
		t.Error("the worker still runs")
	}
	if !strings.Contains(n.stderr.String(), "did not stop in time and is killed") {
		t.Error("nobody said so")
	}
	if ev := n.events(); !slices.Contains(ev, "stop edge") || !slices.Contains(ev, "stop controller") || !slices.Contains(ev, "stop warden") {
		t.Errorf("the others were not stopped: %q", ev)
	}
}

// TestKilledBulkheadd kills bulkheadd outright: its roles die with it, and the next
// one starts on the same ports and data.
func TestKilledBulkheadd(t *testing.T) {
	n := newNode(t)
	fixPorts(t, n)
	cmd := n.spawn(0)
	n.eventually("ready", func() bool { return strings.Contains(n.stdout.String(), "bulkhead login") })
	var pids []int
	for _, name := range []string{role.Warden, role.Controller, role.Worker, role.Edge} {
		pids = append(pids, n.pid(name))
	}
	cmd.Process.Kill()
	cmd.Wait()
	n.up()
	for i, pid := range pids {
		if alive(pid) {
			t.Errorf("role %d outlived bulkheadd", i)
		}
	}
}

// fixPorts gives a node ports that it keeps.
func fixPorts(t *testing.T, n *node) {
	for _, p := range []*string{&n.config.HTTPAddr, &n.config.HTTPSAddr} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		*p = l.Addr().String()
	}
}

// TestCrashAtEachStep kills bulkheadd at the steps of an installation and looks
// whether the next start gets it right, with a login line that works. A seed chooses
// one step of each kind; "make soak-crash" tries them all.
func TestCrashAtEachStep(t *testing.T) {
	n := newNode(t)
	steps := stepsOf(t, n)
	if len(steps) < 40 {
		t.Fatalf("only %d steps: %q", len(steps), steps)
	}
	chosen := oneOfEachKind(t, steps)
	t.Logf("dies at %d of %d steps", len(chosen), len(steps))
	for i, step := range steps {
		if !slices.Contains(chosen, i) {
			continue
		}
		t.Run(fmt.Sprintf("%02d %s", i+1, step), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			fixPorts(t, n)
			cmd := n.spawn(i + 1)
			if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it did not die: %v\n%s%s", err, n.stdout.String(), n.stderr.String())
			}
			id, idErr := readIdentity(n.config.DataDir)
			n.stdout = buffer{}
			r := n.up()
			if idErr == nil && r.s.in.id != id {
				t.Errorf("identity was %+v and is %+v", id, r.s.in.id)
			}
			if !strings.Contains(n.stdout.String(), "bulkhead login") || !strings.Contains(n.stdout.String(), "--token bh_") {
				t.Errorf("no login line after the crash: %q", n.stdout.String())
			}
			checkFiles(t, r)
		})
	}
}

// oneOfEachKind returns the places of some steps, so that every file and directory and
// every way to make one is among them; or of all when BULKHEAD_CRASH is "all". What
// there is for each role counts once.
func oneOfEachKind(t *testing.T, steps []string) (places []int) {
	seed, err := strconv.ParseUint(os.Getenv("BULKHEAD_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	t.Logf("seed %d", seed)
	roles := regexp.MustCompile(`\b(` + strings.Join(role.All, "|") + `)\b`)
	seen := map[string]bool{}
	for _, i := range rand.New(rand.NewPCG(seed, 1)).Perm(len(steps)) {
		how, what, _ := strings.Cut(roles.ReplaceAllString(steps[i], "ROLE"), " ")
		if !seen["how "+how] || !seen["what "+what] || os.Getenv("BULKHEAD_CRASH") == "all" {
			seen["how "+how], seen["what "+what] = true, true
			places = append(places, i)
		}
	}
	return places
}

// stepsOf brings a node up once and returns the steps it took.
func stepsOf(t *testing.T, n *node) (steps []string) {
	cmd := n.spawn(0)
	n.eventually("ready", func() bool { return strings.Contains(n.stdout.String(), "rename token.given") })
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^step \d+: (.*)$`).FindAllStringSubmatch(n.stdout.String(), -1) {
		steps = append(steps, m[1])
	}
	return steps
}

// TestClosedLibDir runs from programs that the roles' users cannot reach.
func TestClosedLibDir(t *testing.T) {
	n := newNode(t)
	closed := filepath.Join(filepath.Dir(n.lib), "home")
	if err := os.MkdirAll(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	open := n.lib
	if err := os.Rename(n.lib, filepath.Join(closed, "lib")); err != nil {
		t.Fatal(err)
	}
	n.config.LibDir = filepath.Join(closed, "lib")
	// The fakes write beside their programs, which are the copies.
	copies := filepath.Join(n.config.DataDir, programDir)
	s := New(n.config)
	s.fault = func(step string) error {
		if step == "sockets" {
			for _, d := range []string{"reports", "events"} {
				if err := os.Rename(filepath.Join(closed, "lib", d), filepath.Join(copies, d)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	s.timing, s.Stdout, s.Stderr = fastTiming, &n.stdout, &n.stderr
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Up(ctx) }()
	n.lib = copies
	await.True(t, "ready", func() bool { return strings.Contains(n.stdout.String(), "bulkhead login") })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n.lib = open
	if !strings.Contains(n.stderr.String(), "the programs are copied") {
		t.Error("nobody said so")
	}
}

// TestDown ends what a killed platform left running and removes its namespace,
// cgroups and runtime directory; once more is no error.
func TestDown(t *testing.T) {
	n := newNode(t)
	r := n.up()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	// What stands for a Machine: a shim with a path of the runtime directory among
	// its arguments, and a child.
	shim := filepath.Join(n.lib, "bulkhead-shim")
	os.Remove(shim)
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shim, sh, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shim, "-c", "sleep 600 & echo $!; wait", n.config.RunDir+"/machine")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var child int
	fmt.Sscan(line, &child)
	// A process of somebody else that only looks a bit like it.
	other := exec.Command("/bin/sleep", "600")
	other.Args = []string{"bulkhead-shim", "600"}
	other.Start()
	defer func() { other.Process.Kill(); other.Wait() }()

	go cmd.Wait()
	if err := Down(context.Background(), n.config, NewLog(&n.stderr, "text")); err != nil {
		t.Fatal(err)
	}
	if alive(cmd.Process.Pid) {
		t.Error("the shim lives")
	}
	if alive(child) {
		t.Error("the shim's child lives")
	}
	if !alive(other.Process.Pid) {
		t.Error("a process of somebody else was killed")
	}
	if _, err := os.Stat(n.config.RunDir); !os.IsNotExist(err) {
		t.Errorf("the runtime directory is there: %v", err)
	}
	if m, _ := filepath.Glob("/sys/fs/cgroup/*/bulkhead-" + tagFor(n.config.DataDir)); len(m) > 0 {
		t.Errorf("cgroups are left: %v", m)
	}
	if err := Down(context.Background(), n.config, NewLog(&n.stderr, "text")); err != nil {
		t.Errorf("a second down: %v", err)
	}
	n.up() // as after a power cut
	bad := n.config
	bad.DataDir += "x"
	if err := Down(context.Background(), bad, NewLog(&n.stderr, "text")); err == nil {
		t.Error("down of a directory that is not there succeeded")
	}
}

// TestCopiesFollowTheirOriginals replaces a program and copies again.
func TestCopiesFollowTheirOriginals(t *testing.T) {
	n := newNode(t)
	to := filepath.Join(openDir(t), "programs")
	if _, err := copyPrograms(nil, n.lib, to); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(to, "bulkhead-edge"))
	if err != nil {
		t.Fatal(err)
	}
	edge := filepath.Join(n.lib, "bulkhead-worker")
	os.Remove(edge)
	if err := os.WriteFile(edge, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := copyPrograms(nil, n.lib, to); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(to, "bulkhead-worker")); err != nil || string(b) != "#!/bin/sh\n" {
		t.Errorf("the worker's copy is %q, %v", b, err)
	}
	if after, err := os.Stat(filepath.Join(to, "bulkhead-edge")); err != nil || !os.SameFile(before, after) {
		t.Errorf("the edge was copied again: %v", err)
	}
}
