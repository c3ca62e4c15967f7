package controller

import (
	"context"
	"errors"
	"time"

	"bulkhead/controller/record"
	"bulkhead/key"
	"bulkhead/machine"
)

// Times of the collector.
const (
	collectEvery  = 10 * time.Minute
	tombstoneLife = 24 * time.Hour // how long a destroyed Machine is shown
	registryGrace = 2 * time.Hour  // from a blob's push to its manifest's
	registryEvery = 6              // collections of the store for each of the registry
	finishFirst   = 200 * time.Millisecond
	finishMax     = time.Minute // between tries to clear a deleted app away
)

// finishLater has the collector clear away the apps that are being deleted, soon:
// somebody could not.
func (c *Controller) finishLater() {
	select {
	case c.unfinished <- struct{}{}:
	default:
	}
}

// collect removes what is no longer needed, now and then, until ctx ends.
func (c *Controller) collect(ctx context.Context) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		if err := c.collectOnce(ctx, time.Now().Add(-c.cfg.TombstoneLife)); err != nil && ctx.Err() == nil {
			c.log.Warn("collection failed; it is tried again later", "err", err)
			c.finishLater()
		}
		if n%registryEvery == 1 { // not at the start, and soon after it
			if _, err := c.registry.GC(ctx, registryGrace); err != nil && ctx.Err() == nil {
				c.log.Warn("the registry's collection failed; it is tried again later", "err", err)
			}
		}
		if err := c.finishUntil(ctx, tick.C); err != nil {
			return err
		}
	}
}

// finishUntil finishes the deletion of apps, whenever that is asked for and until it
// succeeds, until the next tick.
func (c *Controller) finishUntil(ctx context.Context, tick <-chan time.Time) error {
	wait := finishFirst
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
			return nil
		case <-c.unfinished:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if err := c.finishApps(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("deleted apps are not cleared away yet; it is tried again", "err", err)
			c.finishLater()
			wait = min(2*wait, finishMax)
			continue
		}
		wait = finishFirst
	}
}

// collectOnce forgets Machines destroyed before a time and what has expired, and finishes
// the deletions of apps and organizations that a kill cut off.
func (c *Controller) collectOnce(ctx context.Context, before time.Time) error {
	kvs, _, err := c.store.List(ctx, record.PrefixTomb)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		at, a, id, ok := record.ParseTombKey(kv.Key)
		if !ok || at.After(before) {
			break // sorted by time: all that follow are younger
		}
		r, _, err := record.Get[record.Machine](ctx, c.store, record.MachineKey(a, id))
		if err != nil {
			return err
		}
		if r == nil || r.Gone == nil {
			r = &record.Machine{ID: id, App: a, Gone: &at}
		}
		if err := c.forgetMachine(ctx, r); err != nil {
			return err
		}
	}
	return errors.Join(c.clearRemoved(ctx), c.clearExpired(ctx), c.finishOrgs(ctx), c.sweepTokens(ctx), c.finishApps(ctx))
}

// finishApps takes up the deletion of every app that is being deleted.
func (c *Controller) finishApps(ctx context.Context) error {
	apps, _, err := record.List[record.App](ctx, c.store, record.PrefixApp)
	if err != nil {
		return err
	}
	for _, a := range apps {
		if !a.Deleting {
			continue
		}
		if err := c.destroyAll(ctx, a.Name); err != nil {
			return err
		}
		if err := c.finishApp(ctx, a.Name); err != nil {
			return err
		}
	}
	return nil
}

// imagesInUse is the registry's question which images without a tag must stay: those
// of every Machine, and of every version of it that is kept.
func (c *Controller) imagesInUse(ctx context.Context) (func(repo string, d key.Digest) bool, error) {
	apps, _, err := record.List[record.App](ctx, c.store, record.PrefixApp)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	note := func(ref machine.ImageRef) {
		if ref.Registry == "" {
			used[ref.Repository+"@"+string(ref.Digest)] = true
		}
	}
	// App by app, so that not all configs there are lie in memory at once. What is
	// created meanwhile has had its image looked at since the collection began, which
	// keeps it (registry.Manifest).
	for _, a := range apps {
		versions, _, err := record.List[record.Version](ctx, c.store, record.VersionsOfApp(a.Name))
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			note(v.ImageRef)
		}
		records, _, err := record.List[record.Machine](ctx, c.store, record.MachinesOf(a.Name))
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			note(r.ImageRef)
		}
	}
	return func(repo string, d key.Digest) bool { return used[repo+"@"+string(d)] }, nil
}
