package rpc

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"

	"bulkhead/pki"
)

// tracked are transport credentials that tell the identity of every connection, so that a
// revocation cuts it.
type tracked struct {
	credentials.TransportCredentials
	id *pki.Identity
}

// ServerHandshake implements credentials.TransportCredentials.
func (t tracked) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := t.TransportCredentials.ServerHandshake(raw)
	return t.note(raw, c, info, err)
}

// ClientHandshake implements credentials.TransportCredentials.
func (t tracked) ClientHandshake(ctx context.Context, name string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := t.TransportCredentials.ClientHandshake(ctx, name, raw)
	return t.note(raw, c, info, err)
}

// Clone implements credentials.TransportCredentials.
func (t tracked) Clone() credentials.TransportCredentials {
	return tracked{t.TransportCredentials.Clone(), t.id}
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
