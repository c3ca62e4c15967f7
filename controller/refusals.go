package controller

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"bulkhead/api/rpc"
	"bulkhead/audit"
	"bulkhead/audit/auditlog"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/limit"
	"bulkhead/role"
)

// How many refusals are written down one by one. What is beyond is counted.
const (
	refusalWindow = time.Second      // one record per caller, endpoint and code in it, and one with the count
	refusalBurst  = 60               // different ones at once
	refusalEvery  = time.Second      // one more
	crowdWindow   = 10 * time.Second // one record for all beyond that
)

// refusals writes refused calls to the audit log so that no caller, and no number of
// callers, fills the disk or holds up changes: they do not wait for it.
type refusals struct {
	log      *auditlog.Log
	internal *limit.Rates // see internalRefusals

	mu     sync.Mutex
	now    map[string]*audit.Record // in this window, with the count of those that were not written
	crowds map[bool]*crowd          // known callers and unknown ones: strangers cannot hide what members do
}

// crowd is the bound of one kind of caller.
type crowd struct {
	tokens float64
	at     time.Time
	beyond int
}

func newRefusals(l *auditlog.Log) *refusals {
	full := func() *crowd { return &crowd{tokens: refusalBurst, at: time.Now()} }
	return &refusals{log: l, internal: limit.NewRates(internalRefusals, rememberedKeys), now: map[string]*audit.Record{}, crowds: map[bool]*crowd{true: full(), false: full()}}
}

// add takes a refusal.
func (r *refusals) add(rec audit.Record) {
	known := rec.Token != "" || rec.Name != ""
	kind := fmt.Sprint(neighbourhood(rec.From), known, rec.Code)
	if known {
		kind = fmt.Sprint(rec.User, rec.Token, rec.Name, rec.Action, rec.Code, rec.Org)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if first := r.now[kind]; first != nil {
		first.Count++
		return
	}
	c := r.crowds[known]
	now := time.Now()
	c.tokens, c.at = min(refusalBurst, c.tokens+float64(now.Sub(c.at))/float64(refusalEvery)), now
	if c.tokens < 1 || !r.log.Offer(rec) {
		c.beyond++
		return
	}
	c.tokens--
	rec.Count = 0
	r.now[kind] = &rec
}

// refusedLocal notes that a user of this machine, whom the kernel knows, was refused a call over
// one of its sockets. (The warden refuses by itself and has only its own log.)
func (c *Controller) refusedLocal(socket, action string, uid uint32) {
	c.refusals.add(audit.Record{
		ID: c.newRequestID(), Name: fmt.Sprint("user id ", uid), From: socket + " socket",
		Action: action, Code: http.StatusForbidden, Result: audit.Refused,
	})
}

// internalRefusals is how often a refusal of the same caller and method, or of the same
// address, over the internal listeners is written down: a node that was removed and still runs
// asks for as long as it does. All are counted.
var internalRefusals = limit.Rate{PerSecond: 1.0 / 60, Burst: 5}

// refusedInternal notes a connection or a call of a role's that was refused.
func (c *Controller) refusedInternal(r rpc.Refusal) {
	rec := audit.Record{
		ID: c.newRequestID(), From: role.SocketInternal + " socket",
		Action: "internal connection", Code: http.StatusUnauthorized, Result: audit.Refused, Detail: fault.Clip(r.Err.Error()),
	}
	if a, ok := r.From.(*net.TCPAddr); ok {
		rec.From = addressOf(a.String())
	}
	what := "connection"
	if r.Method != "" {
		what, rec.Name, rec.Action, rec.Code = "call", r.Caller.String(), "internal "+record.LastPart(r.Method), http.StatusForbidden
	}
	c.metrics.internal.WithLabelValues(what).Inc()
	if c.refusals.internal.Take(rec.From+" "+rec.Name+" "+rec.Action, time.Now()) == 0 {
		c.refusals.add(rec)
	}
}

// run writes the counts until ctx ends, and then a last time.
func (r *refusals) run(ctx context.Context) error {
	window, all := time.NewTicker(refusalWindow), time.NewTicker(crowdWindow)
	defer window.Stop()
	defer all.Stop()
	for {
		select {
		case <-window.C:
			r.flush(false)
		case <-all.C:
			r.flush(true)
		case <-ctx.Done():
			r.flush(true)
			return ctx.Err()
		}
	}
}

// flush writes the counts of a window, and those of the crowds.
func (r *refusals) flush(crowds bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for kind, rec := range r.now {
		if rec.Count == 0 || r.log.Offer(*rec) {
			delete(r.now, kind)
		}
	}
	for known, c := range r.crowds {
		who := "callers without a good token, of many addresses"
		if known {
			who = "callers with a token, of many kinds"
		}
		if crowds && c.beyond > 0 && r.log.Offer(audit.Record{Action: "refused", Result: audit.Refused, Detail: who, Count: c.beyond}) {
			c.beyond = 0
		}
	}
}

// neighbourhood is what counts as one caller: an IPv4 address, or the /64 that one
// subscriber of IPv6 has.
func neighbourhood(from string) string {
	a, err := netip.ParseAddr(from)
	if err != nil || a.Unmap().Is4() {
		return from
	}
	p, _ := a.Prefix(64)
	return p.String()
}

// addressOf is the client's address without its port.
func addressOf(remote string) string {
	if host, _, err := net.SplitHostPort(remote); err == nil {
		return host
	}
	return remote
}
