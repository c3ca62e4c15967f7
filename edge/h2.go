package edge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"bulkhead/edge/route"
	"bulkhead/edge/upstream"
)

// h2Transport speaks HTTP/2 without TLS, with prior knowledge, to one Machine. Its
// connections are shared by requests and close by themselves.
type h2Transport struct{ *http.Transport }

// h2Of returns the backend's transport and makes it on first use.
func (s *Server) h2Of(b *route.Backend) h2Transport {
	if p := b.Aux.Load(); p != nil {
		return (*p).(h2Transport)
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			s.m.dials.Inc()
			return s.Dial(ctx, b.Addr)
		},
		DisableCompression:     true,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: upstream.MaxHeader,
		ResponseHeaderTimeout:  s.Limits.ResponseTimeout,
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	var fresh any = h2Transport{t}
	if !b.Aux.CompareAndSwap(nil, &fresh) {
		return (*b.Aux.Load()).(h2Transport)
	}
	return fresh.(h2Transport)
}

// h2Body is a client's body on its way to an HTTP/2 Machine. The transport may
// close it while it is being read, which net/http's server does not allow.
type h2Body struct {
	q     *request
	rc    *http.ResponseController
	began atomic.Bool
	eof   atomic.Bool
	err   atomic.Pointer[error]
}

// Read reads from the client, for at most ReadIdle.
func (b *h2Body) Read(p []byte) (int, error) {
	b.began.Store(true)
	_ = b.rc.SetReadDeadline(time.Now().Add(b.q.s.Limits.ReadIdle))
	n, err := b.q.r.Body.Read(p)
	if err == io.EOF {
		b.eof.Store(true)
		_ = b.rc.SetReadDeadline(time.Time{})
		for k, vv := range b.q.r.Trailer {
			for _, v := range vv {
				if !upstream.TrailerAllowed(k, v) {
					delete(b.q.r.Trailer, k)
					break
				}
			}
		}
	} else if err != nil {
		b.err.Store(&err)
	}
	return n, err
}

// Close does nothing: net/http closes the client's body when the request ends.
func (b *h2Body) Close() error { return nil }

// attemptH2 is attempt for a service whose Machines take HTTP/2.
func (q *request) attemptH2(lease route.Lease) *failure {
	r := q.r
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &http.Request{
		Method: r.Method, Host: r.Host, Proto: "HTTP/2.0", ProtoMajor: 2,
		URL:    &url.URL{Scheme: "http", Host: lease.Addr, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery},
		Header: make(http.Header, len(r.Header)+10), ContentLength: r.ContentLength, Trailer: r.Trailer,
	}
	q.origin.Each(r.Header, q.hop, func(k, v string) { out.Header[k] = append(out.Header[k], v) })
	if upstream.TrailersWanted(r.Header) {
		out.Header["Te"] = []string{"trailers"}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // or the transport adds its own
	}
	var body *h2Body
	if r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody {
		body = &h2Body{q: q, rc: http.NewResponseController(q.w)}
		out.Body = body
		if r.ProtoMajor == 1 {
			_ = body.rc.EnableFullDuplex()
		}
	}
	resp, err := q.s.h2Of(lease.Backend).RoundTrip(out.WithContext(ctx))
	if err != nil {
		return q.h2Failure(lease, body, err)
	}
	lease.Worked()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body.Close()
		return &failure{status: 502, code: "PU01", text: "app " + q.app + " sent a response that makes no sense"}
	}
	q.relay(resp, nil, body != nil && !body.eof.Load())
	return nil
}

// h2Failure says what a failed round trip means for the client.
func (q *request) h2Failure(lease route.Lease, body *h2Body, err error) *failure {
	if body != nil {
		if cerr := body.err.Load(); cerr != nil {
			return clientFailure(*cerr)
		}
	}
	untouched := body == nil || !body.began.Load()
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		lease.Failed(time.Now())
		f := connectFailure(lease, err)
		f.retry = untouched
		return f
	}
	f := &failure{status: 502, code: "PU01", text: "app " + q.app + " does not speak HTTP/2 as its service says", cause: err}
	if upstream.IsTimeout(err) {
		f.status, f.code, f.text = 504, "PC05", "app "+q.app+" did not answer in time"
	} else if upstream.IsClosed(err) {
		f.code, f.text = "PC04", "app "+q.app+" broke the connection off"
		f.retry = untouched && idempotent(q.r.Method)
	}
	return f
}
