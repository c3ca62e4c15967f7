package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// patience bounds each attempt, and glance a look at what may say nothing at all.
const (
	patience = 5 * time.Second
	glance   = 300 * time.Millisecond
)

// Try tries each listener without credentials and notes what came of it.
func Try(ctx context.Context, p Platform, listeners []Listener) error {
	own, err := selfSigned()
	if err != nil {
		return err
	}
	t := trier{ctx, p, own}
	for i := range listeners {
		l := &listeners[i]
		l.Trials = nil
		switch {
		case l.Network == "tcp":
			t.tcp(l)
		case l.Network == "unix":
			err = t.unix(l)
		}
		if err != nil {
			return fmt.Errorf("try %s %s: %w", l.Network, l.Addr, err)
		}
	}
	return t.strangers(listeners)
}

type trier struct {
	ctx context.Context
	p   Platform
	own tls.Certificate // nobody's
}

// add notes a trial: refused when got says how, not refused when it is an answer.
func (l *Listener) add(what string, refused bool, format string, args ...any) {
	got := fmt.Sprintf(format, args...)
	if len(got) > 160 {
		got = got[:160]
	}
	l.Trials = append(l.Trials, Trial{what, refused, got})
}

// tcp tries a TCP listener from the network namespace it is in.
func (t trier) tcp(l *Listener) {
	dial := func(context.Context, string, string) (c net.Conn, err error) {
		// A connection is made on the thread that asks for it, when there is but one
		// address to try.
		err = within(l.ns, func() error {
			for _, addr := range reachable(l.Addr) {
				if c, err = net.DialTimeout("tcp", addr, patience); err == nil {
					return nil
				}
			}
			return err
		})
		return c, err
	}
	switch l.Expected {
	case publicHTTPS:
		t.publicHTTPS(l, dial)
	case publicHTTP:
		t.publicHTTP(l, dial)
	case clusterPort:
		t.mutual(l, dial)
	default:
		t.whatAnswers(l, dial)
	}
}

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// closed are paths of the API and of the registry that nobody reads without a token,
// and those at which programs like to tell about themselves.
var closed = map[string][]string{
	"api":      {"/v1/apps", "/v1/platform/regions", "/metrics", "/healthz", "/debug/pprof/", "/debug/vars", "/nothing"},
	"registry": {"/v2/", "/v2/x/tags/list", "/debug/pprof/"},
}

// wrongTokens are refused everywhere.
var wrongTokens = []string{"Bearer bh_wrong", "FlyV1 fm2_wrong", "Basic eDp4"}

func (t trier) publicHTTPS(l *Listener, dial dialer) {
	for _, host := range []string{"api", "registry"} {
		name := host + "." + t.p.Domain
		client := t.client(dial, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		for i, path := range closed[host] {
			tokens := []string{""}
			if i == 0 {
				tokens = append(tokens, wrongTokens...)
			}
			for _, token := range tokens {
				what := "https://" + name + path + " without a token"
				if token != "" {
					what = "https://" + name + path + " with " + token
				}
				status, body, err := t.get(client, "https://"+name+path, token)
				switch {
				case err != nil:
					l.add(what, false, "it could not be tried: %v", err)
				default:
					refused := status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusTooManyRequests
					// What does not exist tells nothing, unless it is a list of the API.
					refused = refused || status == http.StatusNotFound && strings.HasPrefix(path, "/debug/")
					l.add(what, refused, "%d %.60q", status, body)
				}
			}
		}
	}
	for _, name := range []string{"nobody-has-this-name." + t.p.Domain, "", "bulkhead.invalid"} {
		what := fmt.Sprintf("TLS for the name %q", name)
		c, err := dial(t.ctx, "", "")
		if err != nil {
			l.add(what, false, "it could not be tried: %v", err)
			continue
		}
		c.SetDeadline(time.Now().Add(patience))
		err = tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		c.Close()
		l.add(what, err != nil, "%v", orAnswers(err))
	}
}

func (t trier) publicHTTP(l *Listener, dial dialer) {
	client := t.client(dial, nil)
	for _, host := range []string{"api", "registry"} {
		for _, path := range []string{"/v1/apps", "/ca-cert", "/debug/pprof/"} {
			url := "http://" + host + "." + t.p.Domain + path
			status, body, err := t.get(client, url, "")
			if err != nil {
				l.add(url, false, "it could not be tried: %v", err)
				continue
			}
			l.add(url, status >= 300 && !strings.Contains(body, "CERTIFICATE"), "%d %.60q", status, body)
		}
	}
}

// mutual tries a listener of internal calls without a certificate, and with one that
// no authority of the cluster has signed.
func (t trier) mutual(l *Listener, dial dialer) {
	for _, c := range []struct {
		what  string
		certs []tls.Certificate
	}{{"TLS without a certificate", nil}, {"TLS with a certificate of one's own making", []tls.Certificate{t.own}}} {
		conn, err := dial(t.ctx, "", "")
		if err != nil {
			l.add(c.what, false, "it could not be tried: %v", err)
			continue
		}
		err = speakHTTP2(conn, c.certs)
		l.add(c.what, err != nil, "%v", orAnswers(err))
	}
}

// speakHTTP2 returns nil when a server takes us for a caller.
func speakHTTP2(c net.Conn, certs []tls.Certificate) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(certs) == 0 {
			return &tls.Certificate{}, nil
		}
		return &certs[0], nil
	}})
	if err := conn.Handshake(); err != nil {
		return err
	}
	// In TLS 1.3 the refusal of a client's certificate arrives with the first read; who
	// is welcome reads the server's settings.
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil // it neither refuses nor speaks first: it took us
	}
	return err
}

