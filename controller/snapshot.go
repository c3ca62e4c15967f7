package controller

import (
	"context"

	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
	"bulkhead/controller/record"
	"bulkhead/key"
)

// maxSnapshot bounds one part of the first message to a worker, in bytes. Tests lower it.
var maxSnapshot = 8 << 20

// remember completes the hello of a worker that has lost its journal with what was
// last seen of its Machines: that is the truth until the worker says another, and the
// worker is told of it.
func (s *session) remember(h *internalpb.Hello, mine map[key.MachineID]*record.Machine) map[key.MachineID]*seen {
	out := map[key.MachineID]*seen{}
	for id := range mine {
		if o := s.c.view.get(id); o != nil && o.Node == s.node {
			out[id] = o
			h.Observations = append(h.Observations, o.observation())
		}
	}
	if len(mine) > 0 {
		s.c.log.Warn("the worker's journal was lost; it is told what was assigned to it", "worker", s.node, "machines", len(mine), "remembered", len(out))
	}
	return out
}

// sendSnapshot sends everything that is assigned, in as many messages as it needs.
func (s *session) sendSnapshot(ctx context.Context, mine map[key.MachineID]*record.Machine, remembered map[key.MachineID]*seen) error {
	snap, size := &internalpb.Snapshot{}, 0
	send := func() error {
		return s.stream.Send(&internalpb.ToWorker{Kind: &internalpb.ToWorker_Snapshot{Snapshot: snap}})
	}
	for _, r := range mine {
		a, err := s.c.assignment(ctx, r)
		if err != nil {
			return err
		}
		var o *internalpb.Observation
		if m := remembered[r.ID]; m != nil {
			o = m.observation()
		}
		n := proto.Size(a) + proto.Size(o)
		if size += n; size > maxSnapshot && len(snap.Assignments) > 0 {
			snap.More = true
			if err := send(); err != nil {
				return err
			}
			snap, size = &internalpb.Snapshot{}, n
		}
		snap.Assignments = append(snap.Assignments, a)
		if o != nil {
			snap.Observed = append(snap.Observed, o)
		}
	}
	return send()
}
