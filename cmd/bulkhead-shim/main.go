// Command bulkhead-shim is the small process that stays with a Machine: parent of
// its sandbox, keeper of its output pipes, writer of its exit status.
//
// The warden clones it into namespaces of the Machine's own, the user namespace among
// them, so its root is an unprivileged user of the host. It gives itself a file system
// in which there is what it starts a sandbox from (root.go), starts the sandbox, and
// then drops what privileges it had in there. It depends on nothing but the
// descriptors that it inherits (see package warden/wire): the warden and the worker
// may die and come back, it goes on until the sandbox has ended. It links as little
// as it can, since every Machine pays for one.
//
//	bulkhead-shim run CONFIG...     the shim proper
//	bulkhead-shim umount DIR        unmounts DIR when a byte comes out of descriptor 3: a sandbox's helper
//	bulkhead-shim enter N CMD...    joins the cgroups behind descriptors 4 to 4+N-1, then becomes CMD
package main

import (
	"fmt"
	"os"

	"bulkhead/warden/wire"
)

func main() {
	var err error
	if len(os.Args) == 3 && os.Args[1] == "umount" {
		err = umount(os.Args[2])
	} else if len(os.Args) > 3 && os.Args[1] == "enter" {
		err = enter(os.Args[2], os.Args[3:])
	} else {
		var c wire.ShimConfig
		if c, err = wire.ParseShimConfig(os.Args[min(2, len(os.Args)):]); err == nil {
			err = run(c)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bulkhead-shim: %v\n", err)
		os.Exit(1)
	}
}
