package edge_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/edge"
	"bulkhead/internal/await"
)

// TestLateBody: a body that comes long after its head reaches an app that closes idle
// connections almost at once. The app sees the head before the body, and each request once.
func TestLateBody(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	var heads sync.Map // path → chan struct{}, closed when the app has the head
	l := listen(t)
	srv := &http.Server{IdleTimeout: 2 * time.Millisecond, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if c, ok := heads.Load(r.URL.Path); ok {
			close(c.(chan struct{}))
		}
		b, err := io.ReadAll(r.Body)
		fmt.Fprint(rw, string(b), err)
	})}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	w.route("web", web(at(l.Addr().String()))...)
	h2 := web(at(l.Addr().String()))
	h2[1].H2Backend = true
	w.route("grpc", h2...)
	bothVersions(t, func(t *testing.T, h2 bool) {
		c := w.client(h2)
		for _, app := range []string{"web", "grpc"} {
			for i := range 40 {
				path := fmt.Sprintf("/%s/%v/%d", app, h2, i)
				seen := make(chan struct{})
				heads.Store(path, seen)
				pr, pw := io.Pipe()
				late := make(chan error, 1)
				go func() {
					select {
					case <-seen:
					case <-time.After(10 * time.Second):
						late <- fmt.Errorf("the head did not reach the app before the body")
					}
					time.Sleep(time.Duration(10+i%4*10) * time.Millisecond) // how late the body is
					io.WriteString(pw, "body")
					pw.Close()
					close(late)
				}()
				req, _ := http.NewRequest("POST", "https://"+app+"."+domain+path, pr)
				if req.ContentLength = 4; i%2 == 1 {
					req.ContentLength = -1
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 || string(b) != "body<nil>" {
					t.Errorf("%s: %d %q", path, resp.StatusCode, b)
				}
				if err := <-late; err != nil {
					t.Fatalf("%s: %v", path, err)
				}
			}
		}
	})
}

// closer is an app that closes a given number of connections instead of answering.
type closer struct {
	addr  string
	seen  atomic.Int64 // heads
	close atomic.Int64 // how many to answer with a close
	stale atomic.Bool  // close only what was used before
}

func newCloser(t *testing.T) *closer {
	c := &closer{}
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	c.addr = l.Addr().String()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(nc)
		}
	}()
	return c
}

