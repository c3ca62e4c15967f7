package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bulkhead/edge"
	"bulkhead/internal/await"
)

// rawBackend records what arrives, byte by byte, and answers every request that a
// simple reader of HTTP/1.1 sees in it.
type rawBackend struct {
	addr string
	mu   sync.Mutex
	reqs []string
	buf  bytes.Buffer
}

func newRawBackend(t *testing.T) *rawBackend {
	b := &rawBackend{}
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	b.addr = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(io.TeeReader(c, b))
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					body, err := io.ReadAll(r.Body)
					if err != nil {
						return // broken off: no request at all
					}
					b.mu.Lock()
					b.reqs = append(b.reqs, r.Method+" "+r.RequestURI+" "+string(body))
					b.mu.Unlock()
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}()
		}
	}()
	return b
}

// Write records.
func (b *rawBackend) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// take returns and forgets what came.
func (b *rawBackend) take() (reqs []string, raw string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	reqs, raw = b.reqs, b.buf.String()
	b.reqs = nil
	b.buf.Reset()
	return reqs, raw
}

// talk sends bytes over TLS with HTTP/1.1 and returns all that comes until the edge
// closes or is silent for a while after it has said something.
func (w *world) talk(app, say string) string {
	w.t.Helper()
	c, err := tls.Dial("tcp", w.secure, w.tlsConfig(app))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, say); err != nil {
		return ""
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	if err != nil {
		return string(b[:n])
	}
	c.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	rest, _ := io.ReadAll(c)
	return string(b[:n]) + string(rest)
}

