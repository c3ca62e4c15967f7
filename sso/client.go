package sso

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"bulkhead/fault"
	"bulkhead/privnet"
)

// Bounds of what is fetched from a provider.
const (
	maxAnswer    = 1 << 20 // bytes of one answer
	answerLimit  = 10 * time.Second
	maxRedirects = 3
)

// errRefused is the cause of a refused connection, errLarge of an answer cut off.
var (
	errRefused = errors.New("the address is refused, and the operator has not allowed it (sso_private_issuers)")
	errLarge   = fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	errPlain   = errors.New("providers must be reached over HTTPS; plain HTTP is for an allowed loopback address alone")
)

// NewClient returns an HTTP client for providers whose addresses a user chose. It
// connects to public addresses other than this host's and to those in allow, to none in
// deny, decided at each connection, after the name is resolved; over HTTPS, or plain HTTP to loopback addresses in
// allow; follows few redirects, none of a POST; and takes small answers that come
// soon. Proxies of the environment are not used.
func NewClient(allow, deny []netip.Prefix) *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: privnet.Guard{Allowed: allow, Denied: deny}.Control(func(err error) error {
		return fmt.Errorf("%w: %w", errRefused, err)
	})}
	return &http.Client{
		Timeout: answerLimit,
		Transport: guard{allow, &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: 5 * time.Second, ResponseHeaderTimeout: answerLimit,
			IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 2, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10,
		}},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if via[0].Method != http.MethodGet {
				return errors.New("a provider may not redirect a POST: it carries the client's secret")
			}
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			return nil
		},
	}
}

// guard bounds answers and refuses plain HTTP.
type guard struct {
	allow []netip.Prefix
	next  *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := checkURL(req.URL, g.allow); err != nil {
		return nil, err
	}
	resp, err := g.next.RoundTrip(req)
	if err == nil {
		resp.Body = &bounded{resp.Body, maxAnswer}
	}
	return resp, err
}

// CloseIdleConnections lets http.Client close what is idle.
func (g guard) CloseIdleConnections() { g.next.CloseIdleConnections() }

// bounded fails once more than n bytes were read: a cut answer must not look whole.
type bounded struct {
	io.ReadCloser
	n int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.n -= int64(n); b.n < 0 {
		return 0, errLarge
	}
	return n, err
}

// checkURL says whether a provider's URL may be fetched, or shown to a browser.
func checkURL(u *url.URL, allow []netip.Prefix) error {
	if u.Host == "" || u.User != nil {
		return fmt.Errorf("%q is no address of a provider", u.Redacted())
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.IsLoopback() && contains(allow, a.Unmap()) {
			return nil
		}
		return errPlain
	}
	return fmt.Errorf("scheme %q: %w", u.Scheme, errPlain)
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// fetchFailure gives what went wrong on the way to a provider its reason.
func fetchFailure(ctx context.Context, err error, what, where string) error {
	switch {
	case errors.Is(err, errRefused), errors.Is(err, errPlain):
		return Refuse(BadAddress, err, "%s of the identity provider, %s, may not be reached: it must be HTTPS at a public address, or one that the operator lists in sso_private_issuers", what, fault.Clip(where))
	case errors.Is(err, errLarge):
		return Refuse(Unreachable, err, "%s of the identity provider, %s, sends more than %d bytes", what, fault.Clip(where), maxAnswer)
	case ctx.Err() != nil:
		return Refuse(Unreachable, err, "%s of the identity provider, %s, took too long", what, fault.Clip(where))
	}
	return Refuse(Unreachable, err, "%s of the identity provider, %s, does not give a usable answer; the server's log says more", what, fault.Clip(where))
}
