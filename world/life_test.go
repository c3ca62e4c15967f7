package world_test

import (
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestHowAMachineEnds: exit codes, signals, memory floods and restart policies end
// up in the Machine's events as they happened.
func TestHowAMachineEnds(t *testing.T) {
	t.Parallel()
	w := world.Shared(t)
	w.CreateApp("ends", "")
	image := w.Push("ends", fixture.StaticGo(t))
	run := func(restart map[string]any, args ...string) world.Machine {
		t.Helper()
		var m world.Machine
		w.Must("POST", "/apps/ends/machines", map[string]any{"config": world.Config{
			"image": image, "restart": restart, "guest": map[string]any{"cpu_kind": "shared", "cpus": 1, "memory_mb": 128},
			"init": map[string]any{"exec": append([]string{"/staticgo"}, args...)}}}, &m)
		return m
	}
	never := map[string]any{"policy": "no"}
	// ended waits until the Machine is stopped and gives its last exit.
	ended := func(m world.Machine, state string) (code, signal int, oom bool) {
		t.Helper()
		w.Wait("ends", m.ID, state, 50*time.Second)
		for _, e := range w.Machine("ends", m.ID).Events {
			if e.Type == "exit" && e.Request != nil && e.Request.ExitEvent != nil {
				x := e.Request.ExitEvent
				return x.ExitCode, x.Signal, x.OOMKilled
			}
		}
		t.Fatalf("machine %s has no exit event", m.ID)
		return
	}

	if code, _, oom := ended(run(never, "exit", "7"), "stopped"); code != 7 || oom {
		t.Errorf("exit 7 was reported as %d (oom %v)", code, oom)
	}
	if code, signal, _ := ended(run(never, "signal", "9"), "stopped"); code != 137 || signal != 9 {
		t.Errorf("SIGKILL was reported as code %d, signal %d", code, signal)
	}

	m := run(map[string]any{"policy": "on-failure", "max_retries": 2}, "exit", "3")
	w.Eventually(40*time.Second, func() string {
		got := w.Machine("ends", m.ID)
		exits := 0
		for _, e := range got.Events {
			if e.Type == "exit" {
				exits++
			}
		}
		if exits != 3 || got.State == "started" {
			return got.State
		}
		return ""
	})

	// A Machine that takes more memory than it has is killed, and it is said.
	w.CreateApp("ends-greedy", "")
	g := w.Run("ends-greedy", world.Config{"image": w.Push("ends-greedy", fixture.StaticGo(t)), "services": world.HTTPService(8080), "restart": never,
		"guest": map[string]any{"cpu_kind": "shared", "cpus": 1, "memory_mb": 128}})
	w.Eventually(10*time.Second, func() string { return answers(w, "ends-greedy", "/", 200, "") })
	go w.Get("ends-greedy", "/alloc?mb=1000")
	w.Eventually(40*time.Second, func() string {
		for _, e := range w.Machine("ends-greedy", g.ID).Events {
			if e.Type == "exit" && e.Request != nil && e.Request.ExitEvent != nil {
				if !e.Request.ExitEvent.OOMKilled {
					t.Errorf("a memory flood was reported as %+v", *e.Request.ExitEvent)
				}
				return ""
			}
		}
		return "no exit event"
	})
	if s := w.Machine("ends-greedy", g.ID).State; s != "stopped" {
		t.Errorf("it is %s", s)
	}

	// Stop sends the signal that was asked for and waits as long as was asked.
	polite := run(never, "sleep", "1000s")
	w.Wait("ends", polite.ID, "started", 30*time.Second)
	w.Must("POST", "/apps/ends/machines/"+polite.ID+"/stop", map[string]any{"signal": "SIGTERM", "timeout": "10s"}, nil)
	if _, signal, _ := ended(polite, "stopped"); signal != 15 && signal != 9 {
		t.Errorf("stopped by signal %d", signal)
	}
	for _, e := range w.Machine("ends", polite.ID).Events {
		if e.Type == "exit" && !e.Request.ExitEvent.RequestedStop {
			t.Error("the exit does not say that it was asked for")
		}
	}
	if out := w.MustCLI("logs", "--app", "ends"); strings.Contains(out, w.Ready.Token) {
		t.Error("the admin token is in an app's logs")
	}
}
