package edge

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bulkhead/edge/route"
	"bulkhead/edge/upstream"
)

// expectFor is how long a Machine may keep a client waiting that sent
// "Expect: 100-continue", before its body is sent anyway (RFC 9110 section 10.1.1).
const expectFor = time.Second

// forward sends the request to one of the app's Machines, and to another when one
// takes no request and the request can be sent again.
func (q *request) forward(of func(*route.App) *route.Service) {
	q.fill()
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
		h2 := false
		if a := s.table.Lookup(q.app); a != nil {
			if svc := of(a); svc != nil {
				h2 = svc.H2
			}
		}
		last = q.attempt(lease, h2)
		if last == nil {
			return
		}
		if !last.retry || ctx.Err() != nil {
			break
		}
		if until.IsZero() {
			until = time.Now().Add(s.Limits.RetryFor)
		}
		s.doubt(q.app, lease.Backend, last.cause)
		until = s.patience(until, lease.Backend)
		s.m.retries.Inc()
		tried = append(tried, lease.Backend)
	}
	if ctx.Err() != nil {
		q.status = 0
		panic(http.ErrAbortHandler) // the client is gone
	}
	q.fail(last)
}

// attempt sends the request to one Machine. It returns nil when the client has got
// an answer; it panics with http.ErrAbortHandler to cut one off.
func (q *request) attempt(lease route.Lease, h2 bool) *failure {
	defer lease.Release()
	if h2 {
		return q.attemptH2(lease)
	}
	ctx := q.r.Context()
	conn, err := lease.Pool.Get(ctx)
	if err != nil {
		lease.Failed(time.Now())
		return connectFailure(lease, err)
	}
	if !conn.Reused() {
		lease.Worked()
	}
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
	q.relay(resp, conn, x.bodyOpen())
	keep = !resp.Close
	return nil
}

// exchange is one request and its response on one HTTP/1.1 connection. The request
// body is sent by a goroutine of its own, so that both directions can stream.
type exchange struct {
	*request
	conn *upstream.Conn
	up   string // protocol to upgrade to

	body *bodySender // nil for a request without a body
}

// roundTrip sends the request and reads its response's header. Interim responses
// are passed on.
func (x *exchange) roundTrip() (*http.Response, *failure) {
	r, s := x.r, x.s
	hasBody := r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody
	chunked := hasBody && r.ContentLength < 0
	length := r.ContentLength
	if length == 0 && !takesBody(r.Method) {
		length = -1
	}
	if x.up != "" && hasBody {
		return nil, &failure{status: 400, code: "PU04", text: "an upgrade request must not have a body"}
	}
	_, expect := r.Header["Expect"]
	if err := x.conn.SendHead(r, x.target, &x.origin, x.hop, chunked, length, x.up, !hasBody || chunked || expect); err != nil {
		return nil, x.exchangeFailure(err, false)
	}
	headerBy := time.Now().Add(s.Limits.ResponseTimeout)
	if hasBody {
		if r.ProtoMajor == 1 {
			_ = http.NewResponseController(x.w).EnableFullDuplex()
		}
		x.body = newBodySender(x.request, x.conn, chunked, expect)
		headerBy = time.Time{} // begins when the body has been sent
		go x.body.run()
	}
	for interim := 0; ; interim++ {
		resp, started, err := x.conn.ReadHead(r, headerBy, s.Limits.BodyIdle)
		if err != nil {
			return nil, x.exchangeFailure(err, started)
		}
		switch {
		case resp.StatusCode >= 200 || resp.StatusCode == 101 && x.up != "" && strings.EqualFold(resp.Header.Get("Upgrade"), x.up):
			if x.body != nil {
				x.body.answered()
			}
			return resp, nil
		case resp.StatusCode == 101 || interim == 16:
			return nil, &failure{status: 502, code: "PU02", text: "app " + x.app + " sent a response that makes no sense"}
		case resp.StatusCode == 100:
			if x.body != nil {
				x.body.proceed()
			}
		default:
			x.sendInterim(resp)
		}
	}
}

// sendInterim passes a 1xx response on, such as 103 Early Hints.
func (x *exchange) sendInterim(resp *http.Response) {
	h := x.w.Header()
	hop := upstream.HopOf(resp.Header)
	for k, vv := range resp.Header {
		if !hop.Drops(k) {
			h[k] = vv
		}
	}
	x.w.WriteHeader(resp.StatusCode)
	for k := range resp.Header {
		delete(h, k)
	}
}

// bodyOpen reports whether the client may still be sending its body.
func (x *exchange) bodyOpen() bool { return x.body != nil && !x.body.eof.Load() }

// endBody makes the body's sender stop and reports whether it had sent all.
func (x *exchange) endBody() bool { return x.body == nil || x.body.end() }

