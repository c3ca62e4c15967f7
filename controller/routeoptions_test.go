package controller_test

import (
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller"
)

// TestRouteOptions: a Machine that takes no traffic changes nothing of how an app is
// served, and one that is being updated is spoken to as its running version wants.
func TestRouteOptions(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.AckLimit = 100 * time.Millisecond })
	e.startWorker()
	e.app("web")
	us := watchRoutes(t, e)
	until(t, us, synced)
	const port = 8080
	conf := func(h2 bool, internal int) config {
		return config{"image": "docker.example/app", "services": []config{{
			"internal_port": internal, "protocol": "tcp", "ports": []config{
				{"port": 80, "handlers": []string{"http"}, "force_https": h2},
				{"port": 443, "handlers": []string{"tls", "http"}, "http_options": config{"h2_backend": h2}},
			},
		}}}
	}
	live := e.launch("web", conf(false, port))
	until(t, us, backends(1))
	// old says how the app is served now: by HTTP/1.1, and without a redirect.
	old := func(what string, u *internalpb.RouteUpdate) {
		t.Helper()
		if s := u.GetRoute().GetServices(); len(s) != 2 || s[0].ForceHttps || s[1].H2Backend {
			t.Errorf("%s: the route has other options: %v", what, u)
		}
	}
	// Of several, some have a lower id than the one that runs.
	var rest []string
	for range 6 {
		rest = append(rest, e.create("web", config{"config": conf(true, port), "skip_launch": true}).ID)
	}
	e.want(200, "POST", "/v1/apps/web/machines/"+live.ID+"/cordon", nil, nil)
	until(t, us, backends(0))
	e.want(200, "POST", "/v1/apps/web/machines/"+live.ID+"/uncordon", nil, nil)
	old("machines that were never started", until(t, us, backends(1)))
	// The same Machines run, and are cordoned or stopped.
	for i, id := range rest {
		e.want(200, "POST", "/v1/apps/web/machines/"+id+"/cordon", nil, nil)
		e.want(200, "POST", "/v1/apps/web/machines/"+id+"/start", nil, nil)
		e.wait("web", id, "started")
		if i%2 == 0 {
			e.want(200, "POST", "/v1/apps/web/machines/"+id+"/stop", nil, nil)
			e.wait("web", id, "stopped")
			e.want(200, "POST", "/v1/apps/web/machines/"+id+"/uncordon", nil, nil)
		}
	}
	e.want(200, "POST", "/v1/apps/web/machines/"+live.ID+"/cordon", nil, nil)
	until(t, us, backends(0))
	e.want(200, "POST", "/v1/apps/web/machines/"+live.ID+"/uncordon", nil, nil)
	old("machines that are stopped or cordoned", until(t, us, backends(1)))
	for _, id := range rest {
		e.want(200, "DELETE", "/v1/apps/web/machines/"+id+"?force=true", nil, nil)
	}
	// Two that take traffic: each has its own options.
	second := e.launch("web", conf(true, port))
	u := until(t, us, backends(2))
	for _, b := range u.Route.Services[1].Backends {
		if b.GetOptions() == nil || b.Options.H2Backend != (b.MachineId == second.ID) {
			t.Errorf("a backend's options are not its Machine's: %v", u)
		}
	}
	e.want(200, "DELETE", "/v1/apps/web/machines/"+second.ID+"?force=true", nil, nil)
	until(t, us, backends(1))
	// An update that the worker has not acted on: the old version runs.
	e.worker.mu.Lock()
	e.worker.deaf = true
	e.worker.mu.Unlock()
	e.want(200, "POST", "/v1/apps/web/machines/"+live.ID, config{"config": conf(true, 9090)}, nil)
	e.create("web", config{"config": conf(true, port), "skip_launch": true}) // makes a route of what there is now
	e.want(200, "POST", "/v1/apps/web/machines/"+live.ID+"/cordon", nil, nil)
	until(t, us, backends(0))
	e.want(200, "POST", "/v1/apps/web/machines/"+live.ID+"/uncordon", nil, nil)
	u = until(t, us, backends(1))
	old("the old version of a machine that is updated", u)
	if b := u.Route.Services[1].Backends[0]; b.Address != "["+e.machine("web", live.ID).PrivateIP+"]:8080" || b.GetOptions().GetH2Backend() {
		t.Errorf("the old version is reached as the new one wants: %v", b)
	}
}
