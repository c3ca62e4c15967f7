package edge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
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
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return b.Pool.Connect(ctx) },
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

// h2Body is a client's body on its way to an HTTP/2 Machine: the sink that the body goes
// to, and what the transport reads. The first read takes the body over.
type h2Body struct {
	u    *upload
	pr   *io.PipeReader
	pw   *io.PipeWriter
	take sync.Once
	held []byte // of an earlier attempt
}

func newH2Body(u *upload) *h2Body {
	b := &h2Body{u: u}
	b.pr, b.pw = io.Pipe()
	return b
}

// leave ends the body for this attempt: a transport that reads only now gets nothing.
func (b *h2Body) leave() {
	b.take.Do(func() {})
	b.u.detach(b)
	b.pr.Close()
}

// Read gives what an earlier attempt has read of the body, and then the rest.
func (b *h2Body) Read(p []byte) (int, error) {
	b.take.Do(func() {
		b.u.attach(b, func(held []byte, eof bool) {
			if b.held = bytes.Clone(held); eof {
				b.pw.Close()
			}
		})
	})
	if len(b.held) > 0 {
		n := copy(p, b.held)
		b.held = b.held[n:]
		return n, nil
	}
	return b.pr.Read(p)
}

// Close tells the sink that nobody reads any more.
func (b *h2Body) Close() error { return b.pr.Close() }

func (b *h2Body) write(p []byte) error { _, err := b.pw.Write(p); return err }
func (b *h2Body) finish() error        { return b.pw.Close() }
func (b *h2Body) fail(err error)       { _ = b.pw.CloseWithError(err) }

// attemptH2 is attempt for a Machine that takes HTTP/2.
func (q *request) attemptH2(lease route.Lease) *failure {
	for {
		fail := q.exchangeH2(lease)
		if fail == nil {
			return nil
		}
		q.failed(fail)
		if fail.again != once || q.r.Context().Err() != nil || !q.mayResend(fail) {
			return fail
		}
		q.s.m.retries.Inc() // over a fresh connection: the transport has dropped the broken one
	}
}

// exchangeH2 is exchange over the connections that the transport keeps.
func (q *request) exchangeH2(lease route.Lease) *failure {
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
	if q.upload != nil {
		body := newH2Body(q.upload)
		out.Body = body
		defer func() { body.leave() }()
		// The transport asks for it when the Machine says that it has not taken the request.
		out.GetBody = func() (io.ReadCloser, error) {
			body.leave()
			if whole, _ := q.upload.replayable(); !whole {
				return nil, errors.New("the beginning of the body is not kept")
			}
			body = newH2Body(q.upload)
			return body, nil
		}
	}
	resp, err := q.s.h2Of(lease.Backend).RoundTrip(out.WithContext(ctx))
	if err != nil {
		return q.h2Failure(lease, err)
	}
	lease.Worked()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body.Close()
		return &failure{status: 502, code: "PU01", text: "app " + q.app + " sent a response that makes no sense"}
	}
	if resp.StatusCode < 100 || resp.StatusCode > 999 {
		resp.Body.Close()
		return oddStatus(q.app, resp.StatusCode)
	}
	q.relay(resp, nil, q.upload.open())
	return nil
}

// h2Failure says what a failed round trip means for the client.
func (q *request) h2Failure(lease route.Lease, err error) *failure {
	if cerr := q.upload.clientError(); cerr != nil {
		return clientFailure(cerr)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		lease.Failed(time.Now())
		return connectFailure(lease, err)
	}
	f := &failure{status: 502, code: "PU01", text: "app " + q.app + " does not speak HTTP/2 as its service says", cause: err}
	if upstream.IsTimeout(err) {
		f.status, f.code, f.text = 504, "PC05", "app "+q.app+" did not answer in time"
	} else if upstream.IsClosed(err) || strings.Contains(err.Error(), "GOAWAY") || strings.Contains(err.Error(), "connection lost") {
		f.code, f.text = "PC04", "app "+q.app+" broke the connection off"
	}
	if f.status != 504 {
		// The transport says neither which connections it kept nor, of one that was closed
		// while it was set up, that nothing was sent.
		f.again = q.againAfter(false, true)
	}
	return f
}
