package controller_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/machine"
)

const nonceHeader = "fly-machine-lease-nonce"

func TestLeases(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	base := "/v1/apps/web/machines/" + m.ID
	var l struct {
		Status string
		Data   controller.Lease
		controller.Lease
	}
	e.refused(404, "lease not found", "GET", base+"/lease", nil)
	e.refused(404, "lease not found", "DELETE", base+"/lease", nil)
	e.want(201, "POST", base+"/lease", config{"description": "deploy", "ttl": 30}, &l)
	if l.Status != "success" || l.Data.Nonce == "" || l.Data != l.Lease || l.Owner == "" || l.Description != "deploy" || l.Version != m.Version || l.ExpiresAt < time.Now().Unix()+20 {
		t.Errorf("lease: %+v", l)
	}
	nonce := l.Nonce
	for method, paths := range map[string][]string{
		"POST":   {"", "/start", "/stop", "/restart", "/suspend", "/cordon", "/uncordon", "/signal", "/exec", "/metadata/k", "/lease"},
		"DELETE": {"?force=true", "/lease", "/metadata/k"},
		"PUT":    {"/metadata"},
	} {
		for _, p := range paths {
			body := map[string]config{
				"": {"config": image()}, "/signal": {"signal": "SIGHUP"}, "/exec": {"command": []string{"x"}},
				"/metadata/k": {"value": "v"}, "/metadata": {"metadata": config{"a": "b"}},
			}[p]
			if body == nil {
				body = config{}
			}
			e.refused(409, m.ID, method, base+p, body)
			e.refused(409, "expires at", method, base+p, body, nonceHeader, "0123456789abcdef")
		}
	}
	for _, p := range []string{"", "/events", "/metadata", "/lease"} {
		e.get(base+p, nil)
	}
	// The nonce is the right to change the Machine: only its taker sees it.
	if a := e.do("GET", base+"/lease", nil); strings.Contains(string(a.body), nonce) {
		t.Errorf("the lease shows its nonce to everybody: %s", a.body)
	}
	if a := e.do("GET", base+"/lease", nil, nonceHeader, nonce); !strings.Contains(string(a.body), nonce) {
		t.Errorf("the taker does not see the nonce: %s", a.body)
	}
	e.want(200, "POST", base+"/cordon", nil, nil, nonceHeader, nonce)
	e.want(204, "POST", base+"/metadata/k", config{"value": "v"}, nil, nonceHeader, nonce)
	e.want(201, "POST", base+"/lease?ttl=1", nil, &l, nonceHeader, nonce)
	if l.Nonce != nonce || l.Description != "deploy" {
		t.Errorf("refreshed lease: %+v", l)
	}
	if got := e.machine("web", m.ID); got.Nonce != "" {
		t.Errorf("the machine shows the nonce to everybody: %+v", got)
	}
	// The lease ends by itself, without anybody's help.
	await.True(t, "the lease of one second ends", func() bool { return e.do("POST", base+"/uncordon", nil).code == 200 })
	e.want(201, "POST", base+"/lease", nil, &l)
	if l.Nonce == nonce {
		t.Error("a new lease has the old one's nonce")
	}
	e.want(200, "DELETE", base+"/lease", nil, nil, nonceHeader, l.Nonce)
	e.want(200, "POST", base+"/stop", nil, nil)

	leased := e.create("web", config{"config": image(), "lease_ttl": 60})
	if leased.Nonce == "" {
		t.Fatalf("create with lease_ttl gives no nonce: %+v", leased)
	}
	e.refused(409, "lease", "POST", "/v1/apps/web/machines/"+leased.ID+"/stop", nil)
	e.want(200, "DELETE", "/v1/apps/web/machines/"+leased.ID+"?force=true", nil, nil, nonceHeader, leased.Nonce)
}

