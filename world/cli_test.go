package world_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestDeployByCLI goes the way of a new user: log in with the printed line, create
// an app, deploy in each form an image may have, look, change, destroy.
func TestDeployByCLI(t *testing.T) {
	w := world.Start(t, "--nameservers", "9.9.9.9,2620:fe::fe")
	img := fixture.StaticGo(t)
	dir := t.TempDir()

	// A line as bulkheadd prints it, as it stands; without BULKHEAD_… in the environment. The
	// first one was printed too, and is spent.
	if !strings.Contains(w.Log(), "bulkhead login ") {
		t.Fatal("bulkheadd printed no line to log in with")
	}
	printed, err := exec.Command(filepath.Join(w.Bin, "bulkheadd"), "token", "--data-dir", w.DataDir).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(printed), "bulkhead login ")
	if !ok {
		t.Fatalf("bulkheadd token printed %q", printed)
	}
	line, _, _ = strings.Cut(line, "\n")
	bare := []string{"BULKHEAD_URL=", "BULKHEAD_PIN=", "BULKHEAD_TOKEN=", "USER=alice"}
	if out, errs, code := w.CLIWith(bare, append([]string{"login"}, strings.Fields(line)...)...); code != 0 {
		t.Fatalf("login: %d %s%s", code, out, errs)
	}
	cli := func(args ...string) string {
		t.Helper()
		out, errs, code := w.CLIWith(bare, args...)
		if code != 0 {
			t.Fatalf("bulkhead %s: %d\n%s%s", strings.Join(args, " "), code, out, errs)
		}
		return out + errs
	}

	cli("apps", "create", "site")
	archive := fixture.WriteArchive(t, img, filepath.Join(dir, "image.tar"), "site:v1")
	if out := cli("deploy", "--app", "site", "--image", archive, "--settle", "1s"); !strings.Contains(out, "https://site."+w.Ready.Domain) {
		t.Errorf("deploy does not say where the app is: %s", out)
	}
	w.Eventually(10*time.Second, func() string { return answers(w, "site", "/", 200, "") })

	// A second version from an OCI layout, with what a fly.toml says.
	fixture.WriteLayout(t, img, filepath.Join(dir, "layout"), "site:v2")
	os.WriteFile(filepath.Join(dir, "fly.toml"), []byte(`
app = "site"

[env]
  GREETING = "from fly.toml"

[http_service]
  internal_port = 8080
  force_https = true
`), 0o644)
	cli("deploy", dir, "--image", filepath.Join(dir, "layout"), "--settle", "1s")
	w.Eventually(10*time.Second, func() string { return answers(w, "site", "/env", 200, "from fly.toml") })

	var machines []world.Machine
	w.Must("GET", "/apps/site/machines", nil, &machines)
	if len(machines) != 1 {
		t.Fatalf("%d machines after two deploys, want 1", len(machines))
	}
	id := machines[0].ID
	if out := cli("status", "--app", "site"); !strings.Contains(out, id) || !strings.Contains(out, "started") {
		t.Errorf("status: %s", out)
	}
	if out := cli("machine", "exec", "--app", "site", id, "--", "/staticgo", "echo", "from inside"); !strings.Contains(out, "from inside") {
		t.Errorf("exec: %s", out)
	}
	if out := cli("machine", "exec", "--app", "site", id, "--", "/staticgo", "cat", "/etc/resolv.conf"); !strings.Contains(out, "nameserver 9.9.9.9\nnameserver 2620:fe::fe\n") {
		t.Errorf("resolv.conf: %s", out)
	}
	cli("machine", "stop", "--app", "site", id)
	w.Wait("site", id, "stopped", 20*time.Second)
	cli("machine", "start", "--app", "site", id)
	cli("machine", "restart", "--app", "site", id)
	w.Wait("site", id, "started", 20*time.Second)
	if out := cli("open", "--app", "site", "--print"); !strings.Contains(out, "https://site."+w.Ready.Domain) {
		t.Errorf("open: %s", out)
	}

	t.Run("TestMetricsPages", func(t *testing.T) { metricsPages(t, w.In(t)) })
	t.Run("TestHintsAreTrue", func(t *testing.T) { hints(t, w.In(t), bare, archive) })

	// A failed deploy says why and leaves the running version alone.
	out, errs, code := w.CLIWith(bare, "deploy", "--app", "site", "--image", broken(t))
	if code == 0 || !strings.Contains(errs, "broken.tar") {
		t.Errorf("a broken archive: %d %s%s", code, out, errs)
	}
	w.Eventually(5*time.Second, func() string { return answers(w, "site", "/env", 200, "from fly.toml") })

	cli("apps", "destroy", "site", "--yes")
	w.Eventually(15*time.Second, func() string {
		if status, body := w.APIRaw("GET", "/apps/site", nil); status != 404 {
			return string(body)
		}
		return ""
	})
	w.Eventually(10*time.Second, func() string {
		if left := strings.TrimSpace(leftovers(t, w)); left != "" {
			return left
		}
		return ""
	})
}

// broken writes an archive that holds nothing.
func broken(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "broken.tar")
	if err := os.WriteFile(p, []byte("not a tar archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}
