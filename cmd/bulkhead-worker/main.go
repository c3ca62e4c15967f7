// Bulkhead-worker is the worker's program: bulkheadd starts it with one argument,
// its configuration (see package role). Everything it does is in package worker.
package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/image"
	"bulkhead/pki"
	"bulkhead/privnet"
	"bulkhead/role"
	"bulkhead/warden/client"
	"bulkhead/worker"
)

// readyAfter is how long the worker waits for the controller before it says that it
// is ready all the same: Machines do not need the controller.
const readyAfter = 10 * time.Second

func main() { role.Main(role.Worker, run) }

func run(parent context.Context, env *role.Env) (err error) {
	c := env.Config
	listener := env.Listeners[role.SocketWorker]
	if listener == nil {
		return fmt.Errorf("the socket %q was not handed over; bulkheadd starts this program", role.SocketWorker)
	}
	store := image.New(c.ImageDir, filepath.Join(c.LibDir, "bulkhead-unpack"), env.Log)
	if err := store.Open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	// The worker takes up its Machines before it has an identity: with the controller
	// down they are watched and restarted all the same.
	conn := &lateConn{}
	controller := internalpb.NewControllerClient(conn)
	warden := client.New(c.Sockets[role.SocketWarden])
	w := worker.New(worker.Options{
		Dir: c.DataDir, Node: c.Node, Host: c.Host, Log: env.Log,
		Runtime: warden, Warden: warden.Metrics, API: controller,
		Secrets: controller, Cluster: c.Cluster, SecretDir: c.SecretDir, Nameservers: c.Nameservers,
		Images: worker.NewImages(store, image.NewRemote(privnet.Guard{Denied: c.DeniedRanges}), controller),
	})
	if err := w.Open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()

	g, ctx := errgroup.WithContext(parent)
	g.Go(func() error {
		select {
		case <-w.Connected():
		case <-time.After(readyAfter):
			env.Log.Warn("the controller is not there; machines are run without it")
		case <-ctx.Done():
			return nil
		}
		return env.Ready()
	})
	g.Go(func() error {
		id, err := pki.OpenIdentity(ctx, filepath.Join(c.DataDir, "identity.pem"), pki.Enroller(c.Sockets[role.SocketEnroll]), env.Log)
		if err != nil {
			return err
		}
		defer id.Close()
		cc, err := rpc.Dial(id, c.Sockets[role.SocketInternal], role.Controller, "")
		if err != nil {
			return err
		}
		defer cc.Close()
		conn.set(cc)
		server := rpc.NewServer(id, env.Log, nil)
		w.Register(server)
		stop := context.AfterFunc(ctx, server.Stop)
		defer stop()
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return server.Serve(listener) })
		g.Go(func() error { w.Sync(ctx, controller); return nil })
		g.Go(func() error { rpc.FollowRevoked(ctx, id, cc, env.Log); return nil })
		return g.Wait()
	})
	err = g.Wait()
	if parent.Err() != nil {
		return nil // asked to stop: what broke off then is no fault
	}
	return err
}
