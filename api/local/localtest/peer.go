package localtest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"bulkhead/api/local"
	"bulkhead/privnet"
	"bulkhead/role"
)

// Peer is a kind of caller.
type Peer struct {
	Name   string
	UID    uint32
	Groups []uint32 // the first is its own, the others supplementary

	inside *inside // if it is root of a user namespace
}

// Peers are the kinds of callers of a machine with these users. group is that of the roles.
func Peers(t testing.TB, users local.Users, group uint32) []Peer {
	t.Helper()
	machine := privnet.UIDRange(privnet.MaxSlot)
	out := []Peer{
		{Name: local.Root, Groups: []uint32{0}},
		{Name: "user nobody", UID: 65534, Groups: []uint32{65534}},
		{Name: "a user of the group of the roles", UID: 64999, Groups: []uint32{64999, group}},
		{Name: "a user whose own group is root's", UID: 64998, Groups: []uint32{0}},
		{Name: "a Machine's root", UID: machine, Groups: []uint32{machine}},
		{Name: "a Machine's user", UID: machine + 1000, Groups: []uint32{machine + 1000}},
		{Name: "a Machine's root in its own namespace", UID: machine, Groups: []uint32{machine}, inside: startInside(t, machine)},
		{Name: "a user who is root in a namespace", UID: 64997, Groups: []uint32{64997}, inside: startInside(t, 64997)},
	}
	for _, r := range role.All {
		if uid, ok := users[r]; ok && uid != 0 {
			out = append(out, Peer{Name: r, UID: uid, Groups: []uint32{uid, group}})
		}
	}
	return out
}

// Dial connects to a unix socket as the peer.
func (p Peer) Dial(path string) (*net.UnixConn, error) {
	if p.inside != nil {
		return p.inside.dial(path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := p.connect(fd, path); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return connOf(fd)
}

// connOf takes a connected socket over.
func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// connect connects on a thread that is the peer meanwhile. The raw system calls change that
// thread alone.
func (p Peer) connect(fd int, path string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		groups, err := unix.Getgroups()
		if err != nil {
			panic(err)
		}
		become(p.UID, p.Groups)
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		become(0, append([]uint32{0}, ids(groups)...))
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func ids(in []int) (out []uint32) {
	for _, id := range in {
		out = append(out, uint32(id))
	}
	return out
}

// become changes the effective user and groups of this thread. A thread that cannot is good
// for nothing.
func become(uid uint32, groups []uint32) {
	const keep = ^uintptr(0)
	set := func(call, a, b, c uintptr) {
		if _, _, e := syscall.RawSyscall(call, a, b, c); e != 0 {
			panic(fmt.Sprintf("become user %d: %v", uid, e))
		}
	}
	set(unix.SYS_SETRESUID, keep, 0, keep) // which may set the rest
	set(unix.SYS_SETGROUPS, uintptr(len(groups)-1), uintptr(unsafe.Pointer(unsafe.SliceData(groups[1:]))), 0)
	set(unix.SYS_SETRESGID, keep, uintptr(groups[0]), keep)
	set(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
}

// inside is a process that is root of a user namespace: it connects to what it is told, and
// hands the connection out. To a listener the connection stays that of who connected.
type inside struct {
	mu    sync.Mutex
	paths io.Writer
	fds   *net.UnixConn
}

const insideProgram = `
import os, socket, sys
assert os.geteuid() == 0
out = socket.socket(fileno=3)
for path in iter(sys.stdin.readline, ""):
    c = socket.socket(socket.AF_UNIX)
    try:
        c.connect(path.rstrip("\n"))
        socket.send_fds(out, [b"\0"], [c.fileno()])
    except OSError as e:
        out.send(bytes([e.errno]))
    c.close()
`

// startInside starts one in which user and group 0 are uid outside.
func startInside(t testing.TB, uid uint32) *inside {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "fds")
	defer theirs.Close()
	fds, err := connOf(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "-I", "-S", "-c", insideProgram)
	cmd.Dir, cmd.ExtraFiles, cmd.Stderr = "/", []*os.File{theirs}, os.Stderr
	root := []syscall.SysProcIDMap{{HostID: int(uid), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: root, GidMappings: root, Credential: &syscall.Credential{},
	}
	paths, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		paths.Close()
		fds.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &inside{paths: paths, fds: fds}
}

func (i *inside) dial(path string) (*net.UnixConn, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, err := fmt.Fprintln(i.paths, path); err != nil {
		return nil, err
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := i.fds.ReadMsgUnix(b, oob)
	if err != nil || n != 1 {
		return nil, fmt.Errorf("root of a user namespace does not answer: %w", err)
	}
	if b[0] != 0 {
		return nil, syscall.Errno(b[0])
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%d messages: %w", len(msgs), err)
	}
	got, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	return connOf(got[0])
}
