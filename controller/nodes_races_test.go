package controller_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/role"
	"bulkhead/store"
)

// TestANodeTakenBackMeanwhileKeepsItsMachines takes a node back while the collector is
// at the end of its removal.
func TestANodeTakenBackMeanwhileKeepsItsMachines(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.stop()
	var armed atomic.Bool
	e.opened = func(c *controller.Controller) {
		c.OnList(func(s store.Store, prefix string) {
			if prefix == "/node/n2/" && armed.CompareAndSwap(true, false) {
				if _, err := s.Txn(context.Background(), nil, []store.Op{store.Delete("/removed/n2")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	e.startController()
	e.startWorker()
	e.secondNode()
	e.app("web")
	m := e.launch("web", image())
	if err := e.ctl.RefuseNode(context.Background(), node2); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	if err := e.ctl.CollectOnce(context.Background(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if armed.Load() {
		t.Fatal("the removal was not looked at")
	}
	e.waitNodeState(node2, "connected")
	if st := e.machine("web", m.ID).State; st != "started" {
		t.Errorf("the machine of a node that was taken back is %s", st)
	}
}

// TestReadmissionFinishesTheRemoval readmits a node whose removal was cut off: what it
// gave up does not run again.
func TestReadmissionFinishesTheRemoval(t *testing.T) {
	e := newEnv(t)
	n := e.secondNode()
	e.app("web")
	m := e.launch("web", image())
	n.unplug()
	e.waitNodeState(node2, "unreachable")
	if err := e.ctl.RefuseNode(context.Background(), node2); err != nil {
		t.Fatal(err)
	}
	e.want(200, "POST", "/v1/platform/nodes/n2/readmit", nil, nil)
	n.connect()
	e.waitNodeState(node2, "connected")
	if st := e.machine("web", m.ID).State; st != "destroyed" {
		t.Errorf("the machine is %s", st)
	}
}

// TestANodeThatDoesNotReadIsRemoved: a worker that keeps its connection and reads
// nothing of it holds nobody up.
func TestANodeThatDoesNotReadIsRemoved(t *testing.T) {
	e := newEnv(t)
	n := e.secondNode()
	e.app("web")
	conf := image()
	conf["env"] = config{"BIG": strings.Repeat("x", 30<<10)}
	var m *controller.Machine
	for range 20 {
		m = e.create("web", config{"config": conf})
	}
	n.unplug()
	e.waitNodeState(node2, "unreachable")
	stream, err := internalpb.NewControllerClient(e.dial(role.Worker, node2)).Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: &internalpb.Hello{Node: string(node2), Capacity: &internalpb.Capacity{Cpus: 1, MemoryMb: 1}}}}); err != nil {
		t.Fatal(err)
	}
	e.waitNodeState(node2, "connected")
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/cordon", nil, nil) // the snapshot fills the pipe, and this waits
	began := time.Now()
	var out controller.NodeRemoval
	e.want(200, "DELETE", "/v1/platform/nodes/n2?force=true", nil, &out)
	if took := time.Since(began); len(out.Destroyed) != 20 || took > 30*time.Second {
		t.Errorf("%d machines were given up in %v", len(out.Destroyed), took)
	}
}

// TestAWorkerIsHeardWithoutRoom: that it cannot be noted that a node is there ends no
// session.
func TestAWorkerIsHeardWithoutRoom(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.stop()
	e.opened = func(c *controller.Controller) {
		c.AfterTxn(func(ops []store.Op, err error) error {
			if strings.HasPrefix(ops[0].Key, "/host/") {
				return fault.New(fault.Full, "there is too little room")
			}
			return err
		})
	}
	e.startController()
	e.startWorker()
	e.app("web")
	e.launch("web", image())
	if n := strings.Count(e.logs.String(), `"worker connected"`); n != 1 {
		t.Errorf("the worker connected %d times", n)
	}
}

// TestADestructionThatFailedIsAskedForAgain: the worker hears of it, and tries at once.
func TestADestructionThatFailedIsAskedForAgain(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.AckLimit = 100 * time.Millisecond })
	e.startWorker()
	e.app("web")
	m := e.launch("web", image())
	path := "/v1/apps/web/machines/" + m.ID + "?force=true"
	w := e.worker
	w.mu.Lock()
	w.deaf = true
	w.mu.Unlock()
	e.want(200, "DELETE", path, nil, nil)
	w.mu.Lock()
	fm := w.machines[key.MachineID(m.ID)]
	fm.obs.Error = "the sandbox cannot be removed"
	w.step(fm, machine.InDestroy, "destroy")
	w.step(fm, machine.InTimeout, "destroy")
	state := fm.state
	w.deaf = false
	w.mu.Unlock()
	if state != machine.Failed {
		t.Fatalf("the machine is %s", state)
	}
	await.True(e.t, "the failure is heard of", func() bool {
		ev := e.machine("web", m.ID).Events
		return len(ev) > 0 && ev[0].Status == string(machine.Failed)
	})
	e.want(200, "DELETE", path, nil, nil)
	e.wait("web", m.ID, "destroyed")
}

// TestAStopThatTheWorkerHasNotHeardOf: a request that comes then waits and is answered,
// as later while the Machine goes down.
func TestAStopThatTheWorkerHasNotHeardOf(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.AckLimit = 100 * time.Millisecond })
	e.startWorker()
	us := watchRoutes(t, e)
	e.app("web")
	conf := web()
	conf["services"].([]config)[0]["autostart"] = true
	m := e.launch("web", conf)
	until(t, us, backends(1))
	e.worker.mu.Lock()
	e.worker.deaf = true
	e.worker.mu.Unlock()
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/stop", nil, nil)
	u := until(t, us, func(u *internalpb.RouteUpdate) bool {
		return u.RemovedApp != "" || u.Route.GetApp() == "web" && !(backends(1)(u) && !u.Route.Services[0].Backends[0].Asleep)
	})
	if !backends(1)(u) || !u.Route.Services[0].Backends[0].Asleep {
		t.Errorf("the route is %v", u)
	}
}
