package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"bulkhead/coredump"
	"bulkhead/warden/wire"
)

// rootOptions bound the file system in memory that is the shim's root: gVisor's
// state is all that is written there, some tens of kilobytes.
const rootOptions = "mode=755,size=16m,nr_inodes=1024"

// enterRoot replaces the host's file system by one that holds what a sandbox is
// started from and nothing else. The warden has cloned this process into a mount
// and a process namespace, so nobody else sees any of it, and it goes away with us.
//
// Who takes this process over finds here what it holds already.
func enterRoot(c wire.ShimConfig) error {
	// Any directory will do to mount it at; afterwards it is "/".
	at := c.Bundle
	bundle, err := unix.OpenTree(unix.AT_FDCWD, c.Bundle, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open the bundle: %w", err)
	}
	defer unix.Close(bundle)
	// Nothing that is mounted here may reach the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("bulkhead", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, rootOptions); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	for _, dir := range []string{wire.ShimBundle, "/dev", "/proc", "/tmp", wire.ShimState} {
		if err := unix.Mkdir(at+dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	// The process list is that of our own namespace.
	if err := unix.Mount("proc", at+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, f := range []struct{ from, to string }{
		{c.Program, wire.ShimProgram}, {c.Init, wire.ShimInit}, {"/proc/self/exe", wire.ShimHelper}, {c.Image, wire.ShimImage}, {os.DevNull, os.DevNull},
	} {
		if err := bindFile(f.from, at+f.to); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(bundle, "", unix.AT_FDCWD, at+wire.ShimBundle, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the bundle: %w", err)
	}
	for _, f := range []string{wire.ShimProgram, wire.ShimInit, wire.ShimHelper, wire.ShimImage, wire.ShimBundle} {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
		if err := unix.MountSetattr(unix.AT_FDCWD, at+f, 0, &attr); err != nil {
			return fmt.Errorf("make %s read-only: %w", f, err)
		}
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	// The old root comes to lie on the new one and is taken away.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

// umount takes dir away when it is told to, for a sandbox that has no right left to.
func umount(dir string) error {
	if n, err := syscall.Read(3, make([]byte, 1)); n != 1 {
		return fmt.Errorf("the sandbox gave up: %v", err)
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

// bindFile makes the file from appear at to.
func bindFile(from, to string) error {
	fd, err := unix.Open(to, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("make %s: %w", to, err)
	}
	unix.Close(fd)
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	return nil
}

// maxFile bounds each file that the shim and what it starts may write, in bytes. They
// are its log, the exit status and the meter, which lie on the file system in memory
// that all Machines' files are in.
const maxFile = 64 << 10

// dropPrivileges gives up, for all threads and all that they start, what root of the
// user namespace has: it took that to start the sandbox, nothing needs it afterwards.
// No other process of our user may look into us any more, and nobody in the user
// namespace makes another one, in which to be root again before the host's kernel.
func dropPrivileges() error {
	// A write beyond the limit is an error: Go's programs do not end of SIGXFSZ.
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: maxFile, Max: maxFile}); err != nil {
		return fmt.Errorf("limit the size of files: %w", err)
	}
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return err
	}
	head, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none)), 0); e != 0 {
		return fmt.Errorf("drop capabilities: %w", e)
	}
	// This also keeps a program that root starts from having them again.
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("set no_new_privs: %w", e)
	}
	return coredump.Forbid()
}
