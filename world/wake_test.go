package world_test

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

const (
	wokenReason = "woken by a request"
	idleReason  = "no request came for a while"
)

// sleepy is the config of a web app that traffic starts and stops.
func sleepy(image string, min int) world.Config {
	services := world.HTTPService(8080)
	s := services[0].(map[string]any)
	s["autostart"], s["autostop"], s["min_machines_running"] = true, "stop", min
	return world.Config{"image": image, "services": services}
}

// reasons counts a Machine's events that traffic caused, by reason.
func reasons(m world.Machine) map[string]int {
	n := map[string]int{}
	for _, e := range m.Events {
		if e.Request != nil && e.Request.Reason != "" {
			n[e.Request.Reason]++
		}
	}
	return n
}

// stopped stops a Machine as a user does.
func stopped(w *world.World, app, id string) {
	w.T.Helper()
	w.Must("POST", "/apps/"+app+"/machines/"+id+"/stop", map[string]any{}, nil)
	w.Wait(app, id, "stopped", 20*time.Second)
}

// TestWake: a request wakes what a user stopped, a flood wakes it once, an idle Machine
// is stopped again, and what must not be woken is not.
func TestWake(t *testing.T) {
	t.Parallel()
	w := world.Shared(t)
	w.CreateApp("wake", "")
	image := w.Push("wake", fixture.StaticGo(t))
	m := w.Run("wake", sleepy(image, 0))
	w.Eventually(10*time.Second, func() string { return answers(w, "wake", "/", 200, "") })
	stopped(w, "wake", m.ID)
	idle := reasons(w.Machine("wake", m.ID))[idleReason] // on a slow machine it was idle before

	// A flood of requests wakes it once, and all are answered.
	const flood = 200
	var failed atomic.Int64
	var why sync.Map
	var all sync.WaitGroup
	for range flood {
		all.Go(func() {
			if got := answers(w, "wake", "/", 200, ""); got != "" {
				failed.Add(1)
				why.Store(got, true)
			}
		})
	}
	all.Wait()
	if n := failed.Load(); n != 0 {
		why.Range(func(k, _ any) bool { t.Log(k); return true })
		t.Errorf("%d of %d requests to a sleeping app failed", n, flood)
	}

	// Without requests it is stopped, and the API says so; the next one wakes it.
	w.Eventually(40*time.Second, func() string {
		m := w.Machine("wake", m.ID)
		if got := reasons(m); m.State != "stopped" || got[idleReason] != idle+1 {
			return fmt.Sprintf("the idle machine is %s, its events: %v", m.State, got)
		}
		return ""
	})
	if got := reasons(w.Machine("wake", m.ID)); got[wokenReason] != 1 {
		t.Errorf("a flood of %d requests woke the machine %d times", flood, got[wokenReason])
	}
	if got := answers(w, "wake", "/", 200, ""); got != "" {
		t.Error(got)
	}

	// A cordoned or leased Machine, one without autostart, and one that failed sleep on.
	stopped(w, "wake", m.ID)
	refused := func() string {
		if status, body, err := w.Get("wake", "/"); err != nil || status != 503 {
			return fmt.Sprintf("%d %s %v", status, body, err)
		}
		if s := w.Machine("wake", m.ID).State; s != "stopped" {
			return "the machine is " + s
		}
		return ""
	}
	w.Must("POST", "/apps/wake/machines/"+m.ID+"/cordon", nil, nil)
	if got := refused(); got != "" {
		t.Errorf("cordoned: %s", got)
	}
	w.Must("POST", "/apps/wake/machines/"+m.ID+"/uncordon", nil, nil)
	// On a slow machine a short lease may end before the request comes: then a longer one
	// is tried.
	for ttl := 3; ; ttl *= 2 {
		taken := time.Now()
		w.Must("POST", "/apps/wake/machines/"+m.ID+"/lease", map[string]any{"ttl": ttl}, nil)
		got := refused()
		if got == "" {
			break
		}
		if held := time.Since(taken); held < time.Duration(ttl)*time.Second || ttl > 20 {
			t.Fatalf("leased %v ago for %d s: %s", held, ttl, got)
		}
		stopped(w, "wake", m.ID)
	}
	// The lease ends by itself, and the machine can be woken again.
	w.Eventually(60*time.Second, func() string { return answers(w, "wake", "/", 200, "") })

	w.CreateApp("wake-plain", "")
	p := w.Run("wake-plain", world.Config{"image": w.Push("wake-plain", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
	stopped(w, "wake-plain", p.ID)
	if status, _, err := w.Get("wake-plain", "/"); err != nil || status != 503 {
		t.Errorf("an app without autostart answered %d, %v", status, err)
	}
	if s := w.Machine("wake-plain", p.ID).State; s != "stopped" {
		t.Errorf("a machine without autostart is %s", s)
	}
}

// TestAutostopKeepsTheMinimum: of three idle Machines as many stay as
// min_machines_running says, and one at its limit wakes another.
func TestAutostopKeepsTheMinimum(t *testing.T) {
	t.Parallel()
	w := world.Shared(t)
	w.CreateApp("autostop", "")
	config := sleepy(w.Push("autostop", fixture.StaticGo(t)), 1)
	config["services"].([]any)[0].(map[string]any)["concurrency"] = map[string]any{"type": "requests", "soft_limit": 1, "hard_limit": 1}
	var ids []string
	for range 3 {
		ids = append(ids, w.Run("autostop", config).ID)
	}
	states := func() map[string]int {
		n := map[string]int{}
		for _, id := range ids {
			n[w.Machine("autostop", id).State]++
		}
		return n
	}
	w.Eventually(30*time.Second, func() string {
		if n := states(); n["stopped"] != 2 || n["started"] != 1 {
			return fmt.Sprint(n)
		}
		return ""
	})
	// A Machine that is idle from now on is stopped: the other was looked at, too.
	w.CreateApp("autostop-all", "")
	witness := w.Run("autostop-all", sleepy(w.Push("autostop-all", fixture.StaticGo(t)), 0))
	w.Wait("autostop-all", witness.ID, "stopped", 30*time.Second)
	if n := states(); n["started"] != 1 {
		t.Fatalf("with min_machines_running 1: %v", n)
	}
	// Its one place is taken: the next request wakes another.
	resp, err := w.Client().Get(w.URL("autostop", "/stream?n=600&ms=100"))
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	slow := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, resp.Body); slow <- err }()
	began := time.Now()
	if got := answers(w, "autostop", "/", 200, ""); got != "" {
		t.Error(got)
	}
	t.Logf("the second request was answered after %v", time.Since(began).Round(time.Millisecond))
	select {
	case <-slow:
		t.Error("the second request waited for the first to end")
	default:
		resp.Body.Close()
		<-slow
	}
	woken := 0
	for _, id := range ids {
		woken += reasons(w.Machine("autostop", id))[wokenReason]
	}
	if woken == 0 {
		t.Error("no machine was woken while the one that ran was at its limit")
	}
}
