package edge

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/fault"
	"bulkhead/pki"
	"bulkhead/role"
)

// Run is the edge role: it serves from what is on its disk at once, and joins the
// controller as soon as that answers.
func Run(ctx context.Context, env *role.Env) error {
	c := &env.Config
	plain, secure := env.Listeners[role.SocketHTTP], env.Listeners[role.SocketHTTPS]
	if plain == nil || secure == nil {
		return fault.New(fault.Invalid, "the edge needs the sockets %q and %q", role.SocketHTTP, role.SocketHTTPS)
	}
	s := New()
	s.Domain, s.Region, s.DataDir, s.Log = c.Domain, c.Region, c.DataDir, env.Log
	s.APISocket = c.Sockets[role.SocketAPI]
	var err error
	if s.HTTPPort, err = portOf(c.HTTPAddr); err != nil {
		return err
	}
	s.Limits.IdleAfter = c.IdleAfter
	if s.HTTPSPort, err = portOf(c.HTTPSAddr); err != nil {
		return err
	}
	if err := s.Open(); err != nil {
		return err
	}
	defer s.Close()
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := s.join(run, env); err != nil && !errors.Is(err, context.Canceled) {
			env.Log.Error("the edge goes on without the controller", "err", err)
		}
	})
	if err := env.Ready(); err != nil {
		return err
	}
	return s.Serve(ctx, plain, secure)
}

// join gets an identity, serves telemetry under it, and follows the controller.
func (s *Server) join(ctx context.Context, env *role.Env) error {
	c := &env.Config
	id, err := pki.OpenIdentity(ctx, filepath.Join(c.DataDir, "identity.pem"), pki.Enroller(c.Sockets[role.SocketEnroll]), env.Log)
	if err != nil {
		return err
	}
	defer id.Close()
	if l := env.Listeners[role.SocketEdge]; l != nil {
		g := rpc.NewServer(id, env.Log, nil)
		internalpb.RegisterTelemetryServer(g, &Telemetry{Server: s})
		internalpb.RegisterEdgeServer(g, newTrier(s.table))
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := g.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				env.Log.Error("telemetry is not served", "err", err)
			}
		})
		defer wg.Wait()
		defer g.Stop()
	}
	worker, err := rpc.Dial(id, c.Sockets[role.SocketWorker], role.Worker, c.Node)
	if err != nil {
		return err
	}
	defer worker.Close()
	s.WakeWith(internalpb.NewWorkerClient(worker))
	conn, err := rpc.Dial(id, c.Sockets[role.SocketInternal], role.Controller, "")
	if err != nil {
		return err
	}
	defer conn.Close()
	var following sync.WaitGroup
	defer following.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	following.Go(func() { rpc.FollowRevoked(ctx, id, conn, env.Log) })
	return s.Follow(ctx, internalpb.NewControllerClient(conn))
}

// portOf returns the port of a host:port.
func portOf(addr string) (string, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fault.New(fault.Invalid, "address %q is not host:port: %w", addr, err)
	}
	return port, nil
}
