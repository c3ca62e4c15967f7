// Command bulkhead-warden is the privileged side of a worker; see package warden.
// bulkheadd starts it.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"bulkhead/fault"
	"bulkhead/role"
	"bulkhead/warden"
)

func main() {
	if err := dropCapabilities(); err != nil {
		fmt.Fprintf(os.Stderr, "bulkhead-warden: %v\n", err)
		os.Exit(1)
	}
	role.Main(role.Warden, run)
}

// openTimeout bounds the taking up of Machines and the undoing of half-made ones.
const openTimeout = 5 * time.Minute

func run(ctx context.Context, env *role.Env) error {
	l := env.Listeners[role.SocketWarden]
	if l == nil {
		return fault.New(fault.Invalid, "the %q socket was not handed over", role.SocketWarden)
	}
	config, err := warden.FromRole(env.Config, env.Log)
	if err != nil {
		return err
	}
	s := warden.New(config)
	defer s.Close()
	octx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := s.Open(octx); err != nil {
		return err
	}
	if err := env.Ready(); err != nil {
		return err
	}
	return s.Serve(ctx, l)
}