func TestMetadata(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", config{"image": "docker.example/app", "metadata": config{"a": "1"}})
	base := "/v1/apps/web/machines/" + m.ID + "/metadata"
	var md map[string]string
	e.get(base, &md)
	if len(md) != 1 || md["a"] != "1" {
		t.Errorf("metadata: %v", md)
	}
	e.want(204, "POST", base+"/b", config{"value": "2"}, nil)
	e.want(204, "PATCH", base, config{"metadata": config{"c": "3", "a": nil, "zz": ""}}, nil)
	e.want(204, "PUT", base, config{"metadata": config{"d": "4"}, "machine_version": m.Version}, nil)
	e.refused(412, "version", "PUT", base, config{"metadata": config{"d": "5"}, "machine_version": "01ARZ3NDEKTSV4RRFFQ69G5FAV"})
	md = nil
	if e.get(base, &md); len(md) != 3 || md["b"] != "2" || md["c"] != "3" || md["d"] != "4" {
		t.Errorf("metadata: %v", md)
	}
	var v struct{ Value string }
	if e.get(base+"/b", &v); v.Value != "2" {
		t.Errorf("value %q", v.Value)
	}
	e.refused(404, "no metadata", "GET", base+"/a", nil)
	e.want(204, "DELETE", base+"/b", nil, nil)
	e.want(204, "DELETE", base+"/never", nil, nil)
	e.refused(404, "no metadata", "GET", base+"/b", nil)
	e.refused(400, "value is missing", "POST", base+"/x", config{})
	if got := e.machine("web", m.ID); got.Version != m.Version || got.Config.Metadata["d"] != "4" {
		t.Errorf("metadata made a version, or is not in the config: %+v", got)
	}
}

// TestWait is about what a wait answers, and when.
func TestWait(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	base := "/v1/apps/web/machines/" + m.ID
	var res controller.WaitResult
	e.get(base+"/wait", &res)
	if !res.OK || res.State != "started" || res.Version != m.Version || res.EventID == "" {
		t.Errorf("wait: %+v", res)
	}
	start := time.Now()
	e.refused(408, "machine failed to reach desired state, stopped, currently started", "GET", base+"/wait?state=stopped&timeout=1", nil)
	if took := time.Since(start); took < 900*time.Millisecond || took > 30*time.Second {
		t.Errorf("a wait of 1 s took %v", took)
	}
	// A wait ends with the change, not at its next look.
	done := make(chan answer, 1)
	go func() { done <- e.do("GET", base+"/wait?state=stopped&state=failed&timeout=60", nil) }()
	e.want(200, "POST", base+"/stop", nil, nil)
	stopped := time.Now()
	a := <-done
	json.Unmarshal(a.body, &res)
	if a.code != 200 || res.State != "stopped" || time.Since(stopped) > 30*time.Second {
		t.Errorf("wait for a stop: %d %s after %v", a.code, a.body, time.Since(stopped))
	}
	// A short life between two looks is seen through from_event_id.
	before := res.EventID
	e.want(200, "POST", base+"/start", nil, nil)
	e.wait("web", m.ID, "started")
	e.worker.die(m.ID, 0)
	e.wait("web", m.ID, "stopped")
	e.get(base+"/wait?state=started&timeout=30&from_event_id="+before, &res)
	if res.State != "started" {
		t.Errorf("wait from an event: %+v", res)
	}
	last := e.machine("web", m.ID).Events[0].ID
	e.refused(408, "currently stopped", "GET", base+"/wait?state=started&timeout=1&from_event_id="+last, nil)
	e.want(200, "DELETE", base, nil, nil)
	e.refused(409, "cannot reach desired state, started: it is destroy", "GET", base+"/wait?state=started&timeout=30", nil)
	e.get(base+"/wait?state=destroyed", nil)
	e.get(base+"/wait?state=settled", nil)
}

// TestWaitMeansTheNewestWish: while the worker has not taken up a wish, the state
// from before it does not count as reached.
func TestWaitMeansTheNewestWish(t *testing.T) {
	e := newEnv(t)
	e.cfg.AckLimit = 50 * time.Millisecond
	e.stop()
	e.startController()
	e.waitNode(true)
	e.app("web")
	m := e.launch("web", image())
	base := "/v1/apps/web/machines/" + m.ID
	e.worker.mu.Lock()
	e.worker.deaf = true
	e.worker.mu.Unlock()
	e.want(200, "POST", base+"/restart", nil, nil)
	e.refused(408, "currently started", "GET", base+"/wait?state=started&timeout=1", nil)
	e.refused(408, "currently started", "GET", base+"/wait?state=settled&timeout=1", nil)
}

