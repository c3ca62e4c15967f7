package controller

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/pki"
	"bulkhead/role"
	"bulkhead/store"
)

// revocations are the identities of removed nodes, as the store has them. The controller's
// own connections with them are cut at once, and every role of the cluster is told, so that
// it cuts and refuses them too.
type revocations struct {
	reading sync.Mutex // held from reading the store until what was read is in force

	mu      sync.Mutex
	list    []pki.Revocation
	changed chan struct{} // closed when list is replaced
}

// get returns the list, and what is closed when there is another.
func (r *revocations) get() ([]pki.Revocation, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.list, r.changed
}

// revoke puts in force what the store says is removed. When it returns no connection of a
// node that was removed before is left.
func (c *Controller) revoke(ctx context.Context) (rev int64, err error) {
	r := &c.revoked
	r.reading.Lock()
	defer r.reading.Unlock()
	removals, rev, err := record.List[record.Removal](ctx, c.store, record.PrefixRemoved)
	if err != nil {
		return 0, err
	}
	var out []pki.Revocation
	for _, gone := range removals {
		if gone.Readmit {
			continue // it is looked at when it comes: takeBack
		}
		x := pki.Revocation{Node: gone.Node}
		if gone.Node == c.cfg.Role.Node { // see admit
			x.Role = role.Worker
		}
		out = append(out, x)
	}
	c.identity.SetRevoked(out)
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.list, r.changed = out, make(chan struct{})
	return rev, nil
}

// followRevoked keeps the revocations as the store has them.
func (c *Controller) followRevoked(ctx context.Context) error {
	rev, err := c.revoke(ctx)
	if err != nil {
		return err
	}
	return c.store.Watch(ctx, record.PrefixRemoved, rev, func([]store.Event) error {
		_, err := c.revoke(ctx)
		return err
	})
}

// membershipServer serves internalpb.Membership.
type membershipServer struct {
	internalpb.UnimplementedMembershipServer
	c *Controller
}

// WatchRevoked implements internalpb.MembershipServer.
func (s membershipServer) WatchRevoked(_ *internalpb.WatchRevokedRequest, stream grpc.ServerStreamingServer[internalpb.Revoked]) error {
	for {
		list, changed := s.c.revoked.get()
		out := &internalpb.Revoked{}
		for _, r := range list {
			out.Identities = append(out.Identities, &internalpb.RevokedIdentity{Node: string(r.Node), Role: r.Role})
		}
		if err := stream.Send(out); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.c.closing.Done():
			return fault.New(fault.Unavailable, "the controller is restarting")
		}
	}
}
