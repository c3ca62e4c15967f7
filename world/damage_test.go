package world_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestDamagedImages damages what the node has sealed, and what the registry keeps, in
// several ways, while nothing runs from it: the next start finds it, fetches it again
// or says which blob must be pushed again, and all is as it was.
func TestDamagedImages(t *testing.T) {
	w := world.Start(t)
	w.CreateApp("dam", "")
	config := world.Config{"image": w.Push("dam", fixture.StaticGo(t)), "services": world.HTTPService(8080), "guest": map[string]any{"cpu_kind": "shared", "cpus": 1, "memory_mb": 128}}
	m := w.Run("dam", config)
	sealed, _ := filepath.Glob(filepath.Join(w.DataDir, "images", "*.erofs"))
	if len(sealed) != 1 {
		t.Fatalf("sealed: %v", sealed)
	}
	for _, c := range []struct {
		name   string
		damage func(path string) error
		said   string
	}{
		{"cut short", func(p string) error { return os.Truncate(p, 8192) }, "a sealed image has gone or changed its size"},
		{"gone", os.Remove, "a sealed image has gone or changed its size"},
		{"its beginning zeroed", func(p string) error { return zero(p, 0, 64<<10) }, "a sealed image is damaged; removing it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.In(t)
			w.Must("POST", "/apps/dam/machines/"+m.ID+"/stop", nil, nil)
			w.Wait("dam", m.ID, "stopped", 30*time.Second)
			before := len(w.Log())
			if err := c.damage(sealed[0]); err != nil {
				t.Fatal(err)
			}
			w.Must("POST", "/apps/dam/machines/"+m.ID+"/start", nil, nil)
			w.Wait("dam", m.ID, "started", 60*time.Second)
			w.Eventually(20*time.Second, func() string { return answers(w, "dam", "/", 200, "") })
			log := w.Log()[before:]
			if n := strings.Count(log, c.said); n != 1 {
				t.Errorf("%q is said %d times", c.said, n)
			}
			if n := strings.Count(log, `"sealed an image"`); n != 1 {
				t.Errorf("it was sealed %d times", n)
			}
		})
	}

	t.Run("a blob of the registry", func(t *testing.T) {
		w := w.In(t)
		img := variant(t, 7)
		w.CreateApp("blob", "")
		config["image"] = w.Push("blob", img)
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		d, err := layers[0].Digest()
		if err != nil {
			t.Fatal(err)
		}
		if err := zero(filepath.Join(w.DataDir, "controller/registry/blobs/sha256", d.Hex[:2], d.Hex), 1000, 16); err != nil {
			t.Fatal(err)
		}
		var b world.Machine
		w.Must("POST", "/apps/blob/machines", map[string]any{"config": config}, &b)
		w.Eventually(30*time.Second, func() string {
			_, body := w.APIRaw("GET", "/apps/blob/machines/"+b.ID, nil)
			if !strings.Contains(string(body), "blob "+d.String()+" of repository blob is damaged on the registry's disk; push the image again") {
				return string(body)
			}
			return ""
		})
		if _, err := w.TryPush("blob", img); err != nil {
			t.Fatal(err)
		}
		w.Run("blob", config)
	})
}

// zero overwrites n bytes of a file, whatever its mode.
func zero(path string, at, n int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(make([]byte, n), at)
	return err
}
