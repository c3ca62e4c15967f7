package controller_test

import (
	"strings"
	"testing"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/role"
)

// snapshot opens a sync as a worker that has lost its journal, and returns all parts of
// the snapshot in one, and how many there were.
func snapshot(t *testing.T, e *env) (all *internalpb.Snapshot, parts int) {
	t.Helper()
	s, err := internalpb.NewControllerClient(e.dial(role.Worker, node)).Sync(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	h := &internalpb.Hello{Node: string(node), Capacity: &internalpb.Capacity{Cpus: 4, MemoryMb: 1 << 20}, Rebuilding: true}
	if err := s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: h}}); err != nil {
		t.Fatal(err)
	}
	all = &internalpb.Snapshot{}
	for {
		m, err := s.Recv()
		if err != nil || m.GetSnapshot() == nil {
			t.Fatalf("in place of a part of the snapshot came %v, %v", m, err)
		}
		parts++
		all.Assignments = append(all.Assignments, m.GetSnapshot().Assignments...)
		all.Observed = append(all.Observed, m.GetSnapshot().Observed...)
		if !m.GetSnapshot().More {
			return all, parts
		}
	}
}

// TestWorkerThatLostItsJournal is told all that is assigned to it, in as many messages
// as it takes, and what was last seen of it; and what was seen holds until it says
// something else.
func TestWorkerThatLostItsJournal(t *testing.T) {
	const largest = 512 << 10 // bytes of an assignment
	if controller.MaxSnapshot()+largest > rpc.MaxMessage {
		t.Errorf("a part of %d bytes does not fit into a message of %d", controller.MaxSnapshot(), rpc.MaxMessage)
	}
	controller.SmallSnapshots(t, 100<<10)
	e := newEnv(t)
	big := image()
	big["env"] = config{"BIG": strings.Repeat("x", 20<<10)}
	first, ids := "web", []string(nil)
	e.app(first)
	for range 8 { // 160 KiB
		ids = append(ids, e.launch(first, big).ID)
	}
	before := e.machine(first, ids[0])
	e.stopWorker()
	e.waitNode(false)
	all, parts := snapshot(t, e)
	if len(all.Assignments) != len(ids) || len(all.Observed) != len(ids) || parts != 2 {
		t.Fatalf("%d assignments and %d observations in %d parts, want %d in 2", len(all.Assignments), len(all.Observed), parts, len(ids))
	}
	for i, a := range all.Assignments {
		o := all.Observed[i]
		if o.MachineId != a.MachineId || o.State != "started" || o.InstanceId != a.InstanceId || o.Generation != a.Generation || o.Seq == 0 || o.PrivateIp == "" || len(o.Events) == 0 {
			t.Errorf("observed: %v", o)
		}
	}
	if now := e.machine(first, ids[0]); now.State != "started" || now.PrivateIP != before.PrivateIP || len(now.Events) != len(before.Events) {
		t.Errorf("while the worker's journal is made anew the machine is %s at %s, with %d events; it was %s at %s, with %d",
			now.State, now.PrivateIP, len(now.Events), before.State, before.PrivateIP, len(before.Events))
	}
	// A controller that has been restarted remembers nothing, and says so.
	e.stop()
	e.startController()
	if all, _ := snapshot(t, e); len(all.Assignments) != len(ids) || len(all.Observed) != 0 {
		t.Errorf("after a restart: %d assignments, %d observations", len(all.Assignments), len(all.Observed))
	}
}

// TestRemovedNodeWithoutAJournal: a node that cannot say what it holds is not taken
// back: it may run Machines that others run by now.
func TestRemovedNodeWithoutAJournal(t *testing.T) {
	e := newEnv(t)
	n := e.secondNode()
	n.unplug()
	e.waitNodeState(node2, "unreachable")
	e.want(200, "DELETE", "/v1/platform/nodes/n2", nil, nil)
	e.want(200, "POST", "/v1/platform/nodes/n2/readmit", nil, nil)
	c := internalpb.NewControllerClient(e.dial(role.Worker, node2))
	for _, rebuilding := range []bool{true, false} {
		s, err := c.Sync(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: &internalpb.Hello{Node: string(node2), Rebuilding: rebuilding}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); fault.Is(err, fault.Denied) != rebuilding {
			t.Errorf("rebuilding %v: %v", rebuilding, err)
		}
	}
}
