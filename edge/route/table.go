// Package route is the edge's table of apps: who serves which, and how busy each
// Machine is.
//
// A lookup is one lock-free load; an update costs what it changes, whatever the
// number of apps. An App is immutable: an update replaces it whole, and Backends
// (counters, idle connections) live on from one version to the next.
package route

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/edge/upstream"
)

// Table maps app names to Apps. Lookups may run beside one updater.
type Table struct {
	dial upstream.Dial
	apps sync.Map // string → *App
	n    atomic.Int64
	mu   sync.Mutex // held by updates
}

// NewTable returns an empty table whose Backends connect with dial.
func NewTable(dial upstream.Dial) *Table { return &Table{dial: dial} }

// App is one version of an app's route. It must not be changed.
type App struct {
	Name string
	// HTTP and HTTPS are the services on the public ports 80 and 443, or nil.
	HTTP, HTTPS *Service
	// NotServed lists the public ports that no edge listens on.
	NotServed []int32
	// Route is what the controller sent.
	Route *internalpb.Route
	// Replaced is closed when this is the newest version no more.
	Replaced <-chan struct{}

	replaced chan struct{}
	backends map[backendKey]*Backend
}

type backendKey struct{ id, addr, addr4 string }

// Service is one public port of an app.
type Service struct {
	// TLS and Web say which handlers the port has: "tls" ends TLS, "http" speaks HTTP.
	TLS, Web   bool
	ForceHTTPS bool
	// Targets are the Machines that run, Asleep those that can be woken.
	Targets, Asleep []Target
	// Leaving are the ids of Machines that somebody stops or updates.
	Leaving []string

	gate *gate
}

// Target is a Backend with the limits that this version of the service gives it.
type Target struct {
	*Backend
	Soft, Hard int64 // Hard 0 is no limit
	// H2 says that the Machine takes HTTP/2 without TLS.
	H2 bool
	// Autostart and Autostop say whether the Machine may be woken, and reported idle.
	Autostart, Autostop bool
}

// Backend is one port of one Machine.
type Backend struct {
	Machine string
	Addr    string
	Pool    *upstream.Pool
	// Aux holds what the forwarding of h2_backend services keeps for the backend;
	// it is closed, if it has a CloseIdleConnections method, when the backend goes.
	Aux atomic.Pointer[any]

	load      atomic.Int64
	downUntil atomic.Int64 // clock
	fails     atomic.Int32

	rest // what it has to do with sleeping and waking
}

// Lookup returns the current route of app, or nil.
func (t *Table) Lookup(app string) *App {
	if v, ok := t.apps.Load(app); ok {
		return v.(*App)
	}
	return nil
}

// Len returns the number of apps.
func (t *Table) Len() int { return int(t.n.Load()) }

// All calls fn for every app until it returns false. It is for background work.
func (t *Table) All(fn func(*App) bool) {
	t.apps.Range(func(_, v any) bool { return fn(v.(*App)) })
}

// Set makes r the route of its app. The table keeps r.
func (t *Table) Set(r *internalpb.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.Lookup(r.GetApp())
	if old != nil {
		keepNewer(r, old.Route)
	}
	t.swap(r, old)
}

// swap puts r in the place of old. t.mu is held.
func (t *Table) swap(r *internalpb.Route, old *App) {
	app := t.build(r, old)
	t.apps.Store(app.Name, app)
	if old == nil {
		t.n.Add(1)
		return
	}
	close(old.replaced)
	retire(old, app)
}

// Remove takes app out. Requests under way go on.
func (t *Table) Remove(app string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v, ok := t.apps.LoadAndDelete(app); ok {
		t.n.Add(-1)
		close(v.(*App).replaced)
		retire(v.(*App), nil)
	}
}

// Close ends the idle connections of all Backends.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.All(func(a *App) bool { retire(a, nil); return true })
}

// retire lets go of the Backends that next does not have, and wakes whoever queues
// at the old version so that it looks at the new one.
func retire(old, next *App) {
	for k, b := range old.backends {
		if next == nil || next.backends[k] != b {
			b.close()
		}
	}
	for _, s := range []*Service{old.HTTP, old.HTTPS} {
		if s != nil {
			s.gate.wakeAll()
		}
	}
}

