package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/api/internalpb"
)

// fuzzFront is an edge whose plain listener is fed connections in memory, with one app
// behind it that reads what it gets as strictly as the standard says.
type fuzzFront struct {
	s                           *Server
	hand                        *handoff
	entered                     atomic.Int64 // requests that net/http gave to the edge
	conns, handlers, apps, busy sync.WaitGroup
	mu                          sync.Mutex
	heads                       []string // heads that the app saw
	wrong                       []string
}

const fuzzDomain = "apps.example"

func newFuzzFront(f *testing.F) *fuzzFront {
	dir, err := os.MkdirTemp("", "bh-fuzz")
	if err != nil {
		f.Fatal(err)
	}
	x := &fuzzFront{s: New(), hand: newHandoff(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80})}
	s := x.s
	s.Domain, s.DataDir, s.HTTPPort, s.HTTPSPort, s.Region = fuzzDomain, dir, "80", "443", "test"
	s.Limits.BodyIdle, s.Limits.ReadIdle, s.Limits.ResponseTimeout = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	// The app has its end of a connection before the edge has the other: that it runs is
	// counted before anything can end it.
	s.Dial = func(context.Context, string) (net.Conn, error) {
		near, far, err := socketPair()
		if err == nil {
			x.apps.Go(func() { x.app(far) })
		}
		return near, err
	}
	if err := s.Open(); err != nil {
		f.Fatal(err)
	}
	s.table.Set(&internalpb.Route{App: "web", Services: []*internalpb.ServiceRoute{{
		Port: 80, Handlers: []string{"http"}, Backends: []*internalpb.Backend{{MachineId: "m1", Address: "192.0.2.1:80", SoftLimit: 1000}},
	}}})
	srv := s.httpServer(false)
	front := srv.Handler
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x.entered.Add(1)
		x.handlers.Add(1)
		defer x.handlers.Done()
		front.ServeHTTP(w, r)
	})
	srv.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed || state == http.StateHijacked {
			x.conns.Done()
		}
	}
	x.busy.Go(func() { srv.Serve(x.hand) })
	f.Cleanup(func() {
		x.hand.Close()
		srv.Close()
		s.Close()
		x.busy.Wait()
		os.RemoveAll(dir)
	})
	return x
}

// socketPair makes two ends of a connection that has buffers, as one over a network.
func socketPair() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ends := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, cerr := net.FileConn(f) // a descriptor of its own
		f.Close()
		ends[i], err = c, errors.Join(err, cerr)
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}

var requestLine = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+ /[^\\x00-\\x20\\x7f]* HTTP/1\\.1$")

