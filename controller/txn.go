package controller

import (
	"context"

	"bulkhead/controller/record"
	"bulkhead/store"
)

// txn is a transaction that several functions put together: each adds what it read
// (when) and what it changes (do).
type txn struct {
	conds []store.Cond
	ops   []store.Op
}

// when adds the condition that a record is still as read; 0 means that there is none.
func (t *txn) when(k string, rev int64) {
	for _, c := range t.conds {
		if c == record.At(k, rev) {
			return
		}
	}
	t.conds = append(t.conds, record.At(k, rev))
}

// do adds changes.
func (t *txn) do(ops ...store.Op) { t.ops = append(t.ops, ops...) }

// commit makes the changes, or none, and returns when those of the directory's records
// are in force.
func (c *Controller) commit(ctx context.Context, t *txn) error {
	rev, err := c.store.Txn(ctx, t.conds, t.ops)
	if err != nil {
		return err
	}
	for _, op := range t.ops {
		if c.directory.Follows(op.Key) {
			if err := c.directory.AwaitOp(ctx, op, rev); err != nil {
				return err
			}
		}
	}
	return nil
}
