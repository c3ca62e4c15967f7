package world_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestWorkerThatIsGoneForGood stops the node's worker for good and removes the node:
// the API agrees with itself, the worker that comes back destroys what it ran, and the
// node can be taken back.
func TestWorkerThatIsGoneForGood(t *testing.T) {
	w := world.Start(t)
	w.CreateApp("web", "")
	image := w.Push("web", fixture.StaticGo(t))
	m := w.Run("web", world.Config{"image": image, "services": world.HTTPService(8080)})
	w.CreateApp("old", "")
	leaving := w.Run("old", world.Config{"image": w.Push("old", fixture.StaticGo(t))})
	w.Eventually(10*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	var nodes []struct {
		Name, State string
		Machines    int
	}
	list := func() {
		nodes = nil
		if err := json.Unmarshal([]byte(w.MustCLI("node", "list", "--json")), &nodes); err != nil || len(nodes) != 1 {
			t.Fatalf("node list: %v %v", nodes, err)
		}
	}
	if list(); nodes[0].State != "connected" || nodes[0].Machines != 2 {
		t.Fatalf("the node is %+v", nodes[0])
	}
	name := nodes[0].Name
	if _, stderr, code := w.CLI("node", "remove", name); code != 5 || !strings.Contains(stderr, "is connected") || !strings.Contains(stderr, "--force") {
		t.Errorf("removing a node that is there: code %d, %s", code, stderr)
	}

	w.Freeze("worker")
	w.MustCLI("apps", "destroy", "old", "--yes") // answers, and waits for the lost worker
	if out := w.MustCLI("status", "--app", "old"); !strings.Contains(out, "waits for machine "+leaving.ID) {
		t.Errorf("an app that waits for a lost worker does not say so:\n%s", out)
	}
	w.MustCLI("node", "remove", name, "--force")
	if list(); nodes[0].State != "removed" || nodes[0].Machines != 0 {
		t.Errorf("the removed node is %+v", nodes[0])
	}
	if s := w.Machine("web", m.ID); s.State != "destroyed" || len(s.Events) == 0 || s.Events[0].Type != "node_removed" {
		t.Errorf("a machine of the removed node is %s, with the events %+v", s.State, s.Events)
	}
	w.Eventually(10*time.Second, func() string {
		if code, _ := w.APIRaw("GET", "/apps/old", nil); code != 404 {
			return "the deletion of an app has not ended"
		}
		code, _, err := w.Get("web", "/")
		if err == nil && code == 200 {
			return "the app still answers: its route is there"
		}
		return ""
	})
	if code, b := w.APIRaw("POST", "/apps/web/machines", map[string]any{"config": world.Config{"image": image}}); code != 503 {
		t.Errorf("a create without a node: %d %s", code, b)
	}
	if n := len(sandboxes(w)); n != 2 {
		t.Errorf("%d sandboxes run on the lost node, want 2: the test shows nothing", n)
	}

	// The worker was not dead after all.
	w.Thaw("worker")
	w.Eventually(60*time.Second, func() string {
		if n := len(sandboxes(w)); n > 0 {
			return "sandboxes of the removed node run on"
		}
		return ""
	})
	w.MustCLI("node", "readmit", name)
	w.Eventually(60*time.Second, func() string {
		if list(); nodes[0].State != "connected" {
			return "the node is " + nodes[0].State
		}
		return ""
	})
	again := w.Run("web", world.Config{"image": image, "services": world.HTTPService(8080)})
	w.Eventually(10*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	w.MustCLI("machine", "destroy", again.ID, "--app", "web", "--force")
}
