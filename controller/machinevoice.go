package controller

import (
	"context"
	"errors"
	"time"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// Whether calls in a Machine's name are taken. Its worker says which Machine calls, and a
// worker may be lost: so a Machine has a voice only while it is assigned to that worker's
// node and is to run. That is decided by the record, in which the worker writes nothing,
// and held against what the worker has reported: one that speaks for a Machine has to
// show it running to everybody.

const (
	// voiceWait is how long a call waits for the report of a start that it came before.
	voiceWait = 5 * time.Second
	// voiceGrace is how long answers that are on their way have when a Machine loses its
	// voice; new calls are refused from the moment on.
	voiceGrace = 500 * time.Millisecond
)

// errNotReported is why calls are not taken now and may be in a moment.
var errNotReported = errors.New("the worker has not reported that it runs")

// hasVoice decides by a Machine's record and by what its worker last reported of it, which
// may be nil.
//
// The record decides what is wanted; a worker's word that traffic woke it counts as far as
// its config lets traffic go (wants). The reports cannot give a Machine its voice, only keep
// it from having one.
func hasVoice(r *record.Machine, s *seen, node key.Node) error {
	switch {
	case r == nil || r.Node != node || r.Gone != nil || r.Desired == machine.WantDestroyed:
		return fault.New(fault.Denied, "node %s has no such machine", node)
	case r.Desired != machine.WantStarted && !r.Config.Traffic().Autostart:
		return fault.New(fault.Denied, "machine %s is to be stopped; no call is taken in its name", r.ID)
	case s == nil || s.Node != node || wants(r, s) != machine.WantStarted || !mayHaveProcess(s.State):
		return fault.Wrap(fault.Unavailable, errNotReported, "machine %s is not reported to run; no call is taken in its name", r.ID)
	}
	return nil
}

// mayHaveProcess reports whether a process of a Machine may run in a state.
func mayHaveProcess(s machine.State) bool {
	switch s {
	case machine.Starting, machine.Started, machine.Restarting, machine.Updating, machine.Stopping:
		return true
	}
	return false
}

// voice asks the store and the view.
func (c *Controller) voice(ctx context.Context, node key.Node, app key.AppName, id key.MachineID) error {
	r, _, err := record.Get[record.Machine](ctx, c.store, record.MachineKey(app, id))
	if err != nil {
		return err
	}
	return c.machines.bounds.Load().rule(r, c.view.get(id), node)
}

// awaitVoice is voice for a new connection: a process may call before its start is reported.
func (c *Controller) awaitVoice(ctx context.Context, node key.Node, app key.AppName, id key.MachineID, w *waiter) error {
	limit := time.NewTimer(c.machines.bounds.Load().wait)
	defer limit.Stop()
	for {
		err := c.voice(ctx, node, app, id)
		if !errors.Is(err, errNotReported) {
			return err
		}
		select {
		case <-w.poke:
		case <-limit.C:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// untilSilent returns why a connection's Machine has no voice any more, when it has none.
func (c *Controller) untilSilent(ctx context.Context, node key.Node, app key.AppName, id key.MachineID, w *waiter) error {
	for {
		select {
		case <-w.poke:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := c.voice(ctx, node, app, id); err != nil {
			return err
		}
	}
}

// awaitNewest refuses an identity token to a version of a Machine that is being replaced:
// what the token says of the version and its image would be true of another process. One
// that is starting is waited for.
func (c *Controller) awaitNewest(ctx context.Context, r *record.Machine) error {
	w, stop := c.view.follow(r.ID)
	defer stop()
	limit := time.NewTimer(c.machines.bounds.Load().wait)
	defer limit.Stop()
	for {
		if s := c.view.get(r.ID); s != nil && s.Instance == r.Instance {
			return nil
		}
		select {
		case <-w.poke:
		case <-limit.C:
			return fault.New(fault.Unavailable, "machine %s is not reported to run its newest version; ask again when it does", r.ID)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
