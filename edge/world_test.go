package edge_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/edge"
	"bulkhead/edge/upstream"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "bulkhead.test"

// world is an edge with a controller's routes and certificates behind it, over the
// real internal calls.
type world struct {
	t    testing.TB
	dir  string
	ca   *pki.CA
	ctl  *controller
	edge *edge.Server
	dial upstream.Dial // to Machines; nil is TCP

	plain, secure string // addresses
	stop          func()
}

// controller serves the two calls that an edge makes.
type controller struct {
	internalpb.UnimplementedControllerServer
	ca *pki.CA

	mu     sync.Mutex
	routes map[string]*internalpb.Route
	subs   map[chan *internalpb.RouteUpdate]bool
	issued map[string]int
	refuse bool // certificates

	socket string
	srv    *grpc.Server
	id     *pki.Identity
}

func (c *controller) start(t testing.TB) {
	t.Helper()
	_ = os.Remove(c.socket)
	l, err := net.Listen("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	c.srv = rpc.NewServer(c.id, slog.New(slog.DiscardHandler), nil)
	internalpb.RegisterControllerServer(c.srv, c)
	go c.srv.Serve(l)
}

func (c *controller) WatchRoutes(_ *internalpb.WatchRoutesRequest, s grpc.ServerStreamingServer[internalpb.RouteUpdate]) error {
	ch := make(chan *internalpb.RouteUpdate, 10000)
	c.mu.Lock()
	for _, r := range c.routes {
		ch <- &internalpb.RouteUpdate{Route: r}
	}
	ch <- &internalpb.RouteUpdate{Synced: true}
	c.subs[ch] = true
	c.mu.Unlock()
	defer func() { c.mu.Lock(); delete(c.subs, ch); c.mu.Unlock() }()
	for {
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case u := <-ch:
			if err := s.Send(u); err != nil {
				return err
			}
		}
	}
}

func (c *controller) IssueServerCertificate(_ context.Context, r *internalpb.IssueServerCertificateRequest) (*internalpb.IssueServerCertificateResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.routes[r.GetApp()] == nil || c.refuse {
		return nil, fault.New(fault.NotFound, "no app %s", r.GetApp())
	}
	c.issued[r.GetApp()]++
	chain, err := c.ca.IssueServer(r.GetCsrDer(), r.GetApp()+"."+domain)
	return &internalpb.IssueServerCertificateResponse{ChainDer: chain}, err
}

// set changes an app's route; nil removes it.
func (c *controller) set(app string, services ...*internalpb.ServiceRoute) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := &internalpb.RouteUpdate{Route: &internalpb.Route{App: app, Services: services, ChangedAtNs: time.Now().UnixNano()}}
	c.routes[app] = u.Route
	if services == nil {
		delete(c.routes, app)
		u = &internalpb.RouteUpdate{RemovedApp: app}
	}
	for ch := range c.subs {
		ch <- u
	}
}

// web is the usual pair of services: 80 and 443 before the same Machines.
func web(backends ...*internalpb.Backend) []*internalpb.ServiceRoute {
	return []*internalpb.ServiceRoute{
		{Port: 80, Handlers: []string{"http"}, Backends: backends},
		{Port: 443, Handlers: []string{"tls", "http"}, Backends: backends},
	}
}

// at is a Machine at addr; its id is made of the address.
func at(addr string) *internalpb.Backend {
	return &internalpb.Backend{MachineId: "m-" + addr, Address: addr, SoftLimit: 1000}
}

// newWorld starts a controller and an edge.
func newWorld(t testing.TB, limits edge.Limits) *world {
	t.Helper()
	w := newWorldWithoutEdge(t)
	w.startEdge(limits)
	t.Cleanup(func() { w.stop() })
	return w
}

func newWorldWithoutEdge(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), ca: pkitest.CA(t, "c-test", domain)}
	w.ctl = &controller{ca: w.ca, routes: map[string]*internalpb.Route{}, subs: map[chan *internalpb.RouteUpdate]bool{}, issued: map[string]int{},
		socket: filepath.Join(w.dir, "internal"), id: pkitest.Identity(t, w.ca, pki.ID{Cluster: "c-test", Role: role.Controller, Node: "n1"})}
	w.ctl.start(t)
	t.Cleanup(func() { w.ctl.srv.Stop() })
	return w
}

