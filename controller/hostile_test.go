package controller_test

import (
	"strings"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/role"
)

// TestAHostileWorker takes a worker's place and says what no worker should. It may
// lie about its own Machines; it may not send the edge to somebody else's, nor fill
// the controller or wedge its Sync.
func TestAHostileWorker(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	us := watchRoutes(t, e)
	m := e.launch("web", web())
	until(t, us, backends(1))
	own := e.machine("web", m.ID).PrivateIP
	e.stopWorker()
	e.waitNode(false)
	ctx := bounded(t)
	s, snap := hello(t, ctx, internalpb.NewControllerClient(e.dial(role.Worker, node)), string(node))
	if len(snap.Assignments) != 1 {
		t.Fatalf("snapshot %v", snap)
	}
	as := snap.Assignments[0]
	seq := int64(1 << 40)
	say := func(o *internalpb.Observation) {
		t.Helper()
		seq++
		o.MachineId, o.Seq, o.Generation, o.InstanceId = m.ID, seq, as.Generation, as.InstanceId
		if err := s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Observation{Observation: o}}); err != nil {
			t.Fatal(err)
		}
	}
	say(&internalpb.Observation{State: "stopped"})
	until(t, us, backends(0))
	for _, addr := range []string{"127.0.0.1", "fdaa:0:2:0:1:0:1:2", "fdaa::1", "192.0.2.1", own + "%lo", "evil.example", ""} {
		say(&internalpb.Observation{State: "started", PrivateIp: addr})
	}
	// The first route with somebody in it is the one with the right address.
	say(&internalpb.Observation{State: "started", PrivateIp: own})
	if b := until(t, us, backends(1)).Route.Services[0].Backends[0]; b.Address != "["+own+"]:8080" {
		t.Errorf("the edge was sent to %s", b.Address)
	}

	junk := make([][]byte, 300)
	for i := range junk {
		junk[i] = []byte(`{"type":"` + strings.Repeat("<", 1500) + `"}`)
	}
	say(&internalpb.Observation{State: "started", PrivateIp: own, Events: junk, Error: strings.Repeat("x", 4<<20)})
	var got *controller.Machine
	for deadline := time.Now().Add(40 * time.Second); got == nil || len(got.Events) == 0; {
		if got = e.machine("web", m.ID); time.Now().After(deadline) {
			t.Fatal("the report was not taken")
		}
	}
	if len(got.Events) > 50 {
		t.Errorf("%d events are kept", len(got.Events))
	}
	// Its end is noted however much it says about it: the worker may forget it.
	say(&internalpb.Observation{State: "destroyed", Events: junk, Error: strings.Repeat("x", 4<<20)})
	for {
		msg, err := s.Recv()
		if err != nil {
			t.Fatalf("the sync ended: %v", err)
		}
		if msg.GetForget().GetMachineId() == m.ID {
			break
		}
	}
}

// TestLargeConfigs: a config that is kept as more bytes than were sent counts with
// those, and one that is just accepted can be destroyed, with all its events.
func TestLargeConfigs(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	conf := func(n int) config {
		return config{"image": "docker.example/app", "env": config{"A": strings.Repeat("<", n)}}
	}
	e.refused(400, "at most 640 are kept", "POST", "/v1/apps/web/machines", config{"config": conf(120 << 10)}) // six times that in JSON
	m := e.launch("web", conf(100<<10))
	// As many and as large events as are kept.
	e.worker.mu.Lock()
	for range 50 {
		b := []byte(`{"type":"` + strings.Repeat("<", 4000) + `"}`)
		o := e.worker.machines[key.MachineID(m.ID)].obs
		o.Events = append(o.Events, b)
	}
	e.worker.mu.Unlock()
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/restart", nil, nil)
	await.True(e.t, "the events are known", func() bool { return len(e.machine("web", m.ID).Events) == 50 })
	e.want(200, "DELETE", "/v1/apps/web/machines/"+m.ID+"?force=true", nil, nil)
	e.wait("web", m.ID, "destroyed")
}
