package edge

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/edge/route"
	"bulkhead/fault"
)

const (
	followMin = 50 * time.Millisecond
	followMax = 5 * time.Second
	// cacheEvery bounds how much newer the table may be than the disk.
	cacheEvery = 100 * time.Millisecond
)

// follow keeps the table as the controller's until ctx ends. While the controller
// cannot be reached, the table stays as it was.
func (s *Server) follow(ctx context.Context, c internalpb.ControllerClient) error {
	for delay := followMin; ; {
		began := time.Now()
		err := s.followOnce(ctx, c)
		s.m.synced.Set(0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > followMax {
			delay = followMin
		}
		if s.logs.allow() {
			s.Log.Warn("routes are not followed, trying again", "err", err)
		}
		// Jitter spreads the edges of a cell when a controller comes back.
		if !sleep(ctx, delay/2+rand.N(delay)) {
			return ctx.Err()
		}
		delay = min(2*delay, followMax)
	}
}

// followOnce is one stream: all routes, synced, then changes. Apps that it has not
// named when synced arrives are gone.
func (s *Server) followOnce(ctx context.Context, c internalpb.ControllerClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.WatchRoutes(ctx, &internalpb.WatchRoutesRequest{})
	if err != nil {
		return err
	}
	named := map[string]struct{}{} // nil once synced
	for {
		u, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the controller ended the stream")
		}
		if err != nil {
			return err
		}
		if r := u.GetRoute(); r.GetApp() != "" {
			s.setRoute(r)
			if named != nil {
				named[r.GetApp()] = struct{}{}
			} else if at := r.GetChangedAtNs(); at > 0 {
				s.m.routeLive.Observe(max(time.Since(time.Unix(0, at)).Seconds(), 0))
			}
		}
		if app := u.GetRemovedApp(); app != "" {
			s.removeRoute(app)
			delete(named, app)
		}
		if u.GetSynced() && named != nil {
			s.forget(named)
			named = nil
			s.m.synced.Set(1)
			s.Log.Info("routes are as the controller's", "apps", s.table.Len())
		}
	}
}

// setRoute makes a route live, and asks for what it needs.
func (s *Server) setRoute(r *internalpb.Route) {
	s.table.Set(r)
	s.Log.Debug("trace", "step", "routed", "app", r.GetApp())
	s.m.updates.Inc()
	s.touch(r.GetApp())
	if s.certs.wants(r.GetApp(), time.Now()) {
		s.certs.want(r.GetApp())
	}
	if a := s.table.Lookup(r.GetApp()); a != nil && len(a.NotServed) > 0 {
		s.Log.Info("ports of an app are not served: an edge listens on 80 and 443", "app", a.Name, "ports", a.NotServed)
	}
}

func (s *Server) removeRoute(app string) {
	s.table.Remove(app)
	s.m.updates.Inc()
	s.touch(app)
	s.certs.drop(app)
}

// forget removes all apps that are not in keep.
func (s *Server) forget(keep map[string]struct{}) {
	s.table.All(func(a *route.App) bool {
		if _, ok := keep[a.Name]; !ok {
			s.removeRoute(a.Name)
		}
		return true
	})
}

// touch notes that app's route is not on disk as it is in the table.
func (s *Server) touch(app string) {
	s.dirtyMu.Lock()
	s.dirty[app] = struct{}{}
	s.dirtyMu.Unlock()
	select {
	case s.dirtyCh <- struct{}{}:
	default:
	}
}

// keepCache writes changed routes to disk until ctx ends, and once more then.
func (s *Server) keepCache(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			s.saveDirty()
			return
		case <-s.dirtyCh:
		}
		sleep(ctx, cacheEvery) // what comes meanwhile goes with it
		s.saveDirty()
	}
}

func (s *Server) saveDirty() {
	s.dirtyMu.Lock()
	apps := make([]string, 0, len(s.dirty))
	for a := range s.dirty {
		apps = append(apps, a)
	}
	s.dirty = map[string]struct{}{}
	s.dirtyMu.Unlock()
	if len(apps) == 0 {
		return
	}
	err := s.cache.Save(s.table, apps)
	if err == nil {
		s.board.Over(cacheStands)
		return
	}
	s.m.cacheErrs.Inc()
	s.board.Trouble(cacheStands, fault.System(err, "the route cache in %s cannot be written", s.DataDir), "apps", len(apps))
	time.AfterFunc(cacheAgain, func() { // what is not kept is kept when it can be
		for _, a := range apps {
			s.touch(a)
		}
	})
}

// cacheStands is what the board calls routes that cannot be kept, cacheAgain the wait
// before that is tried again.
const (
	cacheStands = "routes are served, but not kept on disk: an edge that starts without the controller does not know the newest"
	cacheAgain  = 5 * time.Second
)

// keepCerts looks, now and then, for apps whose certificate is missing or due.
func (s *Server) keepCerts(ctx context.Context) {
	for {
		now := time.Now()
		s.table.All(func(a *route.App) bool {
			if s.certs.wants(a.Name, now) {
				s.certs.want(a.Name)
			}
			return ctx.Err() == nil
		})
		if !sleep(ctx, renewEvery) {
			return
		}
	}
}

// RouteVersion returns the changed_at_ns of the app's route in use, 0 when there
// is none.
func (s *Server) RouteVersion(app string) int64 {
	if a := s.table.Lookup(app); a != nil {
		return a.Route.GetChangedAtNs()
	}
	return 0
}