func (c *closer) serve(nc net.Conn) {
	defer nc.Close()
	br := bufio.NewReader(nc)
	for n := 0; ; n++ {
		var length int
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = br.ReadString('\n'); err != nil {
				return
			}
			fmt.Sscanf(line, "Content-Length: %d", &length)
		}
		c.seen.Add(1)
		if (n > 0 || !c.stale.Load()) && c.close.Add(-1) >= 0 {
			return
		}
		if _, err := io.CopyN(io.Discard, br, int64(length)); err != nil {
			return
		}
		io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

// TestResend: a request that an app may have got is sent once more at most, and only if
// its method allows it or its body was not begun. The client gets an answer soon.
func TestResend(t *testing.T) {
	bothVersions(t, func(t *testing.T, h2 bool) {
		for _, x := range []struct {
			name, method, body string
			stale              bool  // the app closes only connections that it has answered on
			closes             int64 // how often
			seen               int64
			status             int
		}{
			{"an app that closes every GET", "GET", "", false, 100, 1, 502},
			{"an app that closes every PUT", "PUT", "body", false, 100, 1, 502},
			{"an app that closes every POST", "POST", "body", false, 100, 1, 502},
			{"a GET on a connection that goes stale", "GET", "", true, 1, 2, 200},
			{"a DELETE on a connection that goes stale", "DELETE", "", true, 1, 2, 200},
			{"a PUT on a connection that goes stale", "PUT", "body", true, 1, 2, 200},
			{"a POST that the app may have carried out", "POST", "", true, 1, 1, 502},
		} {
			t.Run(x.name, func(t *testing.T) {
				t.Parallel()
				w, app := newWorld(t, edge.Limits{}), newCloser(t)
				w.route("web", web(at(app.addr))...)
				c := w.client(h2)
				if x.stale {
					get(t, c, "https://web."+domain+"/") // leaves a connection in the pool
					await.True(t, "the connection is idle", func() bool { return w.metric("bulkhead_edge_requests_in_flight") == 0 })
				}
				app.stale.Store(x.stale)
				app.close.Store(x.closes)
				app.seen.Store(0)
				began := time.Now()
				req, _ := http.NewRequest(x.method, "https://web."+domain+"/", strings.NewReader(x.body))
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				took := time.Since(began)
				if resp.StatusCode != x.status || app.seen.Load() != x.seen {
					t.Errorf("status %d, the app saw it %d times; want %d and %d", resp.StatusCode, app.seen.Load(), x.status, x.seen)
				}
				if resp.StatusCode != 200 && resp.Header.Get("Bulkhead-Error") != "PC04" && resp.Header.Get("Bulkhead-Error") != "PC03" {
					t.Errorf("code %q, want PC04, or PC03 after a reset", resp.Header.Get("Bulkhead-Error"))
				}
				if took > 5*time.Second { // 300 ms, on a machine that is not busy
					t.Errorf("the answer took %v", took)
				}
			})
		}
	})
}

// TestPoisonousRequest: a request that ends whatever takes it does not end every Machine.
func TestPoisonousRequest(t *testing.T) {
	for n := 1; n <= 4; n++ {
		t.Run(fmt.Sprint(n, " machines"), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, edge.Limits{})
			var dead atomic.Int64
			var addrs []string
			for range n {
				srv := &http.Server{}
				srv.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/poison" {
						dead.Add(1)
						go srv.Close()
						panic(http.ErrAbortHandler)
					}
					io.WriteString(rw, "alive")
				})
				l := listen(t)
				go srv.Serve(l)
				t.Cleanup(func() { srv.Close() })
				addrs = append(addrs, l.Addr().String())
			}
			services := web()
			for _, a := range addrs {
				services[1].Backends = append(services[1].Backends, at(a))
			}
			w.route("web", services[1])
			c := w.client(false)
			resp, _ := get(t, c, "https://web."+domain+"/poison")
			if resp.StatusCode != 502 {
				t.Errorf("status %d", resp.StatusCode)
			}
			if most := int64(max(1, min(2, n-1))); dead.Load() > most {
				t.Errorf("one request ended %d of %d machines, want at most %d", dead.Load(), n, most)
			}
			if resp, body := get(t, c, "https://web."+domain+"/"); n > 1 && (resp.StatusCode != 200 || body != "alive") {
				t.Errorf("after it: %d %q", resp.StatusCode, body)
			}
		})
	}
}

// TestResendKeepsTheBody: what was read of a body for a connection that had gone stale is
// sent whole over the next one.
func TestResendKeepsTheBody(t *testing.T) {
	w := newWorld(t, edge.Limits{})
	var mu sync.Mutex
	var bodies []string
	var conns atomic.Int64
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			first := conns.Add(1) == 1
			go func() {
				defer nc.Close()
				br := bufio.NewReader(nc)
				for n := 0; ; n++ {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					b, _ := io.ReadAll(r.Body)
					if first && n == 1 {
						return // it took the request and gives no answer
					}
					mu.Lock()
					bodies = append(bodies, string(b))
					mu.Unlock()
					io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}()
		}
	}()
	w.route("web", web(at(l.Addr().String()))...)
	c := w.client(false)
	get(t, c, "https://web."+domain+"/")
	await.True(t, "the connection is idle", func() bool { return w.metric("bulkhead_edge_requests_in_flight") == 0 })
	body := strings.Repeat("0123456789", 2000)
	for _, length := range []int64{int64(len(body)), -1} {
		req, _ := http.NewRequest("PUT", "https://web."+domain+"/", io.NopCloser(strings.NewReader(body)))
		req.ContentLength = length
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("length %d: %d", length, resp.StatusCode)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(bodies) != 3 || bodies[1] != body || bodies[2] != body {
		t.Errorf("%d bodies came, the second has %d bytes", len(bodies), len(bodies[min(1, len(bodies)-1)]))
	}
}

// TestSlowBodyIsAnswered: a client whose body does not come gets an answer before the
// connection is closed.
func TestSlowBodyIsAnswered(t *testing.T) {
	w := newWorld(t, edge.Limits{ReadIdle: 100 * time.Millisecond})
	w.route("web", web(at(hello(t, "hello")))...)
	silent := serve(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	w.route("silent", web(at(silent))...)
	for _, say := range []string{"", "abc"} {
		c, err := tls.Dial("tcp", w.secure, w.tlsConfig("silent"))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: silent."+domain+"\r\nContent-Length: 100\r\n\r\n"+say)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 408 || !resp.Close {
			t.Errorf("after %q: %v, %v; want 408", say, resp, err)
		}
		c.Close()
	}
}
