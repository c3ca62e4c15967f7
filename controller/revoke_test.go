package controller_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/pki"
	"bulkhead/role"
)

// revokedWithin is the promise: a revocation is in force on open streams within a second.
const revokedWithin = time.Second

// TestRevocationCutsOpenStreams removes a node while its worker and its edge hold streams
// open to the controller, and its edge a connection to a role of another node: all are cut
// within a second, also where the controller is not, and stay refused.
func TestRevocationCutsOpenStreams(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	n := e.secondNode()
	ctx := bounded(t)

	// Another node's role, which a removed edge could talk to without the controller.
	host := e.identity(role.Worker, "n3")
	peer := filepath.Join(e.dir, "worker3")
	l, err := net.Listen("unix", peer)
	if err != nil {
		t.Fatal(err)
	}
	newFakeWorker("n3").serve(t, host, l)
	following, stop := context.WithCancel(ctx)
	defer stop()
	go rpc.FollowRevoked(following, host, e.dial(role.Worker, "n3"), slog.New(slog.DiscardHandler))

	thief := e.identity(role.Edge, node2)
	toPeer, err := rpc.Dial(thief, peer, role.Worker, "n3")
	if err != nil {
		t.Fatal(err)
	}
	defer toPeer.Close()
	toController, err := rpc.Dial(thief, e.socks[role.SocketInternal], role.Controller, node)
	if err != nil {
		t.Fatal(err)
	}
	defer toController.Close()

	cut := map[string]chan error{}
	watch := func(name string, conn grpc.ClientConnInterface, method string, first, into any) {
		t.Helper()
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
		if err == nil {
			err = errors.Join(s.SendMsg(first), s.CloseSend())
		}
		if err == nil {
			err = s.RecvMsg(into) // it is open
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		end := make(chan error, 1)
		cut[name] = end
		go func() {
			for {
				if err := s.RecvMsg(into); err != nil {
					end <- err
					return
				}
			}
		}()
	}
	watch("its edge's routes", toController, internalpb.Controller_WatchRoutes_FullMethodName, &internalpb.WatchRoutesRequest{}, &internalpb.RouteUpdate{})
	watch("what is revoked", toController, internalpb.Membership_WatchRevoked_FullMethodName, &internalpb.WatchRevokedRequest{}, &internalpb.Revoked{})

	// A connection to the peer that stays open between calls.
	idle := internalpb.NewWorkerClient(toPeer)
	if _, err := idle.Wake(ctx, &internalpb.WakeRequest{}); fault.Is(err, fault.Denied) {
		t.Fatalf("control: before it is removed the edge is let through: %v", err)
	}

	began := time.Now()
	e.want(200, "DELETE", "/v1/platform/nodes/n2?force=true", nil, nil)
	limit := time.After(revokedWithin - time.Since(began))
	for name, end := range cut {
		select {
		case err := <-end:
			if err == nil {
				t.Errorf("%s ended well", name)
			}
		case <-limit:
			t.Fatalf("%s is open %v after the removal", name, time.Since(began))
		}
	}
	refused := func() bool { n.w.mu.Lock(); defer n.w.mu.Unlock(); return n.w.refused > 0 } // its Sync is over
	await.True(t, "another node's worker has heard of it, and its own Sync is over", func() bool { return host.Revoked(thief.ID()) && refused() })
	if took := time.Since(began); took > revokedWithin {
		t.Errorf("another node's worker heard of it after %v", took)
	}
	t.Logf("%d streams cut and another node told within %v", len(cut)+1, time.Since(began))

	// What is tried again is refused, by the controller and by the other node.
	if _, err := idle.Wake(ctx, &internalpb.WakeRequest{}); !refusedForGood(err) {
		t.Errorf("the other node's worker: %v", err)
	}
	s, err := internalpb.NewControllerClient(toController).WatchRoutes(ctx, &internalpb.WatchRoutesRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	if !refusedForGood(err) {
		t.Errorf("the controller: %v", err)
	}
	// And a removed worker is not called either.
	gone, err := rpc.Dial(e.identity(role.Edge, "n3"), n.socket, role.Worker, node2)
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	id := e.identity(role.Edge, "n3")
	id.SetRevoked([]pki.Revocation{{Node: node2}})
	removed, err := rpc.Dial(id, n.socket, role.Worker, node2)
	if err != nil {
		t.Fatal(err)
	}
	defer removed.Close()
	short, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	if _, err := internalpb.NewWorkerClient(removed).Wake(short, &internalpb.WakeRequest{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a removed worker is called: %v", err)
	}
	// The other way round the controller's own node is not touched.
	own, err := internalpb.NewControllerClient(e.dial(role.Edge, node)).WatchRoutes(ctx, &internalpb.WatchRoutesRequest{})
	if err == nil {
		_, err = own.Recv()
	}
	if err != nil {
		t.Errorf("the controller's own edge: %v", err)
	}
}

func refusedForGood(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Kind == fault.Denied && f.Status == rpc.NodeRemoved
}
