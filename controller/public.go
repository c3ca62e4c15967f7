package controller

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"bulkhead/fault"
)

// publicEndpoint is a route that answers callers without a token: what somebody needs who
// wants to sign in. Each finds out by itself who it speaks to, if it must.
type publicEndpoint struct {
	pattern string
	why     string // it has no token
	page    bool   // a browser shows it: an error is a page too
	h       handler
}

// publicEndpoints lists all there are. Each is limited per address.
func (c *Controller) publicEndpoints() []publicEndpoint {
	const signIn, cli = "signs somebody in", "the CLI's session has a secret of its own"
	const about = "answers about the tokens in its body"
	return []publicEndpoint{
		{"GET /login", signIn, true, c.loginPage},
		{"POST /login/sso", signIn, true, c.startSSO},
		{"GET /sso/callback", signIn, true, c.finishSSO},
		{"POST /logout", "ends the browser's session", true, c.logoutBrowser},
		{"GET /cli/{id}", "asks the browser's session", true, c.approvalPage},
		{"POST /cli/{id}", "asks the browser's session", true, c.approve},
		{"GET /device", "asks the browser's session", true, c.devicePage},
		{"POST /device", "asks the browser's session", true, c.enterCode},
		{"GET /ui/{file}", "style and script of the pages", true, c.uiFile},
		{"GET /oidc/{org}/.well-known/openid-configuration", "finds the keys of identity tokens", false, c.issuerDiscovery},
		{"GET /oidc/{org}/.well-known/jwks", "the keys of identity tokens", false, c.issuerKeySet},
		{"POST /v1/cli_sessions", cli, false, c.startCLI},
		{"POST /v1/cli_sessions/{id}/poll", cli, false, c.pollCLI},
		{"POST /v1/tokens/authenticate", about, false, c.authenticateTokens},
		{"POST /v1/tokens/authorize", about, false, c.authorizeTokens},
	}
}

// Limits of public endpoints, for each address: a person needs a few requests, a CLI that
// waits one in two seconds.
const (
	publicRate  = 5   // a second
	publicBurst = 100 // at once
)

// handlePublic runs one public endpoint.
func (c *Controller) handlePublic(e publicEndpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r := req.Context().Value(callKey{}).(*call)
		r.Request = req
		log := c.log.With("request", r.id)
		if e.page {
			pageHeaders(w.Header())
		}
		code, body, err := 0, any(nil), c.publicLimit.take(networkOf(r.from()), now())
		if err == nil {
			code, body, err = c.watched(r, e)
		}
		if req.Context().Err() != nil && err != nil {
			return // the client is gone
		}
		var l *tooFast
		if errors.As(err, &l) {
			w.Header().Set("Retry-After", strconv.Itoa(int(l.wait/time.Second)+1))
		}
		switch {
		case errors.Is(err, errAnswered):
		case err != nil && e.page:
			c.writeErrorPage(w, r, log, err)
		case err != nil:
			writeError(w, log, err)
		default:
			writeJSON(w, code, body)
		}
	})
}

// from is the client's address, as the edge tells it.
func (r *call) from() netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(host)
	return a.Unmap().WithZone("")
}

// tooFast is the answer beyond a limit.
type tooFast struct {
	fault *fault.Error
	wait  time.Duration
}

// Error is the fault's.
func (t *tooFast) Error() string { return t.fault.Error() }

// Unwrap lets the fault through.
func (t *tooFast) Unwrap() error { return t.fault }

// buckets is a token bucket for each of many.
type buckets struct {
	rate, burst float64
	mu          sync.Mutex
	all         map[string]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

// maxBuckets bounds the memory. Beyond it the full ones are forgotten, and then all.
const maxBuckets = 20000

func newLimit(rate, burst float64) *buckets {
	return &buckets{rate: rate, burst: burst, all: map[string]*bucket{}}
}

// networkOf is what counts as one address: /64 of IPv6, which is what one gets.
func networkOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p.String()
}

// take counts one of p's, or refuses it.
func (l *buckets) take(p string, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.all[p]
	if b == nil {
		if len(l.all) >= maxBuckets {
			l.forget(now)
		}
		b = &bucket{left: l.burst, at: now}
		l.all[p] = b
	}
	b.left = min(l.burst, b.left+max(0, now.Sub(b.at).Seconds())*l.rate)
	b.at = now
	if b.left < 1 {
		wait := time.Duration((1 - b.left) / l.rate * float64(time.Second))
		return &tooFast{fault.New(fault.TooMany, "too many requests; wait %s", (wait + time.Second).Truncate(time.Second)).WithStatus("rate_limited"), wait}
	}
	b.left--
	return nil
}

func (l *buckets) forget(now time.Time) {
	for p, b := range l.all {
		if b.left+now.Sub(b.at).Seconds()*l.rate >= l.burst {
			delete(l.all, p)
		}
	}
	if len(l.all) >= maxBuckets {
		clear(l.all)
	}
}
