package warden

import (
	"sync"

	"bulkhead/fault"
	"bulkhead/warden/client"
)

// counters count what the warden was asked. They are few and fixed: the list of
// operations is closed, and an unknown one counts as "other".
type counters struct {
	mu sync.Mutex
	m  map[client.Op]*client.OpCount
}

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
	out := &client.Metrics{Operations: map[client.Op]client.OpCount{}}
	s.counters.mu.Lock()
	for op, n := range s.counters.m {
		out.Operations[op] = *n
	}
	s.counters.mu.Unlock()
	s.mu.Lock()
	out.Machines = len(s.machines)
	s.mu.Unlock()
	return out
}
