package controller_test

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestTombstonesAreForgotten(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m, kept := e.launch("web", image()), e.launch("web", image())
	e.want(200, "DELETE", "/v1/apps/web/machines/"+m.ID+"?force=true", nil, nil)
	e.wait("web", m.ID, "destroyed")
	ctx := context.Background()
	if err := e.ctl.CollectOnce(ctx, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := e.machine("web", m.ID); got.State != "destroyed" {
		t.Errorf("a young tombstone is gone: %+v", got)
	}
	if err := e.ctl.CollectOnce(ctx, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	e.refused(404, "machine "+m.ID+" not found", "GET", "/v1/apps/web/machines/"+m.ID, nil)
	keys, err := e.ctl.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if strings.Contains(k, m.ID) || strings.HasPrefix(k, "/tomb/") {
			t.Errorf("left behind: %s", k)
		}
	}
	if got := e.machine("web", kept.ID); got.State != "started" {
		t.Errorf("another machine: %+v", got)
	}
}

// TestNothingIsLeftBehind compares the store before an app and after it.
func TestNothingIsLeftBehind(t *testing.T) {
	e := newEnv(t)
	ctx := context.Background()
	e.app("first") // makes the counters and the network, which stay
	e.want(202, "DELETE", "/v1/apps/first", nil, nil)
	before, err := e.ctl.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e.app("web")
	for range 3 {
		m := e.launch("web", image())
		e.want(200, "POST", "/v1/apps/web/machines/"+m.ID, config{"config": image()}, nil)
		e.want(201, "POST", "/v1/apps/web/machines/"+m.ID+"/lease", nil, nil)
	}
	e.create("web", config{"config": config{"image": "docker.example/broken"}})
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	e.awaitNoApp("web")
	after, err := e.ctl.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}
