package edge

import (
	"slices"
	"time"

	"bulkhead/edge/route"
)

// again says whether a request that failed may be sent again.
type again int

const (
	never    again = iota // the failure is the answer
	anywhere              // the Machine got nothing of it: any Machine may get it
	once                  // the Machine may have got it: once more, and no more
)

const (
	// resendFor bounds the time in which a request that a Machine may have got is sent
	// again: its client gets an answer within a second.
	resendFor = 800 * time.Millisecond
	// leaveFor is how long the edge waits to hear that a Machine is being stopped.
	leaveFor = 250 * time.Millisecond
)

// broken is the first failure of a request that a Machine may have got.
type broken struct {
	failure *failure
	at      time.Time
}

// againAfter decides for a request that broke off before a byte of the answer. unseen
// says that the Machine certainly got none of it, reused that the connection may have
// been closed as idle. A request without its body was not carried out (RFC 9112 section 8).
func (q *request) againAfter(unseen, reused bool) again {
	whole, untouched := q.upload.replayable()
	switch {
	case !whole:
		return never
	case unseen && reused:
		return anywhere
	case unseen, untouched && reused, idempotent(q.r.Method):
		return once
	}
	return never
}

// failed counts a failure after which the Machine may have got the request.
func (q *request) failed(f *failure) {
	if f.again == anywhere {
		return
	}
	if q.sends++; q.broke.failure == nil {
		q.broke = broken{f, time.Now()}
	}
}

// mayResend reports whether the request may be sent again after a failure.
func (q *request) mayResend(f *failure) bool {
	if whole, _ := q.upload.replayable(); !whole {
		return false
	}
	return f.again == anywhere || f.again == once && q.sends < 2
}

// spares reports whether a request that b may have got may go to another Machine. One
// that ends every process that takes it must leave a Machine of the app alone. A Machine
// that is being stopped was not ended by the request.
func (q *request) spares(b *route.Backend, of func(*route.App) *route.Service) bool {
	t := time.NewTimer(leaveFor)
	defer t.Stop()
	for {
		a := q.s.table.Lookup(q.app)
		if a == nil {
			return false
		}
		svc := of(a)
		if svc == nil {
			return false
		}
		others := func(targets []route.Target) (n int) {
			for i := range targets {
				if targets[i].Machine != b.Machine {
					n++
				}
			}
			return n
		}
		if q.stopped = slices.Contains(svc.Leaving, b.Machine); q.stopped || others(svc.Targets)+others(svc.Asleep) >= 2 {
			return true
		}
		select {
		case <-a.Replaced:
		case <-t.C:
			return false
		case <-q.r.Context().Done():
			return false
		}
	}
}
