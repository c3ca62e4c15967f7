// Package edge is the public front of a node: it ends TLS for <app>.<domain>,
// forwards HTTP to the app's Machines, and passes the API's TLS through untouched.
//
// A request takes this way: accept (accept.go) → server name (edge/sni) → TLS with
// the app's certificate (certs.go) → net/http → checks and headers (serve.go) →
// one lookup and two counters (edge/route) → a pooled connection to a Machine
// (edge/upstream, forward.go) → copy (relay.go).
//
// The edge owns no fact. Routes come from the controller (follow.go) and are kept
// on disk, as are certificates, so that it serves on when the controller is gone,
// also after a restart. It holds no token and sees none: the API's TLS ends in the
// controller.
package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/edge/route"
	"bulkhead/edge/upstream"
	"bulkhead/fault"
	"bulkhead/notice"
)

// Limits bound what a client or a Machine can take of the edge. Zero fields get
// the values of DefaultLimits.
type Limits struct {
	MaxConns        int           // open client connections
	MaxConnsPerAddr int           // of one IPv4 address or IPv6 /64
	MaxHeaderBytes  int           // of a request
	MaxStreams      uint32        // HTTP/2 streams of one connection
	HelloTimeout    time.Duration // from accept to the end of the TLS handshake
	HeaderTimeout   time.Duration // for a request's header
	KeepAlive       time.Duration // idle time between two requests
	ReadIdle        time.Duration // a client sends nothing of a body it owes
	WriteIdle       time.Duration // a client takes no bytes
	DialTimeout     time.Duration // for a connection to a Machine
	RetryFor        time.Duration // how long to go on trying while Machines refuse
	ResponseTimeout time.Duration // from a whole request to a Machine's response header
	BodyIdle        time.Duration // a Machine sends nothing of a body it owes
	PipeIdle        time.Duration // WebSockets, raw TLS, the API: nothing moves
	QueueTimeout    time.Duration // a request waits while all Machines are full
	Drain           time.Duration // shutdown waits this long for requests under way
	WakeTimeout     time.Duration // a request waits for a Machine to be woken, and then to listen
	MaxHeld         int           // requests of one app that wait for a waking
	MaxHeldAll      int           // of all apps
	IdleAfter       time.Duration // a Machine without requests is reported idle
}

// DefaultLimits are those of a server with a public address.
func DefaultLimits() Limits {
	return Limits{
		MaxConns: maxConns(), MaxHeaderBytes: 64 << 10, MaxStreams: 128,
		HelloTimeout: 10 * time.Second, HeaderTimeout: 10 * time.Second, KeepAlive: 75 * time.Second,
		ReadIdle: 60 * time.Second, WriteIdle: 60 * time.Second,
		DialTimeout: 2 * time.Second, RetryFor: 3 * time.Second, ResponseTimeout: 60 * time.Second,
		BodyIdle: 5 * time.Minute, PipeIdle: 10 * time.Minute, QueueTimeout: 5 * time.Second, Drain: 10 * time.Second,
		WakeTimeout: 30 * time.Second, MaxHeld: 1000, MaxHeldAll: 10000, IdleAfter: 60 * time.Second,
	}
}

// maxConns leaves file descriptors for the Machines' side.
func maxConns() int {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil || r.Cur > 1<<20 {
		return 1 << 19
	}
	return max(int(r.Cur)*2/5, 64)
}

func (l *Limits) fill() {
	d := DefaultLimits()
	setInt := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	setInt(&l.MaxConns, d.MaxConns)
	setInt(&l.MaxConnsPerAddr, max(l.MaxConns/4, 1))
	setInt(&l.MaxHeaderBytes, d.MaxHeaderBytes)
	setInt(&l.MaxHeld, d.MaxHeld)
	setInt(&l.MaxHeldAll, d.MaxHeldAll)
	if l.MaxStreams == 0 {
		l.MaxStreams = d.MaxStreams
	}
	for _, f := range []struct {
		p *time.Duration
		v time.Duration
	}{
		{&l.HelloTimeout, d.HelloTimeout}, {&l.HeaderTimeout, d.HeaderTimeout}, {&l.KeepAlive, d.KeepAlive},
		{&l.ReadIdle, d.ReadIdle}, {&l.WriteIdle, d.WriteIdle}, {&l.DialTimeout, d.DialTimeout}, {&l.RetryFor, d.RetryFor},
		{&l.ResponseTimeout, d.ResponseTimeout}, {&l.BodyIdle, d.BodyIdle}, {&l.PipeIdle, d.PipeIdle},
		{&l.QueueTimeout, d.QueueTimeout}, {&l.Drain, d.Drain},
		{&l.WakeTimeout, d.WakeTimeout}, {&l.IdleAfter, d.IdleAfter},
	} {
		if *f.p == 0 {
			*f.p = f.v
		}
	}
}

