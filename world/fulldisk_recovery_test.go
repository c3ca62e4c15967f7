package world_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestFullDiskAtReboot: the power is cut, and when the platform starts again its disk is
// full to the last byte. It comes up and says so once, Machines run and answer again
// all the same, changes are refused, and with room again everything is whole by itself.
func TestFullDiskAtReboot(t *testing.T) {
	d := world.NewDisk(t, 400)
	w := world.StartAt(t, d.Dir, filepath.Join(world.Root(), "build", "bin"), nil)
	w.CreateApp("here", "")
	image := w.Push("here", fixture.StaticGo(t))
	config := world.Config{"image": image, "services": world.HTTPService(8080)}
	running := []world.Machine{w.Run("here", config), w.Run("here", config)}
	stopped := w.Run("here", config)
	w.Must("POST", "/apps/here/machines/"+stopped.ID+"/stop", map[string]any{}, nil)
	w.Wait("here", stopped.ID, "stopped", 60*time.Second)
	w.Eventually(20*time.Second, func() string { return answers(w, "here", "/", 200, "") })
	change := func(value string) (int, string) {
		status, body := w.APIRaw("POST", "/apps/here/machines/"+running[0].ID+"/metadata/k", map[string]any{"value": value})
		return status, string(body)
	}
	if status, body := change("before"); status >= 300 {
		t.Fatal(status, body)
	}
	whole := func(limit time.Duration) {
		t.Helper()
		for _, m := range running {
			w.Wait("here", m.ID, "started", limit)
		}
		if m := w.Machine("here", stopped.ID); m.State != "stopped" {
			t.Errorf("the stopped machine is %s", m.State)
		}
		w.Eventually(limit, func() string { return answers(w, "here", "/", 200, "") })
		if n := len(sandboxes(w)); n != len(running) {
			t.Errorf("%d sandboxes run, want %d", n, len(running))
		}
	}

	d.Cut()
	w.PowerCut()
	d.Reboot()
	free := d.Fill()
	logged := len(w.Log())
	w.Up()
	whole(50 * time.Second)
	if m := w.Machine("here", running[0].ID); m.Config["metadata"].(map[string]any)["k"] != "before" {
		t.Errorf("what was acknowledged before the cut is %v", m.Config["metadata"])
	}
	if status, body := change("full"); status != http.StatusInsufficientStorage || !strings.Contains(body, `"status":"disk_full"`) {
		t.Errorf("a change on a full disk: %d %s", status, body)
	}
	log := w.Log()[logged:]
	checkSaidOnce(t, log, "the disk is low, and something is refused", 2)
	if n := strings.Count(log, "(ENOSPC)"); n > 12 {
		t.Errorf("a full disk is told of %d times", n)
	}

	free()
	w.Eventually(60*time.Second, func() string {
		if status, body := change("after"); status >= 300 {
			return body
		}
		return ""
	})
	whole(30 * time.Second)
	w.Run("here", config)
	w.Eventually(30*time.Second, func() string {
		if !strings.Contains(w.Log()[logged:], "over: the disk is low") {
			return "it is not said that there is room again"
		}
		return ""
	})
}
