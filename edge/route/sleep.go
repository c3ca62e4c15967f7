package route

import (
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
)

// Sleeping Machines. Whether one sleeps is told by the controller, with each route, and
// by the worker, in its answers to Wake and Idle. Both name the observation that they
// speak of by its sequence number: what comes late does not undo what is newer. What
// the worker said is written into the route itself, so that it is on the edge's disk
// with it. A wrong belief mends itself: who is thought asleep is asked to wake, and who
// cannot be reached is thought asleep.

// rest is the part of a Backend about sleeping and waking.
type rest struct {
	asleep    atomic.Bool
	draining  atomic.Bool  // it is being reported idle: no new requests
	autostart atomic.Bool  // as in the newest route
	used      atomic.Int64 // clock at which its last request ended, or it came up
	woken     atomic.Int64 // clock at its last waking by this edge
	doubted   atomic.Int64 // clock when it was last thought asleep unheard

	wakeAfter  atomic.Int64 // clock; not to be woken before, after failures
	wakeFails  atomic.Int32
	quietAfter atomic.Int64 // clock; not to be reported idle before, after a refusal
}

// Backoff of waking a Machine that did not come up.
const (
	wakeBackoff    = 500 * time.Millisecond
	wakeBackoffMax = 30 * time.Second
)

// settle takes over what the route says of sleep.
func (b *Backend) settle(p *internalpb.Backend) {
	b.autostart.Store(p.GetAutostart())
	asleep := p.GetAsleep() || b.draining.Load()
	if !asleep && b.asleep.Load() {
		b.used.Store(clock(time.Now())) // first: whoever sees it awake must not find it idle
	}
	if was := b.asleep.Swap(asleep); was == asleep {
		return
	}
	if asleep {
		b.dropIdle() // nobody is at their other end any more
		return
	}
	b.Worked()
}

// Autostart reports whether the Machine may be woken.
func (b *Backend) Autostart() bool { return b.autostart.Load() }

// Woken returns when this edge last woke the Machine; zero for never.
func (b *Backend) Woken() time.Time {
	if ns := b.woken.Load(); ns != 0 {
		return epoch.Add(time.Duration(ns))
	}
	return time.Time{}
}

// Doubt reports whether the Machine, which cannot be reached, may be asleep without
// this edge having heard of it; it says so at most once in every.
func (b *Backend) Doubt(now time.Time, every time.Duration) bool {
	last := b.doubted.Load()
	return b.Autostart() && clock(now)-max(last, b.woken.Load()) >= int64(every) && b.doubted.CompareAndSwap(last, clock(now))
}

// MayWake reports whether waking the Machine may be tried now.
func (b *Backend) MayWake(now time.Time) bool { return clock(now) >= b.wakeAfter.Load() }

// WakeFailed notes that the Machine did not come up: it is left alone for a while that
// doubles.
func (b *Backend) WakeFailed(now time.Time) {
	n := min(b.wakeFails.Add(1)-1, 10)
	b.wakeAfter.Store(clock(now.Add(min(wakeBackoff<<n, wakeBackoffMax))))
}

// Idle reports whether the Machine runs, may be reported idle, and has had no request
// under way since before.
func (t *Target) Idle(now, before time.Time) bool {
	return t.Autostop && !t.asleep.Load() && t.load.Load() == 0 && t.used.Load() < clock(before) && clock(now) >= t.quietAfter.Load()
}

// KeepUp puts off the next report that the Machine is idle.
func (b *Backend) KeepUp(until time.Time) { b.quietAfter.Store(clock(until)) }

// Slept and Awoke note what the worker said of a Machine of app at seq; Unheard notes
// that it may sleep. They report whether the Machine is known.
func (t *Table) Slept(app, machine string, seq int64) bool { return t.note(app, machine, seq, true) }

// Awoke is Slept's opposite.
func (t *Table) Awoke(app, machine string, seq int64) bool {
	now := clock(time.Now())
	return t.each(app, machine, func(b *Backend) {
		b.woken.Store(now)
		b.wakeFails.Store(0)
		b.wakeAfter.Store(0)
	}) && t.note(app, machine, seq, false)
}

// Unheard notes that a Machine seems to sleep although the newest word about it says
// otherwise; the next word settles it.
func (t *Table) Unheard(app, machine string) bool { return t.note(app, machine, 0, true) }

// note rewrites the app's route. seq 0 keeps the sequence numbers as they are.
func (t *Table) note(app, machine string, seq int64, asleep bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.Lookup(app)
	if old == nil {
		return false
	}
	r, known := proto.Clone(old.Route).(*internalpb.Route), false
	for _, s := range r.GetServices() {
		for _, b := range s.GetBackends() {
			if b.GetMachineId() != machine {
				continue
			}
			known = true
			// The worker's own answer counts also where its numbers have begun anew.
			if b.Asleep = asleep; seq != 0 {
				b.Seq = seq
			}
		}
	}
	if known {
		t.swap(r, old)
	}
	return known
}

// keepNewer keeps in r what old has by a newer word.
func keepNewer(r, old *internalpb.Route) {
	type word struct {
		seq    int64
		asleep bool
	}
	var newest map[string]word
	for _, s := range old.GetServices() {
		for _, b := range s.GetBackends() {
			if b.GetSeq() != 0 {
				if newest == nil {
					newest = map[string]word{}
				}
				newest[b.GetMachineId()] = word{b.GetSeq(), b.GetAsleep()}
			}
		}
	}
	for _, s := range r.GetServices() {
		for _, b := range s.GetBackends() {
			if w, ok := newest[b.GetMachineId()]; ok && w.seq > b.GetSeq() && b.GetSeq() != 0 {
				b.Seq, b.Asleep = w.seq, w.asleep
			}
		}
	}
}

// Drain gives a Machine of app no new requests while on is set, and reports whether it
// has none under way.
func (t *Table) Drain(app, machine string, on bool) (quiet bool) {
	quiet = t.each(app, machine, func(b *Backend) { b.draining.Store(on) })
	t.mu.Lock()
	if old := t.Lookup(app); old != nil {
		t.swap(old.Route, old)
	}
	t.mu.Unlock()
	t.each(app, machine, func(b *Backend) { quiet = quiet && b.load.Load() == 0 })
	return quiet
}

// each calls fn for the Backends of a Machine and reports whether there are any.
func (t *Table) each(app, machine string, fn func(*Backend)) (any bool) {
	a := t.Lookup(app)
	if a == nil {
		return false
	}
	for k, b := range a.backends {
		if k.id == machine {
			fn(b)
			any = true
		}
	}
	return any
}
