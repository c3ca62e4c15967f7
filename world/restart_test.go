package world_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// running starts a web app of two Machines and an app with one stopped Machine.
func running(t *testing.T, w *world.World) (web []world.Machine, stopped world.Machine) {
	w.CreateApp("web", "")
	image := w.Push("web", fixture.StaticGo(t))
	for range 2 {
		web = append(web, w.Run("web", world.Config{"image": image, "services": world.HTTPService(8080),
			"restart": map[string]any{"policy": "always"}}))
	}
	w.CreateApp("idle", "")
	stopped = w.Run("idle", world.Config{"image": w.Push("idle", fixture.StaticGo(t))})
	w.Must("POST", "/apps/idle/machines/"+stopped.ID+"/stop", map[string]any{}, nil)
	w.Wait("idle", stopped.ID, "stopped", 20*time.Second)
	w.Eventually(10*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	return web, stopped
}

// sandboxes lists the process ids of the sandboxes, so that a test sees whether
// they are still the same.
func sandboxes(w *world.World) (pids []int) {
	for _, p := range w.Processes() {
		if p.Name == "runsc-sandbox" {
			pids = append(pids, p.PID)
		}
	}
	slices.Sort(pids)
	return pids
}

// TestRestartOfEachRole kills each role outright, then stops all roles, then cuts the
// power: Machines run on untouched, or again, and the platform works again by itself.
func TestRestartOfEachRole(t *testing.T) {
	w := world.Start(t)
	web, stopped := running(t, w)
	before := sandboxes(w)
	if len(before) != 2 {
		t.Fatalf("%d sandboxes, want 2", len(before))
	}
	for _, role := range []string{"edge", "worker", "warden", "controller"} {
		t.Run(role, func(t *testing.T) {
			w := w.In(t)
			w.Kill(role)
			w.Eventually(15*time.Second, func() string { return answers(w, "web", "/", 200, "") })
			if now := sandboxes(w); !slices.Equal(now, before) {
				t.Errorf("sandboxes were %v and are %v", before, now)
			}
			// The platform still works: a Machine can be started and stopped.
			w.Eventually(20*time.Second, func() string {
				if s, b := w.APIRaw("POST", "/apps/idle/machines/"+stopped.ID+"/start", nil); s != 200 {
					return string(b)
				}
				return ""
			})
			w.Wait("idle", stopped.ID, "started", 20*time.Second)
			w.Must("POST", "/apps/idle/machines/"+stopped.ID+"/stop", map[string]any{}, nil)
			w.Wait("idle", stopped.ID, "stopped", 20*time.Second)
			for _, m := range web {
				if got := w.Machine("web", m.ID); got.State != "started" || got.InstanceID != m.InstanceID {
					t.Errorf("machine %s is %s", m.ID, got.State)
				}
			}
		})
	}
	t.Run("everything but the sandboxes", func(t *testing.T) {
		w.Stop()
		if now := sandboxes(w); !slices.Equal(now, before) {
			t.Fatalf("sandboxes were %v and are %v", before, now)
		}
		w.Up()
		w.Eventually(15*time.Second, func() string { return answers(w, "web", "/", 200, "") })
		if now := sandboxes(w); !slices.Equal(now, before) {
			t.Errorf("sandboxes were %v and are %v", before, now)
		}
	})
	t.Run("bulkheadd replaces its program", func(t *testing.T) { replaceProgram(w.In(t), before) })
	t.Run("the controller hangs", func(t *testing.T) { controllerHangs(w.In(t)) })
	t.Run("everything, with what a reboot takes away", func(*testing.T) { powerCut(w, web, stopped) })
}

// replaceProgram executes bulkheadd again under load. Clients of an app and of the API
// that make a connection for each request get every answer, and sandboxes stay.
func replaceProgram(w *world.World, before []int) {
	w.T.Helper()
	app := w.Load("web", "/")
	api := w.Load("api", "/v1/apps?org_slug=personal")
	w.Eventually(20*time.Second, func() string {
		if app.Now().Requests < 20 || api.Now().Requests < 20 {
			return "no load yet"
		}
		return ""
	})
	began := time.Now()
	w.Restart()
	took := time.Since(began).Round(time.Millisecond)
	for name, l := range map[string]*world.Load{"app": app, "API": api} {
		got := l.Stop()
		w.T.Logf("%s, replaced in %v: %v", name, took, got)
		for why, n := range got.Why {
			if strings.Contains(why, "refused") {
				w.T.Errorf("%s: %d connections: %s", name, n, why)
			}
		}
		if got.Lost > 0 || got.BrokenNew > 0 {
			w.T.Errorf("%s: %d requests lost, %d broken on new connections", name, got.Lost, got.BrokenNew)
		}
	}
	if now := sandboxes(w); !slices.Equal(now, before) {
		w.T.Errorf("sandboxes were %v and are %v", before, now)
	}
}

// controllerHangs: while the controller answers nobody, apps answer, a crashed Machine
// restarts, and so does an edge that starts alone.
func controllerHangs(w *world.World) {
	w.T.Helper()
	w.Freeze("controller")
	defer w.Thaw("controller")
	before := sandboxes(w)
	w.Get("web", "/exit?code=3")
	w.Eventually(15*time.Second, func() string {
		if now := sandboxes(w); len(now) != len(before) || slices.Equal(before, now) {
			return "the machine was not restarted"
		}
		return answers(w, "web", "/", 200, "")
	})
	w.Kill("edge")
	w.Eventually(15*time.Second, func() string { return answers(w, "web", "/", 200, "") })
}

// powerCut ends everything at once, with what a reboot takes away gone: all that ran
// runs again, with its secrets, what was stopped is stopped.
func powerCut(w *world.World, web []world.Machine, stopped world.Machine) {
	w.T.Helper()
	w.Must("POST", "/apps/web/secrets", map[string]any{"values": map[string]any{"PLANTED": "before the power cut"}}, nil)
	for _, m := range web {
		w.Must("POST", "/apps/web/machines/"+m.ID+"/restart", nil, nil)
		w.Wait("web", m.ID, "started", 20*time.Second)
	}
	w.PowerCut()
	start := time.Now()
	w.Up()
	w.Eventually(30*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	for _, m := range web {
		w.Wait("web", m.ID, "started", 30*time.Second)
		if out := w.Exec("web", m.ID, "/staticgo", "env", "PLANTED").Stdout; out != "PLANTED=before the power cut\n" {
			w.T.Errorf("machine %s runs again with %q", m.ID, out)
		}
	}
	w.T.Logf("running again %v after bulkheadd was started", time.Since(start).Round(time.Millisecond))
	if m := w.Machine("idle", stopped.ID); m.State != "stopped" {
		w.T.Errorf("the stopped machine is %s", m.State)
	}
	if n := len(sandboxes(w)); n != 2 {
		w.T.Errorf("%d sandboxes run, want 2", n)
	}
	w.Must("POST", "/apps/idle/machines/"+stopped.ID+"/start", nil, nil)
	w.Wait("idle", stopped.ID, "started", 20*time.Second)
}
