// Package world runs a whole Bulkhead on this machine for tests and benchmarks:
// the real programs, as real users, with real sandboxes. It needs root and the
// programs in build/bin ("make build").
package world

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Ready is what bulkheadd writes to its ready file.
type Ready struct {
	APIURL    string `json:"api_url"`
	Domain    string `json:"domain"`
	HTTPSAddr string `json:"https_addr"`
	CAFile    string `json:"ca_file"`
	Pin       string `json:"pin"`
	Token     string `json:"token"`
}

// World is one running platform. Its methods fail the test that made it.
type World struct {
	T        testing.TB
	Ready    Ready  // Token is kept over restarts
	HTTPAddr string // where the edge serves plain HTTP
	DataDir  string
	Bin      string

	shared bool // by the tests of this binary: see Shared
	args   []string
	env    []string // of bulkheadd, beside the test's own
	cmd    *exec.Cmd
	exited chan error
	log    *logBuffer
	client *http.Client
}

// Root returns the module's root directory, above the one that go test runs in.
var Root = sync.OnceValue(func() string {
	start, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			panic("no go.mod above " + start)
		}
	}
})

// Start brings up a platform with its own data directory and ports, and takes it
// down with the test. flags are added to bulkheadd's.
func Start(t testing.TB, flags ...string) *World {
	t.Helper()
	return StartFrom(t, filepath.Join(Root(), "build", "bin"), nil, flags...)
}

// StartFrom is Start with the programs of another directory, and with additions to
// the environment of bulkheadd.
func StartFrom(t testing.TB, bin string, env []string, flags ...string) *World {
	t.Helper()
	return StartAt(t, t.TempDir(), bin, env, flags...)
}

// StartAt is StartFrom with a data directory of the test's own making, which the
// roles' users must be able to pass.
func StartAt(t testing.TB, dir, bin string, env []string, flags ...string) *World {
	t.Helper()
	w := prepare(t, dir, bin, env, flags...)
	t.Cleanup(w.down)
	w.Up()
	return w
}

// prepare makes a platform ready to be started.
func prepare(t testing.TB, dir, bin string, env []string, flags ...string) *World {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("a whole platform needs root: run the tests as root (sudo make test)")
	}
	w := &World{T: t, DataDir: dir, Bin: bin, env: env, log: &logBuffer{}}
	if _, err := os.Stat(filepath.Join(w.Bin, "bulkheadd")); err != nil {
		t.Fatalf("the programs are missing (%v): run \"make build\"", err)
	}
	// The roles run as other users and must be able to pass.
	for d := w.DataDir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	w.HTTPAddr = "127.0.0.1:" + strconv.Itoa(freePort(t))
	w.args = append([]string{"up",
		"--data-dir", w.DataDir,
		"--http-addr", w.HTTPAddr,
		"--https-addr", "127.0.0.1:" + strconv.Itoa(freePort(t)),
		"--ready-file", w.readyFile(),
	}, flags...)
	return w
}

// readyFile is beside the data directory, whose disk may be full.
func (w *World) readyFile() string { return w.DataDir + "-ready.json" }

