package controller

import (
	linked "container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bulkhead/controller/access"
	"bulkhead/limit"
)

// ConnLimits bound the connections to the public listener. Zero fields get defaults.
type ConnLimits struct {
	Most      int           // open at one time
	MostEach  int           // of one IPv4 address or IPv6 /64
	MostUser  int           // that count as known, of one user
	MostKnown int           // that count as known, of all
	New       limit.Rate    // new ones, of one address
	Header    time.Duration // for the handshake, and for a request's header
	Idle      time.Duration // between two requests
	Leftover  time.Duration // to send what of a body nobody wants
}

func (l *ConnLimits) fill() {
	if l.Most == 0 {
		l.Most = 4096
		var r syscall.Rlimit
		if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) == nil && r.Cur < 1<<20 {
			l.Most = max(min(l.Most, int(r.Cur)*2/5), 64)
		}
	}
	if l.MostEach == 0 {
		l.MostEach = max(l.Most/8, 16)
	}
	if l.MostUser == 0 {
		l.MostUser = max(l.Most/8, 1)
	}
	if l.MostKnown == 0 {
		l.MostKnown = max(l.Most-l.Most/4, 1)
	}
	if l.New == (limit.Rate{}) {
		l.New = limit.Rate{PerSecond: 100, Burst: 1000}
	}
	if l.Header == 0 {
		l.Header = headerLimit
	}
	if l.Idle == 0 {
		l.Idle = idleLimit
	}
	if l.Leftover == 0 {
		l.Leftover = leftoverLimit
	}
}

// What a connection may send that is no request and no body that somebody reads: frames
// of HTTP/2 that ask for nothing (PING, SETTINGS, RST_STREAM, WINDOW_UPDATE), parts of
// headers that never end, records of TLS. Go's server bounds some of them, and answers
// the others for as long as they come.
const (
	creditKnown     = 1<<20 + 512<<10 // bytes: what HTTP/2 lets a client send ahead, and headers
	creditStranger  = 192 << 10       // before a good token came
	creditRequest   = 96 << 10        // for each request: the largest header
	creditUnknown   = 8 << 10         // for each while no good token came: a header
	creditPerSecond = 16 << 10
	creditWritten   = 16          // a byte for so many of the answer: its windows are opened
	creditRead      = 64          // beside a body's bytes, for the frame they came in
	creditPatience  = time.Second // for what was sent ahead to be read by somebody
)

// gate bounds what connections cost before anybody is known: how many there are, how
// many come, and what they may send for nothing. A connection on which a good token came
// is known; when there is no place for a new one, one that is not gives up its: the
// oldest of the address that has the most. So that whoever has one token, or has users made,
// cannot take every place from many addresses, those that count as known are so many: of
// one user, and of all together.
type gate struct {
	limits ConnLimits
	rates  *limit.Rates

	mu        sync.Mutex
	open      map[*gateConn]struct{}
	each      map[string]int
	strangers map[string]*linked.List // of *gateConn, by address, the oldest in front; "" before it is told
	known     map[string]int          // connections that count as known, by user
	knownAll  int

	ended *prometheus.CounterVec
}

func newGate(l ConnLimits, m *prometheus.Registry) *gate {
	l.fill()
	g := &gate{
		limits: l, rates: limit.NewRates(l.New, rememberedKeys), open: map[*gateConn]struct{}{}, each: map[string]int{}, strangers: map[string]*linked.List{}, known: map[string]int{},
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_api_connections_ended_total", Help: "Connections to the public API that were ended or not taken, by reason: full, address (too many open), rate (too many new ones), flood."}, []string{"reason"}),
	}
	m.MustRegister(g.ended, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulkhead_api_connections", Help: "Open connections to the public API."}, func() float64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return float64(len(g.open))
	}))
	return g
}

// listener returns l with the gate before it.
func (g *gate) listener(l net.Listener) net.Listener { return gateListener{l, g} }

type gateListener struct {
	net.Listener
	g *gate
}

// Accept returns the next connection that has a place.
func (l gateListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &gateConn{Conn: nc, g: l.g, credit: creditStranger, most: creditStranger, at: time.Now(), more: make(chan struct{}, 1)}
		if l.g.enter(c) {
			return c, nil
		}
		nc.Close()
	}
}

// enter gives c a place: a free one, or that of a stranger.
func (g *gate) enter(c *gateConn) bool {
	g.mu.Lock()
	var gone *gateConn
	if len(g.open) >= g.limits.Most {
		g.ended.WithLabelValues("full").Inc()
		if gone = g.dispensable(); gone == nil {
			g.mu.Unlock()
			return false
		}
		g.leave(gone)
	}
	g.open[c] = struct{}{}
	g.estrange(c)
	g.mu.Unlock()
	if gone != nil {
		gone.Conn.Close()
	}
	return true
}

// dispensable is the oldest stranger of the address that has the most, or nil. It looks
// at every address, of which there are at most limits.Most. Callers hold mu.
func (g *gate) dispensable() *gateConn {
	var most *linked.List
	for _, l := range g.strangers {
		if most == nil || l.Len() > most.Len() {
			most = l
		}
	}
	if most == nil {
		return nil
	}
	return most.Front().Value.(*gateConn)
}

// estrange lists c among the strangers of its address. Callers hold mu.
func (g *gate) estrange(c *gateConn) {
	l := g.strangers[c.addr]
	if l == nil {
		l = linked.New()
		g.strangers[c.addr] = l
	}
	c.stranger = l.PushBack(c)
}

