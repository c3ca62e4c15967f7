package controller_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/store"
)

// registryGet asks the cluster's registry.
func (e *env) registryGet(path string) int {
	e.t.Helper()
	req, err := http.NewRequest("GET", "https://registry."+domain+path, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	req.SetBasicAuth("x", e.token)
	resp, err := e.transport().RoundTrip(req)
	if err != nil {
		e.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// awaitNoApp waits until an app's deletion has come to its end.
func (e *env) awaitNoApp(name string) {
	e.t.Helper()
	await.True(e.t, "app "+name+" is gone", func() bool { return e.do("GET", "/v1/apps/"+name, nil).code == 404 })
}

// TestDeletedAppsImagesAreGone deletes an app with images: nobody sees them under
// its name again, and other apps keep theirs.
func TestDeletedAppsImagesAreGone(t *testing.T) {
	e := newEnv(t)
	for _, a := range []string{"web", "web-2"} {
		e.app(a)
		e.push(a + ":v1")
	}
	e.push("web/part:v1")
	e.launch("web", config{"image": "registry." + domain + "/web:v1"})
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	e.awaitNoApp("web")
	if got := e.registryGet("/v2/web/manifests/v1"); got != 403 {
		t.Errorf("the image of an app that there is not: %d", got)
	}
	e.app("web")
	for path, want := range map[string]int{
		"/v2/web/manifests/v1": 404, "/v2/web/tags/list": 404, "/v2/web/part/manifests/v1": 404, "/v2/web-2/manifests/v1": 200,
	} {
		if got := e.registryGet(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	e.refused(422, "push it first", "POST", "/v1/apps/web/machines", config{"config": config{"image": "registry." + domain + "/web:v1"}})
}

// TestDeletedAppsImagesAreGoneAfterAKill ends the controller while an app's deletion
// waits for its Machines.
func TestDeletedAppsImagesAreGoneAfterAKill(t *testing.T) {
	e := newEnv(t)
	e.cfg.AckLimit = 100 * time.Millisecond
	e.stop()
	e.startController()
	e.waitNode(true)
	e.app("web")
	e.push("web:v1")
	e.launch("web", config{"image": "registry." + domain + "/web:v1"})
	e.stopWorker()
	e.waitNode(false)
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	if got := e.registryGet("/v2/web/manifests/v1"); got != 200 {
		t.Errorf("the image of a Machine that still runs: %d", got)
	}
	req, _ := http.NewRequest("POST", "https://registry."+domain+"/v2/web/blobs/uploads/", nil)
	req.SetBasicAuth("x", e.token)
	if resp, err := e.transport().RoundTrip(req); err != nil || resp.StatusCode != 403 {
		t.Errorf("a push to an app that is being deleted: %v, %v", resp, err)
	}
	e.stop()
	e.startController()
	e.connectWorker()
	e.awaitNoApp("web")
	e.app("web")
	if got := e.registryGet("/v2/web/manifests/v1"); got != 404 {
		t.Errorf("a new app has the old one's image: %d", got)
	}
}

// TestANewAppIsSparedByTheOldOnesDeletion lets a deletion that has been overtaken by
// another, and by a new app of the same name, go on: it must leave that app alone.
func TestANewAppIsSparedByTheOldOnesDeletion(t *testing.T) {
	e := newEnv(t)
	e.cfg.AckLimit = 100 * time.Millisecond
	var once sync.Once
	var made *controller.Machine
	e.stop()
	e.opened = func(c *controller.Controller) {
		c.OnList(func(s store.Store, prefix string) {
			if prefix != "/version/web/" { // the deletion has just looked at the app's Machines
				return
			}
			once.Do(func() {
				if _, err := s.Txn(context.Background(), nil, []store.Op{store.Delete("/app/web")}); err != nil {
					t.Error(err)
				}
				e.app("web")
				made = e.create("web", config{"config": image()})
			})
		})
	}
	e.startController()
	e.waitNode(true)
	e.app("web")
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	if made == nil {
		t.Fatal("the deletion did not list what the test waits for")
	}
	e.wait("web", made.ID, "started")
	keys, err := e.ctl.Keys(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/machine/web/" + made.ID, "/version/web/" + made.ID, "/name/web/" + made.Name} {
		if !strings.Contains(strings.Join(keys, "\n")+"\n", want) {
			t.Errorf("%s is gone", want)
		}
	}
}

// TestDeletionIsFinishedLater: each transaction of an app's deletion is made and
// reported as failed, once; nobody asks again, and the app goes nevertheless.
func TestDeletionIsFinishedLater(t *testing.T) {
	for _, key := range []string{"/tomb/", "/version/", "/id/", "/app/"} {
		t.Run(strings.Trim(key, "/"), func(t *testing.T) {
			e := newEnv(t)
			e.cfg.AckLimit = 100 * time.Millisecond
			e.stop()
			var lied atomic.Bool
			e.opened = func(c *controller.Controller) {
				c.AfterTxn(func(ops []store.Op, err error) error {
					for _, o := range ops {
						if strings.HasPrefix(o.Key, key) && (o.Delete || key == "/tomb/") && lied.CompareAndSwap(false, true) {
							return errors.Join(err, fault.New(fault.Unavailable, "the store does not answer"))
						}
					}
					return err
				})
			}
			e.startController()
			e.waitNode(true)
			e.app("web")
			e.launch("web", image())
			e.do("DELETE", "/v1/apps/web", nil)
			e.awaitNoApp("web")
			if !lied.Load() {
				t.Error("the deletion made no such transaction")
			}
		})
	}
}
