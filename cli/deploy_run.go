package cli

import (
	"context"
	"errors"
	"sort"
	"sync"
	"time"

	"bulkhead/client"
	"bulkhead/deployfile"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// progressOf is how far the update of one Machine came.
type progressOf int

const (
	untouched progressOf = iota // it has its old version
	underWay                    // it was given the new version; whether it runs is not known
	updated                     // it runs the new version, or holds it where it was stopped
	restored                    // the new version did not start; it has its old version back
	broken                      // the new version did not start, nor could the old one be given back
)

// update is one Machine that gets the new version.
type update struct {
	old    client.Machine
	config *machine.Config
	keep   bool // it is stopped, and stays so

	// Written by the goroutine that updates the Machine, read when all are done.
	progress progressOf
	now      client.Machine
}

// create is one new Machine.
type create struct {
	group  string
	config *machine.Config
	now    client.Machine
}

// plan compares what there is with what there is to be.
func (d *deployment) plan(ctx context.Context) error {
	ms, err := d.s.machines(ctx, d.api, d.app)
	if err != nil {
		return err
	}
	groups := map[string]int{}
	if d.file != nil {
		for _, g := range d.file.Groups() {
			groups[g] = 0
		}
	}
	for _, m := range ms {
		g := m.Group()
		if g == "" || gone(m.State) {
			continue // made by "machine run", or gone
		}
		if _, known := groups[g]; !known && d.file != nil {
			d.s.ui.warn("machine %s belongs to the process group %q, which %s does not have; it is left as it is", m.ID, g, d.file.Path)
			continue
		}
		groups[g]++
		cfg, err := d.config(g, m.Config)
		if err != nil {
			return err
		}
		d.updates = append(d.updates, &update{old: m, now: m, config: cfg, keep: staysStopped(m, cfg)})
	}
	sort.SliceStable(d.updates, func(i, j int) bool {
		a, b := d.updates[i].old, d.updates[j].old
		if a.Group() != b.Group() {
			return a.Group() < b.Group()
		}
		return a.ID < b.ID
	})
	d.kept()
	if len(groups) == 0 {
		groups[deployfile.DefaultGroup] = 0
	}
	return d.planCreates(groups)
}

// planCreates plans the Machines that groups lack: one where there is none, and with --ha
// as many as make two.
func (d *deployment) planCreates(groups map[string]int) error {
	var names []string
	for g := range groups {
		names = append(names, g)
	}
	sort.Strings(names)
	for _, g := range names {
		count := 1
		if d.flags.ha {
			count = 2
		}
		for i := groups[g]; i < count; i++ {
			cfg, err := d.config(g, nil)
			if err != nil {
				return err
			}
			d.creates = append(d.creates, &create{group: g, config: cfg})
		}
	}
	return nil
}

// staysStopped reports whether a stopped Machine is one that the platform stops
// and starts by need, and so is not started by a deploy.
func staysStopped(m client.Machine, c *machine.Config) bool {
	if m.State != machine.Stopped && m.State != machine.Suspended {
		return false
	}
	for _, s := range c.Services {
		if s.Autostop != nil && *s.Autostop != "off" {
			return true
		}
	}
	return false
}

// run carries the plan out.
func (d *deployment) run(ctx context.Context) error {
	defer d.s.ui.waiting("waiting for the Machines of " + d.app)()
	if len(d.updates) > 0 {
		if err := d.roll(ctx); err != nil {
			return err
		}
	}
	return d.createAll(ctx)
}

// show prints a Machine's states as they pass.
func (d *deployment) show(id, group string) func(machine.State) {
	return func(st machine.State) { d.s.ui.progress("  %s [%s] is %s", id, group, st) }
}

// createAll makes the new Machines and waits until all of them run. If one does
// not, all of them are destroyed.
func (d *deployment) createAll(ctx context.Context) error {
	var made []client.Machine
	for _, c := range d.creates {
		m, err := d.api.CreateMachine(ctx, d.app, client.LaunchInput{Region: d.region, Config: c.config})
		if err != nil {
			return d.s.abandon(ctx, d.api, d.app, made, d.flags.keepFailed, err)
		}
		d.s.ui.progress("created machine %s [%s]", m.ID, c.group)
		c.now = m
		made = append(made, m)
	}
	err := concurrently(ctx, len(d.creates), max(len(d.creates), 1), func(ctx context.Context, i int) error {
		c := d.creates[i]
		if d.strategy == "immediate" {
			return nil
		}
		m, err := awaitStarted(ctx, d.api, d.app, c.now, d.wait, d.flags.settle, d.show(string(c.now.ID), c.group))
		if err == nil {
			m, err = answering(ctx, d.api, d.app, m, d.wait)
		}
		if err == nil {
			c.now = m
		}
		return err
	})
	if err != nil {
		return d.s.abandon(ctx, d.api, d.app, made, d.flags.keepFailed, err)
	}
	return nil
}

// concurrently runs do for 0 to n-1, at most width at a time, in order. After the
// first error no further one is begun; those under way are waited for.
func concurrently(ctx context.Context, n, width int, do func(context.Context, int) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		slots = make(chan struct{}, width)
	)
	failed := func() bool { mu.Lock(); defer mu.Unlock(); return first != nil }
	for i := 0; i < n; i++ {
		slots <- struct{}{}
		if failed() || ctx.Err() != nil {
			break
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			if err := do(ctx, i); err != nil {
				mu.Lock()
				if first == nil || canceled(first) {
					first = err
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	if first == nil {
		return ctxError(ctx)
	}
	return first
}

// ctxError returns why ctx ended: Ctrl-C, or the cause its owner gave.
func ctxError(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}

// roll updates the Machines there are, under leases.
func (d *deployment) roll(ctx context.Context) error {
	held := &leases{api: d.api, app: d.app, nonces: map[string]string{}}
	defer held.release(ctx, d.s.ui)
	for _, u := range d.updates {
		if err := held.acquire(ctx, u.old.ID); err != nil {
			return err
		}
	}
	ctx, stop := held.keep(ctx)
	defer stop()

	rest := d.updates
	if d.strategy == "canary" {
		d.s.ui.progress("updating machine %s [%s] first, alone", rest[0].old.ID, rest[0].old.Group())
		if err := d.update(ctx, held, rest[0]); err != nil {
			return d.rollEnded(ctx, err)
		}
		rest = rest[1:]
	}
	width := d.width(len(d.updates))
	err := concurrently(ctx, len(rest), width, func(ctx context.Context, i int) error { return d.update(ctx, held, rest[i]) })
	if err != nil {
		return d.rollEnded(ctx, err)
	}
	return nil
}

// width is how many Machines are updated at a time.
func (d *deployment) width(n int) int {
	switch {
	case d.strategy == "immediate":
		return max(n, 1)
	case d.flags.maxUnavailable > 0:
		return d.flags.maxUnavailable
	case d.file != nil:
		return d.file.MaxUnavailable(n)
	}
	return max(n/3, 1)
}

// update gives one Machine the new version and waits until it runs. When it does
// not, the Machine gets its old version back.
func (d *deployment) update(ctx context.Context, held *leases, u *update) error {
	id, group := u.old.ID, u.old.Group()
	d.s.ui.progress("updating machine %s [%s]", id, group)
	m, err := d.api.UpdateMachine(ctx, d.app, id, client.LaunchInput{
		Region: u.old.Region, Name: u.old.Name, Config: u.config, SkipLaunch: u.keep, CurrentVersion: u.old.InstanceID,
	}, held.nonce(id))
	if err != nil {
		if ctx.Err() != nil {
			u.progress = underWay // the request may have arrived
			return ctxError(ctx)
		}
		return machineError(err, d.app, id)
	}
	u.progress, u.now = underWay, m
	if u.keep || d.strategy == "immediate" {
		u.progress = updated
		return nil
	}
	m, err = awaitStarted(ctx, d.api, d.app, m, d.wait, d.flags.settle, d.show(string(id), group))
	if err == nil {
		m, err = answering(ctx, d.api, d.app, m, d.wait)
	}
	if err == nil {
		u.progress, u.now = updated, m
		return nil
	}
	if ctx.Err() != nil {
		return ctxError(ctx)
	}
	var se *startError
	if !errors.As(err, &se) {
		return err
	}
	// Its last words are asked for before the old version writes over them.
	err = d.s.explain(ctx, d.api, d.app, err)
	d.restore(ctx, held, u)
	return err
}

// restore gives a Machine its old version back.
func (d *deployment) restore(ctx context.Context, held *leases, u *update) {
	id := u.old.ID
	d.s.ui.progress("giving machine %s its old version back", id)
	u.progress = broken
	stopped := u.old.State == machine.Stopped || u.old.State == machine.Suspended
	m, err := d.api.UpdateMachine(ctx, d.app, id, client.LaunchInput{
		Region: u.old.Region, Name: u.old.Name, Config: u.old.Config, SkipLaunch: stopped,
	}, held.nonce(id))
	if err == nil && !stopped {
		m, err = awaitStarted(ctx, d.api, d.app, m, d.wait, 0, d.show(string(id), u.old.Group()))
	}
	if err != nil {
		d.s.ui.warn("machine %s could not be given its old version back: %s", id, classify(err).msg)
		return
	}
	u.progress, u.now = restored, m
}

// rollEnded says what a rollout that broke off has left behind.
func (d *deployment) rollEnded(ctx context.Context, err error) error {
	words := map[progressOf]string{
		untouched: "has its old version", updated: "has the new version", restored: "has its old version back",
		underWay: "was being updated; \"bulkhead machine status\" shows how it is", broken: "runs neither version",
	}
	states := map[string]string{}
	for _, u := range d.updates {
		states[string(u.old.ID)] = words[u.progress]
		d.s.ui.progress("  machine %s [%s] %s", u.old.ID, u.old.Group(), words[u.progress])
	}
	f := *classify(err)
	if m, ok := f.details.(map[string]any); ok {
		m["machines"] = states
	} else if f.details == nil {
		f.details = map[string]any{"machines": states}
	}
	if canceled(err) {
		return hint(&f, "deploy again; that updates every Machine")
	}
	return hint(&f, "fix the cause and deploy again; that updates every Machine")
}

// Leases of a rollout are short and refreshed often, so that a client that dies
// frees its Machines within seconds.
const (
	leaseTTL     = 13 * time.Second
	leaseRefresh = 4 * time.Second
)

// leaseWords say to others why a Machine is leased.
const leaseWords = "bulkhead deploy"

// leases are the leases a rollout holds.
type leases struct {
	api *client.Client
	app string

	mu     sync.Mutex
	nonces map[string]string
}

func (l *leases) nonce(id key.MachineID) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nonces[string(id)]
}

func (l *leases) acquire(ctx context.Context, id key.MachineID) error {
	le, err := l.api.AcquireLease(ctx, l.app, id, leaseTTL, leaseWords, "")
	if err != nil {
		return machineError(err, l.app, id)
	}
	l.mu.Lock()
	l.nonces[string(id)] = le.Nonce
	l.mu.Unlock()
	return nil
}

// keep refreshes the leases until stop is called. The context it returns ends when
// one of them is lost, since somebody else may then change the Machine.
func (l *leases) keep(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	done := make(chan struct{})
	go func() {
		defer close(done)
		missed := 0
		for sleep(ctx, leaseRefresh) == nil {
			if err := l.refresh(ctx); err == nil {
				missed = 0
			} else if missed++; lost(err) || missed >= int(leaseTTL/leaseRefresh) {
				cancel(err)
				return
			}
		}
	}()
	return ctx, func() { cancel(context.Canceled); <-done }
}

// refresh refreshes every lease once.
func (l *leases) refresh(ctx context.Context) error {
	for id, nonce := range l.all() {
		if _, err := l.api.AcquireLease(ctx, l.app, key.MachineID(id), leaseTTL, leaseWords, nonce); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "the lease of machine %s was lost: %s", id, fault.MessageOf(err))
		}
	}
	return nil
}

// lost reports whether a refresh failed for good, and not for a moment.
func lost(err error) bool {
	switch fault.KindOf(err) {
	case fault.Conflict, fault.Precondition, fault.NotFound, fault.Unauthenticated, fault.Denied:
		return true
	}
	return false
}

func (l *leases) all() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := map[string]string{}
	for k, v := range l.nonces {
		m[k] = v
	}
	return m
}

// release gives every lease back, also after Ctrl-C.
func (l *leases) release(ctx context.Context, u *ui) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for id, nonce := range l.all() {
		if err := l.api.ReleaseLease(ctx, l.app, key.MachineID(id), nonce); err != nil {
			u.warn("the lease of machine %s could not be given back; it ends by itself within %s: %s", id, leaseTTL, classify(err).msg)
		}
	}
}
