package worker

import (
	"context"
	"slices"
	"time"

	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/warden/client"
)

// Telling a user that a Machine met a limit.
const (
	// limitQuiet is how long a limit must not have been met before it is news again.
	limitQuiet = time.Minute
	// A Machine meets its share of the processors when it was held back in half of the
	// scheduling periods in which it wanted to run, over at least this many of them, or
	// used so much of its share, in percent. It is news when that goes on from one look
	// to the next: a start or a request that takes all it can get is none.
	limitPeriods = 10
	limitCPU     = 90
)

// watchUsage asks the warden, now and then, what Machines have used, and tells of
// limits that they met. Nothing depends on it: a Machine's limits hold without it.
func (w *Worker) watchUsage() {
	if w.opt.Warden == nil {
		return
	}
	t := time.NewTicker(w.opt.UsageEvery)
	defer t.Stop()
	gauges := map[key.MachineID]*gauge{}
	for {
		select {
		case <-t.C:
		case <-w.life.Done():
			return
		}
		if !w.anySandbox() {
			clear(gauges)
			continue
		}
		ctx, cancel := context.WithTimeout(w.life, callTimeout)
		m, err := w.opt.Warden(ctx)
		cancel()
		if err != nil {
			w.log.Debug("the machines' usage is not known", "err", err)
			continue
		}
		there := map[key.MachineID]bool{}
		for _, u := range m.Usage {
			there[u.Machine] = true
			w.gaugeUsage(gauges, u)
		}
		for id := range gauges {
			if !there[id] {
				delete(gauges, id)
			}
		}
	}
}

func (w *Worker) anySandbox() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		if s.rec.Sandbox != "" {
			return true
		}
	}
	return false
}

// gaugeUsage compares a Machine's usage with the one before.
func (w *Worker) gaugeUsage(gauges map[key.MachineID]*gauge, u client.Usage) {
	w.mu.Lock()
	s, a := w.seen[u.Machine], w.actors[u.Machine]
	w.mu.Unlock()
	if s == nil || a == nil || s.rec.Sandbox == "" || !s.rec.Ran {
		return
	}
	cfg, err := configOf(s.asg)
	if err != nil {
		return
	}
	g := gauges[u.Machine]
	if g == nil || !g.started.Equal(s.rec.StartedAt) {
		g = &gauge{started: s.rec.StartedAt, hits: map[string]*hits{}}
		gauges[u.Machine] = g
	}
	found := w.hits(cfg, u)
	if l := cfg.EffectiveLimits(); g.busy(u, l.CPUPercent, w.now()) {
		g.cpu++
	}
	found = append(found, machine.LimitEvent{Limit: machine.LimitCPU, Value: int64(cfg.EffectiveLimits().CPUPercent), Unit: "% of a CPU", Count: g.cpu})
	if news := g.news(found, s.rec.Events, w.now()); len(news) > 0 {
		a.met(news)
	}
}

// hits lists how often a Machine has met each of its limits since its start, but that
// of the processors.
func (w *Worker) hits(cfg *machine.Config, u client.Usage) []machine.LimitEvent {
	l := cfg.EffectiveLimits()
	at := func(limit string, value int, unit string, count uint64) machine.LimitEvent {
		return machine.LimitEvent{Limit: limit, Value: int64(value), Unit: unit, Count: count}
	}
	return []machine.LimitEvent{
		at(machine.LimitDisk, l.DiskMB, "MiB", uint64(u.Inside.DiskHits)),
		at(machine.LimitInodes, l.Inodes, "inodes", uint64(u.Inside.InodeHits)),
		at(machine.LimitProcesses, l.Processes, "processes", uint64(u.Inside.ProcessHits)),
		at(machine.LimitOpenFiles, l.OpenFiles, "files", uint64(u.Inside.OpenFilesHits)),
		at(machine.LimitLog, l.LogKBPerSecond, "KiB/s", w.logs.DroppedOf(u.Machine)),
		at(machine.LimitNetworkOut, l.NetworkMbps, "Mbit/s", u.Sent.Dropped),
		at(machine.LimitNetworkIn, l.NetworkMbps, "Mbit/s", u.Received.Dropped),
	}
}

// gauge is what is remembered of a running Machine's limits.
type gauge struct {
	started time.Time // of the process
	hits    map[string]*hits

	last  client.Usage
	at    time.Time // of last
	times int       // looks in a row at which the processors' share was used up
	cpu   uint64    // how often that went on
}

// busy compares the processor time with that at the last look.
func (g *gauge) busy(u client.Usage, percent int, at time.Time) bool {
	last, passed := g.last, at.Sub(g.at)
	first := g.at.IsZero()
	g.last, g.at = u, at
	if first {
		return false
	}
	periods, held := u.Periods-last.Periods, u.ThrottledPeriods-last.ThrottledPeriods
	share := passed * time.Duration(percent) / 100
	if periods >= limitPeriods && 2*held >= periods || share > 0 && 100*(u.CPU-last.CPU) >= limitCPU*share {
		g.times++
	} else {
		g.times = 0
	}
	return g.times >= 2
}

type hits struct {
	count uint64
	last  time.Time // when it was seen to grow
}

// news compares the counts with those before and returns the limits that were met
// anew. Of counts that are seen for the first time, the journal's events say whether
// they are news: an earlier worker may have told.
func (g *gauge) news(now []machine.LimitEvent, told []machine.Event, at time.Time) (news []machine.LimitEvent) {
	for _, e := range now {
		h, known := g.hits[e.Limit]
		if !known {
			h = &hits{}
			g.hits[e.Limit] = h
			if toldSince(told, e.Limit, g.started) {
				h.count = e.Count
				continue
			}
		}
		before := h.count
		h.count = e.Count
		if e.Count <= before {
			continue
		}
		if h.last.IsZero() || at.Sub(h.last) > limitQuiet {
			news = append(news, e)
		}
		h.last = at
	}
	return news
}

// toldSince reports whether there is an event of the limit since the time.
func toldSince(events []machine.Event, limit string, since time.Time) bool {
	return slices.ContainsFunc(events, func(e machine.Event) bool {
		return e.Request != nil && e.Request.LimitEvent != nil && e.Request.LimitEvent.Limit == limit && e.Timestamp >= since.UnixMilli()
	})
}

// met tells the actor of limits that its Machine met.
func (a *actor) met(news []machine.LimitEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.news = append(a.news, news...)
	a.poke()
}

// tell journals the limits that the Machine met. Of each limit, the newest event is
// kept: however often it is met, it pushes nothing else out.
func (a *actor) tell() error {
	a.mu.Lock()
	news := a.news
	a.news = nil
	a.mu.Unlock()
	if len(news) == 0 || a.rec.Sandbox == "" {
		return nil
	}
	now := a.w.now()
	err := a.update("limit", func(r *record) error {
		for _, e := range news {
			r.Events = slices.DeleteFunc(r.Events, func(old machine.Event) bool {
				return old.Request != nil && old.Request.LimitEvent != nil && old.Request.LimitEvent.Limit == e.Limit
			})
			r.event(now, "limit", byPlatform, &machine.EventRequest{LimitEvent: &e, Error: e.Sentence()})
		}
		return nil
	})
	if err != nil {
		return err // they are lost, and told when they are met again
	}
	for _, e := range news {
		a.w.metrics.limits.WithLabelValues(e.Limit).Inc()
		a.say("%s", e.Sentence())
	}
	return nil
}
