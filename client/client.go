// Package client is the Go client of Bulkhead's public API: the Machines API under
// /v1 and the registry beside it.
//
// A Client speaks to one cluster over TLS pinned to that cluster's public key, and
// to nothing else: no certificate authority is asked, no proxy is used unless one
// is named, and no request ever leaves in the clear. Errors are *fault.Error with
// the kind that the server's status code stands for. A Client is safe for use by
// several goroutines.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"bulkhead/fault"
)

// Config says which cluster a Client speaks to. URL, Pin and Token are what the
// login line of bulkheadd holds.
type Config struct {
	URL   string // https://api.<domain>[:port]
	Pin   string // base64url (no padding) SHA-256 of the API key's SubjectPublicKeyInfo
	Token string // sent as a bearer token; never logged
	// Renew gives the token with what it needs beside it that lasts for minutes. It is asked
	// before each request, and once again when the server found that too old. nil: the token is
	// good as it is.
	Renew func(ctx context.Context, again bool) (string, error)
	// Anonymous is for logging in: there is no token yet.
	Anonymous bool
	// Proxy is an http:// or socks5:// proxy for every connection; empty means a
	// direct connection, whatever the environment says.
	Proxy string
	// Waits is called before each wait for the server, and what it returns after it: a
	// terminal shows what the user waits for. nil: nobody is interested.
	Waits func() (done func())
	// UserAgent is sent with every request; empty means "bulkhead".
	UserAgent string
}

// Client is a connection to one cluster. Make one with New.
type Client struct {
	base      *url.URL
	token     string
	renew     func(ctx context.Context, again bool) (string, error)
	agent     string
	waits     func() (done func())
	transport *pinnedTransport
	http      *http.Client
}

// Limits on what a server may make the client hold in memory.
const (
	maxAnswer      = 64 << 20 // bytes of one JSON answer
	maxErrorAnswer = 64 << 10 // bytes of one error answer
)

// Unreachable is the fault status of a server that no answer came from, which tells
// it from a server that answers that something behind it is unavailable.
const Unreachable = "unreachable"

// Statuses and reasons that the API gives errors, for programs.
const (
	Leased     = "leased"                // somebody else holds the Machine's lease
	NoCapacity = "insufficient_capacity" // no node has room
)

// defaultTimeout bounds a call whose context has no earlier deadline.
const defaultTimeout = 60 * time.Second

// New checks c and returns a Client. It makes no connection.
func New(c Config) (*Client, error) {
	u, err := ParseURL(c.URL)
	if err != nil {
		return nil, err
	}
	if c.Token == "" && !c.Anonymous {
		return nil, fault.New(fault.Unauthenticated, "no token for %s", u.Host)
	}
	if strings.ContainsAny(c.Token, " \t\r\n") {
		return nil, fault.New(fault.Invalid,
			"the token holds white space; it must be one word, which starts with fm2_ or bh_")
	}
	t, err := newPinnedTransport(c.Pin, c.Proxy)
	if err != nil {
		return nil, err
	}
	agent := c.UserAgent
	if agent == "" {
		agent = "bulkhead"
	}
	waits := c.Waits
	if waits == nil {
		waits = func() func() { return func() {} }
	}
	return &Client{
		base: u, token: c.Token, renew: c.Renew, agent: agent, waits: waits, transport: t,
		http: &http.Client{
			Transport: t,
			// The API never redirects; following one could carry the token elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// ParseURL checks the address of a cluster's API: https, a host that starts with
// "api.", and nothing behind it.
func ParseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return nil, fault.New(fault.Invalid, "%q is not an address such as https://api.example.com", s)
	}
	if u.Scheme != "https" {
		return nil, fault.New(fault.Invalid,
			"the address %q must start with https://, or the token would travel in the clear", s)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		return nil, fault.New(fault.Invalid, "the address %q must end after the host and port", s)
	}
	host := strings.ToLower(u.Hostname())
	if !strings.HasPrefix(host, "api.") || len(host) == len("api.") {
		return nil, fault.New(fault.Invalid,
			"the host of %q must start with \"api.\", since the registry and the apps are its siblings", s)
	}
	return &url.URL{Scheme: "https", Host: strings.TrimSuffix(strings.ToLower(u.Host), ":")}, nil
}

// URL returns the address of the API, without a slash at its end.
func (c *Client) URL() string { return c.base.String() }

// sibling returns host:port of another name below the cluster's domain.
func (c *Client) sibling(label string) string {
	h := label + "." + strings.TrimPrefix(c.base.Hostname(), "api.")
	if p := c.base.Port(); p != "" && p != "443" {
		return net.JoinHostPort(h, p)
	}
	return h
}

// Domain returns the cluster's domain, without a port.
func (c *Client) Domain() string { return strings.TrimPrefix(c.base.Hostname(), "api.") }

// Registry returns the host, and the port where it is not 443, of the cluster's registry.
func (c *Client) Registry() string { return c.sibling("registry") }

// AppURL returns the address at which the edge serves app.
func (c *Client) AppURL(app string) string { return "https://" + c.sibling(app) }

// Token returns the token as it is good now, for the registry's basic authentication.
func (c *Client) Token(ctx context.Context) (string, error) {
	if c.renew == nil {
		return c.token, nil
	}
	return c.renew(ctx, false)
}

// Transport returns the pinned transport, for the registry. It refuses every
// request that is not https.
func (c *Client) Transport() http.RoundTripper { return c.transport }

// Close drops idle connections.
func (c *Client) Close() { c.transport.inner.CloseIdleConnections() }

// call is one request to the API.
type call struct {
	method  string
	path    []string // joined by "/", each part escaped
	query   url.Values
	in      any // sent as JSON when not nil
	out     any // decoded from JSON when not nil
	nonce   string
	timeout time.Duration // 0 means defaultTimeout
	root    string        // of the path, in place of /v1
	bearer  string        // in place of the token
	stream  io.Reader     // sent as it is, of type media
	media   string
}

// maxPatience is the longest that the server may ask to wait before the call is sent
// again by itself; beyond that the caller is told.
const maxPatience = 10 * time.Second

// do sends r, and again where that is safe: a GET after a transport error or a
// passing refusal, any method after 429, which says that nothing was done, and not
// before the time that the server asks for.
func (c *Client) do(ctx context.Context, r call) error {
	if r.timeout == 0 {
		r.timeout = defaultTimeout
	}
	defer c.waits()()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	for attempt, pause := 1, 100*time.Millisecond; ; attempt, pause = attempt+1, pause*4 {
		err := c.once(ctx, r)
		again := fault.Is(err, fault.TooMany) || (r.method == http.MethodGet && fault.Is(err, fault.Unavailable))
		asked := fault.RetryAfterOf(err)
		if err == nil || !again || attempt == 3 || asked > maxPatience {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(max(pause, asked)):
		}
	}
}

// once sends r a single time.
func (c *Client) once(ctx context.Context, r call) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if r.out == nil {
		io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorAnswer))
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.transportError(ctx, err)
	}
	if err := json.Unmarshal(b, r.out); err != nil {
		return fault.Wrap(fault.Internal, err, "%s answered %s %s with something that is not the expected JSON",
			c.base.Host, r.method, pathOf(r.path))
	}
	return nil
}

