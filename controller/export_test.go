package controller

import (
	"context"
	"time"
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
