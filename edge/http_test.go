package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/edge"
)

// TestHeaders shows what an app is told about a request, and that no client can
// say it in the edge's place.
func TestHeaders(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	var got atomic.Pointer[http.Request]
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		got.Store(r)
		rw.Header().Set("Connection", "X-Hop")
		rw.Header().Set("X-Hop", "1")
		rw.Header().Set("X-App", "yes")
		io.WriteString(rw, "hello")
	})
	w.route("web", web(at(addr))...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		req, _ := http.NewRequest("GET", "https://web."+domain+"/a%2fb?x=1&y=%20", nil)
		spoofs := []string{"Fly-Client-Ip", "Fly-Region", "Fly-Request-Id", "Fly-Src", "Fly_client_ip", "X_forwarded_for", "X-Forwarded-For",
			"X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Anything", "X-Real-Ip", "Forwarded"}
		for _, h := range spoofs {
			req.Header[h] = []string{"spoofed"}
		}
		req.Header.Set("Via", "1.0 elder")
		req.Header.Set("Proxy-Authorization", "secret")
		req.Header.Set("Cookie", "a=b")
		if !h2 {
			req.Header.Set("Connection", "X-Client-Hop, Fly-Client-Ip, X-Forwarded-For")
			req.Header.Set("X-Client-Hop", "1")
		}
		resp, err := w.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		r := got.Load()
		_, port, _ := strings.Cut(w.secure, ":")
		want := map[string]string{
			"Fly-Client-Ip": "127.0.0.1", "X-Forwarded-For": "127.0.0.1, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Port": port,
			"X-Forwarded-Ssl": "on", "Fly-Forwarded-Port": port, "Fly-Region": "test", "Fly-Request-Id": resp.Header.Get("Fly-Request-Id"),
			"Via": map[bool]string{false: "1.0 elder, 1.1 bulkhead", true: "1.0 elder, 2 bulkhead"}[h2], "Cookie": "a=b",
		}
		for k, v := range want {
			if r.Header.Get(k) != v || len(r.Header[k]) != 1 {
				t.Errorf("the app sees %s %q, want %q", k, r.Header[k], v)
			}
		}
		for _, k := range []string{"X-Forwarded-Host", "X-Forwarded-Anything", "X-Real-Ip", "Forwarded", "Fly-Src", "Fly_client_ip", "X_forwarded_for", "Proxy-Authorization", "X-Client-Hop"} {
			if r.Header[k] != nil {
				t.Errorf("the app sees %s %q", k, r.Header[k])
			}
		}
		if r.Host != "web."+domain || r.RequestURI != "/a%2fb?x=1&y=%20" {
			t.Errorf("the app sees host %q, target %q", r.Host, r.RequestURI)
		}
		if resp.StatusCode != 200 || string(body) != "hello" || resp.Header.Get("X-App") != "yes" || resp.Header.Get("X-Hop") != "" {
			t.Errorf("the client sees %d %q %v", resp.StatusCode, body, resp.Header)
		}
		if len(resp.Header.Get("Fly-Request-Id")) != 26 || resp.Header.Get("Server") != "bulkhead" || resp.Header.Get("Via") != "1.1 bulkhead" {
			t.Errorf("the edge's own headers: %v", resp.Header)
		}
	})
}

// TestPlainListener: an app with HTTP on port 80 is served there, others are sent
// to https, and so is the API.
func TestPlainListener(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.Header.Get("X-Forwarded-Proto")) })
	w.route("web", web(at(addr))...)
	forced := web(at(addr))
	forced[0].ForceHttps = true
	w.route("forced", forced...)
	w.route("only443", web(at(addr))[1])
	c := w.client(false)
	for _, x := range []struct {
		app, host  string
		status     int
		body, dest string
	}{
		{host: "web", status: 200, body: "http"},
		{host: "forced", status: 301, dest: "https://forced." + domain},
		{host: "only443", status: 301, dest: "https://only443." + domain},
		{host: "api", status: 301, dest: "https://api." + domain},
		{host: "registry", status: 301, dest: "https://registry." + domain},
		{host: "nobody", status: 404, body: "no app at this address"},
		{host: "a.b", status: 404, body: "no app at this address"},
	} {
		resp, body := get(t, c, "http://"+x.host+"."+domain+"/p?q=1")
		_, port, _ := strings.Cut(w.secure, ":")
		if x.dest != "" {
			x.dest += ":" + port + "/p?q=1"
		}
		if resp.StatusCode != x.status || resp.Header.Get("Location") != x.dest || !strings.HasPrefix(body, x.body) {
			t.Errorf("%s: %d %q %q", x.host, resp.StatusCode, resp.Header.Get("Location"), body)
		}
	}
}

