package controller

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// attempts is how often a read-change-write is repeated when somebody else was
// faster. With n writers of one record the slowest needs n.
const attempts = 32

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
func (c *Controller) getApp(ctx context.Context, name string) (*record.App, int64, error) {
	n, err := key.ParseAppName(name)
	if err != nil {
		return nil, 0, noApp(name)
	}
	a, rev, err := record.Get[record.App](ctx, c.store, record.AppKey(n))
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

func withAllowed(ctx context.Context, a *record.App) context.Context {
	if a == nil {
		return ctx
	}
	return context.WithValue(ctx, allowedKey{}, a)
}

// isAllowed reports whether an app in the store is the one that the call was allowed to be
// about, and not another that got the name since: a body may take long to come. An id that is
// empty is not looked at.
func isAllowed(ctx context.Context, name key.AppName, org, id string) bool {
	was, ok := ctx.Value(allowedKey{}).(*record.App)
	return !ok || was.Name != name || was.Org == org && (id == "" || was.ID == id)
}

// noApp and noMachine are the answers about what there is not.
func noApp(name string) error { return fault.New(fault.NotFound, "app %q not found", fault.Clip(name)) }

func noMachine(id string) error {
	return fault.New(fault.NotFound, "machine %s not found", strings.Trim(strconv.Quote(fault.Clip(id)), `"`))
}

// getMachine returns a Machine's record, also of one that is destroyed but not yet
// forgotten.
func (c *Controller) getMachine(ctx context.Context, appName, id string) (*record.Machine, int64, error) {
	n, aerr := key.ParseAppName(appName)
	m, merr := key.ParseMachineID(id)
	if aerr != nil {
		return nil, 0, noApp(appName)
	}
	if merr != nil {
		return nil, 0, noMachine(id)
	}
	r, rev, err := record.Get[record.Machine](ctx, c.store, record.MachineKey(n, m))
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
func (c *Controller) change(ctx context.Context, appName, id, nonce string, f func(r *record.Machine) (extra []store.Op, err error)) (*record.Machine, error) {
	var out *record.Machine
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
		ops = append(ops, record.Put(record.MachineKey(r.App, r.ID), r))
		if r.Generation != before {
			ops = append(ops, record.Put(record.NodeKey(r.Node, r.ID), r.Assigned()))
		}
		conds := []store.Cond{record.At(record.MachineKey(r.App, r.ID), rev), record.At(record.LeaseKey(r.App, r.ID), lrev)}
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