// TestSmuggling: no bytes of a client make the app see a request that the edge did
// not see. Each attack that is answered closes the connection, so that the second
// request in it is never served.
func TestSmuggling(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	b := newRawBackend(t)
	w.route("web", web(at(b.addr))...)
	host := "Host: web." + domain + "\r\n"
	evil := "GET /evil HTTP/1.1\r\n" + host + "\r\n"
	for _, x := range []struct {
		name, say string
		status    string // of the first answer; "" allows any
		reqs      string // what the app may see, at most
	}{
		{"TE and CL", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + evil, "", "POST /a "},
		{"CL and TE", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + evil, "", "POST /a "},
		{"two different lengths", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + evil, "400", ""},
		{"a list of lengths", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 5, 6\r\n\r\nhello" + evil, "400", ""},
		{"a signed length", "POST /a HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello" + evil, "400", ""},
		{"a hex length", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\nhello" + evil, "400", ""},
		{"an empty length", "POST /a HTTP/1.1\r\n" + host + "Content-Length: \r\n\r\n" + evil, "400", ""},
		{"another coding", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + evil, "501", ""},
		{"identity", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello" + evil, "501", ""},
		{"TE twice", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + evil, "501", ""},
		{"TE with vertical tab", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + evil, "", ""},
		{"TE in HTTP/1.0", "POST /a HTTP/1.0\r\n" + host + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + evil, "", "POST /a "},
		{"space before the colon", "POST /a HTTP/1.1\r\n" + host + "Content-Length : 5\r\n\r\nhello" + evil, "400", ""},
		{"folded header", "GET /a HTTP/1.1\r\n" + host + "X-A: b\r\n Content-Length: 5\r\n\r\n", "", "GET /a "},
		{"folded first header", "GET /a HTTP/1.1\r\n X-A: b\r\n" + host + "\r\n", "400", ""},
		{"bare CR in a header", "GET /a HTTP/1.1\r\n" + host + "X-A: b\rX-B: c\r\n\r\n", "400", ""},
		{"NUL in a header", "GET /a HTTP/1.1\r\n" + host + "X-A: b\x00c\r\n\r\n", "400", ""},
		{"bad chunk size", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n" + evil, "400", ""},
		{"huge chunk size", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n" + evil, "400", ""},
		{"chunk longer than said", "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n" + evil, "400", ""},
		{"two hosts", "GET /a HTTP/1.1\r\n" + host + "Host: other." + domain + "\r\n\r\n", "400", ""},
		{"no host", "GET /a HTTP/1.1\r\n\r\n", "400", ""},
		{"another host in the target", "GET http://other." + domain + "/a HTTP/1.1\r\n" + host + "\r\n", "421", ""},
		{"absolute target", "GET http://web." + domain + "/a HTTP/1.1\r\nHost: other." + domain + "\r\n\r\n", "200", "GET /a "},
		{"no slash", "GET a HTTP/1.1\r\n" + host + "\r\n", "400", ""},
		{"CONNECT", "CONNECT evil:80 HTTP/1.1\r\nHost: evil:80\r\n\r\n", "405", ""},
		{"bad method", "GE\"T /a HTTP/1.1\r\n" + host + "\r\n", "400", ""},
		{"HTTP/0.9", "GET /a\r\n\r\n", "400", ""},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", ""},
		{"upgrade to h2c", "GET /a HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n", "200", "GET /a "},
		{"upgrade with a body", "POST /a HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello" + evil, "400", ""},
		// The control: honest pipelining passes, and the recorder would see an attack.
		{"control", "POST /a HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello" + evil, "200", "POST /a hello|GET /evil "},
	} {
		t.Run(x.name, func(t *testing.T) {
			got := w.talk("web", x.say)
			if x.name == "control" {
				await.True(t, "both requests have come", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.reqs) == 2 })
			}
			reqs, raw := b.take()
			if seen := strings.Join(reqs, "|"); seen != x.reqs {
				t.Errorf("the app sees %q, want %q; bytes %q", seen, x.reqs, raw)
			}
			if x.status != "" && !strings.HasPrefix(got, "HTTP/1.1 "+x.status) {
				t.Errorf("answer %.60q, want %s", got, x.status)
			}
			if x.name != "control" && strings.Contains(raw, "evil") {
				t.Errorf("the second request reached the app: %q", raw)
			}
			for _, h := range []string{"X-B:", "h2c", "Http2-Settings", "\n ", "\x0b"} {
				if strings.Contains(raw, h) {
					t.Errorf("%q reached the app: %q", h, raw)
				}
			}
		})
	}
}

// TestHTTP2Smuggling: what HTTP/2 lets through in a request line would be two
// requests, or another one, in HTTP/1.1.
func TestHTTP2Smuggling(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	b := newRawBackend(t)
	w.route("web", web(at(b.addr))...)
	for _, x := range []struct {
		name    string
		headers []string
		ok      bool
	}{
		{"space in the path", []string{":path", "/a HTTP/1.1"}, false},
		{"line break in the path", []string{":path", "/a\r\nX: y"}, false},
		{"space in the method", []string{":method", "GET /evil HTTP/1.1\r\n"}, false},
		{"line break in a header", []string{"x-a", "b\r\nX-B: c"}, false},
		{"transfer-encoding", []string{"transfer-encoding", "chunked"}, false},
		{"connection", []string{"connection", "close"}, false},
		{"upgrade", []string{"upgrade", "websocket"}, false},
		{"another authority", []string{":authority", "other." + domain}, false},
		{"two hosts", []string{"host", "other." + domain}, true}, // :authority wins, host is not forwarded
		{"control", []string{"x-a", "b"}, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			status := w.h2Request("web", x.headers...)
			reqs, raw := b.take()
			if (status == "200") != x.ok || (len(reqs) == 1) != x.ok {
				t.Errorf("status %q, the app sees %q", status, reqs)
			}
			if strings.Contains(raw, "X-B") || strings.Contains(raw, "other.") || strings.Contains(raw, "evil") {
				t.Errorf("the app gets %q", raw)
			}
		})
	}
}

// h2Request sends one GET with raw frames and returns :status, or the error that
// the edge ended the stream with.
func (w *world) h2Request(app string, change ...string) string {
	w.t.Helper()
	cfg := w.tlsConfig(app)
	cfg.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", w.secure, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	fields := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", app + "." + domain}, {":path", "/"}}
	for i := 0; i < len(change); i += 2 {
		found := false
		for k := range fields {
			if fields[k][0] == change[i] {
				fields[k][1], found = change[i+1], true
			}
		}
		if !found {
			fields = append(fields, [2]string{change[i], change[i+1]})
		}
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err.Error()
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return "reset " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			return "goaway " + f.ErrCode.String()
		}
	}
}

// TestOversized: headers beyond the limit are refused, one below it passes.
func TestOversized(t *testing.T) {
	w := newWorld(t, edge.Limits{MaxHeaderBytes: 32 << 10})
	w.route("web", web(at(hello(t, "hello")))...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		for size, want := range map[int]int{16 << 10: 200, 80 << 10: 431} {
			req, _ := http.NewRequest("GET", "https://web."+domain+"/", nil)
			req.Header.Set("X-Big", strings.Repeat("x", size))
			resp, err := w.client(h2).Do(req)
			if err != nil {
				if want == 200 {
					t.Errorf("%d bytes: %v", size, err)
				}
				continue // HTTP/2 clients refuse by the edge's setting already
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%d bytes: %d, want %d", size, resp.StatusCode, want)
			}
		}
	})
}