func TestOfTwoUpdatesOfOneVersionOneWins(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	base := "/v1/apps/web/machines/" + m.ID
	const n = 8
	codes := make(chan int, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			codes <- e.do("POST", base, config{"config": image(), "current_version": m.Version}).code
		})
	}
	wg.Wait()
	close(codes)
	won := 0
	for c := range codes {
		switch c {
		case 200:
			won++
		case 412:
		default:
			t.Errorf("an update gave %d", c)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d updates of the same version won", won, n)
	}
	var versions []controller.MachineVersion
	if e.get(base+"/versions", &versions); len(versions) != 2 {
		t.Errorf("%d versions, want 2", len(versions))
	}
}

// TestManyAtOnce changes one Machine and makes apps and Machines from many sides.
func TestManyAtOnce(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	var wg sync.WaitGroup
	var mu sync.Mutex
	taken, made := 0, 0
	for i := range 8 {
		wg.Go(func() {
			key := string(rune('a' + i))
			if a := e.do("POST", "/v1/apps/web/machines/"+m.ID+"/metadata/"+key, config{"value": key}); a.code != 204 {
				t.Errorf("metadata %s: %d %s", key, a.code, a.body)
			}
			a := e.do("POST", "/v1/apps", config{"name": "same", "network": "net-" + key})
			mu.Lock()
			defer mu.Unlock()
			if a.code == 201 {
				made++
			} else if a.code == 422 {
				taken++
			} else {
				t.Errorf("create app: %d %s", a.code, a.body)
			}
		})
	}
	wg.Wait()
	if made != 1 || taken != 7 {
		t.Errorf("%d apps of one name made, %d refused", made, taken)
	}
	if got := e.machine("web", m.ID).Config.Metadata; len(got) != 8 {
		t.Errorf("a change was lost: %v", got)
	}
}

func TestExecPsMemorySignal(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	base := "/v1/apps/web/machines/" + m.ID
	var out controller.ExecResult
	for cmd, want := range map[string]string{
		`a  b`:         "a|b",
		`a 'b c' d`:    "a|b c|d",
		`a "b \"c\" "`: `a|b "c" `,
		`a b\ c ''`:    "a|b c|",
		`a "\n"`:       `a|\n`,
	} {
		if e.want(200, "POST", base+"/exec", config{"cmd": cmd}, &out); out.Stdout != want {
			t.Errorf("cmd %s ran %q, want %q", cmd, out.Stdout, want)
		}
	}
	e.want(200, "POST", base+"/exec", config{"command": []string{"cat", "-"}, "stdin": "in", "timeout": 5}, &out)
	if out.Stdout != "cat|-in" || out.ExitCode != 0 {
		t.Errorf("exec: %+v", out)
	}
	e.want(200, "POST", base+"/exec", config{"command": []string{"false"}}, &out)
	if out.ExitCode != 1 || out.Stderr != "no\uFFFD" {
		t.Errorf("exec: %+v", out)
	}
	var ps []controller.ProcessStat
	e.get(base+"/ps?sort_by=rss&order=desc", &ps)
	if len(ps) != 2 || ps[0].PID != 7 || ps[1].ListenSockets[0].Address != "[::]:8080" {
		t.Errorf("ps: %+v", ps)
	}
	var mem controller.Memory
	if e.get(base+"/memory", &mem); mem != (controller.Memory{LimitMB: 256, AvailableMB: 160}) {
		t.Errorf("memory: %+v", mem)
	}
	e.want(200, "POST", base+"/signal", config{"signal": "SIGHUP"}, nil)
	e.want(200, "POST", base+"/signal", config{"signal": 9}, nil)
	e.worker.mu.Lock()
	if len(e.worker.signals) != 2 || e.worker.signals[0] != 1 || e.worker.signals[1] != 9 {
		t.Errorf("signals: %v", e.worker.signals)
	}
	e.worker.mu.Unlock()
	e.want(200, "POST", base+"/stop", nil, nil)
	e.wait("web", m.ID, "stopped")
	for _, p := range []string{"/exec", "/signal"} {
		body := config{"/exec": config{"command": []string{"x"}}, "/signal": config{"signal": 9}}[p]
		e.refused(412, "start it first", "POST", base+p, body)
	}
	e.refused(412, "start it first", "GET", base+"/ps", nil)
}

