package world_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// steady is a load before, during and after what while does. Nothing may be lost;
// broken is how many requests may break because their connection does. While can call
// its argument to let the load go on for a while.
func steady(w *world.World, what string, broken int, while func(goesOn func())) {
	w.T.Helper()
	l := w.Load("web", "/")
	goesOn := func() { served(w, l, 50) }
	goesOn()
	while(goesOn)
	goesOn()
	r := l.Stop()
	w.T.Logf("%s: %v", what, r)
	if r.Lost != 0 || r.Broken > broken {
		w.T.Errorf("%s: %v; want none lost and at most %d broken", what, r, broken)
	}
}

// served waits until a load has had n more answers.
func served(w *world.World, l *world.Load, n int) {
	w.T.Helper()
	before := l.Now().Requests
	w.Eventually(20*time.Second, func() string {
		if got := l.Now().Requests - before; got < n {
			return fmt.Sprintf("the load had %d answers, want %d", got, n)
		}
		return ""
	})
}

// TestStaticStability: with the controller down for good the edge serves, crashed
// Machines restart, stopped ones wake and idle ones stop, also after edge and worker
// were killed meanwhile; the controller comes back and agrees. Then each other role is
// down and comes back under load.
func TestStaticStability(t *testing.T) {
	w := world.StartOwn(t, "--idle-after", "2s")
	w.CreateApp("web", "")
	image := w.Push("web", fixture.StaticGo(t))
	services := world.HTTPService(8080)
	for range 2 {
		w.Run("web", world.Config{"image": image, "services": services})
	}
	w.CreateApp("crash", "")
	crash := w.Run("crash", world.Config{"image": w.Push("crash", fixture.StaticGo(t)), "services": services, "restart": map[string]any{"policy": "always"}})
	w.CreateApp("sleeper", "")
	sleeper := w.Run("sleeper", sleepy(w.Push("sleeper", fixture.StaticGo(t)), 0))
	for _, app := range []string{"web", "crash", "sleeper"} {
		w.Eventually(20*time.Second, func() string { return answers(w, app, "/", 200, "") })
	}
	stopped(w, "sleeper", sleeper.ID)
	wakes, idles := 0, 0
	wake := func() {
		t.Helper()
		began := time.Now()
		defer func() { t.Logf("waking took %v", time.Since(began).Round(time.Millisecond)) }()
		if got := answers(w, "sleeper", "/", 200, ""); got != "" {
			t.Errorf("the sleeping app: %s", got)
		}
		wakes++
	}
	slept := func() {
		t.Helper()
		w.Eventually(30*time.Second, func() string {
			if len(sandboxes(w)) != 3 {
				return "the idle machine was not stopped"
			}
			return ""
		})
		idles++
	}

	w.Down("controller")
	steady(w, "controller down", 0, func(func()) {
		before := sandboxes(w)
		w.Get("crash", "/exit?code=3")
		w.Eventually(20*time.Second, func() string {
			if slices.Equal(before, sandboxes(w)) {
				return "the machine was not restarted"
			}
			return answers(w, "crash", "/", 200, "")
		})
		wake()
		slept()
		wake()
		// It ends by itself, and nobody tells the edge.
		w.Get("sleeper", "/exit?code=0")
		w.Eventually(20*time.Second, func() string {
			if len(sandboxes(w)) != 3 {
				return "the machine runs on"
			}
			return ""
		})
		wake()
	})
	steady(w, "controller down, edge killed", 4, func(func()) { w.Kill("edge") })
	slept()
	wake() // by an edge that never met this controller
	steady(w, "controller down, worker killed", 0, func(func()) {
		w.Kill("worker")
		slept()
		wake() // by a worker that never met it either
	})
	w.Back("controller")
	w.Eventually(30*time.Second, func() string {
		_, body := w.APIRaw("GET", "/apps/sleeper/machines/"+sleeper.ID, nil)
		m := decode[world.Machine](t, body)
		if got := reasons(m); got[wokenReason] != wakes || got[idleReason] < idles {
			return string(body)
		}
		return ""
	})
	exits := 0
	for _, e := range w.Machine("crash", crash.ID).Events {
		if e.Type == "exit" && e.Request != nil && e.Request.ExitEvent != nil && e.Request.ExitEvent.ExitCode == 3 {
			exits++
		}
	}
	if s := w.Machine("crash", crash.ID).State; exits != 1 || s != "started" {
		t.Errorf("the API tells of %d crashes, and the machine is %s", exits, s)
	}
	// The record says stopped, and has done all the time: the controller leaves a Machine
	// that a request woke alone for as long as requests come.
	wake()
	pids := sandboxes(w)
	l := w.Load("sleeper", "/")
	served(w, l, 500)
	if r := l.Stop(); r.Lost != 0 {
		t.Errorf("requests that keep a machine awake: %v", r)
	}
	if s := w.Machine("sleeper", sleeper.ID).State; s != "started" || !slices.Equal(pids, sandboxes(w)) {
		t.Errorf("a machine that requests keep awake is %s, sandboxes %v, then %v", s, pids, sandboxes(w))
	}

	steady(w, "edge killed", 4, func(func()) { w.Kill("edge") })
	steady(w, "worker down", 0, func(goesOn func()) {
		stopped(w, "sleeper", sleeper.ID)
		w.Down("worker")
		held := make(chan string, 1)
		go func() { held <- answers(w, "sleeper", "/", 200, "") }()
		goesOn()
		w.Back("worker")
		if got := <-held; got != "" {
			t.Errorf("a request for a sleeping app, with the worker down when it came: %s", got)
		}
	})
	steady(w, "warden down", 0, func(goesOn func()) {
		w.Down("warden")
		goesOn()
		w.Back("warden")
	})

	// The control: an edge that forgets its cache while the controller is down is seen.
	w.Down("controller")
	l = w.Load("web", "/")
	cache := filepath.Join(w.DataDir, "edge", "routes.log")
	if err := os.Truncate(cache, 0); err != nil {
		t.Fatal(err)
	}
	w.Kill("edge")
	w.Eventually(20*time.Second, func() string {
		if r := l.Now(); r.Lost == 0 {
			return "an edge without routes loses nothing: the load sees nothing"
		}
		return ""
	})
	t.Logf("control, an edge without its cache: %v", l.Stop())
	w.Back("controller")
	w.Eventually(30*time.Second, func() string { return answers(w, "web", "/", 200, "") })
}