// Server is an edge. Set the fields after New and before Open.
type Server struct {
	// Domain is the cluster's: apps are below it.
	Domain string
	// Region is told to apps.
	Region string
	// HTTPPort and HTTPSPort are the ports as the public reaches them, for
	// redirects and headers.
	HTTPPort, HTTPSPort string
	// DataDir keeps the key, the certificates and the routes.
	DataDir string
	// APISocket is the controller's socket for api.<domain> and registry.<domain>.
	APISocket string
	Limits    Limits
	Log       *slog.Logger
	// Dial connects to Machines; nil is TCP.
	Dial upstream.Dial

	m       *metrics
	table   *route.Table
	cache   *route.Cache
	certs   *certStore
	board   *notice.Board
	clients clients
	tlsHTTP *tls.Config // for services with the http handler
	tlsRaw  *tls.Config // for services with the tls handler alone
	logs    *limiter
	waker   waker

	controller atomic.Pointer[internalpb.ControllerClient]

	dirtyMu sync.Mutex
	dirty   map[string]struct{}
	dirtyCh chan struct{}

	background context.Context
	cancel     context.CancelFunc
	wg         sync.WaitGroup
	sessions   sessions // connections that are not an http.Server's
	pipes      pipes    // those of them that are copied byte by byte
}

// New returns an edge without settings.
func New() *Server { return &Server{} }

// Open reads what is kept on disk and starts the background work. Close ends it.
func (s *Server) Open() error {
	s.Limits.fill()
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Domain == "" || s.DataDir == "" {
		return fault.New(fault.Invalid, "an edge needs a domain and a data directory")
	}
	if s.Dial == nil {
		// The warden ends connections to a Machine that is gone, where the kernel can.
		d := &net.Dialer{Timeout: s.Limits.DialTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
		s.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	s.table = route.NewTable(func(ctx context.Context, addr string) (net.Conn, error) {
		s.m.dials.Inc()
		return s.Dial(ctx, addr)
	})
	s.m = newMetrics(s.table.Len)
	s.logs = newLimiter(20, 100)
	s.clients = clients{open: map[*clientConn]struct{}{}, byGroup: map[netip.Prefix]int{}, max: s.Limits.MaxConns, maxEach: s.Limits.MaxConnsPerAddr}
	s.dirty, s.dirtyCh = map[string]struct{}{}, make(chan struct{}, 1)
	var err error
	s.board = notice.New(s.Log)
	if s.certs, err = openCerts(s.DataDir, s.Domain, s.issue, s.m, s.Log); err != nil {
		return err
	}
	s.certs.sweep()
	if s.cache, err = route.OpenCache(filepath.Join(s.DataDir, "routes.log"), s.table.Set); err != nil {
		return err
	}
	s.makeTLS()
	s.background, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(func() { s.certs.run(s.background) })
	s.wg.Go(func() { s.keepCache(s.background) })
	s.wg.Go(func() { s.keepCerts(s.background) })
	s.wg.Go(func() { s.keepIdle(s.background) })
	s.Log.Info("edge opened", "domain", s.Domain, "cached_routes", s.table.Len())
	return nil
}

// Close ends the background work, and every connection that is still open.
func (s *Server) Close() error {
	if s.cancel == nil {
		return nil
	}
	s.cancel()
	s.clients.closeAll()
	<-s.sessions.idle()
	s.waker.wait()
	s.wg.Wait()
	s.table.Close()
	return s.cache.Close()
}

// Serve answers on both listeners until ctx ends; then it stops accepting, lets
// requests under way end for at most Limits.Drain, and returns ctx's error. It
// closes the listeners. Either may be nil.
func (s *Server) Serve(ctx context.Context, plain, secure net.Listener) error {
	var stops []func(context.Context) error
	errs := make(chan error, 4)
	run := func(fn func() error) {
		s.wg.Go(func() {
			if err := fn(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
				errs <- err
			}
		})
	}
	front := func(l net.Listener, https bool) {
		hand := newHandoff(l.Addr())
		srv := s.httpServer(https)
		hand.watch(srv)
		accepted, served := make(chan struct{}), make(chan struct{})
		run(func() error { defer close(served); return srv.Serve(hand) })
		run(func() error { defer close(accepted); return s.accept(l, hand, https) })
		stops = append(stops, func(ctx context.Context) error {
			l.Close()
			hand.settle(ctx, accepted, served)
			// Once it shuts down, net/http drops the requests that it reads.
			srv.SetKeepAlivesEnabled(false)
			hand.unasked.wait(ctx)
			return srv.Shutdown(ctx)
		})
	}
	if plain != nil {
		front(plain, false)
	}
	if secure != nil {
		front(secure, true)
	}
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-errs:
	}
	dctx, cancel := context.WithTimeout(context.Background(), s.Limits.Drain)
	defer cancel()
	s.pipes.drain()
	var g sync.WaitGroup
	for _, stop := range stops {
		g.Go(func() { _ = stop(dctx) })
	}
	g.Wait()
	select {
	case <-s.sessions.idle():
	case <-dctx.Done():
	}
	s.clients.closeAll()
	<-s.sessions.idle()
	return err
}

// httpServer is the front of one listener.
func (s *Server) httpServer(https bool) *http.Server {
	srv := &http.Server{
		Handler:           &front{s: s, https: https},
		ReadHeaderTimeout: s.Limits.HeaderTimeout,
		IdleTimeout:       s.Limits.KeepAlive,
		MaxHeaderBytes:    s.Limits.MaxHeaderBytes,
		ConnContext:       withClient,
		ConnState:         anotherRead,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: int(s.Limits.MaxStreams),
			MaxReadFrameSize:     16 << 10,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     s.Limits.WriteIdle,
			CountError: func(what string) { // a stream or connection that net/http ends by itself
				if what != "closed" { // the rest of a body that nobody wants
					s.m.errors.WithLabelValues("PU04").Inc()
				}
			},
		},
	}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	if https {
		srv.TLSConfig = s.tlsHTTP
		srv.Protocols.SetHTTP2(true)
	}
	return srv
}