// TestSlowClients: whoever is slow in any phase is cut off, and does not keep
// others from being served.
func TestSlowClients(t *testing.T) {
	// Who is slow before TLS has an edge of its own: at the other the test's own
	// handshakes may take their time.
	hello := newWorld(t, edge.Limits{HelloTimeout: 300 * time.Millisecond})
	w := newWorld(t, edge.Limits{HeaderTimeout: 300 * time.Millisecond, ReadIdle: 300 * time.Millisecond,
		KeepAlive: 300 * time.Millisecond, WriteIdle: 500 * time.Millisecond})
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			b := make([]byte, 1<<20)
			for range 200 {
				if _, err := rw.Write(b); err != nil {
					return
				}
			}
			return
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(rw, "hello")
	})
	w.route("web", web(at(addr))...)
	tlsConn := func() net.Conn {
		c, err := tls.Dial("tcp", w.secure, w.tlsConfig("web"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plainConn := func(addr string) func() net.Conn {
		return func() net.Conn {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	host := "Host: web." + domain + "\r\n"
	for _, x := range []struct {
		name string
		dial func() net.Conn
		say  string
		drip string
	}{
		{"says nothing before TLS", plainConn(hello.secure), "", ""},
		{"drips a ClientHello", plainConn(hello.secure), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "x"},
		{"says nothing in TLS", tlsConn, "", ""},
		{"drips headers", tlsConn, "GET / HTTP/1.1\r\n" + host, "X: y\r\n"},
		{"drips headers in the clear", plainConn(w.plain), "GET / HTTP/1.1\r\n" + host, "X: y\r\n"},
		{"owes a body", tlsConn, "POST / HTTP/1.1\r\n" + host + "Content-Length: 100\r\n\r\nabc", ""},
		{"idles after a request", tlsConn, "GET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"takes no bytes", tlsConn, "GET /big HTTP/1.1\r\n" + host + "\r\n", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c := x.dial()
			defer c.Close()
			io.WriteString(c, x.say)
			if x.name == "takes no bytes" {
				await.True(t, "the edge has let go of the client", func() bool {
					return w.metric(`bulkhead_edge_requests_total{code="aborted",http="1",scheme="https"}`) > 0
				})
				return
			}
			stop := make(chan struct{})
			defer close(stop)
			if x.drip != "" {
				go func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(50 * time.Millisecond):
							io.WriteString(c, x.drip)
						}
					}
				}()
			}
			c.SetReadDeadline(time.Now().Add(8 * time.Second)) // less than what the edge has by default
			_, err := io.Copy(io.Discard, c)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection is still open after 8 s")
			}
		})
	}
}

// TestConnectionLimits: one address cannot take more than its share.
func TestConnectionLimits(t *testing.T) {
	w := newWorld(t, edge.Limits{MaxConns: 100, MaxConnsPerAddr: 5})
	w.route("web", web(at(hello(t, "hello")))...)
	open := 0
	for range 8 {
		c, err := tls.Dial("tcp", w.secure, w.tlsConfig("web"))
		if err == nil {
			open++
			defer c.Close()
		}
	}
	if open != 5 || w.metric(`bulkhead_edge_refused_total{reason="full_address"}`) != 3 {
		t.Errorf("%d connections open, want 5", open)
	}
}

// TestBackendPoison: bytes that an app sends after its response are not taken for
// the answer to the next request, which may be another user's.
func TestBackendPoison(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	l := listen(t)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	// The client has its answer before the poison comes, and asks again after that.
	answered, poisoned := make(chan struct{}), make(chan struct{})
	step := func(send, receive chan struct{}) {
		select {
		case send <- struct{}{}:
		case <-receive:
		case <-ctx.Done():
		}
	}
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.URL.Path), r.URL.Path)
					step(nil, answered)
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
					step(poisoned, nil)
				}
			}()
		}
	}()
	w.route("web", web(at(l.Addr().String()))...)
	c := w.client(false)
	for i := range 10 {
		path := fmt.Sprintf("/%d", i)
		if _, body := get(t, c, "https://web."+domain+path); body != path {
			t.Fatalf("asked for %s, got %q", path, body)
		}
		step(answered, nil)
		step(nil, poisoned)
	}
	if ctx.Err() != nil {
		t.Error("the poison did not come in 40 s")
	}
}
