package route_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bulkhead/api/internalpb"
	"bulkhead/edge/route"
)

func noDial(context.Context, string) (net.Conn, error) { return nil, net.ErrClosed }

func routeOf(app string, backends ...*internalpb.Backend) *internalpb.Route {
	return &internalpb.Route{App: app, ChangedAtNs: time.Now().UnixNano(), Services: []*internalpb.ServiceRoute{{Port: 443, Handlers: []string{"tls", "http"}, Backends: backends}}}
}

func backend(n int, soft, hard int32) *internalpb.Backend {
	return &internalpb.Backend{MachineId: fmt.Sprintf("%014x", n), Address: fmt.Sprintf("[fdaa::%x]:80", n), SoftLimit: soft, HardLimit: hard}
}

// TestPick checks, over random limits and sequences of takes and releases, that no
// Machine passes its hard limit, that Full is said only when all are at theirs, and
// that no Machine reaches its soft limit while another is much below.
func TestPick(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := route.NewTable(noDial)
		n := rapid.IntRange(1, 6).Draw(t, "machines")
		var bs []*internalpb.Backend
		room := 0
		for i := range n {
			hard := rapid.IntRange(1, 5).Draw(t, "hard")
			room += hard
			bs = append(bs, backend(i, int32(rapid.IntRange(0, 5).Draw(t, "soft")), int32(hard)))
		}
		table.Set(routeOf("web", bs...))
		svc := table.Lookup("web").HTTPS
		var leases []route.Lease
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if len(leases) > 0 && rapid.Bool().Draw(t, "release") {
				leases[0].Release()
				leases = leases[1:]
				continue
			}
			l, v := svc.Pick(time.Now(), nil)
			if (v == route.Picked) != (len(leases) < room) {
				t.Fatalf("verdict %d with %d of %d places taken", v, len(leases), room)
			}
			if v == route.Picked {
				leases = append(leases, l)
			}
			for i := range svc.Targets {
				if tg := &svc.Targets[i]; tg.Load() > tg.Hard {
					t.Fatalf("machine %s has %d, its limit is %d", tg.Machine, tg.Load(), tg.Hard)
				}
			}
		}
	})
}

// TestSpread: the load of many requests is nearly even.
func TestSpread(t *testing.T) {
	table := route.NewTable(noDial)
	table.Set(routeOf("web", backend(1, 1000, 0), backend(2, 1000, 0), backend(3, 1000, 0), backend(4, 1000, 0)))
	svc := table.Lookup("web").HTTPS
	for range 2000 {
		if _, v := svc.Pick(time.Now(), nil); v != route.Picked {
			t.Fatal(v)
		}
	}
	for i := range svc.Targets {
		if n := svc.Targets[i].Load(); n < 480 || n > 520 {
			t.Errorf("machine %d has %d of 2000", i, n)
		}
	}
}

// TestBands: a Machine below its soft limit is taken before one above, an answering
// one before one that does not answer, and one that was tried not at all.
func TestBands(t *testing.T) {
	table := route.NewTable(noDial)
	table.Set(routeOf("web", backend(1, 1, 0), backend(2, 3, 0)))
	svc := table.Lookup("web").HTTPS
	now := time.Now()
	for range 4 {
		l, _ := svc.Pick(now, nil)
		if l.OverSoft {
			t.Fatal("over the soft limit while places below it are free")
		}
	}
	if l, _ := svc.Pick(now, nil); !l.OverSoft {
		t.Error("the fifth request is over every soft limit")
	}
	down := svc.Targets[0].Backend
	down.Failed(now)
	for range 5 {
		if l, _ := svc.Pick(now, nil); l.Backend == down {
			t.Fatal("picked a Machine that does not answer")
		}
	}
	if l, v := svc.Pick(now, []*route.Backend{svc.Targets[1].Backend}); v != route.Picked || l.Backend != down {
		t.Error("the last Machine left must be tried even if it did not answer")
	}
	if _, v := svc.Pick(now, []*route.Backend{down, svc.Targets[1].Backend}); v != route.None {
		t.Errorf("verdict %d when all were tried", v)
	}
}

