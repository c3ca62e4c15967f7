package controller

import (
	"context"
	"time"

	"bulkhead/api/rpc"
	"bulkhead/key"
	"bulkhead/store"
)

// CollectOnce lets tests collect as if it were later.
func (c *Controller) CollectOnce(ctx context.Context, before time.Time) error {
	return c.collectOnce(ctx, before)
}

// Keys lists the store's keys, for tests that look for what was left behind.
func (c *Controller) Keys(ctx context.Context) ([]string, error) {
	kvs, _, err := c.store.List(ctx, "/")
	out := make([]string, len(kvs))
	for i, kv := range kvs {
		out[i] = kv.Key
	}
	return out, err
}

// OnList makes f be called before each List of the store; before Serve only.
func (c *Controller) OnList(f func(s store.Store, prefix string)) {
	c.store = listening{c.store, f}
}

type listening struct {
	store.Store
	f func(s store.Store, prefix string)
}

func (l listening) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	l.f(l.Store, prefix)
	return l.Store.List(ctx, prefix)
}

// HoldLogStreams counts n Machines as being read by somebody else.
func (c *Controller) HoldLogStreams(n int) { c.logStreams.Add(int64(n)) }

// Reach tells the controller how to reach a role of another node.
func (c *Controller) Reach(name string, n key.Node, socket string) error {
	conn, err := rpc.Dial(c.identity, socket, name, n)
	if err != nil {
		return err
	}
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	c.peers.conns[name+"/"+string(n)] = conn
	return nil
}

// RefuseNode does the first half of a node's removal, as when the controller is killed
// after it.
func (c *Controller) RefuseNode(ctx context.Context, n key.Node) error {
	return c.refuseNode(ctx, n, "admin", true)
}
