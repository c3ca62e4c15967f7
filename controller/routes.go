package controller

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// routes derives the edges' table from Machines and what is seen of them, one app
// at a time and only when something of the app changed. Nothing is polled.
//
// After a start, an app whose Machines' worker has not reported yet is not known:
// an edge keeps the route that it has until the worker reports, or until grace has
// passed.
type routes struct {
	c     *Controller
	wake  chan struct{} // buffered, 1
	grace time.Duration

	mu      sync.Mutex
	table   map[key.AppName]*internalpb.Route
	pending map[key.AppName]time.Time // apps to derive anew, and since when
	unknown map[key.AppName]bool      // apps that wait for a worker's report
	edges   map[*edgeWatch]bool
	loaded  bool          // every app has been looked at once
	ready   chan struct{} // closed when loaded and nothing is unknown
	isReady bool
	over    bool // the grace has passed
}

// edgeWatch is one edge's stream: the apps whose route it must hear about.
type edgeWatch struct {
	pending map[key.AppName]bool // routes.mu
	wake    chan struct{}        // buffered, 1
}

func newRoutes(c *Controller, grace time.Duration) *routes {
	return &routes{
		c: c, grace: grace, wake: make(chan struct{}, 1), ready: make(chan struct{}),
		table: map[key.AppName]*internalpb.Route{}, pending: map[key.AppName]time.Time{},
		unknown: map[key.AppName]bool{}, edges: map[*edgeWatch]bool{},
	}
}

// dirty notes that something of an app changed.
func (r *routes) dirty(a key.AppName) {
	r.mu.Lock()
	if _, ok := r.pending[a]; !ok {
		r.pending[a] = time.Now()
	}
	r.mu.Unlock()
	poke(r.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run derives routes until ctx ends.
func (r *routes) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	loaded := make(chan struct{})
	wg.Go(func() { cancel(r.follow(ctx, loaded)) })
	grace := time.NewTimer(r.grace)
	defer grace.Stop()
	for {
		reported := r.c.view.nodeReported()
		if err := r.step(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-loaded:
			loaded = nil
			r.mu.Lock()
			r.loaded = true
			r.mu.Unlock()
			poke(r.wake)
		case <-r.wake:
		case <-reported:
			r.again()
		case <-grace.C:
			r.mu.Lock()
			r.over = true
			r.mu.Unlock()
			r.again()
		}
	}
}

// again looks once more at the apps that wait for a report.
func (r *routes) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a := range r.unknown {
		if _, ok := r.pending[a]; !ok {
			r.pending[a] = time.Now()
		}
	}
	poke(r.wake)
}

// follow marks every app once, and then each whose Machines' records change.
func (r *routes) follow(ctx context.Context, loaded chan struct{}) error {
	for first := true; ; first = false {
		kvs, rev, err := r.c.store.List(ctx, record.PrefixMachine)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			r.dirty(record.AppOfMachineKey(kv.Key))
		}
		if first {
			close(loaded)
		}
		err = r.c.store.Watch(ctx, record.PrefixMachine, rev, func(es []store.Event) error {
			for _, e := range es {
				r.dirty(record.AppOfMachineKey(e.Key))
				r.c.view.touch(key.MachineID(record.LastPart(e.Key)))
			}
			return nil
		})
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
}

// step derives the routes of all pending apps.
func (r *routes) step(ctx context.Context) error {
	for {
		r.mu.Lock()
		var a key.AppName
		var since time.Time
		for a, since = range r.pending {
			break
		}
		if a == "" {
			if r.loaded && len(r.unknown) == 0 && !r.isReady {
				r.isReady = true
				close(r.ready)
			}
			r.mu.Unlock()
			return nil
		}
		delete(r.pending, a)
		over := r.over
		r.mu.Unlock()
		records, _, err := record.List[record.Machine](ctx, r.c.store, record.MachinesOf(a))
		if err != nil {
			return err
		}
		runs, err := r.running(ctx, records)
		if err != nil {
			return err
		}
		route, known := r.derive(a, records, runs, over)
		r.publish(a, route, known, since)
	}
}

// publish enters a route and tells the edges, if it is another than before.
func (r *routes) publish(a key.AppName, route *internalpb.Route, known bool, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !known {
		r.unknown[a] = true
		return
	}
	delete(r.unknown, a)
	old := r.table[a]
	if old != nil && route != nil {
		route.ChangedAtNs = old.ChangedAtNs
		if proto.Equal(old, route) {
			return
		}
	}
	if route == nil {
		if old == nil {
			return
		}
		delete(r.table, a)
	} else {
		route.ChangedAtNs = since.UnixNano()
		r.table[a] = route
	}
	r.c.metrics.routeChanges.Inc()
	for e := range r.edges {
		e.pending[a] = true
		poke(e.wake)
	}
}

// WatchRoutes implements internalpb.ControllerServer.
func (s internalServer) WatchRoutes(_ *internalpb.WatchRoutesRequest, stream grpc.ServerStreamingServer[internalpb.RouteUpdate]) error {
	r := s.c.routes
	e := &edgeWatch{pending: map[key.AppName]bool{}, wake: make(chan struct{}, 1)}
	r.mu.Lock()
	r.edges[e] = true
	for a := range r.table {
		e.pending[a] = true
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.edges, e)
		r.mu.Unlock()
	}()
	ready, synced := r.ready, false
	for {
		complete, err := r.drain(e, stream)
		if err != nil {
			return err
		}
		if complete && !synced {
			synced, ready = true, nil
			if err := stream.Send(&internalpb.RouteUpdate{Synced: true}); err != nil {
				return err
			}
		}
		select {
		case <-e.wake:
		case <-ready:
			ready = nil
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.c.closing.Done():
			return fault.New(fault.Unavailable, "the controller is restarting")
		}
	}
}

// drain sends what an edge has yet to hear. complete is whether everything that
// there is has been sent.
func (r *routes) drain(e *edgeWatch, stream grpc.ServerStreamingServer[internalpb.RouteUpdate]) (complete bool, err error) {
	for {
		r.mu.Lock()
		if len(e.pending) == 0 {
			complete = r.isReady
			r.mu.Unlock()
			return complete, nil
		}
		var out []*internalpb.RouteUpdate
		for a := range e.pending {
			u := &internalpb.RouteUpdate{Route: r.table[a]}
			if u.Route == nil {
				u.RemovedApp = string(a)
			}
			out = append(out, u)
		}
		clear(e.pending)
		r.mu.Unlock()
		for _, u := range out {
			if err := stream.Send(u); err != nil {
				return false, err
			}
		}
	}
}
