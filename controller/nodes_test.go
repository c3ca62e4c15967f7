package controller_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/role"
)

const node2 = key.Node("n2")

// secondNode is a node beside the controller's own, with so much memory that new
// Machines go there.
type secondNode struct {
	e      *env
	w      *fakeWorker
	socket string
	unplug context.CancelFunc
}

func (e *env) secondNode() *secondNode {
	e.t.Helper()
	n := &secondNode{e: e, w: newFakeWorker(node2), socket: filepath.Join(e.dir, "worker2")}
	n.w.memory = 1 << 30
	l, err := net.Listen("unix", n.socket)
	if err != nil {
		e.t.Fatal(err)
	}
	n.w.serve(e.t, e.identity(role.Worker, node2), l)
	n.reach()
	n.connect()
	e.waitNodeState(node2, "connected")
	return n
}

func (n *secondNode) reach() {
	n.e.t.Helper()
	if err := n.e.ctl.Reach(role.Worker, node2, n.socket); err != nil {
		n.e.t.Fatal(err)
	}
}

func (n *secondNode) connect() {
	ctx, cancel := context.WithCancel(context.Background())
	n.unplug = cancel
	n.e.t.Cleanup(cancel)
	go n.w.sync(ctx, n.e.dial(role.Worker, node2))
}

// nodes lists the nodes as the API does.
func (e *env) nodes() map[key.Node]controller.Node {
	e.t.Helper()
	var out struct{ Nodes []controller.Node }
	e.get("/v1/platform/nodes", &out)
	by := map[key.Node]controller.Node{}
	for _, n := range out.Nodes {
		by[n.Name] = n
	}
	return by
}

func (e *env) waitNodeState(n key.Node, state string) {
	e.t.Helper()
	await.True(e.t, fmt.Sprintf("node %s is %s", n, state), func() bool { return e.nodes()[n].State == state })
}

// TestNodeThatIsGoneForGood loses a node with Machines: what it is is shown, it is
// removed, and everything that waited for it comes to its end.
func TestNodeThatIsGoneForGood(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.AckLimit = 100 * time.Millisecond })
	e.startWorker()
	e.app("home") // on the first node, to be left alone
	kept := e.launch("home", image())
	n := e.secondNode()
	us := watchRoutes(t, e)
	e.app("shop")
	e.app("old")
	conf := web()
	lost := e.create("shop", config{"config": conf, "name": "till"})
	e.wait("shop", lost.ID, "started")
	leaving := e.launch("old", image())
	until(t, us, backends(1))
	if got := e.nodes(); got[node2].Machines != 2 || got[node].Machines != 1 || got[node2].FirstSeen == "" || got[node2].LastSeen == "" {
		t.Fatalf("nodes: %+v", got)
	}
	e.refused(412, "node n2 is connected", "DELETE", "/v1/platform/nodes/n2", nil)
	e.refused(404, "not found", "DELETE", "/v1/platform/nodes/n3?force=true", nil)
	e.refused(412, "was not removed", "POST", "/v1/platform/nodes/n2/readmit", nil)

	n.unplug()
	e.waitNodeState(node2, "unreachable")
	if hs := e.machine("shop", lost.ID).HostStatus; hs != "unreachable" {
		t.Errorf("host_status is %q", hs)
	}
	e.refused(412, "node n2 has 2 machines ("+min(lost.ID, leaving.ID), "DELETE", "/v1/platform/nodes/n2", nil)
	e.want(202, "DELETE", "/v1/apps/old", nil, nil)
	var app controller.App
	e.get("/v1/apps/old", &app)
	if app.Status != "deleting" || !strings.Contains(app.StatusReason, leaving.ID) || !strings.Contains(app.StatusReason, "bulkhead node remove n2 --force") {
		t.Errorf("a deletion that waits for a lost node: %q, %q", app.Status, app.StatusReason)
	}

	var out controller.NodeRemoval
	e.want(200, "DELETE", "/v1/platform/nodes/n2?force=true", nil, &out)
	slices.Sort(out.Destroyed)
	want := []key.MachineID{key.MachineID(lost.ID), key.MachineID(leaving.ID)}
	slices.Sort(want)
	if !slices.Equal(out.Destroyed, want) {
		t.Errorf("given up: %v, want %v", out.Destroyed, want)
	}
	e.wait("shop", lost.ID, "destroyed")
	m := e.machine("shop", lost.ID)
	if m.State != "destroyed" || len(m.Events) == 0 || m.Events[0].Type != "node_removed" || !strings.Contains(m.Events[0].Request.Error, "node n2 was removed") {
		t.Errorf("the lost machine is %s, with events %+v", m.State, m.Events)
	}
	e.awaitNoApp("old")
	until(t, us, func(u *internalpb.RouteUpdate) bool { return backends(0)(u) || u.RemovedApp == "shop" })
	again := e.create("shop", config{"config": conf, "name": "till"}) // the name is free
	e.wait("shop", again.ID, "started")
	if e.machine("home", kept.ID).State != "started" {
		t.Error("a machine of another node was touched")
	}
	e.want(200, "DELETE", "/v1/platform/nodes/n2", nil, &out) // once more is no error
	if len(out.Destroyed) != 0 {
		t.Errorf("the second removal gave up %v", out.Destroyed)
	}

	// It stays so after a restart, and the node is refused in every call.
	e.stop()
	e.startController()
	await.True(e.t, "the first node is back", func() bool { return e.nodes()[node].State == "connected" })
	if got := e.nodes()[node2]; got.State != "removed" || got.RemovedAt == "" || got.RemovedBy != "admin" || got.LastSeen == "" {
		t.Errorf("the removed node: %+v", got)
	}
	refusedCalls(t, e)

	// Taken back, it comes in when it holds nothing of before, and not earlier.
	e.want(200, "POST", "/v1/platform/nodes/n2/readmit", nil, nil)
	if st := e.nodes()[node2].State; st != "readmitting" {
		t.Errorf("after readmit the node is %s", st)
	}
	n.reach()
	n.connect()
	e.waitNodeState(node2, "connected")
	n.w.mu.Lock()
	if n.w.refused != 1 || len(n.w.machines) != 0 {
		t.Errorf("refused %d times, and connected with %d machines", n.w.refused, len(n.w.machines))
	}
	n.w.mu.Unlock()
	e.wait("shop", e.create("shop", config{"config": image()}).ID, "started")
}