// leave frees c's place. Callers hold mu.
func (g *gate) leave(c *gateConn) {
	if _, ok := g.open[c]; !ok {
		return
	}
	delete(g.open, c)
	g.unlist(c)
	if c.user != "" {
		g.knownAll--
		if g.known[c.user]--; g.known[c.user] == 0 {
			delete(g.known, c.user)
		}
	}
	if c.addr != "" {
		if g.each[c.addr]--; g.each[c.addr] == 0 {
			delete(g.each, c.addr)
		}
	}
}

// know counts c, over which a good token of a user came, as known, if there is room among
// those. Callers hold mu.
func (g *gate) know(c *gateConn, user string) {
	if _, ok := g.open[c]; !ok || c.stranger == nil || g.known[user] >= g.limits.MostUser || g.knownAll >= g.limits.MostKnown {
		return
	}
	g.unlist(c)
	c.user = user
	g.known[user]++
	g.knownAll++
}

// unlist takes c off the list of strangers. Callers hold mu.
func (g *gate) unlist(c *gateConn) {
	if c.stranger == nil {
		return
	}
	l := g.strangers[c.addr]
	l.Remove(c.stranger)
	c.stranger = nil
	if l.Len() == 0 {
		delete(g.strangers, c.addr)
	}
}

var (
	errNotLet = errors.New("too many connections of this address")
	errFlood  = errors.New("more was sent than requests need")
)

// admit holds c to the bounds of its address, which the PROXY header has just told.
func (g *gate) admit(c *gateConn) error {
	addr := limit.Address(c.RemoteAddr().String())
	wait := g.rates.Take(addr, time.Now())
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.open[c]; !ok {
		return net.ErrClosed
	}
	switch {
	case wait > 0:
		g.ended.WithLabelValues("rate").Inc()
	case g.each[addr] >= g.limits.MostEach:
		g.ended.WithLabelValues("address").Inc()
	default:
		g.unlist(c)
		c.addr = addr
		g.each[addr]++
		g.estrange(c)
		return nil
	}
	return errNotLet
}

// gateConn is one connection, below TLS.
type gateConn struct {
	net.Conn
	g     *gate
	first sync.Once
	why   error // that it was not let in

	more   chan struct{} // of capacity 1: credit was earned
	mu     sync.Mutex
	credit int
	most   int
	at     time.Time // when credit was looked at

	// Under the gate's mu:
	addr     string          // once it is counted
	user     string          // for whom it counts as known
	stranger *linked.Element // while it does not
}

// Read reads what the client may still send.
func (c *gateConn) Read(b []byte) (int, error) {
	c.first.Do(func() { c.why = c.g.admit(c) })
	if c.why != nil {
		c.Close()
		return 0, c.why
	}
	n, err := c.Conn.Read(b)
	if n > 0 && c.earn(-n) < 0 && !c.earned() {
		c.g.ended.WithLabelValues("flood").Inc()
		c.Close()
		return 0, errFlood
	}
	return n, err
}

// Write earns the client what it says when it takes an answer.
func (c *gateConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.mu.Lock()
	c.add(n / creditWritten) // which ends no flood: an answer to it is written, too
	c.mu.Unlock()
	return n, err
}

// Close frees the place, once.
func (c *gateConn) Close() error {
	c.g.mu.Lock()
	c.g.leave(c)
	c.g.mu.Unlock()
	return c.Conn.Close()
}

// earn changes what the client may send, and returns it.
func (c *gateConn) earn(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(n)
	if n > 0 && c.credit >= 0 {
		select {
		case c.more <- struct{}{}:
		default:
		}
	}
	return c.credit
}

// add changes the credit, by what time has brought too. Callers hold mu.
func (c *gateConn) add(n int) {
	now := time.Now()
	if since := now.Sub(c.at); since > 0 {
		c.credit += int(min(since, time.Minute).Seconds() * creditPerSecond)
	}
	c.at = now
	c.credit = min(c.credit+n, c.most)
}

// request counts a request.
func (c *gateConn) request() {
	c.mu.Lock()
	n := creditRequest
	if c.most != creditKnown {
		n = creditUnknown
	}
	c.mu.Unlock()
	c.earn(n)
}

// earned waits, for a while, until somebody has read what the client sent ahead. Nothing
// more is read from it meanwhile, so that a flood is not answered either.
func (c *gateConn) earned() bool {
	t := time.NewTimer(creditPatience)
	defer t.Stop()
	for {
		select {
		case <-c.more:
			c.mu.Lock()
			ok := c.credit >= 0
			c.mu.Unlock()
			if ok {
				return true
			}
		case <-t.C:
			return false
		}
	}
}

type gateKey struct{}

// withGate is an http.Server's ConnContext: requests know their connection.
func withGate(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		if c, ok := t.NetConn().(*gateConn); ok {
			return context.WithValue(ctx, gateKey{}, c)
		}
	}
	return ctx
}

// countRequest counts a request and what is read of its body. Without a gate it does nothing.
func countRequest(r *http.Request) {
	c, _ := r.Context().Value(gateKey{}).(*gateConn)
	if c == nil {
		return
	}
	c.request()
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &paidBody{r.Body, c}
	}
}

// known notes that a good token of somebody came over a request's connection.
func known(ctx context.Context, who access.Caller) {
	if c, _ := ctx.Value(gateKey{}).(*gateConn); c != nil {
		c.g.mu.Lock()
		c.g.know(c, who.UserKey())
		c.g.mu.Unlock()
		c.mu.Lock()
		c.most = creditKnown
		c.mu.Unlock()
		c.earn(creditRequest)
	}
}

// paidBody is a request's body, which the client may send for as long as somebody reads it.
type paidBody struct {
	io.ReadCloser
	c *gateConn
}

// Read reads, and earns the client as much.
func (b *paidBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.c.earn(n + n/8 + creditRead)
	return n, err
}
