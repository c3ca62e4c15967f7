package edge

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/edge/upstream"
)

// copyBufs are the buffers of all byte copying, 32 kB each.
var copyBufs = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// spliceChunk is how much is moved inside the kernel between two looks at the clock.
const spliceChunk = 256 << 10

// drainIdle is how long a pipe may be still while the server drains: what lies
// unused longer is a connection kept for later, not a request under way.
const drainIdle = 2 * time.Second

// pipes are the pipes of a server, which has to hurry them when it drains. The zero
// value is ready.
type pipes struct {
	draining atomic.Bool

	mu   sync.Mutex
	open map[*piping]struct{}
}

// drain ends every pipe that has been still for drainIdle, now and from now on.
func (s *pipes) drain() {
	s.draining.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.open {
		// Whoever waits for bytes wakes, and waits again no longer than drainIdle.
		p.a.SetReadDeadline(time.Now())
		p.b.SetReadDeadline(time.Now())
	}
}

func (s *pipes) add(p *piping) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*piping]struct{}{}
	}
	s.open[p] = struct{}{}
}

func (s *pipes) remove(p *piping) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, p)
}

// run copies bytes both ways until both directions have ended, either side fails,
// or nothing has moved in any direction for idle. The end of one direction is
// passed on as a half close, the other goes on. It closes both connections.
func (s *pipes) run(a, b net.Conn, idle time.Duration) {
	p := &piping{a: a, b: b, limit: idle, draining: &s.draining}
	p.moved()
	s.add(p)
	defer s.remove(p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.run(a, b)
	}()
	p.run(b, a)
	<-done
	a.Close()
	b.Close()
}

// pipeEpoch is what piping counts from: a clock that is set does not make a pipe old.
var pipeEpoch = time.Now()

type piping struct {
	a, b     net.Conn
	limit    time.Duration
	draining *atomic.Bool
	last     atomic.Int64 // ns after pipeEpoch, of the last byte in any direction
}

// idle is how long the pipe may be still.
func (p *piping) idle() time.Duration {
	if p.draining.Load() {
		return min(p.limit, drainIdle)
	}
	return p.limit
}

func (p *piping) moved() { p.last.Store(int64(time.Since(pipeEpoch))) }

// run copies from src to dst; on anything but a clean end it closes both.
func (p *piping) run(dst, src net.Conn) {
	if err := p.copy(dst, src); err != nil {
		dst.Close()
		src.Close()
		return
	}
	if w, ok := dst.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		return
	}
	dst.Close()
	src.Close()
}

var errIdle = errors.New("no bytes for too long")

func (p *piping) copy(dst, src net.Conn) error {
	move := buffered()
	if _, ok := dst.(*net.TCPConn); ok {
		switch src.(type) {
		case *net.TCPConn, *net.UnixConn:
			move = spliced
		}
	}
	for {
		now := time.Now()
		idle := p.idle()
		// Half of it, because what the other direction moves is seen when its own wait ends.
		if err := src.SetReadDeadline(now.Add(idle / 2)); err != nil {
			return err
		}
		if idle > p.idle() {
			continue // draining began between the two lines above, and its call may have been lost
		}
		// Past the read deadline, so that a timeout tells which side it was: after one
		// on the write side bytes may be lost.
		writeBy := now.Add(idle + 10*time.Second)
		if err := dst.SetWriteDeadline(writeBy); err != nil {
			return err
		}
		n, err := move(dst, src)
		if n > 0 {
			p.moved()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case !upstream.IsTimeout(err) || !time.Now().Before(writeBy):
			return err
		case int64(time.Since(pipeEpoch))-p.last.Load() >= int64(p.idle()):
			return errIdle
		}
	}
}

// spliced moves up to spliceChunk bytes inside the kernel.
func spliced(dst, src net.Conn) (int64, error) { return io.CopyN(dst, src, spliceChunk) }

// smallBuf is enough for what an idle connection says now and then: many thousands
// of them wait at a time, each with one of these per direction.
const smallBuf = 2 << 10

// buffered returns a move that copies through memory: through a small buffer until
// that runs full, then through a big one for as long as there is much to move.
func buffered() func(dst, src net.Conn) (int64, error) {
	small, much := make([]byte, smallBuf), false
	return func(dst, src net.Conn) (int64, error) {
		buf := small
		if much {
			big := copyBufs.Get().(*[]byte)
			defer copyBufs.Put(big)
			buf = *big
		}
		n, err := src.Read(buf)
		much = n >= smallBuf
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				// Not wrapped: a timeout here has lost bytes and must not be waited out.
				return 0, fmt.Errorf("write: %v", werr)
			}
		}
		return int64(n), err
	}
}
