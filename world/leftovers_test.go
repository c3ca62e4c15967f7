package world_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bulkhead/world"
)

// leftovers lists what Machines hold on the host: processes, directories,
// cgroups and interfaces. Sealed images are a cache and do not count.
func leftovers(t *testing.T, w *world.World) string {
	t.Helper()
	var out []string
	for _, p := range w.Processes() {
		if p.UID >= 1<<31 || p.Name == "bulkhead-shim" || p.Name == "bulkhead-unpack" {
			out = append(out, "process "+p.Name)
		}
	}
	for _, pattern := range []string{
		filepath.Join(w.RunDir(), "machines", "*"),
		filepath.Join(w.DataDir, "machines", "*"),
		filepath.Join(w.DataDir, "worker", "logs", "*"),
		filepath.Join(w.DataDir, "images", "*tmp*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, slices.DeleteFunc(found, world.RetiredLogs)...)
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(filepath.Base(filepath.Dir(path)), "bulkhead-"+tag(t, w)) {
			out = append(out, path)
		}
		return nil
	})
	slices.Sort(out)
	return strings.Join(out, "\n") + "\n"
}

// tag reads the installation's tag.
func tag(t *testing.T, w *world.World) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.DataDir, "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	return decode[struct {
		Tag string `json:"tag"`
	}](t, b).Tag
}

func decode[T any](t *testing.T, b []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return v
}
