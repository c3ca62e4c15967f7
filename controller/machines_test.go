package controller_test

import (
	"strings"
	"testing"

	"bulkhead/controller"
)

func TestLifeOfAMachine(t *testing.T) {
	e := newEnv(t)
	var a controller.App
	e.want(201, "POST", "/v1/apps", map[string]any{"app_name": "web", "org_slug": "personal"}, &a)
	if a.Name != "web" || a.Network != "default" || a.Status != "pending" || a.Organization.Slug != "personal" {
		t.Errorf("new app: %+v", a)
	}
	conf := config{
		"image": "docker.example/library/app:1", "env": config{"A": "b"}, "metadata": config{"k": "v"},
		"services": []config{{"protocol": "tcp", "internal_port": 8080, "autostop": "stop", "ports": []config{{"port": 443, "handlers": []string{"tls", "http"}}}}},
		"restart":  config{"policy": "always"}, "stop_config": config{"signal": "SIGTERM", "timeout": int64(5e9)}, "init": nil,
	}
	m := e.create("web", config{"config": conf, "name": "first", "region": "local"})
	if m.State != "created" || m.Name != "first" || m.Region != "local" || m.InstanceID != m.Version || len(m.ID) != 14 || len(m.Version) != 26 {
		t.Errorf("new machine: %+v", m)
	}
	base := "/v1/apps/web/machines/" + m.ID
	e.wait("web", m.ID, "started")
	m = e.machine("web", m.ID)
	if m.State != "started" || m.PrivateIP == "" || m.HostStatus != "ok" || len(m.Events) == 0 || m.ImageRef.Registry != "docker.example" || m.Config.Guest.MemoryMB != 256 {
		t.Errorf("started machine: %+v", m)
	}
	if raw := e.get(base, nil).body; !strings.Contains(string(raw), `"timeout":"5s"`) || !strings.Contains(string(raw), `"autostop":true`) || strings.Contains(string(raw), "null") {
		t.Errorf("the answer's form: %s", raw)
	}
	e.get("/v1/apps/web", &a)
	if a.Status != "deployed" || a.MachineCount != 1 {
		t.Errorf("app with a machine: %+v", a)
	}

	var prev struct {
		PreviousState string `json:"previous_state"`
	}
	e.want(200, "POST", base+"/start", nil, &prev)
	if prev.PreviousState != "started" {
		t.Errorf("start of a started machine: %+v", prev)
	}
	e.refused(412, "not currently stopped", "DELETE", base, nil)
	e.want(200, "POST", base+"/stop", config{"signal": "SIGKILL", "timeout": "1s"}, nil)
	e.wait("web", m.ID, "stopped")
	e.want(200, "POST", base+"/stop", nil, nil)
	e.want(200, "POST", base+"/start", nil, &prev)
	if prev.PreviousState != "stopped" {
		t.Errorf("start of a stopped machine: %+v", prev)
	}
	e.wait("web", m.ID, "started")
	e.want(200, "POST", base+"/restart?timeout=3&force_stop=false", nil, nil)
	e.wait("web", m.ID, "started")
	e.want(200, "POST", base+"/suspend", nil, nil)
	e.wait("web", m.ID, "stopped,suspended")
	e.want(200, "POST", base+"/restart?timeout=2s", nil, nil)
	e.wait("web", m.ID, "settled")

	var events []struct{ ID, Type string }
	e.get(base+"/events?limit=3", &events)
	if len(events) != 3 || events[0].Type != "start" {
		t.Errorf("events: %+v", events)
	}
	e.want(200, "DELETE", base+"?kill=true", nil, nil)
	e.wait("web", m.ID, "destroyed")
	if got := e.machine("web", m.ID); got.State != "destroyed" || len(got.Events) == 0 {
		t.Errorf("destroyed machine: %+v", got)
	}
	e.want(200, "DELETE", base, nil, nil)
	e.refused(412, "destroyed", "POST", base+"/start", nil)
	var list []controller.Machine
	if e.get("/v1/apps/web/machines", &list); len(list) != 0 {
		t.Errorf("list shows a destroyed machine: %+v", list)
	}
	if e.get("/v1/apps/web/machines?include_deleted=true", &list); len(list) != 1 {
		t.Errorf("list with deleted: %+v", list)
	}
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	e.refused(404, `app \"web\" not found`, "GET", "/v1/apps/web", nil)
	e.app("web")
}

