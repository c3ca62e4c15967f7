package warden

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/api/local"
	"bulkhead/api/local/localtest"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/role"
	"bulkhead/warden/client"
)

// TestCaller makes every call of the warden as every kind of caller that the kernel can tell
// apart, over a socket that all may open: the worker's are let through, all others are
// refused, root's among them. Control: with a row that lets root through too, that cell is
// found.
func TestCaller(t *testing.T) {
	w := newWorld(t).start()
	users := local.Users{role.Worker: workerUID, role.Controller: workerUID + 1, role.Edge: workerUID + 2}
	peers := localtest.Peers(t, users, 4300)
	try := func(call string, p localtest.Peer) (bool, error) {
		err := callWarden(w, p, client.Request{Op: client.Op(call), Machine: key.NewMachineID()})
		if fault.Is(err, fault.Denied) && strings.Contains(err.Error(), "may not") {
			return false, nil
		}
		var broken error
		if fault.Is(err, fault.Internal) {
			broken = err
		}
		return true, broken
	}
	if r := localtest.Walk(t, role.SocketWarden, peers, try); len(r.Faults) != 0 {
		t.Errorf("%s", strings.Join(r.Faults, "\n"))
	}
	var rows []client.Op
	for _, r := range local.Policy {
		if r.Socket == role.SocketWarden {
			rows = append(rows, client.Op(r.Call))
		}
	}
	if !slices.Equal(rows, client.Ops) {
		t.Errorf("the warden has the operations %q, and the table %q", client.Ops, rows)
	}
	// A call that there is not is none of the worker's either.
	if err := callWarden(w, localtest.Peer{UID: workerUID, Groups: []uint32{workerUID}}, client.Request{Op: "shell"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("an operation that is none: %v", err)
	}
	w.stop()
	localtest.WithRow(t, role.SocketWarden, "list", local.Root, func() {
		w.start()
		r := localtest.Walk(t, role.SocketWarden, peers, try)
		if len(r.Faults) != 1 || !strings.Contains(r.Faults[0], "warden list as root") {
			t.Errorf("control: a row that lets root list: %q", r.Faults)
		}
		w.stop()
	})
}

// callWarden makes one call as a peer and returns the answer's error.
func callWarden(w *world, p localtest.Peer, req client.Request) error {
	c, err := p.Dial(w.socket.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	// Who is refused may be so before it has asked.
	sent := client.Send(c, req)
	var resp client.Response
	files, err := client.Receive(c, &resp)
	closeFiles(files)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "no answer; sent: %v", sent)
	}
	return resp.Error.Err()
}
