package edge

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// http1Conn is a client's connection that net/http serves HTTP/1.1 on. A request that
// net/http cannot read never reaches the edge: net/http answers it by itself. The edge
// gives its own answer in the place of that one, and counts it.
type http1Conn struct {
	net.Conn
	srv   *Server
	https bool
	// entered says that the edge has the request which was read last: what is written
	// is its answer.
	entered atomic.Bool
}

// unread is what the edge says of a request that could not be read, by net/http's status.
var unread = map[int]string{
	http.StatusBadRequest:                  "the request is malformed",
	http.StatusExpectationFailed:           "this expectation cannot be met",
	http.StatusRequestHeaderFieldsTooLarge: "the request's header is too large",
	http.StatusNotImplemented:              "this transfer coding is not known",
	http.StatusHTTPVersionNotSupported:     "this version of HTTP is not spoken here",
}

// Write passes on what the edge answers, and replaces what net/http answers.
func (c *http1Conn) Write(b []byte) (int, error) {
	const line = len("HTTP/1.1 400")
	if c.entered.Load() || len(b) < line {
		return c.Conn.Write(b)
	}
	code, err := strconv.Atoi(string(b[line-3 : line]))
	text, known := unread[code]
	if err != nil || !known {
		return c.Conn.Write(b)
	}
	c.entered.Store(true) // one answer
	c.srv.m.errors.WithLabelValues("PU04").Inc()
	c.srv.m.count(c.https, false, code)
	id := newRequestID(time.Now())
	body := text + " (PU04, request " + id + ")\n"
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: %d\r\n", code, http.StatusText(code), len(body))
	_ = ownHeaders("PU04", id).Write(&head) // a strings.Builder takes all
	if _, err := c.Conn.Write([]byte(head.String() + "\r\n" + body)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// CloseWrite ends the direction to the client.
func (c *http1Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// anotherRead notes that another request is read: an http.Server.ConnState. A connection is
// not called active again for a request that came with the one before, but idle before it.
func anotherRead(nc net.Conn, state http.ConnState) {
	if c, ok := nc.(*http1Conn); ok && (state == http.StateActive || state == http.StateIdle) {
		c.entered.Store(false)
	}
}

// http1 wraps a connection on which the client speaks HTTP/1.1.
func (s *Server) http1(nc net.Conn, https bool) net.Conn {
	if t, ok := nc.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
		return nc
	}
	return &http1Conn{Conn: nc, srv: s, https: https}
}

// ownHeaders are the headers of every answer that the edge itself gives.
func ownHeaders(code, id string) http.Header {
	return http.Header{
		"Content-Type":           {"text/plain; charset=utf-8"},
		"Cache-Control":          {"no-store"},
		"X-Content-Type-Options": {"nosniff"},
		"Fly-Request-Id":         {id},
		"Bulkhead-Error":         {code},
		"Server":                 {"bulkhead"},
	}
}
