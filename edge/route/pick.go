package route

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Lease is the right to send one request or connection to a Machine. Release it
// once.
type Lease struct {
	*Backend
	// OverSoft says that every Machine had reached its soft limit.
	OverSoft bool
	// H2 says that the Machine takes HTTP/2 without TLS.
	H2   bool
	gate *gate
}

// Verdict says why Pick gave no lease.
type Verdict int

// The verdicts of Pick.
const (
	Picked Verdict = iota
	// None: there is no Machine that was not tried.
	None
	// Full: every Machine is at its hard limit; Wait may help.
	Full
)

// Pick chooses a Machine that is not in tried: the less loaded of two random ones
// while that is below its soft limit and answers, else the least loaded of the
// best band (answering before not answering, below soft before above), never one
// at its hard limit.
func (s *Service) Pick(now time.Time, tried []*Backend) (Lease, Verdict) {
	ns := clock(now)
	if n := len(s.Targets); n > 0 && len(tried) == 0 {
		t := &s.Targets[0]
		if n > 1 {
			i := rand.IntN(n)
			j := rand.IntN(n - 1)
			if j >= i {
				j++
			}
			t = &s.Targets[i]
			if o := &s.Targets[j]; o.load.Load() < t.load.Load() {
				t = o
			}
		}
		if t.load.Load() < t.Soft && !t.down(ns) && t.take() {
			return Lease{Backend: t.Backend, H2: t.H2, gate: s.gate}, Picked
		}
	}
	return s.scan(ns, tried)
}

// scan is Pick's slow path: it looks at every Machine of the service.
func (s *Service) scan(now int64, tried []*Backend) (Lease, Verdict) {
	for {
		var best *Target
		var bestBand, seen int
		var bestLoad int64
		n := len(s.Targets)
		if n == 0 {
			return Lease{}, None
		}
		at := rand.IntN(n)
		for k := range n {
			t := &s.Targets[(at+k)%n]
			if slices.Contains(tried, t.Backend) {
				continue
			}
			seen++
			load := t.load.Load()
			if t.Hard > 0 && load >= t.Hard {
				continue
			}
			band := 0
			if load >= t.Soft {
				band = 1
			}
			if t.down(now) {
				band += 2
			}
			if best == nil || band < bestBand || band == bestBand && load < bestLoad {
				best, bestBand, bestLoad = t, band, load
			}
		}
		switch {
		case seen == 0:
			return Lease{}, None
		case best == nil:
			return Lease{}, Full
		case best.take():
			return Lease{Backend: best.Backend, OverSoft: bestBand&1 == 1, H2: best.H2, gate: s.gate}, Picked
		}
		// Another request took the last place meanwhile: look again.
	}
}

// take counts one more on the Machine, unless it is at its hard limit.
func (t *Target) take() bool {
	if n := t.load.Add(1); t.Hard > 0 && n > t.Hard {
		t.load.Add(-1)
		return false
	}
	return true
}

// Release gives the lease back and lets one waiter look again.
func (l Lease) Release() {
	l.used.Store(clock(time.Now()))
	l.load.Add(-1)
	l.gate.wakeOne()
}

// MaxWaiting bounds the requests that queue for one service.
const MaxWaiting = 1000

// Wait blocks until a place may be free, the route changes, or ctx ends. It
// reports false at once when MaxWaiting others wait, and when ctx ends. full is
// asked once more after queuing, so that no release is missed.
func (s *Service) Wait(ctx context.Context, full func() bool) bool {
	ch, ok := s.gate.enter()
	if !ok {
		return false
	}
	defer s.gate.leave(ch)
	if !full() {
		return true
	}
	select {
	case <-ch:
		return true
	case <-ctx.Done():
		return false
	}
}

// gate is the queue of a service whose Machines are all full.
type gate struct {
	waiting atomic.Int32
	mu      sync.Mutex
	queue   []chan struct{}
}

func (g *gate) enter() (chan struct{}, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) >= MaxWaiting {
		return nil, false
	}
	ch := make(chan struct{}, 1)
	g.queue = append(g.queue, ch)
	g.waiting.Store(int32(len(g.queue)))
	return ch, true
}

// leave takes ch out; a wake that it got but did not use goes to the next.
func (g *gate) leave(ch chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.queue, ch); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
		g.waiting.Store(int32(len(g.queue)))
	}
}

func (g *gate) wakeOne() {
	if g == nil || g.waiting.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) == 0 {
		return
	}
	g.queue[0] <- struct{}{} // buffered, and each channel is woken once
	g.queue = slices.Delete(g.queue, 0, 1)
	g.waiting.Store(int32(len(g.queue)))
}

func (g *gate) wakeAll() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, ch := range g.queue {
		ch <- struct{}{}
	}
	g.queue = nil
	g.waiting.Store(0)
}

// AtLimit reports whether every Machine that is not in tried is at its hard limit.
func (s *Service) AtLimit(tried []*Backend) bool {
	for i := range s.Targets {
		t := &s.Targets[i]
		if !slices.Contains(tried, t.Backend) && (t.Hard <= 0 || t.load.Load() < t.Hard) {
			return false
		}
	}
	return true
}
