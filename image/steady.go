package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"bulkhead/fault"
)

// Bounds of a registry's patience with us: one that sends nothing for stallLimit, or
// less than minRate over rateWindow of waiting for it, is given up. It holds one of
// the few places for fetches meanwhile.
var (
	stallLimit       = 30 * time.Second
	rateWindow       = time.Minute
	minRate    int64 = 8 << 10 // bytes per second
)

// errSlow is the end of a body that comes too slowly.
var errSlow = errors.New("the registry sends too slowly")

// steady bounds how slowly answers come.
type steady struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (s steady) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := s.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &steadyBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, host: req.URL.Host}
	return resp, nil
}

// steadyBody is a body whose reads are bounded. Only the time spent in them counts:
// who takes long with what it has read is not the registry's fault.
type steadyBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	host   string
	waited time.Duration
	got    int64
}

// Read implements io.Reader.
func (b *steadyBody) Read(p []byte) (int, error) {
	began := time.Now()
	stall := time.AfterFunc(stallLimit, func() { b.cancel(errSlow) })
	n, err := b.ReadCloser.Read(p)
	stall.Stop()
	b.waited += time.Since(began)
	b.got += int64(n)
	if b.waited > rateWindow {
		if float64(b.got) < float64(minRate)*b.waited.Seconds() {
			b.cancel(errSlow)
			err = errSlow
		}
		b.waited, b.got = 0, 0
	}
	if err != nil && err != io.EOF && errors.Is(context.Cause(b.ctx), errSlow) {
		return n, fault.Wrap(fault.Unavailable, errSlow, "the registry %s sends too slowly (nothing for %v, or less than %d KiB/s for %v)", fault.Clip(b.host), stallLimit, minRate>>10, rateWindow)
	}
	return n, err
}

// Close implements io.Closer.
func (b *steadyBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
