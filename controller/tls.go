package controller

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"

	"bulkhead/fault"
	"bulkhead/pki"
)

// apiCert is the certificate of api.<domain>, registry.<domain> and the domain itself. Its key is made
// once and stays, in a file of mode 0600, so that the pin in every login string
// stays good; the certificate is renewed at half its life.
type apiCert struct {
	ca    *pki.CA
	key   *ecdsa.PrivateKey
	names []string

	mu  sync.Mutex
	cur *tls.Certificate
	gen int // of the authority that signed it
}

func openAPICert(ca *pki.CA, dir, domain string) (*apiCert, error) {
	k, err := openPinned(filepath.Join(dir, "api.key"), filepath.Join(dir, "api.pin"))
	if err != nil {
		return nil, err
	}
	a := &apiCert{ca: ca, key: k, names: []string{"api." + domain, "registry." + domain, domain}}
	_, err = a.get(nil)
	return a, err
}

// openPinned opens the key that every login pins, and refuses to make another in its place:
// that would lock out everybody. Of a lost key the pin is left.
//
// Crash safety: the pin is written after the key, and again while it is missing.
func openPinned(keyFile, pinFile string) (*ecdsa.PrivateKey, error) {
	pinned, err := os.ReadFile(pinFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		if _, err := os.Stat(keyFile); errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing, and every login trusts that key alone (pin %s): restore it from a backup; or remove %s too, which makes another key, and then everybody must log in anew with a line of \"bulkheadd token\"",
				keyFile, strings.TrimSpace(string(pinned)), pinFile)
		}
	}
	k, err := pki.OpenKey(keyFile)
	if err != nil {
		return nil, err
	}
	pin, err := pki.PinOfKey(&k.PublicKey)
	if err != nil || strings.TrimSpace(string(pinned)) == pin {
		return k, err
	}
	if len(pinned) > 0 {
		return nil, fmt.Errorf("%s is another key than the one that every login trusts (pin %s): restore that one from a backup; or remove %s, and then everybody must log in anew",
			keyFile, strings.TrimSpace(string(pinned)), pinFile)
	}
	return k, pki.WriteFile(pinFile, []byte(pin+"\n"), 0o644)
}

// get is a tls.Config.GetCertificate.
func (a *apiCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	gen := a.ca.Generation()
	if a.cur != nil && a.gen == gen {
		l := a.cur.Leaf
		if now := time.Now(); !now.Before(l.NotBefore) && now.Before(l.NotBefore.Add(l.NotAfter.Sub(l.NotBefore)/2)) {
			return a.cur, nil
		}
	}
	csr, err := pki.NewCSR(a.key)
	if err != nil {
		return nil, err
	}
	chain, err := a.ca.IssueServer(csr, a.names...)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	a.gen = gen
	a.cur = &tls.Certificate{Certificate: chain, PrivateKey: a.key, Leaf: leaf}
	return a.cur, nil
}

func (a *apiCert) pin() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return pki.Pin(a.cur.Leaf)
}

// config is TLS 1.3 alone: every client is ours or current.
func (a *apiCert) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: a.get, NextProtos: []string{"h2", "http/1.1"}}
}

// Limits of the public listener.
const (
	proxyHeaderLimit = 5 * time.Second
	headerLimit      = 10 * time.Second // a request's header, and the handshake before it
	idleLimit        = 2 * time.Minute
	maxStreams       = 250
	maxFrame         = 16 << 10 // the least that HTTP/2 knows: a connection holds one
	maxAhead         = 1 << 20  // what a client may send of bodies that nobody reads yet
)

// proxyListener takes the PROXY v2 header that the edge puts before each connection:
// it says where the client is. A connection without one is closed. Only the edge can
// connect: the socket's file mode says so.
func proxyListener(l net.Listener) net.Listener {
	return &proxyproto.Listener{
		Listener:          l,
		ReadHeaderTimeout: proxyHeaderLimit,
		ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
			return proxyproto.REQUIRE, nil
		},
		ValidateHeader: func(h *proxyproto.Header) error {
			if h.Version != 2 {
				return fault.New(fault.Invalid, "a PROXY header of version %d", h.Version)
			}
			return nil
		},
	}
}

// apiServer is the server of the api socket.
func (c *Controller) apiServer() *http.Server {
	return &http.Server{
		Handler:           c.byHost(),
		TLSConfig:         c.cert.config(),
		ReadHeaderTimeout: c.gate.limits.Header,
		IdleTimeout:       c.gate.limits.Idle,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame, MaxReceiveBufferPerConnection: maxAhead,
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: answerLimit,
		},
		ConnContext: withGate,
		ErrorLog:    quietHTTPLog(c.log),
	}
}

// byHost sends requests for registry.<domain> to the registry and those for
// api.<domain> to the API, and browsers at the domain itself to the sign-in page. Another
// name is misdirected.
func (c *Controller) byHost() http.Handler {
	api, registry, domain := c.serveAPI(), c.registryHandler(), c.cfg.Role.Domain
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		countRequest(r)
		if r.ProtoMajor == 1 && (r.ProtoMinor == 0 || len(r.TransferEncoding) > 0) {
			// A Content-Length beside it, which net/http drops unseen, may have told a
			// proxy in front of another end: nothing may follow (RFC 9112 section 6.1).
			w.Header().Set("Connection", "close")
		}
		host := hostOf(r)
		if (host == domain || host == "api."+domain && r.URL.Path == "/") && c.toSignIn(w, r) {
			return
		}
		switch host {
		case "api." + domain:
			api.ServeHTTP(w, r)
		case "registry." + domain:
			registry.ServeHTTP(w, r)
		default:
			writeError(w, c.log, fault.New(fault.Unauthenticated, "this address serves api.%s and registry.%s", domain, domain))
		}
	})
}

// registryHandler adds a log line to the registry's own handler.
func (c *Controller) registryHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, rec := time.Now(), &recorder{ResponseWriter: w}
		if err := checkSize(r); err != nil {
			c.registry.Refuse(rec, r, err)
		} else {
			rw, req, done := c.ending(rec, r)
			c.auditedRegistry(rw, rec, req)
			done()
		}
		http.NewResponseController(rec).SetReadDeadline(time.Now().Add(c.gate.limits.Leftover)) // what of a body nobody wants
		took := time.Since(start)
		c.metrics.request(r.Method, rec.code, took)
		c.log.Info("registry request", "method", r.Method, "path", fault.Clip(r.URL.Path), "code", rec.code,
			"bytes", rec.bytes, "ms", float64(took.Microseconds())/1000, "from", r.RemoteAddr)
	})
}
