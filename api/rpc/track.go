package rpc

import (
	"context"
	"errors"
	"io"
	"net"

	"google.golang.org/grpc/credentials"

	"bulkhead/pki"
)

// tracked are transport credentials that tell the identity of every connection, so that a
// revocation cuts it.
type tracked struct {
	credentials.TransportCredentials
	id      *pki.Identity
	refused Refused // of a server
}

// ServerHandshake implements credentials.TransportCredentials.
func (t tracked) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := t.TransportCredentials.ServerHandshake(raw)
	c, info, err = t.note(raw, c, info, err)
	if err != nil && !endedByItself(err) {
		t.refused(Refusal{From: raw.RemoteAddr(), Err: err})
	}
	return c, info, err
}

// ClientHandshake implements credentials.TransportCredentials.
func (t tracked) ClientHandshake(ctx context.Context, name string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := t.TransportCredentials.ClientHandshake(ctx, name, raw)
	return t.note(raw, c, info, err)
}

// Clone implements credentials.TransportCredentials.
func (t tracked) Clone() credentials.TransportCredentials {
	return tracked{t.TransportCredentials.Clone(), t.id, t.refused}
}

func (t tracked) note(raw, c net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		return c, info, err
	}
	peer, err := peerOf(info)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return t.id.Track(peer, c, raw), info, nil
}

// endedByItself reports whether a handshake failed because the other side went away, took too
// long, or would not have us.
func endedByItself(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, new(*net.OpError))
}
