package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sandbox"
)

const (
	// handLimit bounds the handing over of a connection to a sandbox, which may have
	// been taken over and not listen.
	handLimit = 2 * time.Second
	// apiBuffer is what the kernel keeps for each direction of a connection, in bytes.
	apiBuffer = 64 << 10
)

// listener makes connections for who connects to a Machine's API: the worker's end of
// a door (see OpListen).
type listener struct {
	door *net.UnixConn
	addr net.Addr
}

// newListener takes a copy of the door.
func newListener(door *os.File, id key.MachineID) (net.Listener, error) {
	c, err := net.FileConn(door)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the warden's door is of no use")
	}
	u, ok := c.(*net.UnixConn)
	if !ok || u.LocalAddr().Network() != "unixpacket" {
		c.Close()
		return nil, fault.New(fault.Internal, "the warden's door is no socket for packets")
	}
	return &listener{door: u, addr: &net.UnixAddr{Net: "unix", Name: string(id) + ":" + sandbox.APISocket}}, nil
}

// Addr names the Machine.
func (l *listener) Addr() net.Addr { return l.addr }

// Close implements net.Listener.
func (l *listener) Close() error { return l.door.Close() }

// Accept waits for somebody to knock and gives them a connection.
func (l *listener) Accept() (net.Conn, error) {
	// More than a byte is as good as one: a packet is a knock.
	if n, err := l.door.Read(make([]byte, 1)); err != nil || n == 0 {
		return nil, errors.Join(err, net.ErrClosed)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(err, l.refuse())
	}
	inside, outside := os.NewFile(uintptr(fds[0]), "api"), os.NewFile(uintptr(fds[1]), "api")
	defer inside.Close()
	defer outside.Close()
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, apiBuffer); err != nil {
			return nil, errors.Join(err, l.refuse())
		}
	}
	c, err := net.FileConn(outside)
	if err != nil {
		return nil, errors.Join(err, l.refuse())
	}
	if err := l.hand(unix.UnixRights(fds[0])); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// refuse says no to who has knocked.
func (l *listener) refuse() error { return l.hand(nil) }

func (l *listener) hand(rights []byte) error {
	l.door.SetWriteDeadline(time.Now().Add(handLimit))
	if _, _, err := l.door.WriteMsgUnix([]byte{1}, rights, nil); err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return io.EOF
		}
		return fmt.Errorf("hand a connection to a sandbox: %w", err)
	}
	return nil
}
