package supervisor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/role"
)

// manager plays systemd: it takes messages and descriptors on NOTIFY_SOCKET.
type manager struct {
	t      *testing.T
	conn   *net.UnixConn
	stored map[string]*os.File
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(openDir(t), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{t: t, conn: l, stored: map[string]*os.File{}}
	t.Cleanup(func() {
		l.Close()
		for _, f := range m.stored {
			f.Close()
		}
	})
	t.Setenv("NOTIFY_SOCKET", path)
	return m
}

// next returns the next message; a descriptor that comes with it is stored.
func (m *manager) next() string {
	m.t.Helper()
	b, oob := make([]byte, 100), make([]byte, unix.CmsgSpace(4))
	m.conn.SetReadDeadline(time.Now().Add(40 * time.Second))
	n, k, _, _, err := m.conn.ReadMsgUnix(b, oob)
	if err != nil {
		m.t.Fatal(err)
	}
	if name, ok := strings.CutPrefix(string(b[:n]), "FDSTORE=1\nFDNAME="); ok {
		cms, err := unix.ParseSocketControlMessage(oob[:k])
		if err != nil || len(cms) != 1 {
			m.t.Fatalf("%d control messages, %v", len(cms), err)
		}
		fds, err := unix.ParseUnixRights(&cms[0])
		if err != nil || len(fds) != 1 {
			m.t.Fatalf("%d descriptors, %v", len(fds), err)
		}
		if old := m.stored[name]; old != nil {
			old.Close()
		}
		m.stored[name] = os.NewFile(uintptr(fds[0]), name)
	}
	return string(b[:n])
}

// spawn starts a bulkheadd with what is stored, as systemd does.
func (m *manager) spawn(n *node) *exec.Cmd {
	m.t.Helper()
	self, err := sharedSelf()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := n.command(self, order{})
	names := slices.Sorted(maps.Keys(m.stored))
	for _, name := range names {
		cmd.ExtraFiles = append(cmd.ExtraFiles, m.stored[name])
	}
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, cmd.Args...)
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	return cmd
}

// greet shakes hands with the API on a connection that waits.
func greet(c net.Conn, domain string) error {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return tls.Client(c, &tls.Config{ServerName: "api." + domain, InsecureSkipVerify: true}).Handshake()
}

// TestNotify: systemd learns of the sockets, of readiness and of the end, and is told
// again and again that bulkheadd lives.
func TestNotify(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "60000")
	n := newNode(t)
	r := n.up()
	for _, want := range []string{"FDSTORE=1\nFDNAME=http", "FDSTORE=1\nFDNAME=https", "READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := m.next(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for got := m.next(); got != "STOPPING=1"; got = m.next() {
		if got != "WATCHDOG=1" {
			t.Fatalf("got %s, want STOPPING=1", got)
		}
	}
}

// TestSocketsOutliveTheServicesRestart ends bulkheadd as "systemctl restart" does: a
// client that connects before the next one runs is answered by it, and sockets that are
// not wanted go back.
func TestSocketsOutliveTheServicesRestart(t *testing.T) {
	m := newManager(t)
	n := newNode(t)
	fixPorts(t, n)
	cmd := n.spawn(0)
	for m.next() != "READY=1" {
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for m.next() != "STOPPING=1" {
	}
	c, err := net.Dial("tcp", n.config.HTTPSAddr)
	if err != nil {
		t.Fatalf("refused between two starts: %v", err)
	}
	defer c.Close()
	m.stored["cluster"], _ = os.Open("/dev/null") // not configured, and no socket
	cmd = m.spawn(n)
	var said []string
	for !slices.Contains(said, "READY=1") {
		said = append(said, m.next())
	}
	if want := []string{"FDSTOREREMOVE=1\nFDNAME=cluster", "FDSTORE=1\nFDNAME=http", "FDSTORE=1\nFDNAME=https", "READY=1"}; !slices.Equal(said, want) {
		t.Errorf("it said %q, want %q", said, want)
	}
	defer func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() }()
	if err := greet(c, n.config.Domain); err != nil {
		t.Errorf("the client that waited: %v", err)
	}
}

