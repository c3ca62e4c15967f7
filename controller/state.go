package controller

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// attempts is how often a read-change-write is repeated when somebody else was
// faster. With n writers of one record the slowest needs n.
const attempts = 32

// get reads a record; its revision is 0 and the value nil when there is none.
func get[T any](ctx context.Context, s store.Store, k string) (*T, int64, error) {
	kv, err := s.Get(ctx, k)
	if errors.Is(err, store.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	v, err := decode[T](kv)
	return v, kv.Revision, err
}

func decode[T any](kv store.KV) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(kv.Value, v); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the record %s cannot be read", kv.Key)
	}
	return v, nil
}

// list reads every record under a prefix.
func list[T any](ctx context.Context, s store.Store, prefix string) ([]*T, int64, error) {
	kvs, rev, err := s.List(ctx, prefix)
	if err != nil {
		return nil, 0, err
	}
	out := make([]*T, len(kvs))
	for i, kv := range kvs {
		if out[i], err = decode[T](kv); err != nil {
			return nil, 0, err
		}
	}
	return out, rev, nil
}

// put is the change that writes a record. Records always encode: they came from JSON.
func put(k string, v any) store.Op {
	b, err := json.Marshal(v)
	if err != nil {
		panic("controller: a record does not encode: " + err.Error())
	}
	return store.Put(k, b)
}

// at is the condition that a record is still as read.
func at(k string, rev int64) store.Cond { return store.Cond{Key: k, Revision: rev} }

// retry runs a read-change-write until nobody interferes.
func retry(ctx context.Context, f func() error) error {
	for range attempts {
		err := f()
		if !errors.Is(err, store.ErrChanged) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fault.New(fault.Conflict, "too many others are changing the same object; try again")
}

// getApp returns an app that exists; it may be being deleted.
func (c *Controller) getApp(ctx context.Context, name string) (*app, int64, error) {
	n, err := key.ParseAppName(name)
	if err != nil {
		return nil, 0, noApp(name)
	}
	a, rev, err := get[app](ctx, c.store, appKey(n))
	if err != nil {
		return nil, 0, err
	}
	if a == nil || !isAllowed(ctx, a.Name, a.Org, a.ID) {
		return nil, 0, noApp(name)
	}
	return a, rev, nil
}

// allowedKey is the context key of the app that a call was allowed to be about.
type allowedKey struct{}

func withAllowed(ctx context.Context, a *app) context.Context {
	if a == nil {
		return ctx
	}
	return context.WithValue(ctx, allowedKey{}, a)
}

// isAllowed reports whether an app in the store is the one that the call was allowed to be
// about, and not another that got the name since: a body may take long to come. An id that is
// empty is not looked at.
func isAllowed(ctx context.Context, name key.AppName, org, id string) bool {
	was, ok := ctx.Value(allowedKey{}).(*app)
	return !ok || was.Name != name || was.Org == org && (id == "" || was.ID == id)
}

// noApp and noMachine are the answers about what there is not.
func noApp(name string) error { return fault.New(fault.NotFound, "app %q not found", clip(name)) }

func noMachine(id string) error {
	return fault.New(fault.NotFound, "machine %s not found", strings.Trim(strconv.Quote(clip(id)), `"`))
}

// getMachine returns a Machine's record, also of one that is destroyed but not yet
// forgotten.
func (c *Controller) getMachine(ctx context.Context, appName, id string) (*record, int64, error) {
	n, aerr := key.ParseAppName(appName)
	m, merr := key.ParseMachineID(id)
	if aerr != nil {
		return nil, 0, noApp(appName)
	}
	if merr != nil {
		return nil, 0, noMachine(id)
	}
	r, rev, err := get[record](ctx, c.store, machineKey(n, m))
	if err != nil {
		return nil, 0, err
	}
	if r == nil {
		if _, _, err := c.getApp(ctx, appName); err != nil {
			return nil, 0, err
		}
		return nil, 0, noMachine(id)
	}
	if !isAllowed(ctx, n, r.Org, "") {
		return nil, 0, noMachine(id)
	}
	return r, rev, nil
}

// errUnchanged is what the function given to change returns when the wish is there
// already: nothing is written, and that is no error.
var errUnchanged = errors.New("unchanged")

// change is the one door through which a Machine's record changes at a user's
// wish. f changes the record it is given, or refuses; it may be called again with a
// newer record. When f raises Generation, the worker is told. nonce is the lease's,
// if the caller holds one.
//
// When change returns, the store has the change for good; extra changes go into the
// same transaction.
func (c *Controller) change(ctx context.Context, appName, id, nonce string, f func(r *record) (extra []store.Op, err error)) (*record, error) {
	var out *record
	err := retry(ctx, func() error {
		r, rev, err := c.getMachine(ctx, appName, id)
		if err != nil {
			return err
		}
		_, lrev, err := c.checkLease(ctx, r, nonce)
		if err != nil {
			return err
		}
		if r.Gone != nil {
			return fault.New(fault.Precondition, "failed_precondition: machine %s is destroyed", r.ID)
		}
		before := r.Generation
		ops, err := f(r)
		if errors.Is(err, errUnchanged) {
			out = r
			return nil
		}
		if err != nil {
			return err
		}
		r.UpdatedAt = now()
		ops = append(ops, put(machineKey(r.App, r.ID), r))
		if r.Generation != before {
			ops = append(ops, put(nodeKey(r.Node, r.ID), r.assigned()))
		}
		conds := []store.Cond{at(machineKey(r.App, r.ID), rev), at(leaseKey(r.App, r.ID), lrev)}
		if _, err := c.store.Txn(ctx, conds, ops); err != nil {
			return err
		}
		out = r
		return nil
	})
	return out, err
}

// now is the time as records keep it: UTC, whole milliseconds.
func now() time.Time {
	return time.Now().Add(time.Duration(ahead.Load())).UTC().Truncate(time.Millisecond)
}

// ahead is how far tests set the clock.
var ahead atomic.Int64
