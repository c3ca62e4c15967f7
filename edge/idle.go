package edge

import (
	"context"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/edge/route"
	"bulkhead/fault"
)

// keepIdle reports Machines that had no request for Limits.IdleAfter, until ctx ends.
// Whether one is stopped then its config decides, at the worker.
func (s *Server) keepIdle(ctx context.Context) {
	for sleep(ctx, min(max(s.Limits.IdleAfter/4, 50*time.Millisecond), 15*time.Second)) {
		s.table.All(func(a *route.App) bool {
			now := time.Now()
			if t := idlest(a, now, now.Add(-s.Limits.IdleAfter)); t != nil {
				return s.reportIdle(ctx, a.Name, t.Backend)
			}
			return ctx.Err() == nil
		})
	}
}

// idlest returns a Machine of the app that has been idle since before on all its ports.
// It is one at a time: the next look finds the next.
func idlest(a *route.App, now, before time.Time) *route.Target {
	var busy map[string]bool
	var found []*route.Target
	for _, svc := range []*route.Service{a.HTTP, a.HTTPS} {
		if svc == nil {
			continue
		}
		for i := range svc.Targets {
			t := &svc.Targets[i]
			if t.Idle(now, before) {
				found = append(found, t)
				continue
			}
			if busy == nil {
				busy = map[string]bool{}
			}
			busy[t.Machine] = true
		}
	}
	for _, t := range found {
		if !busy[t.Machine] {
			return t
		}
	}
	return nil
}

// idleLimit bounds a report: what requests wait for that come meanwhile.
const idleLimit = 3 * time.Second

// reportIdle lets the worker stop a Machine, after it has been taken out of the routes:
// a request that comes meanwhile waits and wakes it again, or is served when the worker
// does not answer. It reports whether to go on with others.
func (s *Server) reportIdle(ctx context.Context, app string, b *route.Backend) bool {
	c := s.waker.worker.Load()
	if c == nil {
		return false
	}
	defer s.table.Drain(app, b.Machine, false)
	if !s.table.Drain(app, b.Machine, true) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, idleLimit)
	defer cancel()
	r, err := (*c).Idle(ctx, &internalpb.IdleRequest{MachineId: b.Machine})
	if err == nil {
		s.m.idles.WithLabelValues("ok").Inc()
		s.table.Slept(app, b.Machine, r.GetSeq())
		s.touch(app)
		return true
	}
	// Whatever the worker did of it: a Machine that went down all the same is found out.
	b.KeepUp(time.Now().Add(s.Limits.IdleAfter))
	s.m.idles.WithLabelValues("refused").Inc()
	s.Log.Debug("an idle machine runs on", "app", app, "machine", b.Machine, "why", err)
	return !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Timeout)
}
