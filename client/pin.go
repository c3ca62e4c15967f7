package client

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"bulkhead/fault"
)

// PinMismatch is the fault status of a server that shows another key than the pinned one.
const PinMismatch = "pin_mismatch"

// PinOf returns the pin of a certificate: base64url, without padding, of the
// SHA-256 of its SubjectPublicKeyInfo.
func PinOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// parsePin decodes a pin; padding is accepted, since people copy it from elsewhere.
func parsePin(s string) ([]byte, error) {
	if s == "" {
		return nil, fault.New(fault.Invalid, "no pin given, so the server cannot be told from an impostor")
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
	if err != nil || len(b) != sha256.Size {
		return nil, fault.New(fault.Invalid, "the pin %q is not the base64url form of a SHA-256 (43 characters)", s)
	}
	return b, nil
}

// pinnedTransport carries https requests to servers that hold the pinned key.
type pinnedTransport struct{ inner *http.Transport }

// RoundTrip refuses everything but https, so that no fallback of a library can
// send the token in the clear.
func (t *pinnedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fault.New(fault.Denied, "refusing to send a request to %s without TLS", r.URL.Host)
	}
	return t.inner.RoundTrip(r)
}

// newPinnedTransport returns a transport that accepts only the pinned key. The key
// is the whole check: names and dates of the certificate are not looked at, so the
// cluster can renew its certificate, and no certificate authority can vouch for
// somebody else.
func newPinnedTransport(pin, proxy string) (*pinnedTransport, error) {
	want, err := parsePin(pin)
	if err != nil {
		return nil, err
	}
	proxyFunc, err := parseProxy(proxy)
	if err != nil {
		return nil, err
	}
	return &pinnedTransport{inner: &http.Transport{
		Proxy:                 proxyFunc,
		DialContext:           dial,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       60 * time.Second,
		TLSHandshakeTimeout:   15 * time.Second,
		ExpectContinueTimeout: time.Second,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// Replaced, not removed: VerifyConnection compares the key.
			InsecureSkipVerify: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				return checkPin(want, cs)
			},
		},
	}}, nil
}

// checkPin compares the key that the server proved to hold with the pin.
func checkPin(want []byte, cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return fault.New(fault.Denied, "%s showed no certificate", cs.ServerName).WithStatus(PinMismatch)
	}
	got := sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
	if subtle.ConstantTimeCompare(want, got[:]) == 1 {
		return nil
	}
	return fault.New(fault.Denied, "%s holds another key (pin %s) than the one expected (pin %s); nothing was sent to it",
		cs.ServerName, base64.RawURLEncoding.EncodeToString(got[:]), base64.RawURLEncoding.EncodeToString(want)).WithStatus(PinMismatch)
}

// parseProxy checks the address of a proxy. https:// proxies are refused: their
// certificate would be held against the cluster's pin.
func parseProxy(s string) (func(*http.Request) (*url.URL, error), error) {
	if s == "" {
		return nil, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "socks5") {
		return nil, fault.New(fault.Invalid, "the proxy %q is not an address that starts with http:// or socks5://", s)
	}
	return http.ProxyURL(u), nil
}

// dial connects to addr. Names under .localhost are this machine, whatever DNS
// says (RFC 6761).
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if !isLocalhost(host) {
		return d.DialContext(ctx, network, addr)
	}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return c, nil
	}
	c6, err6 := d.DialContext(ctx, "tcp", net.JoinHostPort("::1", port))
	if err6 == nil {
		return c6, nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	return nil, err // the IPv4 reason: ::1 often fails for want of IPv6
}

// isLocalhost reports whether host is localhost or a name under it.
func isLocalhost(host string) bool {
	h := strings.ToLower(strings.TrimSuffix(host, "."))
	return h == "localhost" || strings.HasSuffix(h, ".localhost")
}
