package controller

import (
	"context"
	"time"

	"bulkhead/controller/record"
	"bulkhead/grant"
	"bulkhead/key"
)

// signGrant makes the grant of a Machine as it is wanted now. All that are made of one
// generation within a grant.Period are the same, so that a worker which connects again
// has nothing to write.
func (c *Controller) signGrant(r *record.Machine) (encoded, signature []byte, err error) {
	g, l := r.Config.EffectiveGuest(), r.Config.EffectiveLimits()
	return grant.Sign(c.grantKey, grant.Grant{
		Machine: r.ID, Instance: r.Instance, Node: r.Node, Network: r.Network,
		Generation: r.Generation, Ends: grant.End(r.Node, now()).Unix(),
		CPUs: g.CPUs, CPUQuota: l.CPUPercent, MemoryMB: g.MemoryMB, MaxPIDs: hostPIDs(l.Processes), DiskMB: l.DiskMB,
		Processes: l.Processes, OpenFiles: l.OpenFiles, Inodes: l.Inodes, NetworkMbps: l.NetworkMbps, PacketsPerSecond: l.PacketsPerSecond,
	})
}

// renewGrants sends every assignment again, under its generation, as often as the grants
// in them would be other ones: once a day, and at once when the clock was set.
func (s *session) renewGrants(ctx context.Context) error {
	tick := time.NewTicker(s.c.cfg.GrantTick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		end := grant.End(s.node, now())
		if end.Equal(s.signed) {
			continue
		}
		kvs, _, err := s.c.store.List(ctx, record.NodePrefix(s.node))
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			s.later(key.MachineID(record.LastPart(kv.Key)), false)
		}
		s.signed = end
		s.c.log.Info("the grants of a node's machines are made anew", "worker", s.node, "machines", len(kvs), "until", end)
	}
}
