package controller

import (
	"cmp"
	"context"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/superfly/macaroon"

	"bulkhead/fault"
	"bulkhead/store"
	"bulkhead/token"
)

// rootKey is a key that tokens are made with. The newest makes them; the others are good
// for those that they have made.
type rootKey struct {
	ID        string    `json:"id"`
	Wrapped   []byte    `json:"wrapped"` // by the cluster key
	CreatedAt time.Time `json:"created_at"`
}

// purposeRootKey is what the cluster key wraps them for.
const purposeRootKey = "token-root"

// maxRootKeys bounds the ring: a token is looked up in it by its key's id.
const maxRootKeys = 100

// ensureRootKey makes the first root key.
func (c *Controller) ensureRootKey(ctx context.Context) error {
	all, _, err := list[rootKey](ctx, c.store, prefixRootKey)
	if err != nil || len(all) > 0 {
		return err
	}
	k, err := c.newRootKey()
	if err != nil {
		return err
	}
	_, err = c.store.Txn(ctx, []store.Cond{at(rootKeyKey(k.ID), 0)}, []store.Op{put(rootKeyKey(k.ID), k)})
	return err
}

func (c *Controller) newRootKey() (*rootKey, error) {
	k := token.NewKey()
	wrapped, err := c.ring.Wrap(purposeRootKey, k.Secret)
	if err != nil {
		return nil, err
	}
	return &rootKey{ID: k.ID.String(), Wrapped: wrapped, CreatedAt: now()}, nil
}

// takeRootKey is the directory's: it makes the ring anew. A key that cannot be unwrapped
// is left out, and its tokens are refused.
func (d *directory) takeRootKey(e store.Event) {
	id := strings.TrimPrefix(e.Key, prefixRootKey)
	delete(d.roots, id)
	if k := live[rootKey](e); k != nil {
		d.roots[id] = k
	}
	all := sorted(d.roots)
	slices.SortStableFunc(all, func(a, b *rootKey) int { return cmp.Compare(b.CreatedAt.UnixNano(), a.CreatedAt.UnixNano()) })
	var keys []token.Key
	for _, k := range all {
		secret, err := d.unwrap(purposeRootKey, k.Wrapped)
		b, err2 := hex.DecodeString(k.ID)
		if err == nil && err2 == nil && len(b) == len(token.KeyID{}) {
			keys = append(keys, token.Key{ID: token.KeyID(b), Secret: macaroon.SigningKey(secret)})
		}
	}
	d.ring = token.NoKeys
	if ring, err := token.NewKeys(keys); err == nil {
		d.ring = ring
	}
}

// rootKeys is the ring in force.
func (d *directory) rootKeys() *token.Keys {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.ring
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
	d := c.directory
	d.mu.RLock()
	for _, k := range d.roots {
		out.Keys = append(out.Keys, RootKey{ID: k.ID, CreatedAt: stamp(k.CreatedAt), Tokens: d.rooted[k.ID], Makes: k.ID == d.ring.First().String()})
	}
	d.mu.RUnlock()
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
	all, _, err := list[rootKey](r.Context(), c.store, prefixRootKey)
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
	t.when(rootKeyKey(k.ID), 0)
	t.do(put(rootKeyKey(k.ID), k))
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
	d := c.directory
	d.mu.RLock()
	k, n, makes := d.roots[id], d.rooted[id], id == d.ring.First().String()
	d.mu.RUnlock()
	switch {
	case k == nil:
		return 0, nil, fault.New(fault.NotFound, "there is no root key %q", clip(id))
	case makes:
		return 0, nil, fault.New(fault.Conflict, "root key %s makes tokens; make a new one first: POST /v1/platform/token_keys", id)
	case n > 0 && !force:
		return 0, nil, fault.New(fault.Precondition, "%d tokens that were made with root key %s would end; force=true does it", n, id)
	}
	var t txn
	t.do(store.Delete(rootKeyKey(id)))
	if err := c.commit(r.Context(), &t); err != nil {
		return 0, nil, err
	}
	c.log.Info("root key of tokens withdrawn", "key", id, "tokens", n, "by", r.who.Name)
	return ok()
}

// sweepRootKeys removes root keys, other than the newest, that no token was made with.
func (c *Controller) sweepRootKeys(ctx context.Context) error {
	var t txn
	d := c.directory
	d.mu.RLock()
	for id := range d.roots {
		if d.rooted[id] == 0 && id != d.ring.First().String() {
			t.do(store.Delete(rootKeyKey(id)))
		}
	}
	d.mu.RUnlock()
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
	d := c.directory
	d.mu.RLock()
	var ops []store.Op
	for id, rec := range d.tokens {
		if rec.ExpiresAt.Before(before) {
			ops = append(ops, store.Delete(tokenKey(id)))
		}
	}
	d.mu.RUnlock()
	for part := range slices.Chunk(ops, store.MaxOps) {
		if err := c.commit(ctx, &txn{ops: part}); err != nil {
			return err
		}
	}
	return c.sweepRootKeys(ctx)
}
