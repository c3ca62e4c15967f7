package controller_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/limit"
	"bulkhead/role"
)

// peak samples the process until stop is called, and returns the most goroutines and the
// most bytes of heap in use that it saw.
func peak() (stop func() (goroutines int, heap uint64)) {
	done, out := make(chan struct{}), make(chan struct{})
	var g int
	var h uint64
	go func() {
		defer close(out)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			g, h = max(g, runtime.NumGoroutine()), max(h, m.HeapInuse)
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() (int, uint64) { close(done); <-out; return g, h }
}

// TestFloods attacks the public listener in every way of HTTP/2 and of slowness that is
// known to have stopped servers, all at once, from several addresses: each flood is cut
// off, each slow connection ended, memory and goroutines stay bounded, others are served
// all the while, and afterwards all is as it was. Control: a server of Go's own without
// limits, to which the same is done, suffers it.
func TestFloods(t *testing.T) {
	const most, each = 400, 60
	e := newEnvWith(t, func(c *controller.Config) {
		c.BodyLimit = 500 * time.Millisecond
		c.Role.RateLimits = ""
		c.Conns = controller.ConnLimits{Most: most, MostEach: each, New: limit.Rate{PerSecond: 10, Burst: 250}, Header: 6 * time.Second, Idle: 5 * time.Second, Leftover: time.Second}
	})
	e.app("web")
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	goroutines, heap := runtime.NumGoroutine(), m.HeapInuse
	ended := peak()

	// Somebody else, over one connection and over new ones.
	ctx, cancel := context.WithCancel(context.Background())
	var served, failed atomic.Int32
	var slowest atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	other := func(client *http.Client, fresh bool) {
		for ctx.Err() == nil {
			req, _ := http.NewRequest("GET", "https://api."+domain+"/v1/apps/web", nil)
			req.Header.Set("Authorization", "Bearer "+e.token)
			start := time.Now()
			resp, err := client.Do(req)
			if err != nil || resp.StatusCode != 200 {
				failed.Add(1)
				t.Errorf("somebody else: %v %v (over a new connection: %v)", resp, err, fresh)
			} else {
				resp.Body.Close()
				served.Add(1)
				slowest.Store(max(slowest.Load(), int64(time.Since(start))))
			}
			if fresh {
				client.CloseIdleConnections()
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
	for _, fresh := range []bool{false, true} {
		wg.Go(func() { other(&http.Client{Timeout: 20 * time.Second, Transport: e.transport()}, fresh) })
	}

	socket, api := e.socks[role.SocketAPI], "api."+domain
	var attacks []attack
	for kind := range floods {
		attacks = append(attacks, attack{Kind: kind, Addr: socket, Host: api, From: 60, N: 100_000})
	}
	from := byte(70)
	for kind := range holds {
		a := attack{Kind: kind, Addr: socket, Host: api, From: from, N: 25, Hold: 30 * time.Second}
		switch from++; kind {
		case "slow push":
			a.Host = "registry." + domain
		case "idle":
			a.N = 3 * each
		case "handshakes":
			a.N = 600
		}
		attacks = append(attacks, a)
	}
	got := attackAll(t, attacks)
	cancel()
	wg.Wait()
	g, h := ended()
	cut := 0
	for kind := range floods {
		if o := got[kind]; !o.Cut || o.Sent >= 100_000 {
			t.Errorf("%s: %d frames were sent, and the connection was ended: %v", kind, o.Sent, o.Cut)
		}
		cut += got[kind].Sent
	}
	for kind := range holds {
		if o := got[kind]; o.Left > 0 {
			t.Errorf("%s: %d of %d connections are still open", kind, o.Left, o.Sent)
		}
	}
	if n := got["handshakes"].Sent; n >= 600 {
		t.Errorf("one address made %d connections, and may make 250 at once", n)
	}
	page := string(e.want(200, "GET", "/metrics?role=controller", nil, nil).body)
	for _, reason := range []string{"address", "rate", "flood"} {
		if !regexp.MustCompile(`bulkhead_api_connections_ended_total{[^}]*reason="` + reason + `"[^}]*} [1-9]`).MatchString(page) {
			t.Errorf("no connection was ended because of %s", reason)
		}
	}
	t.Logf("floods ended after %d frames together; %d requests of others served, the slowest in %v; at most %d goroutines (%d before), %d MiB of heap (%d before)",
		cut, served.Load(), time.Duration(slowest.Load()), g, goroutines, h>>20, heap>>20)
	if served.Load() < 10 || failed.Load() > 0 {
		t.Errorf("others were served %d times, and %d times not", served.Load(), failed.Load())
	}
	// A connection of HTTP/2 has a few, and one for each of its streams.
	if bound := goroutines + 8*most + len(floods)*250; g > bound {
		t.Errorf("%d goroutines, want at most %d", g, bound)
	}
	if h > heap+128<<20 {
		t.Errorf("%d MiB of heap, before %d", h>>20, heap>>20)
	}
	await.True(e.t, "the attackers have left nothing", func() bool {
		runtime.GC()
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine() <= goroutines+10 && m.HeapInuse < heap+32<<20
	})
	e.want(201, "POST", "/v1/apps", config{"name": "afterwards", "org_slug": "personal"}, nil)
	unguarded(t)
}

// unguarded is the control: the same attacks on a server without limits.
func unguarded(t *testing.T) {
	forever := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-forever }))
	srv.EnableHTTP2 = true
	srv.Config.MaxHeaderBytes = 1 << 30
	srv.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1 << 20}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	addr := srv.Listener.Addr().String()
	before, ended := runtime.NumGoroutine(), peak()
	var attacks []attack
	suffer := map[string]bool{"pings": true, "settings": true, "windows": true, "priorities": true, "unknown": true, "resets": true, "requests": true, "continuations": true}
	for kind := range suffer {
		n := 5_000
		if kind == "continuations" {
			n = 500
		}
		attacks = append(attacks, attack{Kind: kind, Addr: addr, Host: "x.example", N: n})
	}
	for kind := range holds {
		attacks = append(attacks, attack{Kind: kind, Addr: addr, Host: "x.example", N: 10, Hold: 2 * time.Second})
	}
	got := attackAll(t, attacks)
	g, _ := ended()
	close(forever)
	srv.CloseClientConnections()
	srv.Close()
	for _, kind := range []string{"pings", "settings", "windows", "priorities", "unknown", "resets", "requests"} {
		if o := got[kind]; o.Cut {
			t.Errorf("control: %s: a server without limits ends the connection after %d frames", kind, o.Sent)
		}
	}
	for kind := range holds {
		if o := got[kind]; kind != "handshakes" && o.Left == 0 {
			t.Errorf("control: %s: a server without limits ended all %d connections", kind, o.Sent)
		}
	}
	if g < before+5_000 {
		t.Errorf("control: requests and resets made %d goroutines, before %d", g, before)
	}
}
