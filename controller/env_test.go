package controller_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
	"bulkhead/sso/ssotest"
)

const (
	domain  = "test.localhost"
	cluster = "c-test"
	node    = key.Node("n1")
)

// env is a controller with real sockets, real TLS, a real store, and a fake worker.
type env struct {
	t      testing.TB
	dir    string
	cfg    controller.Config
	worker *fakeWorker
	c      *contract
	ctl    *controller.Controller

	token  string
	client *http.Client
	pin    string
	roots  *x509.CertPool
	socks  map[string]string
	ca     *pki.CA
	logs   *syncBuffer
	from   byte // last byte of the client's address

	opened     func(*controller.Controller) // if set, called between Open and Serve
	stop       func()                       // of the controller
	stopWorker context.CancelFunc

	clusterAddr string // of the controller's cluster port
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func decodeJSON(b []byte) (v any, err error) { err = json.Unmarshal(b, &v); return v, err }

// newEnv starts everything and waits until the worker is connected.
func newEnv(t testing.TB) *env {
	t.Helper()
	e := newEnvWithoutWorker(t)
	e.startWorker()
	return e
}

// newEnvWith is newEnv of a changed configuration, without a worker.
func newEnvWith(t testing.TB, change func(*controller.Config)) *env { return makeEnv(t, change) }

func newEnvWithoutWorker(t testing.TB) *env { return makeEnv(t, func(*controller.Config) {}) }

func makeEnv(t testing.TB, change func(*controller.Config)) *env {
	t.Helper()
	dir, err := os.MkdirTemp("", "bh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := newInstallation(t, dir)
	change(&e.cfg)
	e.token = e.fromTemplate()
	e.startController()
	t.Cleanup(func() {
		e.stop()
		e.c.report(t)
		if t.Failed() && testing.Verbose() {
			t.Log(e.logs.String())
		}
	})
	e.login()
	e.awaitIssuer() // in the background; tests compare what the store holds before and after
	return e
}

// awaitIssuer waits until the keys of identity tokens are in the store.
func (e *env) awaitIssuer() {
	e.t.Helper()
	await.True(e.t, "the issuer has its keys", func() bool {
		keys, err := e.ctl.Keys(context.Background())
		return err == nil && slices.Contains(keys, "/issuer")
	})
}

// newInstallation is an environment in an empty directory: nothing runs yet.
func newInstallation(t testing.TB, dir string) *env {
	t.Helper()
	_, grantKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "grant.key"), grantKey, 0o600); err != nil {
		t.Fatal(err)
	}
	e := &env{t: t, dir: dir, worker: newFakeWorker(node), logs: &syncBuffer{}, from: 7, socks: map[string]string{}}
	for _, s := range []string{role.SocketInternal, role.SocketEnroll, role.SocketAdmin, role.SocketAPI, role.SocketWorker, role.SocketEdge} {
		e.socks[s] = filepath.Join(dir, s)
	}
	if e.c, err = newContract(); err != nil {
		t.Fatal(err)
	}
	e.cfg = controller.Config{
		Role: role.Config{
			Role: role.Controller, Cluster: cluster, Node: node, Host: 1, Region: "local", Domain: domain, DataDir: filepath.Join(dir, "data"),
			RunDir: dir, HTTPSAddr: "127.0.0.1:8443", Sockets: e.socks, GrantKeyFile: filepath.Join(dir, "grant.key"),
			PrivateIssuers: ssotest.Loopback,
			UIDs:           map[string]uint32{role.Controller: 64101, role.Worker: 64102, role.Edge: 64103, role.Warden: 0},
			RateLimits:     "failure=1000000/1000000 guess=1000000/1000000", // every test is the same address
		},
		Log: slog.New(slog.NewJSONHandler(e.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return e
}

// startController opens the data directory and serves.
func (e *env) startController() {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := controller.New(e.cfg)
	e.ctl = c
	if err := c.Open(ctx); err != nil {
		e.t.Fatal(err)
	}
	if e.opened != nil {
		e.opened(c)
	}
	ls := map[string]net.Listener{}
	for _, name := range []string{role.SocketInternal, role.SocketEnroll, role.SocketAdmin, role.SocketAPI} {
		l, err := net.Listen("unix", e.socks[name])
		if err != nil {
			e.t.Fatal(err)
		}
		ls[name] = l
	}
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	ls[role.SocketCluster], e.clusterAddr = far, far.Addr().String()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- c.Serve(ctx, ls, func() error { close(ready); return nil })
	}()
	select {
	case <-ready:
	case err := <-done:
		e.t.Fatalf("serve: %v", err)
	case <-time.After(time.Minute):
		e.t.Fatal("the controller is not ready after a minute")
	}
	if e.ca, err = pki.OpenCA(filepath.Join(e.cfg.Role.DataDir, "ca"), cluster, domain); err != nil {
		e.t.Fatal(err)
	}
	e.stop = func() {
		if e.client != nil {
			e.client.CloseIdleConnections()
		}
		cancel()
		select {
		case <-done:
		case <-time.After(time.Minute):
			e.t.Error("the controller does not stop")
		}
		if err := c.Close(); err != nil {
			e.t.Errorf("close: %v", err)
		}
		e.stop = func() {}
	}
}

// identity is a role's identity, signed by the controller's own authority.
func (e *env) identity(name string, n key.Node) *pki.Identity {
	return pkitest.Identity(e.t, e.ca, pki.ID{Cluster: cluster, Role: name, Node: n})
}

// dial connects to the controller's internal socket as a role of a node.
func (e *env) dial(name string, n key.Node) *grpc.ClientConn {
	e.t.Helper()
	conn, err := rpc.Dial(e.identity(name, n), e.socks[role.SocketInternal], role.Controller, node)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return conn
}

// startWorker serves the worker's socket and syncs.
func (e *env) startWorker() {
	e.t.Helper()
	os.Remove(e.socks[role.SocketWorker])
	l, err := net.Listen("unix", e.socks[role.SocketWorker])
	if err != nil {
		e.t.Fatal(err)
	}
	e.worker.serve(e.t, e.identity(role.Worker, node), l)
	e.connectWorker()
}

// connectWorker opens the worker's Sync and waits until the controller has it.
func (e *env) connectWorker() {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e.stopWorker = cancel
	e.t.Cleanup(cancel)
	conn := e.dial(role.Worker, node)
	e.worker.mu.Lock()
	e.worker.controller = internalpb.NewControllerClient(conn)
	e.worker.mu.Unlock()
	go e.worker.sync(ctx, conn)
	e.waitNode(true)
}

// waitNode waits until the controller has noticed that the worker came or went.
func (e *env) waitNode(connected bool) {
	e.t.Helper()
	await.True(e.t, fmt.Sprintf("the worker is connected: %v", connected), func() bool {
		var h struct {
			Nodes []struct{ Connected bool }
		}
		e.get("/healthz", &h)
		return len(h.Nodes) == 1 && h.Nodes[0].Connected == connected
	})
}

// admin calls the admin socket.
func (e *env) admin(method, path string) (int, []byte) {
	e.t.Helper()
	client := &http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", e.socks[role.SocketAdmin])
	}}}
	req, _ := http.NewRequest(method, "http://admin"+path, nil)
	resp, err := client.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, b
}