// Up starts bulkheadd and waits until it is ready.
func (w *World) Up() {
	w.T.Helper()
	ready := w.readyFile()
	os.Remove(ready)
	w.cmd = exec.Command(filepath.Join(w.Bin, "bulkheadd"), w.args...)
	w.cmd.Env = append(os.Environ(), w.env...)
	w.cmd.Stdout, w.cmd.Stderr = w.log, w.log
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := w.cmd.Start(); err != nil {
		w.T.Fatal(err)
	}
	exited := make(chan error, 1)
	w.exited = exited
	go func(c *exec.Cmd) { exited <- c.Wait() }(w.cmd)
	deadline := time.After(90 * time.Second)
	for {
		if b, err := os.ReadFile(ready); err == nil {
			w.take(b)
			return
		}
		select {
		case err := <-exited:
			w.cmd = nil
			w.T.Fatalf("bulkheadd ended before it was ready: %v\n%s", err, w.log.tail(8000))
		case <-deadline:
			w.T.Fatalf("bulkheadd was not ready in time\n%s", w.log.tail(8000))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// take reads the ready file; the token is only in the first.
func (w *World) take(b []byte) {
	token := w.Ready.Token
	if err := json.Unmarshal(b, &w.Ready); err != nil {
		w.T.Fatalf("ready file: %v\n%s", err, b)
	}
	if w.Ready.Token == "" {
		w.Ready.Token = token
	}
	ca, err := os.ReadFile(w.Ready.CAFile)
	if err != nil {
		w.T.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	defer w.claim()
	w.client = &http.Client{
		Timeout: 70 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots},
			ForceAttemptHTTP2: true,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				_, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				var d net.Dialer
				return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// claim spends the installation's token, if the ready file had it, as the user "admin".
func (w *World) claim() {
	w.T.Helper()
	if !strings.HasPrefix(w.Ready.Token, "bh_") {
		return
	}
	var out struct{ Token string }
	if status := w.API("POST", "/claim", map[string]string{"name": "admin"}, &out); status != 201 {
		w.T.Fatalf("the installation's token makes no user: status %d", status)
	}
	w.Ready.Token = out.Token
}

// Stop ends bulkheadd as systemd would; sandboxes stay.
func (w *World) Stop() {
	w.T.Helper()
	if err := w.stop(); err != nil {
		w.T.Errorf("%v\n%s", err, w.log.tail(4000))
	}
}

// Restart makes bulkheadd replace its program and returns when it is ready.
func (w *World) Restart() {
	w.T.Helper()
	out, err := exec.Command(filepath.Join(w.Bin, "bulkheadd"), "restart", "--data-dir", w.DataDir).CombinedOutput()
	if err != nil {
		w.T.Fatalf("bulkheadd restart: %v\n%s\n%s", err, out, w.log.tail(8000))
	}
}

func (w *World) stop() (err error) {
	if w.cmd == nil {
		return nil
	}
	w.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.exited:
	case <-time.After(40 * time.Second):
		w.cmd.Process.Kill()
		<-w.exited
		err = errors.New("bulkheadd did not stop within 40 s")
	}
	w.cmd = nil
	return err
}

// down stops and removes everything, also what the test left behind.
func (w *World) down() {
	if err := w.takeDown(); err != nil {
		w.T.Error(err)
	}
	if w.T.Failed() {
		w.T.Logf("bulkheadd said:\n%s", w.log.tail(20000))
	}
}

func (w *World) takeDown() error {
	err := w.stop()
	out, derr := exec.Command(filepath.Join(w.Bin, "bulkheadd"), "down", "--data-dir", w.DataDir).CombinedOutput()
	if derr != nil {
		err = errors.Join(err, fmt.Errorf("bulkheadd down: %w\n%s", derr, out))
	}
	return err
}

// In returns the same platform for a subtest: failures are the subtest's. It must
// not be started or stopped through it.
func (w *World) In(t testing.TB) *World {
	c := *w
	c.T = t
	return &c
}

// Log returns what bulkheadd and the roles have written so far.
func (w *World) Log() string { return w.log.tail(1 << 30) }

// URL returns the https URL of a host below the domain.
func (w *World) URL(host, path string) string {
	_, port, _ := net.SplitHostPort(w.Ready.HTTPSAddr)
	return "https://" + host + "." + w.Ready.Domain + ":" + port + path
}

// Client trusts the cluster's root and finds its names on loopback.
func (w *World) Client() *http.Client { return w.client }

// API makes a call and decodes its answer into out, unless that is nil. It returns
// the status, and fails only when there was no answer.
func (w *World) API(method, path string, in, out any) int {
	w.T.Helper()
	status, body := w.APIRaw(method, path, in)
	if out != nil && status < 300 {
		if err := json.Unmarshal(body, out); err != nil {
			w.T.Fatalf("%s %s: %v\n%s", method, path, err, body)
		}
	}
	return status
}

// APIRaw is API with the answer as it came.
func (w *World) APIRaw(method, path string, in any) (int, []byte) {
	w.T.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			w.T.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, w.Ready.APIURL+"/v1"+path, body)
	if err != nil {
		w.T.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Ready.Token)
	resp, err := w.client.Do(req)
	if err != nil {
		w.T.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.T.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, b
}

// Must is API for calls that must succeed.
func (w *World) Must(method, path string, in, out any) {
	w.T.Helper()
	status, body := w.APIRaw(method, path, in)
	if status >= 300 {
		w.T.Fatalf("%s %s: %d %s", method, path, status, body)
	}
	if out != nil {
		if err := json.Unmarshal(body, out); err != nil {
			w.T.Fatalf("%s %s: %v\n%s", method, path, err, body)
		}
	}
}

// Get fetches a path of an app through the edge.
func (w *World) Get(app, path string) (int, string, error) {
	resp, err := w.client.Get(w.URL(app, path))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// Eventually calls f until it returns "" or the time is over; then the test fails
// with the last answer.
func (w *World) Eventually(limit time.Duration, f func() string) {
	w.T.Helper()
	if why := Until(limit, f); why != "" {
		w.T.Fatalf("not within %v: %s", limit, why)
	}
}

// CLI runs the bulkhead command with this platform's address and token, and
// returns what it wrote and its exit code.
func (w *World) CLI(args ...string) (stdout, stderr string, code int) {
	w.T.Helper()
	return w.CLIWith(nil, args...)
}

// CLIWith is CLI with extra environment.
func (w *World) CLIWith(env []string, args ...string) (stdout, stderr string, code int) {
	w.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := w.CLICommand(ctx, env, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.T.Fatalf("bulkhead %v: %v", args, err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// CLICommand is what CLIWith runs.
func (w *World) CLICommand(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(w.Bin, "bulkhead"), args...)
	cmd.Dir = w.DataDir
	cmd.Env = append(os.Environ(),
		"HOME="+w.DataDir, "XDG_CONFIG_HOME="+filepath.Join(w.DataDir, "cli"),
		"BULKHEAD_URL="+w.Ready.APIURL, "BULKHEAD_PIN="+w.Ready.Pin, "BULKHEAD_TOKEN="+w.Ready.Token)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// MustCLI is CLI for commands that must succeed.
func (w *World) MustCLI(args ...string) string {
	w.T.Helper()
	stdout, stderr, code := w.CLI(args...)
	if code != 0 {
		w.T.Fatalf("bulkhead %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// logBuffer keeps what the platform writes.
type logBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *logBuffer) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b[max(0, len(l.b)-n):])
}

func (l *logBuffer) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.b)
}

// freePort returns a loopback port that was free a moment ago.
func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Query joins a path and parameters.
func Query(path string, kv ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(kv); i += 2 {
		v.Add(kv[i], kv[i+1])
	}
	return fmt.Sprintf("%s?%s", path, v.Encode())
}
