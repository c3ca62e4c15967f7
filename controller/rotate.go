package controller

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"bulkhead/audit"
	"bulkhead/controller/record"
	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/secret"
	"bulkhead/store"
)

// formerLife is how long a cluster key that was rotated out is kept in memory, for
// requests that read a record before it was rewrapped. None takes longer.
const formerLife = answerLimit + bodyLimit

// newestKey is a store in which nothing is written that an older cluster key than the
// newest has wrapped: a request that wrapped before the key changed and writes after it
// is rewrapped on its way.
type newestKey struct {
	store.Store
	ring *secret.Ring
	mu   *sync.RWMutex // held while the ring's keys change
}

// Txn implements store.Store.
func (s newestKey) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i, o := range ops {
		if out, n, _ := s.ring.Rewrap(o.Value); n > 0 {
			ops[i].Value = out
		}
	}
	return s.Store.Txn(ctx, conds, ops)
}

// KeyRotation is what the admin socket says of the cluster key.
type KeyRotation struct {
	Key  string `json:"key"`            // id of the newest
	Old  string `json:"old,omitempty"`  // id of the one that is being replaced
	Note string `json:"note,omitempty"` // what is left for the operator to do
}

// rotateKey replaces the cluster key while everything goes on. What is true if we die:
//
//   - before the new key is durable: the old one counts, nothing has changed;
//   - after that: both are in the key file, the new one wraps, and the next start goes on
//     with what follows (resumeRotation);
//   - the old key is removed only when nothing in the store is wrapped with it.
func (c *Controller) rotateKey(ctx context.Context) (KeyRotation, error) {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	keys := c.ring.Keys()
	if len(keys) == 1 {
		next, err := c.nextKeys(ctx, keys[0])
		if err != nil {
			return KeyRotation{}, err
		}
		c.setKeys(next)
	}
	return c.finishRotation(ctx)
}

// nextKeys makes a new key and keeps it beside the old, or takes up what the operator has
// put before it.
func (c *Controller) nextKeys(ctx context.Context, old secret.Key) ([]secret.Key, error) {
	next := []secret.Key{secret.NewKey(), old}
	err := c.keeper().Save(ctx, next)
	if !errors.Is(err, secret.ErrReadOnly) {
		return next, err
	}
	if next, err = c.keeper().Load(ctx); err != nil {
		return nil, err
	}
	if next[0].ID == old.ID {
		return nil, fault.New(fault.Precondition, "%s is kept by you: put a new key before the one that is in it, restart bulkheadd, and rotate again; \"bulkheadd secrets new-key\" prints one", c.keeper())
	}
	if !slices.ContainsFunc(next, func(k secret.Key) bool { return k.ID == old.ID }) {
		return nil, fault.New(fault.Precondition, "%s does not hold key %s any more, which wraps everything: put the new key before it and leave it there until the rotation is done", c.keeper(), old.ID)
	}
	return next, nil
}

func (c *Controller) setKeys(keys []secret.Key) {
	c.keysMu.Lock()
	defer c.keysMu.Unlock()
	c.ring.Set(keys)
}

// forgetKeys lets go of keys that were rotated out. Another rotation may be under way: its
// keys stay.
func (c *Controller) forgetKeys(old []secret.Key) {
	c.keysMu.Lock()
	defer c.keysMu.Unlock()
	c.ring.Forget(old)
}

// finishRotation rewraps everything with the newest key and then removes the others.
func (c *Controller) finishRotation(ctx context.Context) (KeyRotation, error) {
	keys := c.ring.Keys()
	out := KeyRotation{Key: keys[0].ID}
	if len(keys) == 1 {
		return out, nil
	}
	out.Old = keys[1].ID
	if err := c.rewrapAll(ctx); err != nil {
		return out, err
	}
	if err := failpoint.Step("secret/rewrapped"); err != nil {
		return out, err
	}
	if err := c.keeper().Save(ctx, keys[:1]); errors.Is(err, secret.ErrReadOnly) {
		out.Note = "nothing is wrapped with the old key any more: remove it from " + c.keeper().String()
	} else if err != nil {
		return out, err
	}
	c.setKeys(keys[:1])
	time.AfterFunc(formerLife, func() { c.forgetKeys(keys[1:]) })
	c.log.Info("the cluster key was rotated", "key", out.Key, "old", out.Old)
	return out, nil
}

// rewrapAll goes over the whole store until a pass finds nothing that another key than
// the newest has wrapped.
func (c *Controller) rewrapAll(ctx context.Context) error {
	for range attempts {
		kvs, _, err := c.store.List(ctx, "/")
		if err != nil {
			return err
		}
		found := 0
		for _, kv := range kvs {
			out, n, lost := c.ring.Rewrap(kv.Value)
			if lost > 0 {
				return fault.New(fault.Internal, "the record %s has %d keys that the old cluster key should open and does not: they were damaged before. The old key is kept; remove or restore the record, then rotate again", kv.Key, lost)
			}
			if n == 0 {
				continue
			}
			found++
			_, err := c.store.Txn(ctx, []store.Cond{record.At(kv.Key, kv.Revision)}, []store.Op{store.Put(kv.Key, out)})
			if err != nil && !errors.Is(err, store.ErrChanged) { // changed by somebody: the next pass looks again
				return err
			}
		}
		if found == 0 {
			return nil
		}
	}
	return fault.New(fault.Unavailable, "the store changes too fast to be rewrapped; try again")
}

// resumeRotation finishes what an earlier controller began.
func (c *Controller) resumeRotation(ctx context.Context) {
	for len(c.ring.Keys()) > 1 && ctx.Err() == nil {
		c.rotating.Lock()
		out, err := c.finishRotation(ctx)
		c.rotating.Unlock()
		switch {
		case err == nil && out.Note != "":
			c.log.Warn("the cluster key was rotated: " + out.Note)
			return
		case err == nil:
			return
		}
		c.log.Error("the cluster key's rotation goes on later", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
		}
	}
}

// rotateKeyCall serves the admin socket. A rotation that outlasts the call goes on: the
// next call finishes it.
func (c *Controller) rotateKeyCall(w http.ResponseWriter, r *http.Request) {
	ctx := context.WithoutCancel(r.Context())
	out, err := c.rotateKey(ctx)
	rec := audit.Record{Name: "root", Action: "cluster key rotated", Target: "key=" + out.Key}
	if err != nil {
		rec.Result = audit.Failed
	}
	err = errors.Join(err, c.record(ctx, rec))
	if err != nil {
		c.log.Error("the cluster key was not rotated to the end", "err", err)
		writeError(w, c.log, err)
		return
	}
	writeJSON(w, http.StatusOK, out)
}
