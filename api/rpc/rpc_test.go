package rpc_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
	"bulkhead/role"
)

// probe answers every call by naming its caller, or with the error it was told.
type probe struct {
	internalpb.UnimplementedControllerServer
	internalpb.UnimplementedWorkerServer
	internalpb.UnimplementedMembershipServer
	internalpb.UnimplementedTelemetryServer
	internalpb.UnimplementedEdgeServer
	err error
}

func (p *probe) Metrics(ctx context.Context, _ *internalpb.MetricsRequest) (*internalpb.MetricsResponse, error) {
	id, err := rpc.Peer(ctx)
	if err != nil {
		return nil, err
	}
	return &internalpb.MetricsResponse{Text: []byte(id.String())}, p.err
}

func (p *probe) WatchRoutes(_ *internalpb.WatchRoutesRequest, s grpc.ServerStreamingServer[internalpb.RouteUpdate]) error {
	return p.err
}

func serve(t *testing.T, ca *pki.CA, p *probe) (socket string) {
	t.Helper()
	srv := rpc.NewServer(pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: role.Controller, Node: "n1"}), slog.New(slog.DiscardHandler), nil)
	internalpb.RegisterControllerServer(srv, p)
	internalpb.RegisterWorkerServer(srv, p)
	internalpb.RegisterMembershipServer(srv, p)
	internalpb.RegisterTelemetryServer(srv, p)
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return socket
}

func dial(t *testing.T, ca *pki.CA, as string, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial(pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: as, Node: "n1"}), socket, role.Controller, "n1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestErrorsKeepTheirKind(t *testing.T) {
	ca := pkitest.CA(t, "c-1", "x.localhost")
	p := &probe{}
	socket := serve(t, ca, p)
	asController := internalpb.NewTelemetryClient(dial(t, ca, role.Controller, socket))
	asEdge := internalpb.NewControllerClient(dial(t, ca, role.Edge, socket))
	for _, k := range []fault.Kind{fault.Invalid, fault.NotFound, fault.Conflict, fault.Precondition, fault.Unprocessable, fault.Unavailable, fault.Timeout} {
		p.err = fault.New(k, "what was wrong").WithStatus("a_word")
		_, err := asController.Metrics(context.Background(), &internalpb.MetricsRequest{})
		if fault.KindOf(err) != k || fault.MessageOf(err) != "what was wrong" {
			t.Errorf("unary %s came back as %s: %v", k, fault.KindOf(err), err)
		}
		s, err := asEdge.WatchRoutes(context.Background(), &internalpb.WatchRoutesRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		if fault.KindOf(err) != k {
			t.Errorf("stream %s came back as %s: %v", k, fault.KindOf(err), err)
		}
	}
	p.err = io.ErrUnexpectedEOF
	if _, err := asController.Metrics(context.Background(), &internalpb.MetricsRequest{}); fault.KindOf(err) != fault.Internal || strings.Contains(err.Error(), "EOF") {
		t.Errorf("an inner error's text left the server: %v", err)
	}
}

// TestOnlyFaultsAreLogged: a stream that its caller ends is no error of ours.
func TestOnlyFaultsAreLogged(t *testing.T) {
	ca := pkitest.CA(t, "c-1", "x.localhost")
	for _, tc := range []struct {
		err    error
		logged bool
	}{{context.Canceled, false}, {context.DeadlineExceeded, false}, {fault.New(fault.NotFound, "no"), false}, {io.ErrUnexpectedEOF, true}} {
		var log strings.Builder
		srv := rpc.NewServer(pkitest.Identity(t, ca, pki.ID{Cluster: "c-1", Role: role.Controller, Node: "n1"}), slog.New(slog.NewTextHandler(&log, nil)), nil)
		internalpb.RegisterTelemetryServer(srv, &probe{err: tc.err})
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go srv.Serve(l)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if _, err := internalpb.NewTelemetryClient(dial(t, ca, role.Controller, socket)).Metrics(ctx, &internalpb.MetricsRequest{}); err == nil {
			t.Errorf("%v did not come back", tc.err)
		}
		cancel()
		srv.GracefulStop()
		if got := log.Len() > 0; got != tc.logged {
			t.Errorf("%v: logged is %v: %s", tc.err, got, &log)
		}
	}
}
