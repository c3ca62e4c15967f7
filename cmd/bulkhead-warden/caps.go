package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// capabilities are all that the warden keeps. Over the user namespaces that it makes
// it needs none: it owns them.
var capabilities = []int{
	unix.CAP_CHOWN,        // give a Machine's state directory to its user
	unix.CAP_DAC_OVERRIDE, // remove what the Machine's user made in it
	unix.CAP_FOWNER,       // set its mode; link images, which belong to the worker
	unix.CAP_SETGID,       // write the Machine's group map
	unix.CAP_SETUID,       // write the Machine's user map
	unix.CAP_NET_ADMIN,    // links, routes and packet rules of the router and the uplink
	unix.CAP_SYS_ADMIN,    // make and enter the router namespace, and mount it
}

// dropCapabilities takes every other capability out of the bounding set and starts
// the program again: a program of root's that is executed has what its bounding set
// allows, in all its threads. The second time there is nothing left to drop.
func dropCapabilities() error {
	keep := map[int]bool{}
	for _, c := range capabilities {
		keep[c] = true
	}
	runtime.LockOSThread() // bounding sets belong to threads
	dropped := false
	for c := 0; ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err == unix.EINVAL {
			break // past the last one that the kernel knows
		}
		if err != nil {
			return fmt.Errorf("read capabilities: %w", err)
		}
		if keep[c] && has == 0 {
			return fmt.Errorf("capability %d is missing; bulkheadd must run as root with all capabilities of the host", c)
		}
		if keep[c] || has == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
		dropped = true
	}
	if !dropped {
		runtime.UnlockOSThread()
		return nil
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}
