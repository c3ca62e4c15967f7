package edge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/internal/await"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
)

// process is the program bulkhead-edge, started as bulkheadd starts it.
type process struct {
	*world
	cmd    *exec.Cmd
	socket string // telemetry
}

// startProcess builds the program and runs it beside w's controller. It replaces
// w's addresses by its own.
func startProcess(t testing.TB, w *world) *process {
	t.Helper()
	program := filepath.Join(w.dir, "bulkhead-edge")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "bulkhead/cmd/bulkhead-edge")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := &process{world: w, socket: filepath.Join(w.dir, "edge.sock")}
	data := filepath.Join(w.dir, "process")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	startEnroll(t, w)
	plain, secure := listen(t), listen(t)
	telemetry, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	w.plain, w.secure = plain.Addr().String(), secure.Addr().String()
	config, err := json.Marshal(role.Config{
		Role: role.Edge, Cluster: "c-test", Node: "n1", Host: 1, Region: "test", Domain: domain, DataDir: data, RunDir: w.dir,
		HTTPAddr: w.plain, HTTPSAddr: w.secure, Tag: "t",
		Sockets: map[string]string{role.SocketAPI: filepath.Join(w.dir, "api"), role.SocketEnroll: filepath.Join(w.dir, "enroll"), role.SocketInternal: w.ctl.socket},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.dir, "edge.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer readyR.Close()
	p.cmd = exec.Command(program, file)
	p.cmd.Env = append(os.Environ(), "LISTEN_FDS=4", "LISTEN_FDNAMES=http:https:edge:ready")
	if testing.Verbose() {
		p.cmd.Stderr = t.Output()
	}
	for _, l := range []net.Listener{plain, secure, telemetry} {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, f)
	}
	p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, readyW)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range p.cmd.ExtraFiles {
		f.Close()
	}
	t.Cleanup(func() {
		plain.Close()
		secure.Close()
		telemetry.Close()
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	_ = readyR.SetReadDeadline(time.Now().Add(40 * time.Second))
	if b, err := io.ReadAll(readyR); err != nil || string(b) != "ready\n" {
		t.Fatalf("the edge says %q, %v", b, err)
	}
	return p
}

// startEnroll serves identities to processes of this test's user as the edge.
func startEnroll(t testing.TB, w *world) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(w.dir, "enroll"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &pki.EnrollServer{CA: w.ca, Cluster: "c-test", Node: "n1", Roles: map[uint32]string{uint32(os.Getuid()): role.Edge}, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
}

// TestProcess runs the real program: it gives up its privileges, serves, tells its
// metrics to the controller alone, and ends in order on SIGTERM.
func TestProcess(t *testing.T) {
	w := newWorldWithoutEdge(t)
	p := startProcess(t, w)
	w.ctl.set("web", web(at(hello(t, "hello")))...)
	c := w.client(true)
	await.True(t, "the app answers", func() bool {
		resp, err := c.Get("https://web." + domain + "/")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode == 200 && string(b) == "hello"
	})
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for _, want := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s: not %q", task, want)
			}
		}
	}
	for as, allowed := range map[string]bool{role.Controller: true, role.Worker: false} {
		conn, err := rpc.Dial(pkitest.Identity(t, w.ca, pki.ID{Cluster: "c-test", Role: as, Node: "n1"}), p.socket, role.Edge, "n1")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		resp, err := internalpb.NewTelemetryClient(conn).Metrics(ctx, &internalpb.MetricsRequest{})
		cancel()
		conn.Close()
		if (err == nil) != allowed || allowed && !strings.Contains(string(resp.GetText()), `bulkhead_edge_requests_total{code="2xx",http="2",scheme="https"}`) {
			t.Errorf("metrics for %s: %d bytes, %v", as, len(resp.GetText()), err)
		}
	}
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("SIGTERM: %v after %v", err, time.Since(began))
	}
}
