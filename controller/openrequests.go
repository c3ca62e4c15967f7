package controller

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/store"
)

// openRequests are the requests in progress that end when their caller may no longer make
// them: those that read, run a command, or push an image. Others change something, are short, and
// are finished once they have begun.
type openRequests struct {
	mu   sync.Mutex
	all  map[*openRequest]struct{}
	poke chan struct{}
}

// openRequest is one of them.
type openRequest struct {
	from   netip.Addr
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	watches []watched
}

// watched is what was allowed, and to whom.
type watched struct {
	who access.Caller
	on  access.Request
}

// openKey is the context key of a request's openRequest.
type openKey struct{}

// errEnded is the cause of a context that ended because of err.
type errEnded struct{ err error }

// Error says so.
func (e *errEnded) Error() string { return "ended: " + e.err.Error() }

// endedBy is why a request was ended, as its caller shall read it; nil if it was not.
func endedBy(ctx context.Context) error {
	var e *errEnded
	if errors.As(context.Cause(ctx), &e) {
		return e.err
	}
	return nil
}

// watch adds what the request was allowed.
func (o *openRequest) watch(who access.Caller, on access.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watches = append(o.watches, watched{who, on})
}

// begin makes a request one that ends; the caller calls done when it is over.
func (c *Controller) begin(ctx context.Context, from netip.Addr) (_ context.Context, _ *openRequest, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	o := &openRequest{from: from, cancel: cancel}
	reqs := &c.open
	reqs.mu.Lock()
	reqs.all[o] = struct{}{}
	reqs.mu.Unlock()
	return context.WithValue(ctx, openKey{}, o), o, func() {
		reqs.mu.Lock()
		delete(reqs.all, o)
		reqs.mu.Unlock()
		cancel(nil)
	}
}

// expiryEvery is how often open requests are looked at for tokens that have expired.
const expiryEvery = 500 * time.Millisecond

// endOpen ends open requests, whenever the directory changes and as time passes, until ctx
// ends.
func (c *Controller) endOpen(ctx context.Context) error {
	c.directory.Notify(func(prefix string, _ store.Event) {
		if prefix == record.PrefixApp {
			return
		}
		select {
		case c.open.poke <- struct{}{}:
		default: // somebody looks already, after this
		}
	})
	tick := time.NewTicker(expiryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.open.poke:
		case <-tick.C:
		}
		c.open.mu.Lock()
		now := make([]*openRequest, 0, len(c.open.all))
		for o := range c.open.all {
			now = append(now, o)
		}
		c.open.mu.Unlock()
		for _, o := range now {
			if err := c.stillMay(o); err != nil {
				o.cancel(&errEnded{err})
			}
		}
	}
}

// stillMay asks again what was asked when a request began.
func (c *Controller) stillMay(o *openRequest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.watches {
		if w.who.Kind != access.ByPerson {
			continue
		}
		who, err := access.Standing(c.directory, w.who.Verified)
		if err != nil {
			return access.RefusedToken(err)
		}
		who.From = w.who.From
		if w.on.App != "" && c.directory.App(w.on.App) == nil {
			continue // who waits for its end sees it
		}
		if err := c.authorize(who, w.on); err != nil {
			return err
		}
	}
	return nil
}

// ends reports whether requests of an endpoint end early: see openRequests.
func (e endpoint) ends() bool {
	return e.act == access.Read || e.what == access.Exec
}

// Times that a request which is ended has to say so.
const endedAnswer = 2 * time.Second

// endingBody is a body whose reading ends with the request's context, also while it waits.
type endingBody struct {
	io.ReadCloser
	ctx context.Context
}

// Read reads, unless the request was ended.
func (b *endingBody) Read(p []byte) (int, error) {
	if err := endedBy(b.ctx); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		if why := endedBy(b.ctx); why != nil {
			return n, why
		}
	}
	return n, err
}

// endingWriter is an answer that ends with the request's context. What was not begun says why.
type endingWriter struct {
	http.ResponseWriter
	ctx context.Context
}

// Write writes, unless the request was ended and its answer begun.
func (w *endingWriter) Write(p []byte) (int, error) {
	if rec, ok := w.ResponseWriter.(*recorder); ok && rec.code != 0 && rec.code < 300 {
		if err := endedBy(w.ctx); err != nil {
			return 0, err
		}
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *endingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ending makes a request of the registry one that ends: its body, its answer and what they
// wait for.
func (c *Controller) ending(rec *recorder, r *http.Request) (http.ResponseWriter, *http.Request, func()) {
	ctx, _, done := c.begin(r.Context(), (&call{Request: r}).from())
	rc := http.NewResponseController(rec)
	stop := context.AfterFunc(ctx, func() {
		if endedBy(ctx) != nil {
			rc.SetReadDeadline(time.Now())
			rc.SetWriteDeadline(time.Now().Add(endedAnswer))
		}
	})
	r = r.WithContext(ctx)
	r.Body = &endingBody{r.Body, ctx}
	return &endingWriter{rec, ctx}, r, func() { stop(); done() }
}
