package edge

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// clientConn is a client's TCP connection: it gives back the bytes that were read
// to find out what it is, bounds how long the client may take no bytes, and gives
// up its place when it is closed.
type clientConn struct {
	net.Conn
	srv   *Server
	kind  string // listener
	group netip.Prefix
	https bool
	app   string // by server name; "" on the plain listener

	clientIP     string
	forwardedFor string

	// settled says that the connection was given to a handoff, or will not be.
	settled func()

	prefix []byte
	// writeBy is only used by Write, which one goroutine calls at a time.
	writeBy time.Time
	closed  atomic.Bool
}

// Read gives the bytes that were read ahead first.
func (c *clientConn) Read(b []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(b, c.prefix)
		if c.prefix = c.prefix[n:]; len(c.prefix) == 0 {
			c.prefix = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

// Write fails when the client takes no byte for the write timeout.
func (c *clientConn) Write(b []byte) (int, error) {
	limit := c.srv.Limits.WriteIdle
	if now := time.Now(); c.writeBy.Sub(now) < limit*7/8 {
		c.writeBy = now.Add(limit)
		if err := c.Conn.SetWriteDeadline(c.writeBy); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

// SetDeadline also forgets the write deadline, which Write sets anew.
func (c *clientConn) SetDeadline(t time.Time) error {
	c.writeBy = time.Time{}
	return c.Conn.SetDeadline(t)
}

// CloseWrite ends the direction to the client.
func (c *clientConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close ends the connection and gives up its place, once.
func (c *clientConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.srv.clients.remove(c)
	return c.Conn.Close()
}

// clients is the set of open client connections, with its bounds.
type clients struct {
	mu      sync.Mutex
	open    map[*clientConn]struct{}
	byGroup map[netip.Prefix]int
	max     int
	maxEach int
}

var (
	errTooMany     = errors.New("too many connections")
	errTooManyEach = errors.New("too many connections from one address")
)

// add takes c in, unless the edge or c's address has its fill.
func (s *clients) add(c *clientConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.open) >= s.max:
		return errTooMany
	case s.byGroup[c.group] >= s.maxEach:
		return errTooManyEach
	}
	s.open[c] = struct{}{}
	s.byGroup[c.group]++
	c.srv.m.conns.WithLabelValues(c.kind).Inc()
	return nil
}

func (s *clients) remove(c *clientConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[c]; !ok {
		return
	}
	delete(s.open, c)
	if s.byGroup[c.group]--; s.byGroup[c.group] == 0 {
		delete(s.byGroup, c.group)
	}
	c.srv.m.conns.WithLabelValues(c.kind).Dec()
}

// closeAll ends every connection.
func (s *clients) closeAll() {
	s.mu.Lock()
	var all []*clientConn
	for c := range s.open {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// groupOf is what counts as one address: an IPv4 address or an IPv6 /64.
func groupOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// handoff is a net.Listener that gives an http.Server connections which were
// accepted, and recognised, elsewhere.
type handoff struct {
	addr   net.Addr
	ch     chan net.Conn
	done   chan struct{}
	once   sync.Once
	coming sessions // connections that may be given yet

	asking  sync.Map // connections whose first request was not read yet
	unasked sessions // their number
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, ch: make(chan net.Conn), done: make(chan struct{})}
}

// give passes c on, or closes it when the server has stopped.
func (h *handoff) give(c net.Conn) {
	select {
	case h.ch <- c:
	case <-h.done:
		c.Close()
	}
}

// settle lets clients that were accepted end their handshakes, and returns when the server
// knows each of them.
func (h *handoff) settle(ctx context.Context, accepted, served <-chan struct{}) {
	select {
	case <-accepted:
		h.coming.wait(ctx)
	case <-ctx.Done():
	}
	h.Close()
	<-served
}

// asks is the key of a connection in the context of its requests.
type asks struct{}

// watch counts the server's connections until their first request is in the handler's
// hands, or the connection ends without one. That it was read is not enough: a server
// that shuts down then drops it.
func (h *handoff) watch(srv *http.Server) {
	base, state, handler := srv.ConnContext, srv.ConnState, srv.Handler
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(base(ctx, c), asks{}, c)
	}
	srv.ConnState = func(c net.Conn, now http.ConnState) {
		state(c, now)
		switch now {
		case http.StateNew:
			h.asking.Store(c, nil)
			h.unasked.add()
		case http.StateClosed, http.StateHijacked:
			h.asked(c)
		}
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked(r.Context().Value(asks{}))
		handler.ServeHTTP(w, r)
	})
}

func (h *handoff) asked(c any) {
	if _, was := h.asking.LoadAndDelete(c); was {
		h.unasked.done()
	}
}

// Accept waits for the next connection.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close stops Accept.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr is the real listener's.
func (h *handoff) Addr() net.Addr { return h.addr }

// sessions counts what runs for connections outside an http.Server. Unlike a
// sync.WaitGroup it may grow while somebody waits.
type sessions struct {
	mu   sync.Mutex
	n    int
	zero chan struct{} // closed when n falls to 0; nil while nobody waits
}

func (s *sessions) add() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
}

func (s *sessions) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n--; s.n == 0 && s.zero != nil {
		close(s.zero)
		s.zero = nil
	}
}

// firstWait is how long a server that drains waits for the first requests.
const firstWait = 2 * time.Second

// wait returns when none runs, and after firstWait at the latest.
func (s *sessions) wait(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	select {
	case <-s.idle():
	case <-ctx.Done():
	}
}

// idle returns a channel that is closed once none runs.
func (s *sessions) idle() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.zero == nil {
		s.zero = make(chan struct{})
	}
	ch := s.zero
	if s.n == 0 {
		close(ch)
		s.zero = nil
	}
	return ch
}