func TestUpdateMakesVersions(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	base := "/v1/apps/web/machines/" + m.ID
	var next controller.Machine
	e.want(200, "POST", base, config{"config": config{"image": "docker.example/library/app:2"}, "current_version": m.Version, "region": "local", "name": m.Name}, &next)
	if next.Version <= m.Version || next.Config.Image != "docker.example/library/app:2" {
		t.Errorf("updated: %+v", next)
	}
	e.get(base+"/wait?state=started&version="+next.Version+"&timeout=10", nil)
	e.refused(409, "is replaced", "GET", base+"/wait?instance_id="+m.Version, nil)
	e.refused(404, "no version", "GET", base+"/wait?version=01ARZ3NDEKTSV4RRFFQ69G5FAV", nil)
	e.refused(412, "somebody else updated it", "POST", base, config{"config": image(), "current_version": m.Version})
	e.refused(400, "region", "POST", base, config{"config": image(), "region": "moon"})
	e.refused(400, "name", "POST", base, config{"config": image(), "name": "other"})
	e.refused(400, "config is missing", "POST", base, config{})
	e.want(200, "POST", base+"/stop", nil, nil)
	e.wait("web", m.ID, "stopped")
	e.want(200, "POST", base, config{"config": image(), "skip_launch": true}, &next)
	e.get(base+"/wait?state=stopped&version="+next.Version+"&timeout=10", nil)
	e.want(200, "POST", base, config{"config": image()}, &next)
	e.get(base+"/wait?state=settled&version="+next.Version+"&timeout=10", nil)
	var versions []controller.MachineVersion
	e.get(base+"/versions", &versions)
	if len(versions) != 4 || versions[0].Version != next.Version || versions[3].Version != m.Version {
		t.Errorf("versions: %+v", versions)
	}
	// A config read from the API is one that the API takes.
	e.want(200, "POST", base, config{"config": e.machine("web", m.ID).Config}, nil)
}

func TestSkipLaunch(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.create("web", config{"config": image(), "skip_launch": true})
	e.wait("web", m.ID, "settled")
	if got := e.machine("web", m.ID); got.State != "created" {
		t.Errorf("state is %s, want created", got.State)
	}
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/start", nil, nil)
	e.wait("web", m.ID, "started")
}

func TestListFilters(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	a := e.launch("web", config{"image": "docker.example/app", "metadata": config{"group": "a"}})
	b := e.launch("web", config{"image": "docker.example/app", "metadata": config{"group": "b"}})
	e.want(200, "POST", "/v1/apps/web/machines/"+b.ID+"/stop", nil, nil)
	e.wait("web", b.ID, "stopped")
	for query, want := range map[string]string{
		"":                               a.ID + b.ID,
		"state=started":                  a.ID,
		"state=stopped,failed":           b.ID,
		"state=started&state=stopped":    a.ID + b.ID,
		"region=local":                   a.ID + b.ID,
		"region=moon":                    "",
		"metadata.group=b":               b.ID,
		"metadata.group=c":               "",
		"metadata.group=a&state=stopped": "",
	} {
		var list []controller.Machine
		e.get("/v1/apps/web/machines?"+query, &list)
		got := ""
		for _, m := range list {
			got += m.ID
		}
		if got != want {
			t.Errorf("%q gives %s, want %s", query, got, want)
		}
	}
	var list []controller.Machine
	e.get("/v1/apps/web/machines?summary=true", &list)
	if len(list) != 2 || list[0].Config != nil || list[0].Events != nil || list[0].HostStatus != "" {
		t.Errorf("summary: %+v", list)
	}
	var org struct {
		Machines   []controller.OrgMachine `json:"machines"`
		NextCursor string                  `json:"next_cursor"`
	}
	e.get("/v1/orgs/personal/machines?limit=1", &org)
	if len(org.Machines) != 1 || org.Machines[0].ID != a.ID || org.NextCursor == "" {
		t.Fatalf("first page: %+v", org)
	}
	cursor := org.NextCursor
	org.NextCursor = ""
	e.get("/v1/orgs/personal/machines?limit=1&cursor="+cursor, &org)
	if len(org.Machines) != 1 || org.Machines[0].ID != b.ID || org.NextCursor != "" || org.Machines[0].Config.Metadata["group"] != "b" {
		t.Errorf("second page: %+v", org)
	}
	e.refused(400, "cursor", "GET", "/v1/orgs/personal/machines?cursor=xx", nil)
	e.refused(404, "organization", "GET", "/v1/orgs/others/machines", nil)
}

func TestLaunchFailureSaysWhy(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.create("web", config{"config": config{"image": "docker.example/broken"}})
	e.refused(409, "the layer's digest does not match", "GET", "/v1/apps/web/machines/"+m.ID+"/wait?state=started&timeout=30", nil)
	e.wait("web", m.ID, "destroyed")
	e.refused(409, "the layer's digest does not match", "GET", "/v1/apps/web/machines/"+m.ID+"/wait?state=stopped", nil)
	e.refused(422, "not found in its registry", "POST", "/v1/apps/web/machines", config{"config": config{"image": "docker.example/missing"}})

	m = e.create("web", config{"config": config{"image": "docker.example/unstartable"}})
	e.refused(409, "no such file", "GET", "/v1/apps/web/machines/"+m.ID+"/wait?state=started&timeout=30", nil)
	e.wait("web", m.ID, "failed")
}
