package edge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"bulkhead/edge/route"
	"bulkhead/edge/upstream"
)

// expectFor is how long a Machine may keep a client waiting that sent
// "Expect: 100-continue", before its body is sent anyway (RFC 9110 section 10.1.1).
const expectFor = time.Second

// forward sends the request to one of the app's Machines. While Machines take no
// connection, it goes on with others until RetryFor has passed. A request that a Machine
// may have got is sent once more at most.
func (q *request) forward(of func(*route.App) *route.Service) {
	q.fill()
	q.upload = uploadOf(q)
	defer q.upload.end() // after the answer, which this would cut off
	s, ctx := q.s, q.r.Context()
	var space [4]*route.Backend
	tried := space[:0]
	var last *failure
	var until time.Time
	for pause := 2 * time.Millisecond; ; {
		lease, none := s.lease(ctx, q.app, tried, of)
		if none != nil {
			if last == nil || len(tried) == 0 {
				last = none
			} else if time.Now().Before(until) && sleep(ctx, pause) {
				// Every Machine refused: one that is just starting will not for long. Growing by
				// a quarter, a pause adds a fifth at most to the time that its app took.
				tried, pause = tried[:0], min(pause+pause/4, 500*time.Millisecond)
				continue
			}
			break
		}
		last = q.attempt(lease)
		if last == nil {
			return
		}
		if ctx.Err() != nil || !q.mayResend(last) || q.sends > 0 && !q.spares(lease.Backend, of) {
			break
		}
		if until.IsZero() {
			until = time.Now().Add(s.Limits.RetryFor)
		}
		s.doubt(q.app, lease.Backend, last.cause)
		if q.sends == 0 || q.stopped {
			until = s.patience(until, lease.Backend)
		} else if soon := q.broke.at.Add(resendFor); soon.Before(until) {
			until = soon
		}
		s.m.retries.Inc()
		tried = append(tried, lease.Backend)
	}
	if ctx.Err() != nil && !last.client {
		q.status = 0
		panic(http.ErrAbortHandler) // the client is gone
	}
	if q.broke.failure != nil && !last.client {
		last = q.broke.failure // says more than why the second attempt could not be made
	}
	q.fail(last)
}

// attempt sends the request to one Machine. It returns nil when the client has got
// an answer; it panics with http.ErrAbortHandler to cut one off.
func (q *request) attempt(lease route.Lease) *failure {
	defer lease.Release()
	if lease.H2 {
		return q.attemptH2(lease)
	}
	ctx := q.r.Context()
	conn, err := lease.Pool.Get(ctx)
	for {
		if err != nil {
			lease.Failed(time.Now())
			return connectFailure(lease, err)
		}
		if !conn.Reused() {
			lease.Worked()
		}
		fail := q.exchange(conn)
		if fail == nil {
			return nil
		}
		q.failed(fail)
		if !conn.Reused() || ctx.Err() != nil || !q.mayResend(fail) {
			return fail
		}
		// The Machine may have closed a connection that it thought idle: a fresh one tells.
		q.s.m.retries.Inc()
		conn, err = lease.Pool.Dial(ctx)
	}
}

// exchange sends the request over one connection, and its response to the client.
func (q *request) exchange(conn *upstream.Conn) *failure {
	ctx := q.r.Context()
	x := &exchange{request: q, conn: conn, up: upgradeOf(q.r, q.hop)}
	stop := context.AfterFunc(ctx, conn.Close)
	keep := false
	defer func() { // also when relay panics
		if x.endBody() && stop() && keep {
			conn.Release()
			return
		}
		stop()
		conn.Close()
	}()
	resp, fail := x.roundTrip()
	if fail != nil {
		return fail
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return x.upgrade(resp, stop)
	}
	q.relay(resp, conn, q.upload.open())
	keep = !resp.Close
	return nil
}

// exchange is one request and its response on one HTTP/1.1 connection. It is the sink of
// the request's body, so that both directions can stream.
type exchange struct {
	*request
	conn    *upstream.Conn
	up      string // protocol to upgrade to
	chunked bool
	start   sync.Once // of the body

	mu   sync.Mutex
	head bool          // the response's header is here
	sent bool          // the whole body has been sent
	over chan struct{} // closed when the body was sent, or could not be
	ends sync.Once     // of over
}

// roundTrip sends the request and reads its response's header. Interim responses
// are passed on.
func (x *exchange) roundTrip() (*http.Response, *failure) {
	r, s := x.r, x.s
	hasBody := x.upload != nil
	x.chunked = hasBody && r.ContentLength < 0
	length := r.ContentLength
	if length == 0 && !takesBody(r.Method) {
		length = -1
	}
	if x.up != "" && hasBody {
		return nil, &failure{status: 400, code: "PU04", text: "an upgrade request must not have a body"}
	}
	// The head goes out at once: a Machine that waits for a request thinks that the
	// connection is idle, and closes it.
	if err := x.conn.SendHead(r, x.target, &x.origin, x.hop, x.chunked, length, x.up); err != nil {
		return nil, x.exchangeFailure(err, false)
	}
	headerBy := time.Now().Add(s.Limits.ResponseTimeout)
	if hasBody {
		headerBy = time.Time{} // begins when the body has been sent
		x.over = make(chan struct{})
		if _, expect := r.Header["Expect"]; expect {
			t := time.AfterFunc(expectFor, x.sendBody)
			defer t.Stop()
		} else {
			x.sendBody()
		}
	}
	for interim := 0; ; interim++ {
		resp, started, err := x.conn.ReadHead(r, headerBy, s.Limits.BodyIdle)
		if err != nil {
			return nil, x.exchangeFailure(err, started)
		}
		switch {
		case resp.StatusCode < 100:
			return nil, oddStatus(x.app, resp.StatusCode)
		case resp.StatusCode >= 200 || resp.StatusCode == 101 && x.up != "" && strings.EqualFold(resp.Header.Get("Upgrade"), x.up):
			x.mu.Lock()
			x.head = true
			x.mu.Unlock()
			return resp, nil
		case resp.StatusCode == 101 || interim == 16:
			return nil, &failure{status: 502, code: "PU02", text: "app " + x.app + " sent a response that makes no sense"}
		case resp.StatusCode == 100:
			x.sendBody()
		default:
			x.sendInterim(resp)
		}
	}
}

