// Bulkhead-controller is the controller's program: bulkheadd starts it with one
// argument, its configuration (see package role). Everything it does is in package
// controller.
package main

import (
	"context"
	"errors"

	"bulkhead/controller"
	"bulkhead/role"
)

func main() { role.Main(role.Controller, run) }

func run(ctx context.Context, env *role.Env) error {
	conf := controller.Config{Role: env.Config, Log: env.Log}
	if f := env.Files[role.FileClusterKey]; f != nil {
		conf.ClusterKey = f
	}
	c := controller.New(conf)
	if err := c.Open(ctx); err != nil {
		return err
	}
	return errors.Join(c.Serve(ctx, env.Listeners, env.Ready), c.Close())
}