// refusedCalls makes every internal call as the roles of the removed node.
func refusedCalls(t *testing.T, e *env) {
	t.Helper()
	count := 0
	for method, roles := range rpc.Policy {
		if !strings.Contains(method, ".Controller/") {
			continue
		}
		for _, as := range roles {
			conn := e.dial(as, node2)
			s, err := conn.NewStream(bounded(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
			if err == nil {
				s.SendMsg(&internalpb.FromWorker{})
				s.CloseSend()
				err = s.RecvMsg(&internalpb.ToWorker{})
			}
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != fault.Denied || f.Status != rpc.NodeRemoved || !strings.Contains(f.Msg, "node n2 was removed") {
				t.Errorf("%s as %s of a removed node: %v", method, as, err)
			}
			count++
		}
	}
	if count < 5 {
		t.Errorf("only %d calls were tried", count)
	}
	t.Logf("%d calls refused", count)
}

// TestNodeIsRemovedWhileConnected: force does not wait for the node to be away.
func TestNodeIsRemovedWhileConnected(t *testing.T) {
	e := newEnv(t)
	e.secondNode()
	e.app("web")
	m := e.launch("web", image())
	e.want(200, "DELETE", "/v1/platform/nodes/n2?force=true", nil, nil)
	if got := e.nodes()[node2]; got.State != "removed" || got.Machines != 0 {
		t.Errorf("the node is %+v", got)
	}
	if st := e.machine("web", m.ID).State; st != "destroyed" {
		t.Errorf("its machine is %s", st)
	}
}

// TestRemovalOfANodeIsFinished kills the controller between the two halves of a removal.
func TestRemovalOfANodeIsFinished(t *testing.T) {
	e := newEnv(t)
	n := e.secondNode()
	e.app("web")
	m := e.launch("web", image())
	n.unplug()
	e.waitNodeState(node2, "unreachable")
	if err := e.ctl.RefuseNode(context.Background(), node2); err != nil {
		t.Fatal(err)
	}
	if st := e.machine("web", m.ID).State; st == "destroyed" {
		t.Fatal("the first half did the second's work")
	}
	e.stop()
	e.startController()
	await.True(e.t, "the machine is given up", func() bool { return e.machine("web", m.ID).State == "destroyed" })
}

// TestNoMachineComesToARemovedNode removes a node while a Machine that is to go there
// is being checked.
func TestNoMachineComesToARemovedNode(t *testing.T) {
	e := newEnv(t)
	n := e.secondNode()
	e.app("web")
	over := make(chan struct{}) // the check is cut off before the removal is over
	n.w.reserve = func() {
		defer close(over)
		e.want(200, "DELETE", "/v1/platform/nodes/n2?force=true", nil, nil)
	}
	a := e.do("POST", "/v1/apps/web/machines", config{"config": image()})
	if a.code != 503 {
		t.Errorf("a create on a node that is removed meanwhile: %d %s", a.code, a.body)
	}
	<-over
	keys, err := e.ctl.Keys(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if strings.HasPrefix(k, "/node/n2/") || strings.HasPrefix(k, "/machine/web/") {
			t.Errorf("%s is left", k)
		}
	}
	e.wait("web", e.create("web", config{"config": image()}).ID, string(machine.Started))
}