// exchangeFailure says what an error on the connection means for the client.
func (x *exchange) exchangeFailure(err error, started bool) *failure {
	f := &failure{status: 502, code: "PC06", text: "app " + x.app + " broke the connection off", cause: err}
	if x.body != nil {
		if cerr := x.body.clientError(); cerr != nil {
			return clientFailure(cerr)
		}
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
	// Nothing came back, and the request may be sent twice: ask another Machine.
	f.retry = !started && x.body == nil && idempotent(x.r.Method) && f.status != 504
	return f
}

// connectFailure says why a Machine takes no connection.
func connectFailure(lease route.Lease, err error) *failure {
	f := &failure{status: 502, code: "PC06", text: "the app's machine cannot be reached", cause: err, retry: true}
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
		return &failure{status: 408, code: "PU02", text: "the request's body did not arrive in time", cause: err}
	}
	return &failure{status: 400, code: "PU02", text: "the request's body is cut short or malformed", cause: err}
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

// bodySender streams a request's body to the Machine.
type bodySender struct {
	q       *request
	conn    *upstream.Conn
	rc      *http.ResponseController
	chunked bool
	expect  bool

	goOn chan bool // for expect: send the body, or do not
	done chan struct{}
	eof  atomic.Bool // the client's body has been read to its end
	stop atomic.Bool

	mu     sync.Mutex
	head   bool // the response's header is here
	sent   bool
	client error // from reading the client
}

func newBodySender(q *request, conn *upstream.Conn, chunked, expect bool) *bodySender {
	return &bodySender{q: q, conn: conn, rc: http.NewResponseController(q.w), chunked: chunked, expect: expect,
		goOn: make(chan bool, 2), done: make(chan struct{})}
}

// proceed lets a body that was held back go; answered says that the response is
// here, so that one which is still held back is not wanted.
func (b *bodySender) proceed() {
	select {
	case b.goOn <- true:
	default:
	}
}

func (b *bodySender) answered() {
	b.mu.Lock()
	b.head = true
	b.mu.Unlock()
	select {
	case b.goOn <- false:
	default:
	}
}

// run copies until the body ends, the Machine takes no more, or end stops it. An
// error of the Machine's side is not reported: its response is, or its absence.
func (b *bodySender) run() {
	defer close(b.done)
	if b.expect {
		t := time.NewTimer(expectFor)
		defer t.Stop()
		select {
		case ok := <-b.goOn:
			if !ok {
				return
			}
		case <-t.C:
		}
	}
	buf := copyBufs.Get().(*[]byte)
	defer copyBufs.Put(buf)
	for first := true; ; first = false {
		n, err := b.read(*buf)
		if n > 0 {
			if b.write((*buf)[:n]) != nil {
				return
			}
		}
		switch {
		case err == io.EOF:
			if b.finish(first && n == 0) == nil {
				b.mu.Lock()
				b.sent = true
				if !b.head {
					_ = b.conn.NetConn().SetReadDeadline(time.Now().Add(b.q.s.Limits.ResponseTimeout))
				}
				b.mu.Unlock()
			}
			return
		case err != nil:
			b.mu.Lock()
			if !b.stop.Load() {
				b.client = err
			}
			b.mu.Unlock()
			b.conn.Close()
			return
		}
	}
}

// read reads from the client, for at most ReadIdle.
func (b *bodySender) read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(b.q.s.Limits.ReadIdle))
	if b.stop.Load() { // end came between: its deadline has just been overwritten
		return 0, os.ErrDeadlineExceeded
	}
	n, err := b.q.r.Body.Read(p)
	if err == io.EOF {
		b.eof.Store(true)
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (b *bodySender) write(p []byte) error {
	if b.chunked {
		return b.conn.WriteChunk(p)
	}
	return b.conn.WriteBody(p)
}

// finish ends the body on the wire.
func (b *bodySender) finish(empty bool) error {
	switch {
	case b.chunked:
		return b.conn.EndChunks(b.q.r.Trailer)
	case empty:
		return b.conn.Flush()
	}
	return nil
}

func (b *bodySender) clientError() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.client
}

// end stops the sender, waits for it, and reports whether all was sent. After it
// nobody reads the request's body any more.
func (b *bodySender) end() bool {
	if b.eof.Load() { // only the last bytes are still on their way
		t := time.NewTimer(100 * time.Millisecond)
		defer t.Stop()
		select {
		case <-b.done:
		case <-t.C:
		}
	}
	select {
	case <-b.done:
	default:
		b.stop.Store(true)
		if !b.eof.Load() {
			_ = b.rc.SetReadDeadline(time.Unix(1, 0))
		}
		b.conn.Close()
		b.proceed()
		<-b.done
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sent
}
