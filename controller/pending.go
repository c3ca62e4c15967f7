package controller

import (
	"net/netip"
	"sync"
	"time"

	"bulkhead/limit"
)

// pending keeps what was begun and is not finished: attempts to sign in, logins of CLIs.
// It is memory alone, so that who is not known yet writes nothing to the disk; after a
// restart people begin again. Entries end by themselves, and one address has only so many.
type pending[T any] struct {
	life time.Duration
	mu   sync.Mutex
	all  map[string]*begun[T]
	of   map[string]int
}

type begun[T any] struct {
	v     T
	from  string
	until time.Time
}

// Bounds of what may be pending.
const (
	maxPending        = 20000
	maxPendingAddress = 50
)

func newPending[T any](life time.Duration) *pending[T] {
	return &pending[T]{life: life, all: map[string]*begun[T]{}, of: map[string]int{}}
}

// add keeps v under a key that nobody has used.
func (p *pending[T]) add(k string, from netip.Addr, v T) error {
	who := limit.Address(from.String())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[who] >= maxPendingAddress || len(p.all) >= maxPending {
		p.sweep()
	}
	if p.of[who] >= maxPendingAddress || len(p.all) >= maxPending {
		return tooMany(p.life, "too many logins were begun and not finished; wait %s", p.life).WithStatus("rate_limited")
	}
	p.all[k] = &begun[T]{v, who, now().Add(p.life)}
	p.of[who]++
	return nil
}

// get returns what is kept under a key, if it is there in time.
func (p *pending[T]) get(k string) (v T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.all[k]; b != nil && now().Before(b.until) {
		return b.v, true
	}
	return v, false
}

// take is get, and nobody gets it again.
func (p *pending[T]) take(k string) (v T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.all[k]
	if b == nil {
		return v, false
	}
	p.drop(k, b)
	return b.v, now().Before(b.until)
}

func (p *pending[T]) drop(k string, b *begun[T]) {
	delete(p.all, k)
	if p.of[b.from]--; p.of[b.from] <= 0 {
		delete(p.of, b.from)
	}
}

func (p *pending[T]) sweep() {
	for k, b := range p.all {
		if !now().Before(b.until) {
			p.drop(k, b)
		}
	}
}