// whatAnswers tries a listener that nobody planned. It is a failure whatever it does;
// the trials are for whoever has to find out what it is.
func (t trier) whatAnswers(l *Listener, dial dialer) {
	c, err := dial(t.ctx, "", "")
	if err != nil {
		l.add("a connection", meantByNetwork(err), "%v", err)
		return
	}
	c.SetDeadline(time.Now().Add(glance))
	b := make([]byte, 100)
	n, _ := c.Read(b)
	c.Close()
	l.add("a connection", false, "it is accepted, and %q is said first", b[:n])
	for _, scheme := range []string{"http", "https"} {
		client := t.client(dial, &tls.Config{InsecureSkipVerify: true})
		client.Timeout = glance
		status, body, err := t.get(client, scheme+"://listener.invalid/", "")
		if err != nil {
			l.add(scheme, true, "%v", err)
			continue
		}
		l.add(scheme, status == http.StatusUnauthorized || status == http.StatusForbidden, "%d %.60q", status, body)
	}
}

// unix tries a unix socket as root, who may open the file, but has no identity.
func (t trier) unix(l *Listener) error {
	dial := func(context.Context, string, string) (net.Conn, error) {
		return net.DialTimeout("unix", l.Addr, patience)
	}
	if mutualTLS[l.Expected] {
		t.mutual(l, dial)
	}
	switch l.Expected {
	case unixNames["warden"], unixNames["api"]:
		t.speaksNot(l, dial)
	case unixNames["admin"], unixNames["enroll"], storeSocket: // root is welcome, and finds what is meant for it
		status, body, err := t.get(t.client(dial, nil), "http://x/debug/pprof/", "")
		l.add("/debug/pprof/", err != nil || status != http.StatusOK, "%d %.60q %v", status, body, orNothing(err))
	}
	return nil
}

// speaksNot sends HTTP to what takes something else, and sees it not answered.
func (t trier) speaksNot(l *Listener, dial dialer) {
	c, err := dial(t.ctx, "", "")
	if err != nil {
		l.add("HTTP", false, "it could not be tried: %v", err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "GET /debug/pprof/ HTTP/1.1\r\nHost: x\r\n\r\n")
	b, err := io.ReadAll(io.LimitReader(c, 4096))
	var timeout net.Error
	hangs := errors.As(err, &timeout) && timeout.Timeout()
	l.add("HTTP", !hangs && !strings.HasPrefix(string(b), "HTTP/1.1 2"), "%.100q %v", b, orNothing(err))
}

// strangers tries every unix socket as users without any right.
func (t trier) strangers(listeners []Listener) error {
	type ask struct {
		l *Listener
		errand
	}
	bySpace := map[string][]ask{} // an abstract socket is reached in its network namespace
	for i := range listeners {
		l := &listeners[i]
		switch l.Network {
		case "unix":
			path := l.Addr
			if !sameMounts(l.pid) {
				path = fmt.Sprintf("/proc/%d/root%s", l.pid, l.Addr)
			}
			bySpace[ownNetns] = append(bySpace[ownNetns], ask{l, errand{path, true, l.kind}})
		case "abstract":
			bySpace[l.ns] = append(bySpace[l.ns], ask{l, errand{l.Addr, true, l.kind}})
		}
	}
	for ns, asks := range bySpace {
		errands := make([]errand, len(asks))
		for i, a := range asks {
			errands[i] = a.errand
		}
		for _, who := range strangers {
			got, err := asStranger(t.ctx, who.id, ns, errands)
			if err != nil {
				return err
			}
			for i, a := range asks {
				switch e := got[i].Errno; {
				case e == 0:
					a.l.add("connecting as "+who.name, false, "it is connected")
				case meant(e):
					a.l.add("connecting as "+who.name, true, "%v", e)
				default:
					a.l.add("connecting as "+who.name, false, "it could not be tried: %v", e)
				}
			}
		}
	}
	return nil
}

// sameMounts reports whether a process names files as we do.
func sameMounts(pid int) bool {
	a, aerr := os.Readlink("/proc/self/ns/mnt")
	b, berr := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	return aerr == nil && berr == nil && a == b
}

// client makes a client that reaches one address and follows nothing.
func (t trier) client(dial dialer, conf *tls.Config) *http.Client {
	return &http.Client{
		Timeout:       patience,
		Transport:     &http.Transport{DialContext: dial, TLSClientConfig: conf, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (t trier) get(c *http.Client, url, token string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(t.ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return resp.StatusCode, string(b), err
}

// reachable lists addresses at which a listener can be called.
func reachable(addr string) []string {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !a.Addr().IsUnspecified() {
		return []string{addr}
	}
	port := strconv.Itoa(int(a.Port()))
	return []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
}

// meantByNetwork reports whether a connection was refused, and did not merely fail.
func meantByNetwork(err error) bool { return strings.Contains(err.Error(), "refused") }

func orAnswers(err error) string {
	if err == nil {
		return "it answers"
	}
	return err.Error()
}

func orNothing(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// selfSigned makes a certificate that nobody has signed but itself.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, DNSNames: []string{"doctor.invalid"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