// TestErrors: what the edge says by itself.
func TestErrors(t *testing.T) {
	w := newWorld(t, edge.Limits{RetryFor: 100 * time.Millisecond})
	impatient := newWorld(t, edge.Limits{ResponseTimeout: 300 * time.Millisecond})
	deadAddr, _ := refusing(t)
	hang := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	junk, header := tcpServer(t, "SSH-2.0-OpenSSH\r\n"), tcpServer(t, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 300<<10)+"\r\n\r\n")
	w.route("stopped", web()...)
	w.route("dead", web(at(deadAddr))...)
	impatient.route("hang", web(at(hang))...)
	w.route("junk", web(at(junk))...)
	w.route("header", web(at(header))...)
	w.route("empty", &internalpb.ServiceRoute{Port: 443, Handlers: []string{"tls", "http"}})
	bothVersions(t, func(t *testing.T, h2 bool) {
		clients := map[bool]*http.Client{false: w.client(h2), true: impatient.client(h2)}
		for _, x := range []struct {
			app        string
			status     int
			code, text string
		}{
			{"stopped", 503, "PR01", "app stopped has no running machine"},
			{"empty", 503, "PR01", "app empty has no running machine"},
			{"dead", 502, "PC01", "refuses connections"},
			{"hang", 504, "PC05", "did not answer in time"},
			{"junk", 502, "PU02", "not HTTP"},
			{"header", 502, "PU02", "too large"},
		} {
			resp, body := get(t, clients[x.app == "hang"], "https://"+x.app+"."+domain+"/")
			if resp.StatusCode != x.status || resp.Header.Get("Bulkhead-Error") != x.code || !strings.Contains(body, x.text) || !strings.Contains(body, resp.Header.Get("Fly-Request-Id")) {
				t.Errorf("%s: %d %s %q", x.app, resp.StatusCode, resp.Header.Get("Bulkhead-Error"), body)
			}
		}
	})
	if n := w.metric(`bulkhead_edge_errors_total{code="PC01"}`); n != 2 {
		t.Errorf("%v connection refusals counted, want 2", n)
	}
}

// tcpServer says the same to everybody.
func tcpServer(t *testing.T, say string) string {
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, say)
			}()
		}
	}()
	return l.Addr().String()
}

// TestLargeBodies sends 16 MiB there and back, with and without a length, and
// compares digests.
func TestLargeBodies(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	echo := func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex()
		if r.ContentLength > 0 {
			rw.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		io.Copy(rw, r.Body)
	}
	addr := serve(t, echo)
	w.route("web", web(at(addr))...)
	h2 := web(at(addr))
	h2[0].H2Backend, h2[1].H2Backend = true, true
	w.route("grpc", h2...)
	data := make([]byte, 6<<20) // more than any window or buffer on the way
	rand.Read(data)
	want := sha256.Sum256(data)
	bothVersions(t, func(t *testing.T, h2 bool) {
		for _, app := range []string{"web", "grpc"} {
			for _, length := range []int64{int64(len(data)), -1} {
				req, _ := http.NewRequest("POST", "https://"+app+"."+domain+"/", io.NopCloser(bytes.NewReader(data)))
				req.ContentLength = length
				resp, err := w.client(h2).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				sum := sha256.New()
				n, err := io.Copy(sum, resp.Body)
				resp.Body.Close()
				if err != nil || [32]byte(sum.Sum(nil)) != want {
					t.Errorf("%s, length %d: %d bytes came back, %v", app, length, n, err)
				}
			}
		}
	})
}

// TestStreaming: single bytes go both ways at once, without waiting for more.
func TestStreaming(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		rc.EnableFullDuplex()
		rc.Flush()
		b := make([]byte, 1)
		for {
			if n, err := r.Body.Read(b); err != nil && n == 0 {
				return
			}
			rw.Write(bytes.ToUpper(b))
			rc.Flush()
		}
	})
	w.route("web", web(at(addr))...)
	h2 := web(at(addr))
	h2[1].H2Backend = true
	w.route("grpc", h2...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		for _, app := range []string{"web", "grpc"} {
			pr, pw := io.Pipe()
			req, _ := http.NewRequest("POST", "https://"+app+"."+domain+"/", pr)
			resp, err := w.client(h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []byte("stream") {
				pw.Write([]byte{c})
				b := make([]byte, 1)
				if _, err := io.ReadFull(resp.Body, b); err != nil || b[0] != c-32 {
					t.Fatalf("%s: sent %q, got %q, %v", app, c, b, err)
				}
			}
			pw.Close()
			if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
				t.Fatalf("%s: at the end %q, %v", app, rest, err)
			}
			resp.Body.Close()
		}
	})
}