// makeTLS makes the two TLS configurations: the suites are those of Fly's edge.
func (s *Server) makeTLS() {
	s.tlsHTTP = &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			app, ok := s.appOf(hostName(h.ServerName))
			if !ok || s.table.Lookup(app) == nil {
				return nil, fault.New(fault.NotFound, "no app for this server name")
			}
			return s.certs.get(h.Context(), app)
		},
	}
	s.tlsRaw = s.tlsHTTP.Clone()
	s.tlsRaw.NextProtos = nil
}

// appOf returns the app that a host name below the domain names, as hostName gives it.
func (s *Server) appOf(host string) (string, bool) {
	label, ok := strings.CutSuffix(host, "."+s.Domain)
	if !ok || label == "" || strings.IndexByte(label, '.') >= 0 {
		return "", false
	}
	return label, true
}

// Follow takes routes and certificates from the controller until ctx ends.
func (s *Server) Follow(ctx context.Context, c internalpb.ControllerClient) error {
	s.controller.Store(&c)
	return s.follow(ctx, c)
}

// issue asks the controller for a certificate.
func (s *Server) issue(ctx context.Context, app string, csr []byte) ([][]byte, error) {
	c := s.controller.Load()
	if c == nil {
		return nil, fault.New(fault.Unavailable, "the controller has not been reached yet")
	}
	resp, err := (*c).IssueServerCertificate(ctx, &internalpb.IssueServerCertificateRequest{App: app, CsrDer: csr})
	if err != nil {
		return nil, fmt.Errorf("ask the controller for a certificate: %w", err)
	}
	return resp.GetChainDer(), nil
}

// publicURL is the https address of a host.
func (s *Server) publicURL(host, target string) string {
	if s.HTTPSPort != "" && s.HTTPSPort != "443" {
		host = net.JoinHostPort(host, s.HTTPSPort)
	}
	if !strings.HasPrefix(target, "/") {
		target = "/" // an absolute target: its path has been checked by nobody
	}
	return "https://" + host + target
}