func (e *env) mint(query string) string {
	e.t.Helper()
	code, b := e.admin("POST", "/token"+query)
	var out controller.AdminToken
	if err := json.Unmarshal(b, &out); code != 200 || err != nil {
		e.t.Fatalf("mint a token: %d %s", code, b)
	}
	return out.Token
}

// claim spends a one-time token as a user of a name, and returns the user's own.
func (e *env) claim(token, name string) string {
	e.t.Helper()
	var out controller.Claimed
	e.want(201, "POST", "/v1/claim", map[string]string{"name": name}, &out, "Authorization", "Bearer "+token)
	if out.Token == "" || out.User.Name != name {
		e.t.Fatalf("claim: %+v", out)
	}
	return out.Token
}

// login makes the client that knows the cluster by its root and its pin.
func (e *env) login() {
	e.t.Helper()
	code, b := e.admin("GET", "/login")
	var l controller.AdminLogin
	if err := json.Unmarshal(b, &l); code != 200 || err != nil {
		e.t.Fatalf("login: %d %s", code, b)
	}
	e.pin, e.roots = l.Pin, x509.NewCertPool()
	if !e.roots.AppendCertsFromPEM([]byte(l.CAPEM)) {
		e.t.Fatal("login has no certificate")
	}
	e.client = &http.Client{Timeout: 90 * time.Second, Transport: e.c.RoundTripper(e.transport())}
}

