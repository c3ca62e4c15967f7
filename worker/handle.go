package worker

import (
	"context"
	"errors"
	"time"

	"bulkhead/logs"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// An actor holds its Machine's sandbox by a handle, by which it hears of its output and its
// end. Without one the sandbox goes on.

// attach finds the sandbox, unless the actor holds it already.
func (a *actor) attach(ctx context.Context) error {
	if a.box != nil {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	box, err := a.w.runtime.Attach(call, a.id)
	if err != nil {
		return err
	}
	a.hold(box)
	return nil
}

// hold takes a handle: its output goes to the logs, its end to a.exit.
func (a *actor) hold(box sandbox.Sandbox) {
	a.box, a.exit = box, make(chan sandbox.Exit, 1)
	if cfg, err := configOf(a.asg); err == nil {
		l := cfg.EffectiveLimits()
		a.w.logs.Limit(a.id, logs.Rate{Bytes: int64(l.LogKBPerSecond) << 10, Lines: int64(l.LogLinesPerSecond), Burst: machine.LogBurst})
	}
	a.pumps = pump(a.w.logs, a.id, box, a.w.kept)
	a.api = a.w.openAPI(a.id)
	ctx, exit := a.w.life, a.exit
	go func() {
		e, err := box.Wait(ctx)
		if err != nil {
			e = sandbox.Exit{} // the zero time says that the wait failed
		} else if e.At.IsZero() {
			e.At = time.Now()
		}
		exit <- e
	}()
}

// drain takes what an ended process left in its pipes.
func (a *actor) drain() {
	if a.pumps != nil {
		a.pumps.finish(100 * time.Millisecond)
		a.pumps = nil
	}
}

// detach lets go of the handle; the sandbox stays as it is.
func (a *actor) detach() {
	if a.box == nil {
		return
	}
	if a.pumps != nil {
		a.pumps.finish(0)
		a.pumps = nil
	}
	if err := a.box.Close(); err != nil && !errors.Is(err, context.Canceled) {
		a.log.Debug("closing a sandbox's handle", "err", err)
	}
	a.api.close()
	a.box, a.exit, a.api = nil, nil, nil
	a.w.logs.Release(a.id)
}