func TestLogs(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	a, b := e.launch("web", image()), e.launch("web", image())
	got := e.get("/v1/apps/web/machines/"+a.ID+"/logs?tail=3", nil)
	all := strings.Split(strings.TrimSpace(string(got.body)), "\n")
	var l controller.LogLine
	if err := json.Unmarshal([]byte(all[2]), &l); err != nil || len(all) != 3 || l.Message != "line 2 <&>" || l.Stream != "stdout" || l.Machine != a.ID || l.Timestamp != "1970-01-01T00:00:02Z" {
		t.Errorf("logs: %s, %v", got.body, err)
	}
	merged := string(e.get("/v1/apps/web/logs?tail=2", nil).body)
	if strings.Count(merged, a.ID) != 2 || strings.Count(merged, b.ID) != 2 {
		t.Errorf("merged: %s", merged)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://api."+domain+"/v1/apps/web/logs?follow=true&tail=1", nil)
	req.Header.Set("Authorization", "Bearer "+e.token)
	resp, err := e.client.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("follow: %v %v", resp, err)
	}
	lines(t, resp.Body, 2) // they come while the stream is open
	e.refused(400, "tail", "GET", "/v1/apps/web/logs?tail=x", nil)

	// Readers of logs leave room on the connection for starts and stops.
	e.ctl.HoldLogStreams(500)
	e.refused(429, "too many logs", "GET", "/v1/apps/web/logs?tail=1", nil)
	e.ctl.HoldLogStreams(-500)
	e.get("/v1/apps/web/logs?tail=1", nil)
}

func TestRestartLosesNothing(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	broken := e.create("web", config{"config": config{"image": "docker.example/broken"}})
	e.wait("web", broken.ID, "destroyed")
	e.want(204, "POST", "/v1/apps/web/machines/"+m.ID+"/metadata/k", config{"value": "v"}, nil)
	var l struct{ Nonce string }
	e.want(201, "POST", "/v1/apps/web/machines/"+m.ID+"/lease?ttl=100", nil, &l)
	before := e.machine("web", m.ID)
	e.stop()
	e.startController()
	e.waitNode(true)
	after := e.machine("web", m.ID)
	if after.State != "started" || after.Config.Metadata["k"] != "v" || after.PrivateIP != before.PrivateIP || len(after.Events) != len(before.Events) || after.Version != before.Version {
		t.Errorf("after the restart %+v, before %+v", after, before)
	}
	e.refused(409, "digest does not match", "GET", "/v1/apps/web/machines/"+broken.ID+"/wait", nil)
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/stop", nil, nil, nonceHeader, l.Nonce)
	e.wait("web", m.ID, "stopped")
}

// TestWishesWaitForTheWorker makes wishes while the worker is away.
func TestWishesWaitForTheWorker(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m, gone := e.launch("web", image()), e.launch("web", image())
	e.stopWorker()
	e.waitNode(false)
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/stop", nil, nil)
	e.want(200, "DELETE", "/v1/apps/web/machines/"+gone.ID+"?force=true", nil, nil)
	if got := e.machine("web", m.ID); got.HostStatus != "unreachable" || got.State != "started" {
		t.Errorf("with the worker away: %s, host %s", got.State, got.HostStatus)
	}
	if got := e.machine("web", gone.ID); got.State != "destroying" {
		t.Errorf("destroyed with the worker away: %s", got.State)
	}
	e.refused(503, "worker", "POST", "/v1/apps/web/machines", config{"config": image()})
	e.connectWorker()
	e.wait("web", m.ID, "stopped")
	e.wait("web", gone.ID, "destroyed")
	await.True(t, "the worker forgets the destroyed machine", func() bool {
		e.worker.mu.Lock()
		defer e.worker.mu.Unlock()
		return len(e.worker.machines) == 1
	})
}

