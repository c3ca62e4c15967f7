package edge_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pires/go-proxyproto"

	"bulkhead/api/internalpb"
	"bulkhead/edge"
	"bulkhead/internal/await"
	"bulkhead/pki"
)

func hello(t testing.TB, text string) string {
	return serve(t, func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, text) })
}

// TestServerNames: a name that nobody serves gets an alert before any certificate.
func TestServerNames(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	w.route("web", web(at(hello(t, "hello")))...)
	w.route("plain", web(at(hello(t, "hello")))[0])
	for _, name := range []string{"nobody." + domain, "a.web." + domain, "web.example.com", "", "plain." + domain, "web." + domain + "x"} {
		var seen int
		c, err := tls.Dial("tcp", w.secure, &tls.Config{ServerName: name, InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			seen = len(raw)
			return nil
		}})
		if err == nil || !strings.Contains(err.Error(), "remote error: tls: unrecognized name") || seen != 0 {
			t.Errorf("%q: %v, %d certificates seen; want unrecognized_name", name, err, seen)
		}
		if c != nil {
			c.Close()
		}
	}
	if n := w.metric(`bulkhead_edge_tls_failures_total{code="PT05"}`); n != 6 {
		t.Errorf("%v counted, want 6", n)
	}
	// Control: the right name, and only with a certificate that it verifies.
	c, err := tls.Dial("tcp", w.secure, w.tlsConfig("web"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := w.tlsConfig("web")
		cfg.MaxVersion = v
		if c, err := tls.Dial("tcp", w.secure, cfg); err != nil {
			t.Errorf("version %x: %v", v, err)
		} else {
			c.Close()
		}
	}
	old := w.tlsConfig("web")
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if c, err := tls.Dial("tcp", w.secure, old); err == nil {
		c.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

// TestMisdirected: a host name other than the connection's is refused with 421.
func TestMisdirected(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	w.route("web", web(at(hello(t, "web")))...)
	w.route("other", web(at(hello(t, "other")))...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		c := w.client(h2)
		for host, want := range map[string]int{"web." + domain: 200, "WEB." + domain: 200, "web." + domain + ":8443": 200, "other." + domain: 421,
			"api." + domain: 421, "nobody." + domain: 421, "example.com": 421, "web." + domain + ".": 200, "WEB." + domain + ".:8443": 200, "web." + domain + "..": 421} {
			req, _ := http.NewRequest("GET", "https://web."+domain+"/", nil)
			req.Host = host
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want || want == 200 && string(b) != "web" {
				t.Errorf("host %s: %d %q, want %d", host, resp.StatusCode, b, want)
			}
		}
	})
}

// TestPassThrough: the API's TLS reaches the controller's socket as it is, with the
// client's address before it, both directions close one after the other.
func TestPassThrough(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(k)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.ca.IssueServer(csr, "api."+domain, "registry."+domain)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(w.dir, "api"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pl := &proxyproto.Listener{Listener: l, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }}
	peers := make(chan string, 10)
	go func() {
		for {
			c, err := pl.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: k}}})
				if tc.Handshake() != nil {
					return
				}
				peers <- c.RemoteAddr().String()
				io.Copy(tc, tc) // until the client closes its side
				io.WriteString(tc, " and goodbye")
			}()
		}
	}()
	for _, name := range []string{"api", "registry"} {
		c, err := tls.Dial("tcp", w.secure, w.tlsConfig(name))
		if err != nil {
			t.Fatal(err)
		}
		if !c.ConnectionState().PeerCertificates[0].PublicKey.(*ecdsa.PublicKey).Equal(&k.PublicKey) {
			t.Error("the API's TLS does not end in the controller")
		}
		big := strings.Repeat("0123456789", 100_000)
		go func() {
			io.WriteString(c, big)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != big+" and goodbye" {
			t.Errorf("%d bytes echoed, %v", len(got), err)
		}
		if p := <-peers; p != c.LocalAddr().String() {
			t.Errorf("the controller sees client %s, it is %s", p, c.LocalAddr())
		}
		c.Close()
	}
	l.Close()
	if c, err := tls.Dial("tcp", w.secure, w.tlsConfig("api")); err == nil {
		c.Close()
		t.Error("the API answered without a controller")
	}
}

// TestRawTLS: the handler "tls" alone ends TLS and copies bytes; no handler copies
// the TLS itself.
func TestRawTLS(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	l := listen(t)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c); io.WriteString(c, "bye") }()
		}
	}()
	w.route("raw", &internalpb.ServiceRoute{Port: 443, Handlers: []string{"tls"}, Backends: []*internalpb.Backend{at(l.Addr().String())}})
	own := tlsEcho(t, w, "own."+domain)
	w.route("own", &internalpb.ServiceRoute{Port: 443, Backends: []*internalpb.Backend{at(own)}})
	for _, app := range []string{"raw", "own"} {
		c, err := tls.Dial("tcp", w.secure, w.tlsConfig(app))
		if err != nil {
			t.Fatal(app, err)
		}
		io.WriteString(c, "any bytes\x00\xff")
		c.CloseWrite()
		got, err := io.ReadAll(c)
		if want := "any bytes\x00\xffbye"; err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", app, got, err)
		}
		c.Close()
	}
}

