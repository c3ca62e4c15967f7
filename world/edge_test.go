package world_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestEdgeToMachine sends what an app needs besides plain requests through the
// edge to a Machine: WebSockets, bodies that stream both ways, the client's address.
func TestEdgeToMachine(t *testing.T) {
	t.Parallel()
	w := world.Shared(t)
	w.CreateApp("edge", "")
	w.Run("edge", world.Config{"image": w.Push("edge", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
	w.Eventually(10*time.Second, func() string { return answers(w, "edge", "/", 200, "") })

	t.Run("WebSocket", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, _, err := websocket.Dial(ctx, strings.Replace(w.URL("edge", "/ws"), "https", "wss", 1), &websocket.DialOptions{HTTPClient: w.Client()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		for _, word := range []string{"one", strings.Repeat("long", 5000)} {
			if err := c.Write(ctx, websocket.MessageText, []byte(word)); err != nil {
				t.Fatal(err)
			}
			if _, got, err := c.Read(ctx); err != nil || string(got) != word {
				t.Fatalf("echo of %d bytes gave %d, %v", len(word), len(got), err)
			}
		}
	})

	t.Run("an answer streams", func(t *testing.T) {
		resp, err := w.Client().Get(w.URL("edge", "/stream?n=3&ms=400"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		start := time.Now()
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		first := time.Since(start)
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		if all := time.Since(start); all-first < 400*time.Millisecond {
			t.Errorf("the first chunk came after %v, all after %v: they were held back", first, all)
		}
	})

	t.Run("headers", func(t *testing.T) {
		req, _ := http.NewRequest("GET", w.URL("edge", "/headers"), nil)
		req.Header.Set("Fly-Client-IP", "6.6.6.6")
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		for _, part := range []string{"127.0.0.1", "X-Forwarded-Proto"} {
			if !strings.Contains(string(b), part) {
				t.Errorf("%q is not in %s", part, b)
			}
		}
		if strings.Contains(string(b), `"Fly-Client-Ip":["6.6.6.6"]`) {
			t.Errorf("a client chose its own address: %s", b)
		}
	})
}

// TestStoppingLosesNoRequest stops and starts one of two Machines over and over
// while clients POST, which the edge may not send twice: none fails.
func TestStoppingLosesNoRequest(t *testing.T) {
	w := world.Shared(t)
	w.CreateApp("stopping", "")
	image := w.Push("stopping", fixture.StaticGo(t))
	var machines []world.Machine
	for range 2 {
		machines = append(machines, w.Run("stopping", world.Config{"image": image, "services": world.HTTPService(8080)}))
	}
	w.Eventually(10*time.Second, func() string { return answers(w, "stopping", "/", 200, "") })

	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	var good, bad atomic.Int64
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				resp, err := w.Client().Post(w.URL("stopping", "/upload"), "text/plain", strings.NewReader("some words"))
				if err != nil {
					bad.Add(1)
					t.Errorf("POST: %v", err)
					continue
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode == 200 {
					good.Add(1)
				} else if bad.Add(1) < 5 {
					t.Errorf("POST: %d %s", resp.StatusCode, b)
				}
			}
		})
	}
	for range 4 {
		w.Must("POST", "/apps/stopping/machines/"+machines[0].ID+"/stop", nil, nil)
		w.Wait("stopping", machines[0].ID, "stopped", 20*time.Second)
		w.Must("POST", "/apps/stopping/machines/"+machines[0].ID+"/start", nil, nil)
		w.Wait("stopping", machines[0].ID, "started", 20*time.Second)
	}
	cancel()
	clients.Wait()
	t.Logf("%d requests answered, %d failed", good.Load(), bad.Load())
	if good.Load() < 100 {
		t.Errorf("only %d requests were made: nothing is shown", good.Load())
	}
}