func TestCapacity(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.worker.memory = 1000
	e.startWorker()
	e.app("web")
	big := config{"image": "docker.example/app", "guest": config{"memory_mb": 600}}
	m := e.launch("web", big)
	e.refused(412, "insufficient resources", "POST", "/v1/apps/web/machines", config{"config": big})
	second := e.create("web", config{"config": big, "skip_launch": true})
	e.refused(409, "insufficient memory available", "POST", "/v1/apps/web/machines/"+second.ID+"/start", nil)
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/stop", nil, nil)
	e.want(200, "POST", "/v1/apps/web/machines/"+second.ID+"/start", nil, nil)
	e.wait("web", second.ID, string(machine.Started))
	var p struct{ Regions []controller.Placement }
	e.want(200, "POST", "/v1/platform/placements", config{"org_slug": "personal", "compute": config{"memory_mb": 128}}, &p)
	if len(p.Regions) != 1 || p.Regions[0].Count != 3 {
		t.Errorf("placements: %+v", p)
	}
}

func TestMetrics(t *testing.T) {
	e := newEnv(t)
	all := string(e.get("/metrics", nil).body)
	for _, want := range []string{
		`fake_total{role="worker",node="n1",a="b"} 3`,
		`bulkhead_role_up{role="controller",node="n1"} 1`,
		`bulkhead_role_up{role="worker",node="n1"} 1`,
		`bulkhead_role_up{role="edge",node="n1"} 0`,
		`bulkhead_api_requests_total{role="controller",node="n1",code="200",method="GET"}`,
		`etcd_server_has_leader{role="controller",node="n1"} 1`,
		`bulkhead_nodes_connected{role="controller",node="n1"} 1`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("metrics have no %s", want)
		}
	}
	if only := string(e.get("/metrics?role=worker", nil).body); strings.Contains(only, "etcd_") || !strings.Contains(only, "fake_total") {
		t.Errorf("the worker's metrics: %s", only)
	}
	e.refused(404, "no metrics", "GET", "/metrics?role=warden", nil)
}

// TestOrgMetrics reads the metrics of two organizations: each has the series of its own
// apps, and none of another's, of an app that is gone, or of the platform.
func TestOrgMetrics(t *testing.T) {
	p := newPeople(t)
	e := p.e
	token := func(by, org string) string {
		var made struct{ Token string }
		e.want(201, "POST", "/v1/orgs/"+org+"/tokens", config{"kind": "metrics"}, &made, with(by)...)
		return made.Token
	}
	acme, other := token(p.tokens["V"], "acme"), token(p.tokens["stranger"], "other")
	const head = "# TYPE bulkhead_machine_processes gauge\nbulkhead_machine_processes"
	for org, want := range map[string]struct{ token, page string }{
		"acme":  {acme, head + "{app=\"shop\",machine=\"m1\"} 7\n"},
		"other": {other, head + "{app=\"else\",machine=\"m2\"} 8\n"},
	} {
		if a := e.want(200, "GET", "/v1/orgs/"+org+"/metrics", nil, nil, with(want.token)...); string(a.body) != want.page {
			t.Errorf("the metrics of %s: %s", org, a.body)
		}
	}
	e.want(403, "GET", "/v1/orgs/other/metrics", nil, nil, with(acme)...)
	e.want(403, "GET", "/metrics", nil, nil, with(acme)...)

	// The platform's token is worth what its user is at the moment.
	var made struct{ Token string }
	e.want(201, "POST", "/v1/platform/tokens", config{"kind": "metrics", "name": "prometheus"}, &made, with(p.tokens["P"])...)
	e.want(200, "GET", "/metrics", nil, nil, with(made.Token)...)
	e.want(403, "GET", "/v1/orgs/acme/metrics", nil, nil, with(made.Token)...)
	e.want(200, "PATCH", "/v1/users/operator", config{"operator": false}, nil)
	e.want(403, "GET", "/metrics", nil, nil, with(made.Token)...)

	// Without the worker the scrape fails: an empty page would look like nothing to report.
	e.worker.mu.Lock()
	e.worker.mute = true
	e.worker.mu.Unlock()
	e.want(503, "GET", "/v1/orgs/acme/metrics", nil, nil, with(acme)...)
}