// oddStatus is the failure of a response whose status is none.
func oddStatus(app string, status int) *failure {
	return &failure{status: 502, code: "PU02", text: fmt.Sprintf("app %s sent the status %03d", app, status)}
}

// sendInterim passes a 1xx response on, such as 103 Early Hints.
func (x *exchange) sendInterim(resp *http.Response) {
	h := x.w.Header()
	hop := upstream.HopOf(resp.Header)
	for k, vv := range resp.Header {
		if !hop.Drops(k) {
			x.s.give(h, k, vv)
		}
	}
	x.w.WriteHeader(resp.StatusCode)
	for k := range resp.Header {
		delete(h, upstream.Spelling(k))
	}
}

// sendBody lets the body go to this connection.
func (x *exchange) sendBody() {
	if x.upload != nil {
		x.start.Do(func() { x.upload.attach(x, x.begin) })
	}
}

// begin sends what an earlier attempt has read of the body.
func (x *exchange) begin(held []byte, eof bool) {
	if len(held) > 0 && x.write(held) != nil {
		return
	}
	if eof {
		_ = x.finish()
	}
}

// write sends some of the body. An error of the Machine's side is not reported: its
// response is, or its absence.
func (x *exchange) write(p []byte) (err error) {
	if x.chunked {
		err = x.conn.WriteChunk(p)
	} else {
		err = x.conn.WriteBody(p)
	}
	if err != nil {
		x.ends.Do(func() { close(x.over) })
	}
	return err
}

// finish ends the body on the wire. From now on the Machine owes an answer.
func (x *exchange) finish() (err error) {
	defer x.ends.Do(func() { close(x.over) })
	if x.chunked {
		if err = x.conn.EndChunks(x.r.Trailer); err != nil {
			return err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sent = true
	if !x.head {
		_ = x.conn.NetConn().SetReadDeadline(time.Now().Add(x.s.Limits.ResponseTimeout))
	}
	return nil
}

func (x *exchange) fail(error) { x.conn.Close() }

// endBody takes the body away from this connection and reports whether it had all of it.
func (x *exchange) endBody() bool {
	if x.upload == nil {
		return true
	}
	x.start.Do(func() {})                  // a body that nobody has asked for yet is not for this connection
	if !x.upload.open() && x.over != nil { // only the last bytes are still on their way
		t := time.NewTimer(100 * time.Millisecond)
		defer t.Stop()
		select {
		case <-x.over:
		case <-t.C:
		}
	}
	x.upload.detach(x)
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.sent
}

// exchangeFailure says what an error on the connection means for the client.
func (x *exchange) exchangeFailure(err error, started bool) *failure {
	f := &failure{status: 502, code: "PC06", text: "app " + x.app + " broke the connection off", cause: err}
	if cerr := x.upload.clientError(); cerr != nil {
		return clientFailure(cerr)
	}
	switch {
	case errors.Is(err, upstream.ErrHeaderTooLarge):
		f.code, f.text = "PU02", "app "+x.app+" sent a response header that is too large"
	case upstream.IsTimeout(err):
		f.status, f.code, f.text = 504, "PC05", "app "+x.app+" did not answer in time"
	case started && !upstream.IsClosed(err):
		f.code, f.text = "PU02", "app "+x.app+" sent a response that is not HTTP"
	case errors.Is(err, syscall.ECONNRESET):
		f.code = "PC03"
	case upstream.IsClosed(err):
		f.code = "PC04"
	}
	if !started && f.status != 504 {
		f.again = x.againAfter(x.conn.Unseen(), x.conn.Reused())
	}
	return f
}

// connectFailure says why a Machine takes no connection.
func connectFailure(lease route.Lease, err error) *failure {
	f := &failure{status: 502, code: "PC06", text: "the app's machine cannot be reached", cause: err, again: anywhere}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.code, f.text = "PC01", "the app's machine refuses connections; does the app listen on its internal port, on [::] or 0.0.0.0?"
	case upstream.IsTimeout(err):
		f.status, f.code, f.text = 504, "PC05", "the app's machine did not take the connection in time"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		f.code = "PU03"
	}
	return f
}

// clientFailure says what went wrong while the client sent its body.
func clientFailure(err error) *failure {
	if upstream.IsTimeout(err) {
		return &failure{status: 408, code: "PU02", text: "the request's body did not arrive in time", cause: err, client: true}
	}
	return &failure{status: 400, code: "PU02", text: "the request's body is cut short or malformed", cause: err, client: true}
}

func takesBody(method string) bool { return method == "POST" || method == "PUT" || method == "PATCH" }

// idempotent as RFC 9110 section 9.2.2 has it.
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}
