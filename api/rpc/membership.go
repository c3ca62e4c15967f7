package rpc

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/pki"
)

// Waits between two tries to follow what is revoked.
const (
	followFirst = 50 * time.Millisecond
	followMax   = 5 * time.Second
)

// FollowRevoked keeps an identity's list of what is revoked as the controller's, until ctx
// ends. While the controller is away the list stays as it was.
func FollowRevoked(ctx context.Context, id *pki.Identity, controller grpc.ClientConnInterface, log *slog.Logger) {
	c := internalpb.NewMembershipClient(controller)
	for wait := followFirst; ctx.Err() == nil; wait = min(2*wait, followMax) {
		heard, err := followRevoked(ctx, id, c)
		if heard {
			wait = followFirst
		}
		log.Debug("what is revoked is not followed, trying again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

func followRevoked(ctx context.Context, id *pki.Identity, c internalpb.MembershipClient) (heard bool, err error) {
	stream, err := c.WatchRevoked(ctx, &internalpb.WatchRevokedRequest{})
	if err != nil {
		return false, err
	}
	for {
		in, err := stream.Recv()
		if err != nil {
			return heard, err
		}
		heard = true
		list := make([]pki.Revocation, 0, len(in.GetIdentities()))
		for _, r := range in.GetIdentities() {
			list = append(list, pki.Revocation{Node: key.Node(r.GetNode()), Role: r.GetRole()})
		}
		id.SetRevoked(list)
	}
}

// Renewer is the Signer of a node that joined: it renews with the certificate that the node
// has. dial makes a connection with it. Every renewal has a connection of its own: one that is
// kept shows the controller the certificate with which it began, and when an answer is lost,
// the controller could not tell the node from a copy of it.
func Renewer(dial func() (*grpc.ClientConn, error)) pki.Signer {
	return func(ctx context.Context, csr []byte) ([][]byte, []byte, error) {
		conn, err := dial()
		if err != nil {
			return nil, nil, err
		}
		defer conn.Close()
		out, err := internalpb.NewMembershipClient(conn).Renew(ctx, &internalpb.RenewRequest{CsrDer: csr})
		if err != nil {
			return nil, nil, err
		}
		if len(out.GetChainDer()) == 0 {
			return nil, nil, fault.New(fault.Internal, "the controller answered with no certificate")
		}
		return out.GetChainDer(), out.GetRootsDer(), nil
	}
}