func tlsEcho(t *testing.T, w *world, name string) string {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	csr, _ := pki.NewCSR(k)
	chain, err := w.ca.IssueServer(csr, name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: k}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c); io.WriteString(c, "bye") }()
		}
	}()
	return l.Addr().String()
}

// TestWebSocket uses a real WebSocket library on both ends, over TLS and plain.
func TestWebSocket(t *testing.T) {
	w := newWorld(t, edge.Limits{PipeIdle: 2 * time.Second})
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 22)
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	w.route("web", web(at(addr))...)
	for _, scheme := range []string{"https", "http"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
			defer cancel()
			c, resp, err := websocket.Dial(ctx, scheme+"://web."+domain+"/ws", &websocket.DialOptions{HTTPClient: w.client(false), Subprotocols: []string{"chat"}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			c.SetReadLimit(1 << 22)
			if c.Subprotocol() != "chat" || resp.Header.Get("Fly-Request-Id") == "" {
				t.Errorf("%q %v", c.Subprotocol(), resp.Header)
			}
			for _, n := range []int{1, 100, 70_000, 1 << 20} {
				msg := strings.Repeat("w", n)
				if err := c.Write(ctx, websocket.MessageText, []byte(msg)); err != nil {
					t.Fatal(err)
				}
				if _, got, err := c.Read(ctx); err != nil || string(got) != msg {
					t.Fatalf("%d bytes came back of %d, %v", len(got), n, err)
				}
			}
			if scheme == "http" {
				// Now it is idle, and is closed. TestPipeIdle has the clock.
				if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
					t.Errorf("an idle connection was not closed: %v", err)
				}
			}
		})
	}
}

// TestControllerDown: a restart without a controller serves what is on disk; a new
// controller's word replaces it.
func TestControllerDown(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	addr := hello(t, "hello")
	for i := range 20 {
		w.ctl.set(fmt.Sprintf("app%d", i), web(at(addr))...)
	}
	w.ctl.set("gone", web(at(addr))...)
	w.route("last", web(at(addr))...)
	// Certificates are fetched before anybody asks.
	certs := func() int {
		files, _ := filepath.Glob(filepath.Join(w.dir, "edge", "certs", "*.pem"))
		return len(files)
	}
	await.True(t, "22 certificates are on disk", func() bool { return certs() == 22 })
	info, err := os.Stat(filepath.Join(w.dir, "edge", "edge.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info.Mode(), err)
	}
	w.ctl.srv.Stop()
	if resp, body := get(t, w.client(false), "https://app3."+domain+"/"); resp.StatusCode != 200 || body != "hello" {
		t.Fatalf("controller down: %d %q", resp.StatusCode, body)
	}
	w.stop()
	w.startEdge(edge.Limits{})
	for _, app := range []string{"app3", "gone", "last"} {
		if resp, body := get(t, w.client(true), "https://"+app+"."+domain+"/"); resp.StatusCode != 200 || body != "hello" {
			t.Fatalf("restarted, controller down, %s: %d %q", app, resp.StatusCode, body)
		}
	}
	if w.metric("bulkhead_edge_routes_synced") != 0 {
		t.Error("the edge says that its routes are the controller's")
	}
	w.ctl.mu.Lock()
	delete(w.ctl.routes, "gone")
	w.ctl.mu.Unlock()
	w.ctl.start(t)
	await.True(t, "the edge follows again and has dropped the deleted app", func() bool {
		return w.metric("bulkhead_edge_routes_synced") == 1 && w.edge.RouteVersion("gone") == 0 && w.edge.RouteVersion("app3") != 0
	})
	await.True(t, "its certificate is gone", func() bool { return certs() == 21 })
	if w.ctl.issued["app3"] != 1 {
		t.Errorf("%d certificates made for app3, want 1", w.ctl.issued["app3"])
	}
}

// TestCertificateOnDemand: many handshakes that miss a certificate cost one call;
// one that the controller refuses fails the handshake.
func TestCertificateOnDemand(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	w.ctl.mu.Lock()
	w.ctl.refuse = true
	w.ctl.mu.Unlock()
	w.route("web", web(at(hello(t, "hello")))...)
	if c, err := tls.Dial("tcp", w.secure, w.tlsConfig("web")); err == nil {
		c.Close()
		t.Fatal("a handshake without a certificate")
	}
	w.ctl.mu.Lock()
	w.ctl.refuse = false
	w.ctl.mu.Unlock()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c, err := tls.Dial("tcp", w.secure, w.tlsConfig("web"))
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		})
	}
	wg.Wait()
	w.ctl.mu.Lock()
	defer w.ctl.mu.Unlock()
	if n := w.ctl.issued["web"]; n != 1 {
		t.Errorf("%d certificates issued, want 1", n)
	}
}

// TestHTTPOnTLSPort: a plain request gets a word instead of silence.
func TestHTTPOnTLSPort(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	c, err := net.Dial("tcp", w.secure)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web.%s\r\n\r\n", domain)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 400 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
}
