package controller

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"bulkhead/controller/directory"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/store"
	"bulkhead/token"
)

// maxRootKeys bounds the ring: a token is looked up in it by its key's id.
const maxRootKeys = 100

// ensureRootKey makes the first root key.
func (c *Controller) ensureRootKey(ctx context.Context) error {
	all, _, err := record.List[record.RootKey](ctx, c.store, record.PrefixRootKey)
	if err != nil || len(all) > 0 {
		return err
	}
	k, err := c.newRootKey()
	if err != nil {
		return err
	}
	_, err = c.store.Txn(ctx, []store.Cond{record.At(record.RootKeyKey(k.ID), 0)}, []store.Op{record.Put(record.RootKeyKey(k.ID), k)})
	return err
}

func (c *Controller) newRootKey() (*record.RootKey, error) {
	k := token.NewKey()
	wrapped, err := c.ring.Wrap(directory.PurposeRootKey, k.Secret)
	if err != nil {
		return nil, err
	}
	return &record.RootKey{ID: k.ID.String(), Wrapped: wrapped, CreatedAt: now()}, nil
}

// RootKey is a root key as the API answers it.
type RootKey struct {
	ID        string `json:"id"`
	CreatedAt string `json:"created_at"`
	Makes     bool   `json:"makes"`  // new tokens are made with it
	Tokens    int    `json:"tokens"` // live ones that were made with it
}

// listRootKeys lists the root keys, the newest first, which makes tokens.
//
//	GET /v1/platform/token_keys
func (c *Controller) listRootKeys(*call) (int, any, error) {
	out := struct {
		Keys []RootKey `json:"keys"`
	}{Keys: []RootKey{}}
	for _, k := range c.directory.RootKeysInUse() {
		out.Keys = append(out.Keys, RootKey{ID: k.ID, CreatedAt: stamp(k.CreatedAt), Tokens: k.Tokens, Makes: k.Makes})
	}
	slices.SortFunc(out.Keys, func(a, b RootKey) int { return cmp.Compare(b.CreatedAt+b.ID, a.CreatedAt+a.ID) })
	return http.StatusOK, out, nil
}

// rotateRootKey makes a new root key. Tokens of the old ones go on; a key that has none is
// removed.
//
//	POST /v1/platform/token_keys
func (c *Controller) rotateRootKey(r *call) (int, any, error) {
	if err := c.sweepRootKeys(r.Context()); err != nil {
		return 0, nil, err
	}
	k, err := c.newRootKey()
	if err != nil {
		return 0, nil, err
	}
	all, _, err := record.List[record.RootKey](r.Context(), c.store, record.PrefixRootKey)
	if err != nil {
		return 0, nil, err
	}
	if len(all) >= maxRootKeys {
		return 0, nil, fault.New(fault.Conflict, "there are %d root keys of tokens, all in use; withdraw some: DELETE /v1/platform/token_keys/ID?force=true", len(all))
	}
	for _, old := range all { // the newest makes tokens, whatever the clock says
		if !k.CreatedAt.After(old.CreatedAt) {
			k.CreatedAt = old.CreatedAt.Add(time.Millisecond)
		}
	}
	var t txn
	t.when(record.RootKeyKey(k.ID), 0)
	t.do(record.Put(record.RootKeyKey(k.ID), k))
	if err := c.commit(r.Context(), &t); err != nil {
		return 0, nil, err
	}
	c.log.Info("new root key of tokens", "key", k.ID, "by", r.who.Name)
	return http.StatusCreated, RootKey{ID: k.ID, CreatedAt: stamp(k.CreatedAt), Makes: true}, nil
}

// withdrawRootKey removes a root key: every token that was made with it is refused from
// then on. That takes force when there are any. The one that makes tokens stays.
//
//	DELETE /v1/platform/token_keys/{key}
func (c *Controller) withdrawRootKey(r *call) (int, any, error) {
	id := r.PathValue("key")
	force, err := r.flag("force")
	if err != nil {
		return 0, nil, err
	}
	k, found := c.directory.RootKey(id)
	switch {
	case !found:
		return 0, nil, fault.New(fault.NotFound, "there is no root key %q", fault.Clip(id))
	case k.Makes:
		return 0, nil, fault.New(fault.Conflict, "root key %s makes tokens; make a new one first: POST /v1/platform/token_keys", id)
	case k.Tokens > 0 && !force:
		return 0, nil, fault.New(fault.Precondition, "%d tokens that were made with root key %s would end; force=true does it", k.Tokens, id)
	}
	var t txn
	t.do(store.Delete(record.RootKeyKey(id)))
	if err := c.commit(r.Context(), &t); err != nil {
		return 0, nil, err
	}
	c.log.Info("root key of tokens withdrawn", "key", id, "tokens", k.Tokens, "by", r.who.Name)
	return ok()
}

// sweepRootKeys removes root keys, other than the newest, that no token was made with.
func (c *Controller) sweepRootKeys(ctx context.Context) error {
	var t txn
	for _, k := range c.directory.RootKeysInUse() {
		if k.Tokens == 0 && !k.Makes {
			t.do(store.Delete(record.RootKeyKey(k.ID)))
		}
	}
	if len(t.ops) == 0 {
		return nil
	}
	return c.commit(ctx, &t)
}

// sweepTokens removes the records of tokens that have expired, and then root keys without
// any. Both are refused without it.
func (c *Controller) sweepTokens(ctx context.Context) error {
	// An hour late: a token that has just expired is told so, and not that it is unknown.
	before := now().Add(-time.Hour)
	var ops []store.Op
	for _, rec := range c.directory.AllTokens() {
		if rec.ExpiresAt.Before(before) {
			ops = append(ops, store.Delete(record.TokenKey(rec.ID)))
		}
	}
	for part := range slices.Chunk(ops, store.MaxOps) {
		if err := c.commit(ctx, &txn{ops: part}); err != nil {
			return err
		}
	}
	return c.sweepRootKeys(ctx)
}