// TestReplaceTheProgram asks a bulkheadd for its new program while clients connect. None
// is refused, the process stays, the roles are new. The control loses the sockets.
func TestReplaceTheProgram(t *testing.T) {
	for _, lose := range []bool{false, true} {
		t.Run(fmt.Sprintf("sockets lost %v", lose), func(t *testing.T) {
			n := newNode(t)
			fixPorts(t, n)
			cmd := n.command("/proc/self/exe", order{Lose: lose})
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() }()
			n.eventually("ready", func() bool { return strings.Contains(n.stdout.String(), "rename token.given") })
			edge := n.pid(role.Edge)
			stop := make(chan struct{})
			done := make(chan struct{})
			var refused, connected atomic.Int64
			go func() {
				defer close(done)
				pace := time.NewTicker(20 * time.Millisecond)
				defer pace.Stop()
				for {
					select {
					case <-stop:
						return
					case <-pace.C:
					}
					c, err := net.Dial("tcp", n.config.HTTPSAddr)
					if errors.Is(err, syscall.ECONNREFUSED) {
						refused.Add(1)
					} else if err == nil {
						connected.Add(1)
						c.Close()
					}
				}
			}()
			n.eventually("a client", func() bool { return connected.Load() > 0 })
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := Restart(ctx, n.config); err != nil {
				t.Fatalf("%v\n%s", err, n.stderr.String())
			}
			close(stop)
			<-done
			t.Logf("%d connections, %d refused", connected.Load(), refused.Load())
			if (refused.Load() > 0) != lose {
				t.Errorf("%d connections were refused, sockets lost: %v", refused.Load(), lose)
			}
			if alive(edge) {
				t.Error("the edge is the same")
			}
			if st, err := readState(n.config.DataDir); err != nil || st.PID != cmd.Process.Pid {
				t.Errorf("process %d is %d now, %v", cmd.Process.Pid, st.PID, err)
			}
		})
	}
}

// TestReplaceByAProgramThatDoesNotRun: the old program goes on and says why.
func TestReplaceByAProgramThatDoesNotRun(t *testing.T) {
	n := newNode(t)
	self, err := sharedSelf()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(openDir(t), "bulkheadd")
	if err := os.Link(self, program); err != nil {
		t.Fatal(err)
	}
	cmd := n.command(program, order{})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() }()
	n.eventually("ready", func() bool { return strings.Contains(n.stdout.String(), "rename token.given") })
	edge := n.pid(role.Edge)
	os.Remove(program)
	if err := os.WriteFile(program, []byte("#!/bin/false\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := Restart(context.Background(), n.config)
		if err == nil || !strings.Contains(err.Error(), "goes on with its old program: "+program) {
			t.Errorf("%v", err)
		}
	}
	if !alive(edge) {
		t.Error("the edge was stopped")
	}
}

// TestRestartOfNone: what does not run is not restarted, and no other process gets the
// signal.
func TestRestartOfNone(t *testing.T) {
	n := newNode(t)
	if err := Restart(context.Background(), n.config); err == nil {
		t.Error("a data directory that does not exist was restarted")
	}
	r := n.up()
	other := exec.Command("/bin/sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	r.s.state.Start = ""
	if err := r.s.keepState(); err != nil {
		t.Fatal(err)
	}
	if err := Restart(context.Background(), n.config); err == nil || !strings.Contains(err.Error(), "earlier version") {
		t.Errorf("an earlier version: %v", err)
	}
	r.s.state.PID = other.Process.Pid
	if err := r.s.keepState(); err != nil {
		t.Fatal(err)
	}
	if err := Restart(context.Background(), n.config); err == nil || !strings.Contains(err.Error(), "still starts") {
		t.Errorf("the process of another start: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := Restart(context.Background(), n.config); err == nil || !strings.Contains(err.Error(), "no bulkheadd runs") {
		t.Errorf("none runs: %v", err)
	}
	if !alive(other.Process.Pid) {
		t.Error("the other process got the signal")
	}
}
