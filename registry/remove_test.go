package registry_test

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/registry"
	"bulkhead/registry/registrytest"
)

// TestRemove removes a repository with what is below its name, and nothing else.
func TestRemove(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	c, s := open(t, registry.Config{Dir: dir})
	m := c.pushImage("web", "v1", "{}", "layer")
	c.pushImage("web/api", "v1", "{}", "other layer")
	c.pushImage("web-2", "v1", "{}", "layer")
	at, kept := c.start("web"), c.start("web-2")
	if err := s.Remove(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/v2/web/manifests/v1", "/v2/web/manifests/" + digest(m), "/v2/web/blobs/" + digest([]byte("layer")),
		"/v2/web/tags/list", "/v2/web/api/manifests/v1", at,
	} {
		c.do("GET", path, nil).want(404)
	}
	c.do("GET", "/v2/web-2/blobs/"+digest([]byte("layer")), nil).want(200)
	c.do("GET", kept, nil).want(204)
	if left := files(t, dir, "tmp"); len(left) > 0 || exists(filepath.Join(dir, "repos/web")) {
		t.Errorf("left behind: repos/web, or %v", left)
	}
	for range 2 { // one that is not there is no error
		check(t, s.Remove(ctx, "web"))
	}
	if err := s.Remove(ctx, "../blobs"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a path outside: %v", err)
	}
	// What only it had goes with the next collection; the name can be used again.
	age(t, dir)
	res, err := s.GC(ctx, time.Minute)
	check(t, err)
	if res.Blobs != 2 { // the layer and the manifest of web/api; web-2 has the others
		t.Errorf("GC removed %+v", res)
	}
	c.pushImage("web", "v2", "{}", "new")
	c.do("GET", "/v2/web/manifests/v2", nil).want(200)
	c.do("GET", "/v2/web/manifests/v1", nil).want(404)
}

// TestRemoveIsFinal removes a repository, to which nobody may push any more, in the
// middle of pushes that were allowed before: none of them brings anything back.
func TestRemoveIsFinal(t *testing.T) {
	var closed atomic.Bool
	var between func()
	authorize := func(_ context.Context, _, repo string, push bool) error {
		if push && closed.Load() && repo == "web" {
			return fault.New(fault.Denied, "the app is being deleted")
		}
		if f := between; f != nil && push {
			between = nil
			defer f() // allowed, and only then removed
		}
		return nil
	}
	dir := t.TempDir()
	s := registrytest.ServeConfig(t, registry.Config{Dir: dir, Authorize: authorize})
	c := &client{t: t, base: "http://" + s.Addr, token: "t"}
	remove := func() {
		closed.Store(true)
		check(t, s.Remove(context.Background(), "web"))
	}
	image := string(encode(manifestOf([]byte("{}"))))
	for name, push := range map[string]func(at string) *reply{
		"manifest": func(string) *reply {
			return c.do("PUT", "/v2/web/manifests/v1", strings.NewReader(image), "Content-Type", ociManifest)
		},
		"upload": func(at string) *reply {
			return c.do("PUT", at+"?digest="+digest([]byte("late")), strings.NewReader("late"))
		},
		"whole blob": func(string) *reply {
			return c.do("POST", "/v2/web/blobs/uploads/?digest="+digest([]byte("late")), strings.NewReader("late"))
		},
		"mount": func(string) *reply {
			return c.do("POST", "/v2/web/blobs/uploads/?from=other&mount="+digest([]byte("mine")), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			closed.Store(false)
			c.push("web", []byte("{}"))
			c.push("other", []byte("mine"))
			at := c.start("web")
			between = remove
			if r := push(at); r.status == 201 {
				t.Errorf("the push succeeded: %s", r.body)
			}
			if exists(filepath.Join(dir, "repos/web")) {
				t.Errorf("the repository is back: %v", files(t, dir, "repos/web"))
			}
		})
	}
}

// TestRemoveIsWhole kills nothing: it looks at the disk before each step of a
// removal. Either the repository is whole or nothing of it is left, whenever the
// power goes.
func TestRemoveIsWhole(t *testing.T) {
	dir := t.TempDir()
	watch := false
	var before []string
	var states []string
	cfg := registry.WithStep(registry.Config{Dir: dir}, func(op, path string) {
		if !watch {
			return
		}
		now := files(t, dir, "repos")
		switch {
		case len(now) == 0:
			states = append(states, op+": gone")
		case strings.Join(now, " ") == strings.Join(before, " "):
			states = append(states, op+": whole")
		default:
			t.Errorf("before %s %s half of the repository is there: %v", op, path, now)
		}
	})
	c, s := open(t, cfg)
	c.pushImage("web", "v1", "{}", "layer")
	before = files(t, dir, "repos")
	watch = true
	check(t, s.Remove(context.Background(), "web"))
	watch = false
	want := "rename: whole, syncdir: gone, syncdir: gone, removeall: gone"
	if got := strings.Join(states, ", "); got != want {
		t.Errorf("steps %s, want %s", got, want)
	}
}
