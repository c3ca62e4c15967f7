package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/await"
)

// node is one installation with fake roles, in its own directories.
type node struct {
	t      *testing.T
	config Config
	lib    string
	stdout buffer
	stderr buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// openDir makes a directory that other users can enter; that of testing cannot.
func openDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "bulkhead-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Unmount(filepath.Join(d, "run", secretDir), syscall.MNT_DETACH) // stays until "bulkheadd down"
		os.RemoveAll(d)
	})
	return d
}

// sharedDir is the directory of sharedSelf; TestMain removes it.
var sharedDir string

// sharedSelf is a copy of this program that other users can run. All nodes link to it:
// a copy for each would be read from the disk each time.
var sharedSelf = sync.OnceValues(func() (string, error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	if sharedDir, err = os.MkdirTemp("", "bulkhead-test-"); err != nil {
		return "", err
	}
	path := filepath.Join(sharedDir, "self")
	if err := os.WriteFile(path, self, 0o755); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o755)
})

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the supervisor is tested as root: sudo make test")
	}
	dir := openDir(t)
	n := &node{t: t, lib: filepath.Join(dir, "lib")}
	for _, d := range []string{n.lib, filepath.Join(n.lib, "reports")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		os.Chmod(d, 0o777)
	}
	self, err := sharedSelf()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if err := os.Link(self, filepath.Join(n.lib, p)); err != nil {
			t.Fatal(err)
		}
	}
	events := filepath.Join(n.lib, "events")
	if err := os.WriteFile(events, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(events, 0o666)
	c, err := Config{
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), LibDir: n.lib,
		HTTPAddr: "127.0.0.1:0", HTTPSAddr: "127.0.0.1:0", ReadyFile: filepath.Join(dir, "ready.json"),
	}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	n.config = c
	t.Cleanup(func() {
		for _, m := range []string{"netns/router", "machines"} {
			unix.Unmount(filepath.Join(c.RunDir, m), unix.MNT_DETACH)
		}
	})
	return n
}

// behave tells a role how to misbehave.
func (n *node) behave(role string, b behaviour) {
	n.t.Helper()
	raw, _ := json.Marshal(b)
	if err := os.WriteFile(filepath.Join(n.lib, role+".json"), raw, 0o644); err != nil {
		n.t.Fatal(err)
	}
	os.Chmod(filepath.Join(n.lib, role+".json"), 0o644)
}

func (n *node) events() []string {
	b, err := os.ReadFile(filepath.Join(n.lib, "events"))
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// running is a Supervisor in this process.
type running struct {
	*node
	s      *Supervisor
	cancel context.CancelFunc
	ended  chan error
}

// up starts a Supervisor in this process and waits until the platform is ready.
func (n *node) up() *running {
	n.t.Helper()
	r := n.begin(fastTiming)
	if err := r.await(); err != nil {
		n.t.Fatalf("up: %v\n%s", err, n.stderr.String())
	}
	return r
}

func (n *node) begin(tm timing) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{node: n, s: New(n.config), cancel: cancel, ended: make(chan error, 1)}
	r.s.Stdout, r.s.Stderr, r.s.timing = &n.stdout, &n.stderr, tm
	r.s.probes = nil // TestPreflight tries the host, once for all
	os.Remove(n.config.ReadyFile)
	go func() { r.ended <- r.s.Up(ctx) }()
	n.t.Cleanup(func() {
		cancel()
		select {
		case err := <-r.ended:
			r.ended <- err
		case <-time.After(time.Minute):
			n.t.Error("Up did not return")
		}
	})
	return r
}

// await returns nil when the ready file is there and the token marked as given.
func (r *running) await() (err error) {
	r.t.Helper()
	await.Within(r, 90*time.Second, "ready", func() bool {
		select {
		case err = <-r.ended:
			r.ended <- err
			if err == nil {
				err = fmt.Errorf("it ended")
			}
			return true
		default:
		}
		_, err1 := os.Stat(r.config.ReadyFile)
		_, err2 := os.Stat(filepath.Join(r.config.DataDir, tokenMark))
		return err1 == nil && err2 == nil && strings.Contains(r.stdout.String(), "Bulkhead is ready")
	})
	return err
}

func (r *running) stop() error {
	r.cancel()
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(time.Minute):
		return fmt.Errorf("did not stop")
	}
}

func (r *running) report(role string) report {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.lib, "reports", role))
	if err != nil {
		r.t.Fatal(err)
	}
	var out report
	if err := json.Unmarshal(b, &out); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// pid is the newest process id of a role.
func (n *node) pid(role string) (pid int) {
	for _, e := range n.events() {
		if f := strings.Fields(e); len(f) == 3 && f[0] == "start" && f[1] == role {
			fmt.Sscan(f[2], &pid)
		}
	}
	return pid
}

func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	await.True(n, what, ok)
}

// Helper and Fatalf are await's: what the processes said belongs to the failure.
func (n *node) Helper() { n.t.Helper() }

func (n *node) Fatalf(format string, args ...any) {
	n.t.Helper()
	n.t.Fatalf(format+"\n%s\n%s", append(args, strings.Join(n.events(), "\n"), n.stderr.String())...)
}

// spawn starts a bulkheadd in a process of its own.
func (n *node) spawn(dieAt int) *exec.Cmd {
	n.t.Helper()
	cmd := n.command("/proc/self/exe", order{DieAt: dieAt})
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	return cmd
}

// command is a bulkheadd in a process of its own that is not started.
func (n *node) command(program string, o order) *exec.Cmd {
	o.Config = n.config
	arg, _ := json.Marshal(o)
	cmd := exec.Command(program, "fake-bulkheadd", string(arg))
	cmd.Stdout, cmd.Stderr = &n.stdout, &n.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	return cmd
}

func (n *node) ready() Ready {
	n.t.Helper()
	b, err := os.ReadFile(n.config.ReadyFile)
	if err != nil {
		n.t.Fatal(err)
	}
	var r Ready
	if err := json.Unmarshal(b, &r); err != nil {
		n.t.Fatal(err)
	}
	return r
}

// alive says whether a process runs; a zombie does not.
func alive(pid int) bool {
	_, _, ok := procStat(pid)
	return ok
}
