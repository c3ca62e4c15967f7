package router

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
)

// nsfsMagic is the file system type of namespace files (linux/magic.h).
const nsfsMagic = 0x6e736673

// ensureNamespace opens the network namespace mounted at path, or makes one there.
func ensureNamespace(path string) (f *os.File, fresh bool, err error) {
	if f, err := openNamespace(path); err == nil {
		return f, false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, false, err
	}
	target, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return nil, false, err
	}
	target.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		mount := func() error { return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "") }
		if err := failpoint.Write("router/namespace", mount); err != nil {
			return fmt.Errorf("mount network namespace at %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	f, err = openNamespace(path)
	return f, true, err
}

// openNamespace opens path, which must be a mounted namespace.
func openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, err
	}
	if uint64(st.Type) != nsfsMagic {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace; \"bulkheadd up\" makes it", path)
	}
	return f, nil
}

// removeNamespace unmounts and removes what ensureNamespace made.
func removeNamespace(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// onThread runs f on an operating system thread of its own and brings the thread
// back to its network namespace. A thread that cannot come back is not used again.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread may be the process's first, which cannot end, and which is what
		// /proc/self shows: it must not stay away.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if herr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); herr != nil {
			done <- errors.Join(err, fmt.Errorf("leave network namespace: %w", herr))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Do runs f on a thread inside the network namespace ns. f must not start
// goroutines that depend on it.
func Do(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// StartIn starts cmd inside the network namespace mounted at path (see Path). The
// caller needs CAP_SYS_ADMIN.
func StartIn(path string, cmd *exec.Cmd) error {
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	// Not onThread: the child's Pdeathsig, if it has one, is bound to the thread that
	// starts it, so that thread must go on living.
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	err = cmd.Start()
	if rerr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); rerr != nil {
		// The thread cannot come home; it stays locked and dies with this goroutine.
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", path, rerr))
	}
	runtime.UnlockOSThread()
	return err
}

// netlinkAt opens a netlink handle inside the namespace ns.
func netlinkAt(ns *os.File) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}