// build makes an App of r that shares old's Backends and queues.
func (t *Table) build(r *internalpb.Route, old *App) *App {
	app := &App{Name: r.GetApp(), Route: r, replaced: make(chan struct{}), backends: map[backendKey]*Backend{}}
	app.Replaced = app.replaced
	for _, sr := range r.GetServices() {
		s := &Service{ForceHTTPS: sr.GetForceHttps(), Leaving: sr.GetLeaving()}
		s.TLS, s.Web = handlers(sr.GetHandlers())
		for _, b := range sr.GetBackends() {
			if tls, web := handlers(optionsOf(sr, b).GetHandlers()); tls != s.TLS || web != s.Web {
				continue // it takes its turn when those that speak as the service does are gone
			}
			have := t.backend(app, old, b)
			have.settle(b)
			if have.asleep.Load() {
				s.Asleep = append(s.Asleep, target(sr, b, have))
			} else {
				s.Targets = append(s.Targets, target(sr, b, have))
			}
		}
		switch sr.GetPort() {
		case 80:
			app.HTTP = s
		case 443:
			app.HTTPS = s
		default:
			app.NotServed = append(app.NotServed, sr.GetPort())
			continue
		}
	}
	app.HTTP.share(old, func(a *App) *Service { return a.HTTP })
	app.HTTPS.share(old, func(a *App) *Service { return a.HTTPS })
	return app
}

// share gives s the queue of its last version, or a new one.
func (s *Service) share(old *App, of func(*App) *Service) {
	if s == nil {
		return
	}
	if old != nil {
		if o := of(old); o != nil {
			s.gate = o.gate
			return
		}
	}
	s.gate = &gate{}
}

func (t *Table) backend(app, old *App, b *internalpb.Backend) *Backend {
	k := backendKey{b.GetMachineId(), b.GetAddress(), b.GetAddress4()}
	if have := app.backends[k]; have != nil {
		return have
	}
	var have *Backend
	if old != nil {
		have = old.backends[k]
	}
	if have == nil {
		have = &Backend{Machine: k.id, Addr: k.addr, Pool: upstream.NewPool(k.addr, k.addr4, t.dial)}
		have.used.Store(clock(time.Now()))
	}
	app.backends[k] = have
	return have
}

// optionsOf returns how a Machine is spoken to. A route that an earlier version wrote says
// it for the whole service.
func optionsOf(sr *internalpb.ServiceRoute, b *internalpb.Backend) *internalpb.BackendOptions {
	if o := b.GetOptions(); o != nil {
		return o
	}
	return &internalpb.BackendOptions{Handlers: sr.GetHandlers(), H2Backend: sr.GetH2Backend()}
}

// handlers reads the handlers of a port.
func handlers(names []string) (tls, web bool) {
	return slices.Contains(names, "tls"), slices.Contains(names, "http")
}

// Fly's default: a Machine with 20 under way is passed over while others have less.
const defaultSoft = 20

func target(sr *internalpb.ServiceRoute, b *internalpb.Backend, have *Backend) Target {
	t := Target{Backend: have, H2: optionsOf(sr, b).GetH2Backend(), Soft: int64(b.GetSoftLimit()), Hard: int64(b.GetHardLimit()), Autostart: b.GetAutostart(), Autostop: b.GetAutostop()}
	if t.Soft <= 0 {
		t.Soft = defaultSoft
	}
	if t.Hard > 0 && t.Soft > t.Hard {
		t.Soft = t.Hard
	}
	return t
}

func (b *Backend) close() {
	b.Pool.Close()
	b.dropIdle()
}

// dropIdle closes the connections that wait for a next request.
func (b *Backend) dropIdle() {
	b.Pool.Drop()
	if p := b.Aux.Load(); p != nil {
		if c, ok := (*p).(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}

// Load returns the number of requests or connections under way.
func (b *Backend) Load() int64 { return b.load.Load() }

// Failed notes that the Machine took no connection: it is passed over for a while
// that doubles from 100 ms to 5 s, unless there is no other.
func (b *Backend) Failed(now time.Time) {
	n := min(b.fails.Add(1), 7)
	b.downUntil.Store(clock(now.Add(min(50*time.Millisecond<<n, 5*time.Second))))
}

// Worked notes that the Machine answers.
func (b *Backend) Worked() {
	if b.fails.Load() != 0 {
		b.fails.Store(0)
		b.downUntil.Store(0)
	}
}

func (b *Backend) down(now int64) bool {
	until := b.downUntil.Load()
	return until != 0 && now < until
}
