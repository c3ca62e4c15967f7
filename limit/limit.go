// Package limit bounds what callers may ask for: how often (Rates, Shared), and how deep and
// wide the JSON is that they send (JSON). Both cost the same whoever else calls.
package limit

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is how often something may be done: Burst at once, and then PerSecond.
// A Rate of zero is no limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Rates holds every key to one rate. It remembers at most max keys, and forgets a key
// whose burst is whole again, so that a flood of different keys makes it neither grow
// nor slow: when max keys were busy within the time a burst takes to come back, the
// one that was quiet longest is forgotten, and begins anew.
type Rates struct {
	rate Rate
	max  int
	full time.Duration // after so much quiet a burst is whole again

	mu    sync.Mutex
	keys  map[string]*list.Element
	order list.List // of *bucket; the one used last in front
}

type bucket struct {
	key     string
	limiter *rate.Limiter
	used    time.Time
}

// NewRates returns Rates for at most max keys.
func NewRates(r Rate, max int) *Rates {
	l := &Rates{rate: r, max: max, keys: map[string]*list.Element{}}
	if r.PerSecond > 0 {
		l.full = time.Duration(float64(max1(r.Burst)) / r.PerSecond * float64(time.Second))
	}
	return l
}

func max1(n int) int { return max(n, 1) }

// Take takes one for key and returns 0; or takes nothing and returns how long to wait.
func (l *Rates) Take(key string, now time.Time) time.Duration {
	if l.rate.PerSecond <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	b := l.bucket(key, now)
	r := b.limiter.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// takeLeaving is Take when so many are left afterwards.
func (l *Rates) takeLeaving(key string, left float64, now time.Time) time.Duration {
	if l.rate.PerSecond <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	b := l.bucket(key, now)
	if missing := 1 + left - b.limiter.TokensAt(now); missing > 0 {
		return max(time.Duration(missing/l.rate.PerSecond*float64(time.Second)), 1)
	}
	b.limiter.AllowN(now, 1)
	return 0
}

// Wait returns how long key has to wait, and takes nothing.
func (l *Rates) Wait(key string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.keys[key]
	if e == nil {
		return 0
	}
	missing := 1 - e.Value.(*bucket).limiter.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / l.rate.PerSecond * float64(time.Second))
}

// Forget begins every key anew.
func (l *Rates) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.keys)
	l.order.Init()
}

// Len returns how many keys are remembered.
func (l *Rates) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.keys)
}

// bucket finds or makes a key's bucket, and moves it to the front.
func (l *Rates) bucket(key string, now time.Time) *bucket {
	if e := l.keys[key]; e != nil {
		l.order.MoveToFront(e)
		b := e.Value.(*bucket)
		b.used = now
		return b
	}
	if len(l.keys) >= l.max {
		l.drop(l.order.Back())
	}
	b := &bucket{key: key, limiter: rate.NewLimiter(rate.Limit(l.rate.PerSecond), max1(l.rate.Burst)), used: now}
	l.keys[key] = l.order.PushFront(b)
	return b
}

// forget drops a few keys that were quiet long enough to count as new: more than are
// added at a time, so that what a flood left goes away.
func (l *Rates) forget(now time.Time) {
	for range 4 {
		e := l.order.Back()
		if e == nil || now.Sub(e.Value.(*bucket).used) < l.full {
			return
		}
		l.drop(e)
	}
}

func (l *Rates) drop(e *list.Element) {
	l.order.Remove(e)
	delete(l.keys, e.Value.(*bucket).key)
}

// Address returns the key of a client's address, which may have a port: an IPv4
// address, or an IPv6 network of 64 bits, which is what one customer has at least.
// What is no address is a key like any other.
func Address(s string) string {
	a, err := netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return "unknown"
		}
		a = ap.Addr()
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, _ := a.Prefix(64)
	return p.String()
}
