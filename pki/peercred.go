package pki

import (
	"context"
	"net"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a unix socket, as the kernel knows it
// from the moment it connected.
type Peer struct {
	UID, GID uint32
	PID      int32
}

// peerKey is the context key of a connection's Peer.
type peerKey struct{}

// WithPeer is an http.Server.ConnContext that adds the connection's Peer.
func WithPeer(ctx context.Context, c net.Conn) context.Context {
	p, err := PeerCred(c)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// PeerOf returns the Peer that WithPeer added.
func PeerOf(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// PeerCred asks the kernel who is at the other end of a unix socket.
func PeerCred(c net.Conn) (Peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, net.UnknownNetworkError("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) {
		cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if serr != nil {
		return Peer{}, serr
	}
	return Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}
