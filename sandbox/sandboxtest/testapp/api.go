package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"bulkhead/sandbox"
)

// attackAPI tries to take the API's socket away or to abuse it. The error is nil when
// nothing succeeded.
func attackAPI() error {
	var bad []error
	dir := filepath.Dir(sandbox.APISocket)
	refused := func(what string, err error) {
		if err == nil {
			bad = append(bad, errors.New(what+" succeeded"))
		}
	}
	refused("removing it", os.Remove(sandbox.APISocket))
	refused("renaming it", os.Rename(sandbox.APISocket, dir+"/other"))
	refused("a link to it", os.Link(sandbox.APISocket, dir+"/other"))
	refused("removing its directory", os.Remove(dir))
	refused("renaming its directory", os.Rename(dir, "/other"))
	refused("a file beside it", os.WriteFile(dir+"/other", nil, 0o600))
	refused("opening it as a file", func() error { f, err := os.Open(sandbox.APISocket); f.Close(); return err }())
	refused("mounting over it", syscall.Mount("x", dir, "tmpfs", 0, ""))
	refused("unmounting it", syscall.Unmount(dir, 0))
	refused("mounting it writable", syscall.Mount("", dir, "", syscall.MS_REMOUNT, ""))
	refused("listening in its place", func() error { _, err := net.Listen("unix", sandbox.APISocket); return err }())
	for _, kind := range []string{"unixgram", "unixpacket"} {
		refused(kind, func() error { _, err := net.Dial(kind, sandbox.APISocket); return err }())
	}
	refused("sending a file through it", func() error {
		c, err := net.Dial("unix", sandbox.APISocket)
		if err != nil {
			bad = append(bad, err)
			return err
		}
		defer c.Close()
		_, _, err = c.(*net.UnixConn).WriteMsgUnix([]byte("x"), syscall.UnixRights(0), nil)
		return err
	}())
	// All of this left it as it was.
	if st, err := os.Stat(sandbox.APISocket); err != nil || st.Mode() != os.ModeSocket|0o666 {
		bad = append(bad, fmt.Errorf("it is now %v, %v", st, err))
	}
	return errors.Join(bad...)
}
