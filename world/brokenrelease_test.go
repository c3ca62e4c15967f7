package world_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestBrokenReleases deploys versions of apps that cannot serve over one that does. Each
// deploy fails with the reason, and the version before it serves again.
func TestBrokenReleases(t *testing.T) {
	t.Parallel()
	w := world.Shared(t)
	archive := fixture.WriteArchive(t, fixture.StaticGo(t), filepath.Join(t.TempDir(), "image.tar"), "release:v1")
	for _, c := range []struct{ name, settle, variable, reason string }{
		{"otherport", "", "LISTEN=tcp,:3000", "port 8080 does not answer; the app listens on [::]:3000, and must listen on 0.0.0.0:8080"},
		{"loopback", "", "LISTEN=tcp4,127.0.0.1:8080", "port 8080 does not answer; the app listens on 127.0.0.1:8080"},
		{"dies", "", "END_AFTER=6s", "its process ended with exit code 1"},
		// It takes the machine's processors to fill the memory: how long is not ours to say.
		{"memory", "60s", "EAT_AFTER=3s", "ran out of memory and its process was killed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := w.In(t)
			app := "release-" + c.name
			w.CreateApp(app, "")
			deploy := []string{"deploy", "--app", app, "--image", archive, "--port", "8080"}
			w.MustCLI(append(slices.Clone(deploy), "--settle", "0s", "-e", "V=good")...)
			if c.settle != "" {
				deploy = append(deploy, "--settle", c.settle)
			}
			out, errs, code := w.CLI(append(deploy, "-e", "V=bad", "-e", c.variable)...)
			if code == 0 || !strings.Contains(errs, c.reason) || !strings.Contains(errs, "has its old version back") {
				t.Errorf("the deploy of a version that cannot serve ended with %d:\n%s%s", code, out, errs)
			}
			w.Eventually(patience, func() string { return answers(w, app, "/env", 200, `"V":"good"`) })
		})
	}
}
