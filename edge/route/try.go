package route

import (
	"context"
	"net/netip"
	"sync"

	"bulkhead/edge/upstream"
)

// Tried is a port of a Machine, and whether somebody accepted a connection to it.
type Tried struct {
	Port    uint16
	Answers bool
}

// Try connects to every port of a Machine that the app's route names, as it would for a
// request, and closes the connections again. It returns nothing for a Machine that is in
// no route. ctx bounds the wait.
func (t *Table) Try(ctx context.Context, app, machine string) []Tried {
	a := t.Lookup(app)
	if a == nil {
		return nil
	}
	pools := map[string]*upstream.Pool{}
	var addresses []string
	for _, s := range a.Route.GetServices() {
		for _, b := range s.GetBackends() {
			if b.GetMachineId() == machine && pools[b.GetAddress()] == nil {
				// A pool of its own: a port that no edge listens for has none.
				pools[b.GetAddress()] = upstream.NewPool(b.GetAddress(), b.GetAddress4(), t.dial)
				addresses = append(addresses, b.GetAddress())
			}
		}
	}
	out := make([]Tried, len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			continue // a route that this version does not understand: as one that does not answer
		}
		out[i].Port = at.Port()
		wg.Go(func() {
			if c, err := pools[address].Connect(ctx); err == nil {
				c.Close()
				out[i].Answers = true
			}
		})
	}
	wg.Wait()
	return out
}
