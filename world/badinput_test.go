package world_test

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestBadInput: each mistake gives a clear sentence to whoever made it, and
// leaves nothing half-made.
func TestBadInput(t *testing.T) {
	shared := world.Shared(t)
	shared.CreateApp("bad", "")
	good := fixture.StaticGo(t)

	// image fails to start with a sentence that holds the parts, and leaves nothing.
	image := func(name string, img func(*testing.T) v1.Image, config world.Config, parts ...string) {
		t.Run(name, func(t *testing.T) {
			w := shared.In(t)
			before := leftovers(t, w)
			config["image"] = w.Push("bad", img(t))
			var m world.Machine
			status, body := w.APIRaw("POST", "/apps/bad/machines", map[string]any{"config": config})
			said := string(body)
			if status < 300 {
				w.Must("GET", "/apps/bad/machines?include_deleted=true", nil, &[]any{})
				m = decode[world.Machine](t, body)
				start := time.Now()
				status, body = w.APIRaw("GET", world.Query("/apps/bad/machines/"+m.ID+"/wait", "state", "started", "timeout", "60"), nil)
				said = string(body)
				if time.Since(start) > 30*time.Second {
					t.Errorf("the answer took %v", time.Since(start))
				}
			}
			if status < 400 {
				t.Fatalf("it was accepted: %d %s", status, said)
			}
			for _, p := range parts {
				if !strings.Contains(said, p) {
					t.Errorf("%q is not in %d %s", p, status, said)
				}
			}
			w.Eventually(10*time.Second, func() string {
				if now := leftovers(t, w); now != before {
					return "left behind:\n" + now + "before:\n" + before
				}
				return ""
			})
		})
	}
	image("a layer that escapes the root", func(t *testing.T) v1.Image { return withLayer(t, good, "../../etc/passwd") }, world.Config{}, "../../etc/passwd")
	image("a command that is not in the image", func(*testing.T) v1.Image { return good },
		world.Config{"init": map[string]any{"exec": []string{"/no/such/command"}}}, "/no/such/command")
	image("an image for another architecture", func(t *testing.T) v1.Image { return otherArchitecture(t, good) }, world.Config{}, "arm64", "amd64")

	t.Run("the API's own refusals", func(t *testing.T) {
		w := shared.In(t)
		for _, c := range []struct {
			method, path string
			body         any
			status       int
			part         string
		}{
			{"GET", "/apps/nothing", nil, 404, "nothing"},
			{"POST", "/apps", map[string]any{"name": "bad", "org_slug": "personal"}, 422, "taken"},
			{"POST", "/apps", map[string]any{"name": "Bad Name", "org_slug": "personal"}, 422, "Bad Name"},
			{"POST", "/apps", map[string]any{"name": "x", "org_slug": "strangers"}, 404, "strangers"},
			{"POST", "/apps/bad/machines", map[string]any{"config": map[string]any{}}, 400, "image"},
			{"POST", "/apps/bad/machines", map[string]any{"config": map[string]any{"image": "registry." + w.Ready.Domain + "/bad:nothing"}}, 422, "nothing"},
			{"POST", "/apps/bad/machines", map[string]any{"config": map[string]any{"image": w.Push("bad", good), "guest": map[string]any{"gpus": 1}}}, 400, "gpu"},
			{"GET", "/apps/bad/machines/0123456789abcd", nil, 404, "0123456789abcd"},
			{"GET", "/nothing", nil, 404, ""},
		} {
			status, body := w.APIRaw(c.method, c.path, c.body)
			if status != c.status || !strings.Contains(string(body), c.part) || !strings.Contains(string(body), `"error"`) {
				t.Errorf("%s %s: %d %s, want %d with %q", c.method, c.path, status, body, c.status, c.part)
			}
		}
	})

	t.Run("the CLI in one sentence", func(t *testing.T) {
		w := shared.In(t)
		broken := filepath.Join(t.TempDir(), "image.tar")
		os.WriteFile(broken, []byte("this is not an archive"), 0o644)
		for _, c := range []struct {
			args []string
			env  []string
			part string
		}{
			{[]string{"status", "--app", "nothing"}, nil, "nothing"},
			{[]string{"apps", "list"}, []string{"BULKHEAD_TOKEN=bh_wrong"}, "token"},
			{[]string{"apps", "list"}, []string{"BULKHEAD_PIN=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, "pin"},
			{[]string{"deploy", "--app", "bad", "--image", broken}, nil, "image.tar"},
			{[]string{"machine", "start", "--app", "bad", "0123456789abcd"}, nil, "0123456789abcd"},
		} {
			stdout, stderr, code := w.CLIWith(c.env, c.args...)
			if code == 0 || stdout != "" || !strings.Contains(stderr, c.part) || strings.Count(strings.TrimSpace(stderr), "\n") > 1 {
				t.Errorf("bulkhead %v: exit code %d, stdout %q, stderr %q; want one sentence with %q", c.args, code, stdout, stderr, c.part)
			}
		}
	})

	t.Run("a second up on the same data directory", func(t *testing.T) {
		w := shared.In(t)
		bulkheadd(t, w, "already", "up", "--data-dir", w.DataDir, "--http-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0")
	})
	t.Run("a port in use", func(t *testing.T) {
		w := shared.In(t)
		dir := t.TempDir()
		for _, d := range []string{dir, filepath.Dir(dir)} {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		bulkheadd(t, w, "in use", "up", "--data-dir", dir, "--http-addr", "127.0.0.1:0", "--https-addr", w.Ready.HTTPSAddr)
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("it left %v behind (%v)", left, err)
		}
	})
	t.Run("a config file with an unknown field", func(t *testing.T) {
		w := shared.In(t)
		f := filepath.Join(t.TempDir(), "bulkhead.toml")
		os.WriteFile(f, []byte("domain = \"x.localhost\"\n\ndata_dri = \"/x\"\n"), 0o644)
		bulkheadd(t, w, "data_dri", "up", "--config", f)
	})
}

// bulkheadd runs a command that must fail with a sentence that holds part.
func bulkheadd(t *testing.T, w *world.World, part string, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(w.Bin, "bulkheadd"), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(out.String(), part) {
			t.Errorf("%v, want an error with %q:\n%s", err, part, out.String())
		}
	case <-time.After(20 * time.Second):
		cmd.Process.Kill()
		t.Errorf("it started:\n%s", out.String())
	}
}

// withLayer adds a layer that holds one file of the given name.
func withLayer(t *testing.T, img v1.Image, name string) v1.Image {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 4, Typeflag: tar.TypeReg})
	tw.Write([]byte("evil"))
	tw.Close()
	out, err := mutate.AppendLayers(img, static.NewLayer(b.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// otherArchitecture says that an image is for arm64.
func otherArchitecture(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Architecture = "arm64"
	out, err := mutate.ConfigFile(img, c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