// TestTrailers: trailers pass in both directions.
func TestTrailers(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	var got atomic.Pointer[http.Header]
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "X-Sum")
		io.Copy(io.Discard, r.Body)
		tr := r.Trailer.Clone()
		got.Store(&tr)
		io.WriteString(rw, "body")
		rw.Header().Set("X-Sum", "42")
		rw.Header().Set(http.TrailerPrefix+"X-Late", "7")
	})
	w.route("web", web(at(addr))...)
	h2 := web(at(addr))
	h2[1].H2Backend = true
	w.route("grpc", h2...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		for _, app := range []string{"web", "grpc"} {
			req, _ := http.NewRequest("POST", "https://"+app+"."+domain+"/", io.NopCloser(strings.NewReader("upload")))
			req.ContentLength = -1
			req.Header.Set("Te", "trailers")
			req.Trailer = http.Header{"X-Up": {"1"}, "Fly-Client-Ip": {"6.6.6.6"}}
			resp, err := w.client(h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "7" {
				t.Errorf("%s: the client gets trailers %v", app, resp.Trailer)
			}
			if up := *got.Load(); up.Get("X-Up") != "1" || up.Get("Fly-Client-Ip") != "" {
				t.Errorf("%s: the app gets trailers %v", app, up)
			}
		}
	})
}

// TestExpectContinue: a body is asked of the client only when the app asks for it,
// and a refusal reaches the client without the body.
func TestExpectContinue(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			rw.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		b, _ := io.ReadAll(r.Body)
		fmt.Fprint(rw, len(b))
	})
	w.route("web", web(at(addr))...)
	c := w.client(false)
	for _, x := range []struct {
		path      string
		status    int
		continued bool
	}{{"/take", 200, true}, {"/refuse", 413, false}, {"/take", 200, true}} {
		continued, sent := false, &countReader{r: strings.NewReader(strings.Repeat("x", 1000))}
		req, _ := http.NewRequest("PUT", "https://web."+domain+x.path, sent)
		req.ContentLength = 1000
		req.Header.Set("Expect", "100-continue")
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got100Continue: func() { continued = true }})
		resp, err := c.Do(req.WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != x.status || continued != x.continued || (sent.n.Load() > 0) != x.continued {
			t.Errorf("%s: %d, continued %v, %d bytes sent", x.path, resp.StatusCode, continued, sent.n.Load())
		}
	}
}

type countReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// TestEarlyHints: interim responses pass.
func TestEarlyHints(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Link", "</a.css>; rel=preload")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.Header().Del("Link")
		io.WriteString(rw, "done")
	})
	w.route("web", web(at(addr))...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		hint := ""
		req, _ := http.NewRequest("GET", "https://web."+domain+"/", nil)
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hint = fmt.Sprint(code, " ", h.Get("Link"))
			return nil
		}})
		resp, err := w.client(h2).Do(req.WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if hint != "103 </a.css>; rel=preload" || string(b) != "done" || resp.Header.Get("Link") != "" {
			t.Errorf("hint %q, body %q, link %q", hint, b, resp.Header.Get("Link"))
		}
	})
}

// TestBackendDies: a body that breaks off is seen to be broken by the client, and a
// request whose connection had gone stale is sent again.
func TestBackendDies(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	cut := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			rw.Header().Set("Content-Length", "1000000")
		}
		rw.Write(make([]byte, 1000))
		http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	})
	w.route("cut", web(at(cut))...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		for _, path := range []string{"/length", "/chunked"} {
			resp, err := w.client(h2).Get("https://cut." + domain + path)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err == nil {
				t.Errorf("%s: %d bytes of a broken body look whole", path, n)
			}
		}
	})
}

// TestReuse: connections to the client and to the app are used again.
func TestReuse(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	addr := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		rw.Write(b)
	})
	w.route("web", web(at(addr))...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		accepted, dials := w.metric(`bulkhead_edge_accepted_total{kind="https"}`), w.metric("bulkhead_edge_backend_dials_total")
		c := w.client(h2)
		for i := range 50 {
			body := strings.Repeat("x", i*100)
			resp, err := c.Post("https://web."+domain+"/", "text/plain", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) != body {
				t.Fatalf("request %d: %d bytes back, want %d", i, len(b), len(body))
			}
		}
		if n := w.metric(`bulkhead_edge_accepted_total{kind="https"}`) - accepted; n != 1 {
			t.Errorf("%v client connections for 50 requests", n)
		}
		if n := w.metric("bulkhead_edge_backend_dials_total") - dials; n > 10 { // a new request may overtake the return of a connection
			t.Errorf("%v connections to the app for 50 requests", n)
		}
	})
}
