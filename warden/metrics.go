package warden

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/warden/client"
	"bulkhead/warden/wire"
)

// counters count what the warden was asked. They are few and fixed: the list of
// operations is closed, and an unknown one counts as "other".
type counters struct {
	mu     sync.Mutex
	m      map[client.Op]*client.OpCount
	grants [3]int64 // of grantWords
}

// grantWords are the reasons for which a grant that is good otherwise is refused.
var grantWords = [3]string{grant.StatusEnded, grant.StatusAhead, grant.StatusReplaced}

// add counts one operation by how it ended.
func (c *counters) add(op client.Op, err error) {
	if !client.Known(op) {
		op = "other"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[client.Op]*client.OpCount{}
	}
	n := c.m[op]
	if n == nil {
		n = &client.OpCount{}
		c.m[op] = n
	}
	var why *fault.Error
	if op == client.OpStart && errors.As(err, &why) {
		if i := slices.Index(grantWords[:], why.Status); i >= 0 {
			c.grants[i]++
		}
	}
	switch fault.KindOf(err) {
	case "":
		n.OK++
	case fault.Internal:
		n.Failed++
	default:
		n.Refused++
	}
}

// metrics is the answer to OpMetrics.
func (s *Server) metrics() *client.Metrics {
	out := &client.Metrics{Operations: map[client.Op]client.OpCount{}, Grants: map[string]int64{}}
	s.counters.mu.Lock()
	for i, n := range s.counters.grants {
		out.Grants[grantWords[i]] = n
	}
	for op, n := range s.counters.m {
		out.Operations[op] = *n
	}
	s.counters.mu.Unlock()
	out.Usage = s.usage()
	s.mu.Lock()
	out.Machines = len(s.machines)
	s.mu.Unlock()
	return out
}

// usage reads what every Machine has used. What cannot be read is missing: a metric
// is no reason to fail.
func (s *Server) usage() []client.Usage {
	s.mu.Lock()
	records := make([]record, 0, len(s.machines))
	for _, m := range s.machines {
		if m.record.Started {
			records = append(records, m.record)
		}
	}
	s.mu.Unlock()
	traffic, err := s.router.Traffic()
	if err != nil {
		s.log.Warn("the machines' traffic cannot be read", "err", err)
	}
	out := make([]client.Usage, 0, len(records))
	for _, r := range records {
		g, t := s.groups.Usage(string(r.Machine)), traffic[r.Slot]
		out = append(out, client.Usage{
			Machine: r.Machine, Memory: g.Memory, MemoryLimit: g.MemoryLimit, CPU: g.CPU, Periods: g.Periods,
			ThrottledPeriods: g.ThrottledPeriods, Throttled: g.Throttled, Tasks: g.Tasks, TasksLimit: g.TasksLimit,
			Inside: s.meter(r.Machine), Sent: client.Traffic(t.Sent), Received: client.Traffic(t.Received),
		})
	}
	return out
}

// meter reads what the sandbox says of itself; what is not a meter is nothing.
func (s *Server) meter(id key.MachineID) wire.Meter {
	f, err := os.Open(filepath.Join(s.runDir(id), meterFile))
	if err != nil {
		return wire.Meter{}
	}
	defer f.Close()
	b := make([]byte, wire.MaxMeter+1)
	n, _ := f.ReadAt(b, 0)
	m, err := wire.ParseMeter(b[:n])
	if err != nil {
		return wire.Meter{}
	}
	return m
}