func (w *world) startEdge(limits edge.Limits) {
	w.t.Helper()
	s := edge.New()
	s.Domain, s.Region, s.DataDir, s.Limits = domain, "test", filepath.Join(w.dir, "edge"), limits
	if testing.Verbose() {
		s.Log = slog.New(slog.NewTextHandler(w.t.Output(), nil))
	}
	s.Dial = w.dial
	s.APISocket = filepath.Join(w.dir, "api")
	if err := os.MkdirAll(s.DataDir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	plain, secure := listen(w.t), listen(w.t)
	w.plain, w.secure = plain.Addr().String(), secure.Addr().String()
	_, s.HTTPPort, _ = net.SplitHostPort(w.plain)
	_, s.HTTPSPort, _ = net.SplitHostPort(w.secure)
	if err := s.Open(); err != nil {
		w.t.Fatal(err)
	}
	id := pkitest.Identity(w.t, w.ca, pki.ID{Cluster: "c-test", Role: role.Edge, Node: "n1"})
	conn, err := rpc.Dial(id, w.ctl.socket, role.Controller, "n1")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Follow(ctx, internalpb.NewControllerClient(conn)) })
	wg.Go(func() { _ = s.Serve(ctx, plain, secure) })
	w.edge = s
	w.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		conn.Close()
		s.Close()
	})
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// refusing is an address of the test's own that refuses connections: bound, so that
// nobody else on the machine gets it, and not listened on until open is called.
func refusing(t testing.TB) (addr string, open func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "bound")
	t.Cleanup(func() { f.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port), func() net.Listener {
		err := syscall.Listen(fd, 128)
		var l net.Listener
		if err == nil {
			l, err = net.FileListener(f)
		}
		if err != nil {
			t.Error(err)
			l = listen(t)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
}

// serve runs a backend until the test ends and returns its address.
func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	l := listen(t)
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

// route sets an app's route and waits until the edge serves it.
func (w *world) route(app string, services ...*internalpb.ServiceRoute) {
	w.t.Helper()
	w.ctl.set(app, services...)
	want := w.ctl.routes[app].GetChangedAtNs()
	await.True(w.t, "the route of "+app+" is live", func() bool { return w.edge.RouteVersion(app) == want })
}

func (w *world) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(w.ca.RootPEM())
	return p
}

func (w *world) tlsConfig(app string) *tls.Config {
	return &tls.Config{RootCAs: w.roots(), ServerName: app + "." + domain}
}

// client is an HTTP client that reaches every name at the edge.
func (w *world) client(h2 bool) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.roots()}, ForceAttemptHTTP2: h2, MaxIdleConnsPerHost: 100,
		DisableCompression: true, ExpectContinueTimeout: 5 * time.Second, Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			var d net.Dialer
			_, port, _ := net.SplitHostPort(addr)
			if port == "80" {
				return d.DialContext(ctx, "tcp", w.plain)
			}
			return d.DialContext(ctx, "tcp", w.secure)
		},
	}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get fetches a URL and returns the response with its body read.
func get(t testing.TB, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// bothVersions runs a test over HTTP/1.1 and HTTP/2 clients.
func bothVersions(t *testing.T, fn func(t *testing.T, h2 bool)) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) { fn(t, h2) })
	}
}

// metric returns the sum of a metric's samples whose line begins with prefix.
func (w *world) metric(prefix string) float64 {
	w.t.Helper()
	resp, err := (&edge.Telemetry{Server: w.edge}).Metrics(context.Background(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	sum := 0.0
	for line := range bytes.Lines(resp.Text) {
		if bytes.HasPrefix(line, []byte(prefix)) {
			f := bytes.Fields(line)
			v, _ := strconv.ParseFloat(string(f[len(f)-1]), 64)
			sum += v
		}
	}
	return sum
}