// send sends r and returns the answer when its code is a success; the caller
// closes the body.
func (c *Client) send(ctx context.Context, r call) (*http.Response, error) {
	if r.bearer != "" {
		return c.sendAs(ctx, r, r.bearer)
	}
	token, err := c.Token(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := c.sendAs(ctx, r, token)
	if c.renew == nil || r.stream != nil || !NeedsDischarge(err) {
		return resp, err
	}
	// The clocks differ, or the discharge was withdrawn. Nothing was done.
	if token, err = c.renew(ctx, true); err != nil {
		return nil, err
	}
	return c.sendAs(ctx, r, token)
}

// sendAs is send with a token.
func (c *Client) sendAs(ctx context.Context, r call, token string) (*http.Response, error) {
	var body io.Reader
	if r.in != nil {
		b, err := json.Marshal(r.in)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the request cannot be written as JSON")
		}
		body = bytes.NewReader(b)
	}
	if r.stream != nil {
		body = r.stream
	}
	root := r.root
	if root == "" {
		root = "/v1"
	}
	u := c.base.String() + root + pathOf(r.path)
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, body)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the request's address is malformed")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.media != "" {
		req.Header.Set("Content-Type", r.media)
	}
	if r.nonce != "" {
		req.Header.Set(NonceHeader, r.nonce)
	}
	answered := c.waits()
	resp, err := c.http.Do(req)
	answered()
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, answerError(resp)
	}
	return resp, nil
}

// pathOf joins and escapes the parts of a path.
func pathOf(parts []string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}

// answerError turns a refusal into a *fault.Error.
func answerError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorAnswer))
	var body struct {
		Error   string `json:"error"`
		Message string `json:"message"`
		Status  string `json:"status"`
		Details struct {
			Reason string `json:"reason"` // where the contract has no status
		} `json:"details"`
	}
	msg := ""
	if json.Unmarshal(b, &body) == nil {
		msg = body.Error
		if msg == "" {
			msg = body.Message
		}
	}
	if msg == "" {
		msg = fmt.Sprintf("the server answered %q and no explanation", resp.Status)
	}
	k := kindOf(resp.StatusCode)
	if id := resp.Header.Get("fly-request-id"); id != "" && k == fault.Internal {
		msg += " (request id " + id + ")"
	}
	e := fault.New(k, "%s", msg)
	if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 20); err == nil {
		e = e.WithRetryAfter(time.Duration(s) * time.Second)
	}
	if body.Status == "" || body.Status == "unknown" {
		body.Status = body.Details.Reason
	}
	if body.Status != "" {
		e = e.WithStatus(body.Status)
	}
	return e
}

// kindOf maps a status code to a kind, as package fault documents it.
func kindOf(code int) fault.Kind {
	switch code {
	case http.StatusUnauthorized:
		return fault.Unauthenticated
	case http.StatusForbidden:
		return fault.Denied
	case http.StatusNotFound, http.StatusGone:
		return fault.NotFound
	case http.StatusRequestTimeout:
		return fault.Timeout
	case http.StatusConflict:
		return fault.Conflict
	case http.StatusPreconditionFailed:
		return fault.Precondition
	case http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge:
		return fault.TooLarge
	case http.StatusUnprocessableEntity:
		return fault.Unprocessable
	case http.StatusTooManyRequests:
		return fault.TooMany
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fault.Unavailable
	}
	if code/100 == 4 {
		return fault.Invalid
	}
	return fault.Internal
}

// transportError turns a failure to speak to the server into a *fault.Error.
func (c *Client) transportError(ctx context.Context, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f // a wrong pin, from the handshake
	}
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return fault.Wrap(fault.Timeout, err, "%s did not answer in time", c.base.Host)
	}
	return fault.Wrap(fault.Unavailable, err, "cannot reach %s: %s", c.base.Host, reason(err)).WithStatus(Unreachable)
}

// reason is the innermost sentence of a transport error, without the address and
// the operation that wrap it.
func reason(err error) string {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var oe *net.OpError
	if errors.As(err, &oe) && oe.Err != nil {
		err = oe.Err
	}
	return err.Error()
}