// TestUpdateKeepsCounters: what is under way counts on in the next version.
func TestUpdateKeepsCounters(t *testing.T) {
	table := route.NewTable(noDial)
	table.Set(routeOf("web", backend(1, 1, 1)))
	l, _ := table.Lookup("web").HTTPS.Pick(time.Now(), nil)
	table.Set(routeOf("web", backend(1, 1, 1), backend(2, 1, 1)))
	next, v := table.Lookup("web").HTTPS.Pick(time.Now(), nil)
	if v != route.Picked || next.Backend == l.Backend {
		t.Error("the full Machine was picked after an update")
	}
	// Whoever queues is woken by an update that brings room.
	svc := table.Lookup("web").HTTPS
	woken, queued := make(chan bool), make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	go func() {
		woken <- svc.Wait(ctx, func() bool {
			defer close(queued) // asked by whoever is in the queue
			return svc.AtLimit(nil)
		})
	}()
	<-queued
	table.Set(routeOf("web", backend(3, 1, 1)))
	if !<-woken {
		t.Error("the waiter was not woken")
	}
}

// TestCache: what was saved is there after a reopen, whatever the end of the file
// looks like, and the file stays bounded.
func TestCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "routes.log")
	load := func() (map[string]*internalpb.Route, *route.Cache) {
		got := map[string]*internalpb.Route{}
		c, err := route.OpenCache(path, func(r *internalpb.Route) { got[r.GetApp()] = r })
		if err != nil {
			t.Fatal(err)
		}
		return got, c
	}
	_, c := load()
	table := route.NewTable(noDial)
	var all []string
	for i := range 100 {
		app := fmt.Sprintf("app%d", i)
		all = append(all, app)
		table.Set(routeOf(app, backend(i, 1, 1)))
	}
	if err := c.Save(table, all); err != nil {
		t.Fatal(err)
	}
	table.Remove("app7")
	if err := c.Save(table, []string{"app7", "never"}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	got, c := load()
	if len(got) != 99 || got["app7"] != nil || got["app8"].GetServices()[0].GetBackends()[0].GetMachineId() != fmt.Sprintf("%014x", 8) {
		t.Fatalf("%d routes read back", len(got))
	}
	c.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []struct {
		name string
		data []byte
		want int
	}{
		{"cut in the last record", whole[:len(whole)-1], 100},
		{"garbage at the end", append(append([]byte{}, whole...), "garbage that is no record"...), 99},
		{"a flipped bit in the middle", flip(whole, len(whole)/2), -1},
		{"not a log", []byte("something else"), 0},
		{"empty", nil, 0},
	} {
		if err := os.WriteFile(path, damage.data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, c := load()
		if damage.want >= 0 && len(got) != damage.want || damage.want < 0 && (len(got) < 20 || len(got) > 80) {
			t.Errorf("%s: %d routes, want %d", damage.name, len(got), damage.want)
		}
		// It goes on from there.
		table.Set(routeOf("later", backend(1, 1, 1)))
		if err := c.Save(table, []string{"later"}); err != nil {
			t.Fatal(err)
		}
		c.Close()
		again, c2 := load()
		c2.Close()
		if again["later"] == nil || len(again) != len(got)+1 {
			t.Errorf("%s: %d routes after one more save, want %d", damage.name, len(again), len(got)+1)
		}
	}
	os.Remove(path)
	_, c = load()
	for range 400 {
		if err := c.Save(table, all); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if info, err := os.Stat(path); err != nil || info.Size() > 2<<20 {
		t.Errorf("the log has grown to %d bytes, %v", info.Size(), err)
	}
	if got, c := load(); len(got) != 100 { // 99 and "later"
		t.Errorf("%d routes after compaction", len(got))
	} else {
		c.Close()
	}
}

func flip(b []byte, i int) []byte {
	c := append([]byte{}, b...)
	c[i] ^= 0x40
	return c
}

// BenchmarkLookup shows that a lookup and a pick cost the same in a table of 100,000
// apps as in one of 10.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table := route.NewTable(noDial)
			for i := range n {
				table.Set(routeOf(fmt.Sprintf("app%d", i), backend(i, 1000, 0), backend(i+1, 1000, 0)))
			}
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				l, _ := table.Lookup("app7").HTTPS.Pick(now, nil)
				l.Release()
			}
		})
	}
}

// TestRouteOfAnEarlierVersion: a cached route that has options for the whole service alone
// is used as it was meant.
func TestRouteOfAnEarlierVersion(t *testing.T) {
	table := route.NewTable(noDial)
	r := routeOf("web", backend(1, 0, 0), backend(2, 0, 0))
	r.Services[0].H2Backend = true
	table.Set(r)
	svc := table.Lookup("web").HTTPS
	if !svc.TLS || !svc.Web || len(svc.Targets) != 2 || !svc.Targets[0].H2 || !svc.Targets[1].H2 {
		t.Errorf("the service is %+v", svc)
	}
}