// transport reaches the api socket as the edge does: a PROXY v2 header, then TLS.
func (e *env) transport() *http.Transport { return e.transportFor("h2", "http/1.1") }

func (e *env) transportFor(protocols ...string) *http.Transport {
	return &http.Transport{ForceAttemptHTTP2: protocols[0] == "h2", DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return e.dialAPI(ctx, addr, &tls.Config{RootCAs: e.roots, NextProtos: protocols})
	}}
}

func (e *env) dialAPI(ctx context.Context, addr string, conf *tls.Config) (*tls.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", e.socks[role.SocketAPI])
	if err != nil {
		return nil, err
	}
	src, dst := &net.TCPAddr{IP: net.IPv4(192, 0, 2, e.from), Port: 4242}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
	if _, err := proxyproto.HeaderProxyFromAddrs(2, src, dst).WriteTo(raw); err != nil {
		return nil, err
	}
	if conf.ServerName == "" {
		conf.ServerName, _, _ = net.SplitHostPort(addr)
	}
	conn := tls.Client(raw, conf)
	return conn, conn.HandshakeContext(ctx)
}

// answer is what a request gave.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

// do makes a request; body may be nil, text or something to encode.
func (e *env) do(method, path string, body any, header ...string) answer {
	e.t.Helper()
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		rd = bytes.NewReader([]byte(b))
	default:
		enc, err := json.Marshal(b)
		if err != nil {
			e.t.Fatal(err)
		}
		rd = bytes.NewReader(enc)
	}
	req, err := http.NewRequest(method, "https://api."+domain+path, rd)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+e.token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := e.client.Do(req)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// want makes a request that must give a code, and decodes the answer into out.
func (e *env) want(code int, method, path string, body, out any, header ...string) answer {
	e.t.Helper()
	a := e.do(method, path, body, header...)
	if a.code != code {
		e.t.Fatalf("%s %s: %d %s, want %d", method, path, a.code, a.body, code)
	}
	if out != nil {
		if err := json.Unmarshal(a.body, out); err != nil {
			e.t.Fatalf("%s %s: %s: %v", method, path, a.body, err)
		}
	}
	return a
}

func (e *env) get(path string, out any) answer {
	e.t.Helper()
	return e.want(200, "GET", path, nil, out)
}

// refused makes a request that must be refused with a code and a sentence.
func (e *env) refused(code int, sentence, method, path string, body any, header ...string) {
	e.t.Helper()
	a := e.want(code, method, path, body, nil, header...)
	var out struct{ Error string }
	json.Unmarshal(a.body, &out)
	if !bytes.Contains(a.body, []byte(sentence)) || out.Error == "" {
		e.t.Errorf("%s %s: %s does not say %q", method, path, a.body, sentence)
	}
}

// app makes an app.
func (e *env) app(name string) {
	e.t.Helper()
	e.want(201, "POST", "/v1/apps", map[string]any{"name": name, "org_slug": "personal"}, nil)
}

type config = map[string]any

// launch makes a Machine and waits until it has started.
func (e *env) launch(app string, conf config) *controller.Machine {
	e.t.Helper()
	m := e.create(app, config{"config": conf})
	e.wait(app, m.ID, "started")
	return m
}

func (e *env) create(app string, in config) *controller.Machine {
	e.t.Helper()
	m := new(controller.Machine)
	e.want(200, "POST", "/v1/apps/"+app+"/machines", in, m)
	return m
}

func (e *env) wait(app, id, state string) {
	e.t.Helper()
	e.get(fmt.Sprintf("/v1/apps/%s/machines/%s/wait?state=%s&timeout=10", app, id, state), nil)
}

func (e *env) machine(app, id string) *controller.Machine {
	e.t.Helper()
	m := new(controller.Machine)
	e.get("/v1/apps/"+app+"/machines/"+id, m)
	return m
}

// image is a config that runs.
func image() config { return config{"image": "docker.example/library/app:1"} }

// lines reads a stream's first n lines.
func lines(t testing.TB, r io.Reader, n int) []string {
	t.Helper()
	var out []string
	s := bufio.NewScanner(r)
	for len(out) < n && s.Scan() {
		if s.Text() != "" {
			out = append(out, s.Text())
		}
	}
	if len(out) < n {
		t.Fatalf("%d lines, want %d: %v", len(out), n, s.Err())
	}
	return out
}
