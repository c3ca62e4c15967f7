// Bulkhead-edge is the edge's program: bulkheadd starts it with one argument, its
// configuration (see package role). Everything it does is in package edge; here it
// gives up what it does not need and sizes its memory.
package main

import (
	"context"
	"fmt"
	"os"

	"bulkhead/edge"
	"bulkhead/role"
)

func main() {
	if err := dropPrivileges(); err != nil {
		fmt.Fprintf(os.Stderr, "bulkhead-edge: %v\n", err)
		os.Exit(2)
	}
	sizeMemory()
	role.Main(role.Edge, run)
}

func run(ctx context.Context, env *role.Env) error {
	if err := confine(env.Config.DataDir); err != nil {
		return err
	}
	return edge.Run(ctx, env)
}
