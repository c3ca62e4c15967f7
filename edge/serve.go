package edge

import (
	"context"
	"crypto/tls"
	"encoding/base32"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"bulkhead/edge/route"
	"bulkhead/edge/upstream"
)

// clientKey is the context key of a request's client.
type clientKey struct{}

// client is the connection that a request came on.
type client struct {
	conn  *clientConn
	http1 *http1Conn // nil for HTTP/2
}

// withClient is an http.Server.ConnContext that remembers the client.
func withClient(ctx context.Context, nc net.Conn) context.Context {
	var from client
	if c, ok := nc.(*http1Conn); ok {
		from.http1, nc = c, c.Conn
	}
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	from.conn, _ = nc.(*clientConn)
	return context.WithValue(ctx, clientKey{}, from)
}

// front is the http.Handler of one listener.
type front struct {
	s     *Server
	https bool
}

// request is one request on its way through the edge.
type request struct {
	s     *Server
	w     http.ResponseWriter
	r     *http.Request
	c     *clientConn
	https bool
	host  string // as hostName gives it
	app   string
	// target is the request target as the Machine gets it.
	target string
	id     string
	status int // of the answer; 0 until one is sent, and when it is cut off

	origin upstream.Origin
	hop    upstream.Hop
	upload *upload // nil for a request without a body

	sends   int    // how often a Machine may have got it without answering
	broke   broken // the first time
	stopped bool   // because somebody stops that Machine
}

// ServeHTTP checks a request and serves it.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	s := f.s
	q := &request{s: s, w: w, r: r, https: f.https, id: newRequestID(start)}
	from, _ := r.Context().Value(clientKey{}).(client)
	if q.c = from.conn; from.http1 != nil {
		from.http1.entered.Store(true)
	}
	s.m.inflight.Inc()
	defer func() {
		s.m.inflight.Dec()
		s.m.duration.Observe(time.Since(start).Seconds())
		s.m.count(f.https, r.ProtoMajor == 2, q.status)
	}()
	if fail := q.check(); fail != nil {
		q.fail(fail)
		return
	}
	if f.https {
		q.forward(func(a *route.App) *route.Service { return a.HTTPS })
		return
	}
	q.servePlain()
}

// check finds the app and refuses what must not reach it.
func (q *request) check() *failure {
	r := q.r
	q.host = hostName(r.Host)
	app, ok := q.s.appOf(q.host)
	q.app = app
	switch {
	case r.Method == http.MethodConnect || !httpguts.ValidHeaderFieldName(r.Method):
		return &failure{status: 405, code: "PU04", text: "this method is not forwarded"}
	case !strings.HasPrefix(r.RequestURI, "/") && !absolute(r.RequestURI) || !printableTarget(r.RequestURI):
		return &failure{status: 400, code: "PU04", text: "the request target is malformed"}
	case q.https && (!ok || q.c == nil || app != q.c.app):
		return &failure{status: 421, code: "PM06", text: "this connection is for another host name"}
	case !ok:
		return nil // the plain listener redirects the API's names too
	}
	if name, port := splitPort(r.Host); name != q.host {
		r.Host = q.host + port // an app knows its name in one form
	}
	q.target = r.RequestURI
	if !strings.HasPrefix(q.target, "/") {
		q.target = r.URL.RequestURI()
	}
	if r.ProtoMajor == 1 && (r.ProtoMinor == 0 || len(r.TransferEncoding) > 0) {
		// Two ways to read one connection begin where a peer may see another end of a
		// body: HTTP/1.0 knows no chunks, and a Content-Length beside a
		// Transfer-Encoding (which net/http drops, unseen) must not be followed by
		// another request (RFC 9112 section 6.1).
		q.w.Header().Set("Connection", "close")
	}
	return nil
}

// absolute reports whether a request target is in absolute form.
func absolute(target string) bool {
	return strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://")
}

// printableTarget refuses what could end a request line: HTTP/2 allows a space in
// :path, HTTP/1.1 does not.
func printableTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// servePlain answers on the plain listener: an app that has HTTP on port 80 is
// served there, everything else below the domain is sent to https.
func (q *request) servePlain() {
	a := q.s.table.Lookup(q.app)
	switch {
	case q.host == "api."+q.s.Domain || q.host == "registry."+q.s.Domain || q.host == q.s.Domain:
		q.redirect()
	case q.app == "" || a == nil:
		q.fail(&failure{status: 404, code: "PM06", text: "no app at this address"})
	case a.HTTP != nil && a.HTTP.Web && !a.HTTP.ForceHTTPS:
		q.forward(func(a *route.App) *route.Service { return a.HTTP })
	case a.HTTP != nil && !a.HTTP.Web && !a.HTTP.TLS && a.HTTPS == nil:
		q.fail(&failure{status: 502, code: "PU04", text: "app " + q.app + " does not speak HTTP"})
	default:
		q.redirect()
	}
}

// redirect sends the client to https: 301, as Fly does.
func (q *request) redirect() {
	h := q.w.Header()
	h["Location"] = []string{q.s.publicURL(q.host, q.r.RequestURI)}
	h["Fly-Request-Id"] = []string{q.id}
	h["Content-Length"] = []string{"0"}
	q.status = http.StatusMovedPermanently
	q.w.WriteHeader(q.status)
}

// fail answers with the edge's own words.
func (q *request) fail(f *failure) {
	s := q.s
	s.m.errors.WithLabelValues(f.code).Inc()
	if f.status >= 500 {
		s.tell(q.app, f)
	}
	if f.status == 0 {
		panic(http.ErrAbortHandler)
	}
	body := f.text + " (" + f.code + ", request " + q.id + ")\n"
	h := q.w.Header()
	clear(h)
	maps.Copy(h, ownHeaders(f.code, q.id))
	if f.status == http.StatusNotFound && wantsPage(q.r) {
		body = notFoundPage
		asPage(h)
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if f.status == 503 {
		h["Retry-After"] = []string{"1"}
	}
	if q.r.ProtoMajor == 1 && (f.status == 400 || f.status == 408 || q.r.ContentLength != 0 || q.r.ProtoMinor == 0) {
		h["Connection"] = []string{"close"}
	}
	q.status = f.status
	q.w.WriteHeader(f.status)
	if q.r.Method != http.MethodHead {
		_, _ = q.w.Write([]byte(body))
	}
}

// fill sets what the Machine is told about the request.
func (q *request) fill() {
	s := q.s
	o := &q.origin
	if q.c != nil {
		o.ClientIP, o.ForwardedFor = q.c.clientIP, q.c.forwardedFor
	}
	o.Proto, o.Port = "http", s.HTTPPort
	if q.https {
		o.Proto, o.Port = "https", s.HTTPSPort
	}
	o.Region = s.Region
	o.Via = via(q.r.ProtoMajor)
	o.RequestID = q.id
	q.hop = upstream.HopOf(q.r.Header)
}

func via(major int) string {
	if major == 2 {
		return "2 bulkhead"
	}
	return "1.1 bulkhead"
}

var idEncoding = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// newRequestID returns 26 characters that sort by time, as a ULID does. They name a
// request in logs and are no secret.
func newRequestID(now time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16|rand.Uint64()&0xffff)
	binary.BigEndian.PutUint64(b[8:], rand.Uint64())
	return idEncoding.EncodeToString(b[:])
}
