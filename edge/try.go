package edge

import (
	"context"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/edge/route"
	"bulkhead/fault"
)

// Limits of trying the ports of Machines.
const (
	tryLimit  = 2 * time.Second // for all ports of one Machine
	triesOnce = 16              // Machines at a time
)

// trier is the Edge service.
type trier struct {
	internalpb.UnimplementedEdgeServer
	table *route.Table
	slots chan struct{}
}

func newTrier(t *route.Table) *trier { return &trier{table: t, slots: make(chan struct{}, triesOnce)} }

// Try implements internalpb.EdgeServer.
func (s *trier) Try(ctx context.Context, in *internalpb.TryRequest) (*internalpb.TryResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, fault.New(fault.TooMany, "the ports of %d machines are being tried; try again", triesOnce)
	}
	out := &internalpb.TryResponse{}
	for _, p := range s.table.Try(ctx, in.GetApp(), in.GetMachineId()) {
		out.Ports = append(out.Ports, &internalpb.TriedPort{Port: int32(p.Port), Answers: p.Answers})
	}
	return out, nil
}