// app reads requests, notes their heads, and answers each once.
func (x *fuzzFront) app(nc net.Conn) {
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(3 * time.Second))
	var raw bytes.Buffer
	br := bufio.NewReader(io.TeeReader(nc, &raw))
	for {
		var head []string
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
			head = append(head, line)
		}
		length, chunked := x.note(head)
		if chunked {
			r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"), br)))
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			io.WriteString(nc, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok") // the reader above may have read on
			return
		}
		if _, err := io.CopyN(io.Discard, br, length); err != nil {
			return
		}
		io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

// note checks a head: one way to read it, and nothing said in the edge's name but by
// the edge.
func (x *fuzzFront) note(head []string) (length int64, chunked bool) {
	whole, count := strings.Join(head, ""), map[string]int{}
	bad := func(why string) { x.wrong = append(x.wrong, fmt.Sprintf("%s: %q", why, whole)) }
	x.mu.Lock()
	defer x.mu.Unlock()
	x.heads = append(x.heads, whole)
	if len(head) == 0 {
		bad("an empty head")
		return 0, false
	}
	if !requestLine.MatchString(strings.TrimSuffix(head[0], "\r\n")) {
		bad("the request line")
	}
	for _, line := range head[1:] {
		name, value, ok := strings.Cut(line, ": ")
		if !ok || !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(strings.TrimSuffix(value, "\r\n"), "\r\n\x00") || strings.ContainsAny(name, " \t\r\n:") {
			bad("the line " + line)
		}
		value = strings.TrimSuffix(value, "\r\n")
		name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		count[name]++
		switch name {
		case "content-length":
			if _, err := fmt.Sscanf(value, "%d", &length); err != nil || length < 0 || fmt.Sprint(length) != value {
				bad("the length")
			}
		case "transfer-encoding":
			if chunked = value == "chunked"; !chunked {
				bad("the encoding")
			}
		case "host":
			if h, _, err := net.SplitHostPort(value); err == nil {
				value = h
			}
			if strings.ToLower(value) != "web."+fuzzDomain {
				bad("the host")
			}
		case "fly-client-ip", "x-forwarded-for":
			if !strings.HasPrefix(value, "192.0.2.9") {
				bad("the client's address")
			}
		case "upgrade", "proxy-authorization", "trailer", "te", "connection", "via":
		}
	}
	for _, once := range []string{"host", "fly-client-ip", "x-forwarded-for", "x-forwarded-proto", "fly-request-id", "via"} {
		if count[once] != 1 {
			bad(fmt.Sprintf("%d × %s", count[once], once))
		}
	}
	if count["content-length"]+count["transfer-encoding"] > 1 {
		bad("two lengths")
	}
	return length, chunked
}

// addressed is a connection from a client of its own address.
type addressed struct{ net.Conn }

func (addressed) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 999} }
func (addressed) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// send writes bytes as a client does and reads until the edge has no more to say.
func (x *fuzzFront) send(b []byte) {
	near, far := net.Pipe()
	c := x.s.newClient(addressed{far}, "http", false)
	if x.s.clients.add(c) != nil {
		near.Close()
		return
	}
	x.conns.Add(1)
	x.hand.give(c)
	// All that it caused has ended before the next one is tried.
	defer func() {
		x.conns.Wait()
		x.handlers.Wait()
		for _, target := range x.s.table.Lookup("web").HTTP.Targets {
			target.Pool.Drop()
		}
		x.apps.Wait()
	}()
	near.SetDeadline(time.Now().Add(5 * time.Second))
	answers := make(chan struct{}, 64)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		buf := make([]byte, 4096)
		for {
			n, err := near.Read(buf)
			if n > 0 {
				select {
				case answers <- struct{}{}:
				default:
				}
			}
			if err != nil {
				return
			}
		}
	}()
	near.Write(b)
	for wait := 2 * time.Millisecond; ; {
		select {
		case <-gone:
			return
		case <-answers:
		case <-time.After(wait):
			near.Close()
			<-gone
			return
		}
	}
}

// FuzzRequest sends bytes to the plain listener. What reaches the app is one request
// for each that the edge has seen, for this app, with one way to read it.
func FuzzRequest(f *testing.F) {
	host := "Host: web." + fuzzDomain + "\r\n"
	for _, s := range []string{
		"GET / HTTP/1.1\r\n" + host + "\r\n",
		"GET /a%2fb?x=1 HTTP/1.0\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"GET http://other.example/x HTTP/1.1\r\n" + host + "\r\n",
		"GET http://web." + fuzzDomain + "/x HTTP/1.1\r\nHost: evil\r\n\r\n",
		"GET //evil/ HTTP/1.1\r\n" + host + host + "\r\n",
		"GET / HTTP/1.1\r\n" + host + "Fly-Client-Ip: 1.1.1.1\r\nfly_client_ip: 1.1.1.1\r\nX-Forwarded-For: 1.1.1.1\r\nConnection: fly-client-ip, x-forwarded-for, host\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "Upgrade: websocket\r\nConnection: upgrade\r\n\r\nxyz",
		"GET / HTTP/1.1\r\n" + host + "Upgrade: h2c\r\nConnection: upgrade, http2-settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", "GET / HTTP/1.1\nHost: web." + fuzzDomain + "\n\n",
		"GET /\x00 HTTP/1.1\r\n" + host + "\r\n", "CONNECT web." + fuzzDomain + ":443 HTTP/1.1\r\n" + host + "\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", "GET / HTTP/1.1\r\nHost: WEB." + fuzzDomain + ":80\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
		"GET / HTTP/1.1\r\nHost: web." + fuzzDomain + ".\r\n\r\n", "GET / HTTP/1.1\r\nHost: a.web." + fuzzDomain + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: api." + fuzzDomain + "\r\n\r\n",
		"TRACE / HTTP/1.1\r\n" + host + "Max-Forwards: 0\r\nTE: trailers\r\nTrailer: Host, Content-Length\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	x := newFuzzFront(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 8<<10 {
			return
		}
		x.mu.Lock()
		x.heads, x.wrong = nil, nil
		x.mu.Unlock()
		before := x.entered.Load()
		x.send(b)
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, w := range x.wrong {
			t.Errorf("the app saw %s, of %q", w, b)
		}
		if entered := x.entered.Load() - before; int64(len(x.heads)) > entered*2 { // one that broke off may be sent again
			t.Errorf("the edge saw %d requests and the app %d: %q, of %q", entered, len(x.heads), x.heads, b)
		}
	})
}
