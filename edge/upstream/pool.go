// Package upstream speaks HTTP/1.1 to a Machine: pooled connections, one exchange
// at a time on each. It is the edge's fast path: one goroutine, no request object
// and no header map of its own; bytes go from the client's parsed request straight
// to the wire.
package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a connection to a Machine.
const (
	// MaxIdle bounds the idle connections kept for one Machine.
	MaxIdle = 256
	// IdleFor is how long an idle connection is kept: shorter than the 5 s after
	// which common app servers close theirs.
	IdleFor = 4 * time.Second
	// MaxHeader bounds one response header, bytes.
	MaxHeader = 256 << 10
)

// ErrHeaderTooLarge says that a Machine's response header passes MaxHeader.
var ErrHeaderTooLarge = errors.New("response header is too large")

// Dial opens a connection to addr ("host:port").
type Dial func(ctx context.Context, addr string) (net.Conn, error)

// Pool holds the idle connections to one port of a Machine. Its methods may be called from
// many goroutines. A Pool needs no Close to be collected, but Close ends its idle
// connections at once.
type Pool struct {
	addr  string
	addr4 string // the same port by IPv4, or ""
	dial  Dial
	by4   atomic.Bool // only addr4 answered the last time

	mu     sync.Mutex
	idle   []*Conn // the newest last
	timer  *time.Timer
	closed bool
}

// NewPool returns an empty pool for addr, and for addr4 where that is not "".
func NewPool(addr, addr4 string, dial Dial) *Pool { return &Pool{addr: addr, addr4: addr4, dial: dial} }

// Get returns a live idle connection, or a new one.
func (p *Pool) Get(ctx context.Context) (*Conn, error) {
	for {
		c := p.pop()
		if c == nil {
			return p.Dial(ctx)
		}
		if c.alive() {
			c.reused = true
			return c, nil
		}
		c.Close()
	}
}

// Dial returns a new connection.
func (p *Pool) Dial(ctx context.Context) (*Conn, error) {
	nc, err := p.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return newConn(nc, p), nil
}

// Close ends the idle connections and lets none become idle again. Exchanges
// under way go on.
func (p *Pool) Close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}

// Drop ends the idle connections: whoever was at their other end has gone to sleep.
func (p *Pool) Drop() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}

func (p *Pool) pop() *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return c
}

// put keeps c for a later request, or closes it.
func (p *Pool) put(c *Conn) {
	c.idleSince = time.Now()
	p.mu.Lock()
	if p.closed || len(p.idle) >= MaxIdle {
		p.mu.Unlock()
		c.Close()
		return
	}
	p.idle = append(p.idle, c)
	if len(p.idle) == 1 {
		if p.timer == nil {
			p.timer = time.AfterFunc(IdleFor, p.expire)
		} else {
			p.timer.Reset(IdleFor)
		}
	}
	p.mu.Unlock()
}

// expire closes what has been idle for IdleFor and comes back while anything is.
func (p *Pool) expire() {
	now := time.Now()
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && now.Sub(p.idle[n].idleSince) >= IdleFor {
		n++
	}
	old := append([]*Conn(nil), p.idle[:n]...)
	p.idle = append(p.idle[:0], p.idle[n:]...)
	if len(p.idle) > 0 && !p.closed {
		p.timer.Reset(max(IdleFor-now.Sub(p.idle[0].idleSince), 10*time.Millisecond))
	}
	p.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}

// Conn is a connection to a Machine. One exchange uses it at a time.
type Conn struct {
	nc   net.Conn
	raw  syscall.RawConn // nil when nc has none
	pool *Pool
	br   *bufio.Reader
	bw   *bufio.Writer

	reused    bool
	idleSince time.Time
	dead      atomic.Bool
	wrote     atomic.Uint64 // bytes, ever
	before    uint64        // of them, before this exchange

	// budget is how many bytes may still be read for a header; -1 is no bound.
	budget int
	// readIdle is the rolling read deadline of the body; 0 sets none.
	readIdle time.Duration
	readBy   time.Time
	writeBy  time.Time

	probe [1]byte
	quiet bool
	check func(fd uintptr) bool
}

func newConn(nc net.Conn, p *Pool) *Conn {
	c := &Conn{nc: nc, pool: p, budget: -1}
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	c.check = func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), c.probe[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		c.quiet = n < 1 && (err == syscall.EAGAIN || err == syscall.EINTR)
		return true
	}
	c.br = bufio.NewReaderSize((*connReader)(c), 8<<10)
	c.bw = bufio.NewWriterSize((*connWriter)(c), 4<<10)
	return c
}

// Reused reports whether an earlier exchange used the connection: only then may an
// error before the first response byte mean nothing but a connection gone stale.
func (c *Conn) Reused() bool { return c.reused }

// NetConn returns the connection underneath, for an upgrade.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Buffered returns the bytes that were read past the last response header.
func (c *Conn) Buffered() []byte {
	b, _ := c.br.Peek(c.br.Buffered())
	return b
}

// Close ends the connection; an exchange on it fails. It may be called from
// another goroutine, more than once.
func (c *Conn) Close() {
	if !c.dead.Swap(true) {
		c.nc.Close()
	}
}

// Release gives the connection back after a whole exchange. Bytes that came after
// the response would be read as the next request's answer: then it is closed.
func (c *Conn) Release() {
	if c.dead.Load() || c.br.Buffered() > 0 || c.bw.Buffered() > 0 {
		c.Close()
		return
	}
	c.budget, c.readIdle, c.before = -1, 0, c.wrote.Load()
	c.pool.put(c)
}

// alive reports whether the idle connection is open and silent. Bytes on an idle
// connection are an answer to nothing, and close it.
func (c *Conn) alive() bool {
	if time.Since(c.idleSince) > IdleFor {
		return false
	}
	if c.raw == nil {
		return true
	}
	c.quiet = false
	return c.raw.Read(c.check) == nil && c.quiet
}

// Unseen reports whether the Machine certainly got no byte of this exchange: its
// kernel acknowledged none. A connection that the Machine closed just before the
// request was sent ends this way. False means that nobody knows.
func (c *Conn) Unseen() bool {
	if c.raw == nil {
		return false
	}
	unseen := false
	_ = c.raw.Control(func(fd uintptr) {
		if i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && i.Bytes_acked > 0 {
			unseen = i.Bytes_acked-1 <= c.before // the SYN counts as one
		}
	})
	return unseen
}

// connWriter is where Conn.bw writes to: it counts.
type connWriter Conn

func (c *connWriter) Write(b []byte) (int, error) {
	n, err := c.nc.Write(b)
	c.wrote.Add(uint64(n))
	return n, err
}

// connReader is the source of Conn.br: it keeps the budget and the read deadline.
type connReader Conn

func (c *connReader) Read(b []byte) (int, error) {
	if c.budget == 0 {
		return 0, ErrHeaderTooLarge
	}
	if c.budget > 0 && len(b) > c.budget {
		b = b[:c.budget]
	}
	if c.readIdle > 0 {
		if now := time.Now(); c.readBy.Sub(now) < c.readIdle*7/8 {
			c.readBy = now.Add(c.readIdle)
			if err := c.nc.SetReadDeadline(c.readBy); err != nil {
				return 0, err
			}
		}
	}
	n, err := c.nc.Read(b)
	if c.budget > 0 {
		c.budget -= n
		if c.budget == 0 {
			// The reader above may have what it needs; only a further read fails.
			return n, err
		}
	}
	return n, err
}

// IsTimeout reports whether err is a deadline's.
func IsTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// IsClosed reports whether err says that the other side has closed.
func IsClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}
