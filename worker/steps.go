package worker

import (
	"context"
	"time"

	"bulkhead/fault"
	"bulkhead/machine"
	"bulkhead/sandbox"
)

// Waits inside the steps.
const (
	callTimeout  = 30 * time.Second // of one call to the runtime, but Start
	startTimeout = 2 * time.Minute  // of Start
	killWait     = 3 * time.Second  // between SIGKILL and Remove
)

// noted takes over what was wanted, so that it counts as acted on.
func (a *actor) noted(r *record) {
	r.Wanted, r.Asked = r.wanted(a.asg), false
	r.StartNonce, r.RestartNonce = a.asg.GetStartNonce(), a.asg.GetRestartNonce()
	if r.State == machine.Created {
		r.Instance = instanceOf(a.asg)
	}
}

// move journals one planned transition with the event that tells of it.
func (a *actor) move(s step) error {
	if s.on == machine.InTimeout {
		return a.fail(s, fault.New(fault.Timeout, "the machine was %s for longer than %v%s", a.rec.State, machine.Deadline(a.rec.State), because(a.rec.Error)), true)
	}
	now := a.w.now()
	return a.update(string(s.on), func(r *record) error {
		policy := r.State == machine.Restarting && !r.ByUser
		if err := r.move(s.on, now); err != nil {
			return err
		}
		source, why := byPlatform, (*machine.EventRequest)(nil)
		if s.user {
			source = byUser
			r.Error = ""
			if r.byTraffic(a.asg) && (s.on == machine.InBegin || s.on == machine.InStop) {
				source, why = byPlatform, &machine.EventRequest{Reason: reasons[r.Local]}
			}
		}
		r.Retry = false
		switch s.on {
		case machine.InLaunch:
			r.Instance = instanceOf(a.asg)
		case machine.InBegin:
			switch {
			case s.user:
				r.History, r.NextStart = machine.History{}, time.Time{}
				r.event(now, "start", source, why)
			case policy:
				r.event(now, "restart", source, &machine.EventRequest{RestartCount: r.History.Total})
			}
			r.ByUser = s.user
		case machine.InRestart:
			r.ByUser, r.History, r.NextStart = true, machine.History{}, time.Time{}
			r.event(now, "restart", source, nil)
		case machine.InStop:
			r.ByUser = true
			r.event(now, "stop", source, why)
		case machine.InUpdate:
			r.ByUser = true
			r.event(now, "update", source, nil)
		case machine.InDestroy:
			r.event(now, "destroy", source, nil)
		}
		a.noted(r)
		return nil
	})
}

// prepare fetches, verifies and seals the image of a first start.
func (a *actor) prepare(ctx context.Context) error {
	if a.rec.Instance != instanceOf(a.asg) {
		// A newer version before the first start: take it instead.
		return a.update("take up", func(r *record) error {
			r.Instance, r.Image = instanceOf(a.asg), ""
			r.event(a.w.now(), "update", byUser, nil)
			return nil
		})
	}
	if a.rec.Slot == 0 {
		return fault.New(fault.Precondition, "could not reserve resource for machine: the node has no free place for another machine")
	}
	img, err := a.ensureImage(ctx)
	if err != nil {
		return err
	}
	if _, err := a.spec(img); err != nil {
		return err
	}
	return a.update("fetched", func(r *record) error {
		r.Image, r.Error = img.Digest, ""
		return r.move(machine.InBegin, a.w.now())
	})
}

// start starts the sandbox, once: what an earlier try, or an earlier worker, may
// have started is found first.
func (a *actor) start(ctx context.Context) error {
	if a.rec.Sandbox != "" && a.rec.Ended {
		return a.remove(ctx)
	}
	if a.rec.Sandbox != "" {
		switch err := a.attach(ctx); {
		case err == nil:
			return a.up()
		case !fault.Is(err, fault.NotFound):
			return err
		}
	}
	img, err := a.ensureImage(ctx)
	if err != nil {
		return err
	}
	spec, err := a.spec(img)
	if err != nil {
		return err
	}
	var version uint64
	if spec.Secrets, spec.SecretFiles, version, err = a.secrets(ctx); err != nil {
		return err
	}
	spec.Env = append(spec.Env, roleVariables(a.id, spec.Env, spec.Secrets)...)
	secretive := len(spec.Secrets)+len(spec.SecretFiles) > 0
	if err := a.w.surveyed(ctx); err != nil {
		return err
	}
	if err := a.w.capacity.take(a.id, guestMB(a.asg)); err != nil {
		return err
	}
	if a.rec.Sandbox == "" || a.rec.Image != img.Digest || a.rec.Secrets != version || a.rec.HasSecrets != secretive {
		// Crash point: from here on the sandbox may exist, so the record names it first.
		err := a.update("start", func(r *record) error {
			r.Sandbox, r.Ran, r.Ended = r.Instance, false, false
			r.Image, r.Step = img.Digest, actStart.String()
			r.Secrets, r.HasSecrets = version, secretive
			return nil
		})
		if err != nil {
			return err
		}
	}
	release, err := a.w.starts.enter(ctx)
	if err != nil {
		return err
	}
	defer a.startEnds(release)
	call, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	began := time.Now()
	a.log.Debug("trace", "step", "asked for the sandbox")
	box, err := a.w.runtime.Start(call, spec)
	if fault.Is(err, fault.Conflict) {
		// Something of this Machine is there that the journal does not know.
		if rerr := a.callRemove(ctx); rerr != nil {
			return rerr
		}
		box, err = a.w.runtime.Start(call, spec)
	}
	if err != nil {
		return err
	}
	a.log.Debug("trace", "step", "got the sandbox")
	a.w.metrics.startSeconds.Observe(time.Since(began).Seconds())
	a.hold(box)
	return a.up()
}

// up notes that the process runs.
func (a *actor) up() error {
	return a.update("up", func(r *record) error {
		now := a.w.now()
		if err := r.move(machine.InUp, now); err != nil {
			return err
		}
		r.Launched, r.Ran, r.StartedAt, r.Error = true, true, now, ""
		r.Retries, r.ByUser, r.NextStart = 0, false, time.Time{}
		r.event(now, "start", byPlatform, a.withoutNames())
		return nil
	})
}

// noNames is the reason in the event of a start without a name server.
const noNames = "no DNS: the node has no name server that machines can reach; its operator sets nameservers in bulkhead.toml"

// withoutNames says in the event of a start that the Machine resolves no names; nil when it does.
func (a *actor) withoutNames() *machine.EventRequest {
	cfg, err := configOf(a.asg)
	if err != nil || cfg.DNS != nil && len(cfg.DNS.Nameservers) > 0 || len(a.w.nameservers()) > 0 {
		return nil
	}
	return &machine.EventRequest{Reason: noNames}
}

// watch waits for the end of the process, or for something newer to do.
func (a *actor) watch(ctx context.Context) error {
	if err := a.attach(ctx); fault.Is(err, fault.NotFound) {
		return a.ended(sandbox.Exit{Code: -1, At: a.w.now()})
	} else if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.wake:
		return nil
	case e := <-a.exit:
		if e.At.IsZero() { // the wait failed, not the process
			a.detach()
			return fault.New(fault.Unavailable, "the sandbox of machine %s cannot be watched", a.id)
		}
		a.exit <- e // to be read again if it cannot be journaled now
		return a.ended(e)
	}
}

// ended notes that the process ended by itself, and what the restart policy says.
func (a *actor) ended(e sandbox.Exit) error {
	a.drain()
	if e.Code != 0 && e.At.Sub(a.rec.StartedAt) < machine.HealthyAfter {
		a.w.suspect(a.rec.Image)
	}
	cfg, err := configOf(a.asg)
	if err != nil {
		return err
	}
	d := machine.Decide(cfg.Restart, machine.End{Code: e.Code, Unknown: e.Code < 0, Started: a.rec.StartedAt, At: e.At}, a.rec.History)
	now := a.w.now()
	err = a.update("exit", func(r *record) error {
		in := machine.InExit
		switch d.Action {
		case machine.ActRestart:
			in, r.NextStart = machine.InCrash, now.Add(d.After)
		case machine.ActGiveUp:
			in = machine.InGiveUp
			r.Error = sentence(e, cfg) + "; the restart policy's retries are used up"
		}
		if err := r.move(in, now); err != nil {
			return err
		}
		r.History, r.Ended, r.ByUser, r.Retry = d.History, true, false, false
		r.SelfDestroy = cfg.AutoDestroy && in != machine.InCrash
		a.exitEvent(r, e, now)
		return nil
	})
	if err == nil {
		a.say("%s%s", sentence(e, cfg), map[machine.Action]string{machine.ActRestart: "; it is started again in " + d.After.String(), machine.ActGiveUp: "; the restart policy gives up"}[d.Action])
	}
	return err
}

// exitEvent adds the event of an end.
func (a *actor) exitEvent(r *record, e sandbox.Exit, now time.Time) {
	x := &machine.ExitEvent{
		ExitCode: e.Code, GuestExitCode: e.Code, GuestSignal: -1, Signal: -1, OOMKilled: e.OOM,
		RequestedStop: r.ByUser || r.State == machine.Destroying, Restarting: r.State == machine.Restarting, ExitedAt: e.At,
	}
	if e.Signal > 0 {
		x.GuestSignal, x.Signal = e.Signal, e.Signal
	}
	req := &machine.EventRequest{ExitEvent: x, MonitorEvent: &machine.MonitorEvent{ExitEvent: x}, RestartCount: r.History.Total}
	if cfg, err := configOf(a.asg); err == nil && e.OOM {
		req.Error = sentence(e, cfg)
	}
	r.event(now, "exit", byPlatform, req)
	a.w.metrics.exits.Inc()
	if e.OOM {
		a.w.metrics.ooms.Inc()
	}
}

// stop ends what runs and removes its sandbox; then follows, when given.
func (a *actor) stop(ctx context.Context, then machine.Input) error {
	if err := a.end(ctx, machine.Passing(a.rec.State)); err != nil {
		return err
	}
	if then == "" {
		return nil
	}
	return a.update(string(then), func(r *record) error {
		r.Error, r.ByUser, r.NextStart, r.Retries = "", false, time.Time{}, 0
		return r.move(then, a.w.now())
	})
}

// teardown removes everything that the Machine holds.
func (a *actor) teardown(ctx context.Context) error {
	if err := a.end(ctx, a.rec.State == machine.Destroying && !a.asg.GetForce()); err != nil {
		return err
	}
	a.w.logs.Release(a.id)
	return a.update("gone", func(r *record) error {
		now := a.w.now()
		if err := r.move(machine.InGone, now); err != nil {
			return err
		}
		r.Slot, r.Retry = 0, false
		r.event(now, "destroy", byPlatform, nil)
		return nil
	})
}

// end ends the process, politely with grace, notes how it ended and removes the
// sandbox. Every part of it may be done again after a crash.
func (a *actor) end(ctx context.Context, grace bool) error {
	if a.rec.Sandbox == "" {
		a.dropSecrets() // of a start that failed, or of a version that might be woken
		return nil
	}
	if a.rec.Ended {
		return a.remove(ctx)
	}
	e := sandbox.Exit{Code: -1, At: a.w.now()}
	switch err := a.attach(ctx); {
	case err == nil:
		if grace {
			if err := a.askToEnd(ctx); err != nil {
				return err
			}
		}
		e = a.kill(ctx)
	case !fault.Is(err, fault.NotFound):
		return err
	case !a.rec.Ran:
		return a.remove(ctx) // it never came up: there is no end to tell of
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	a.drain()
	if err := a.update("ended", func(r *record) error {
		r.Ended = true
		a.exitEvent(r, e, a.w.now())
		return nil
	}); err != nil {
		return err
	}
	return a.remove(ctx)
}

// askToEnd sends the stop signal, once in the state and worker's life, and waits
// until the process ends or the stop timeout, counted from the state's beginning,
// has passed.
func (a *actor) askToEnd(ctx context.Context) error {
	sig, timeout := a.stopWith()
	if !a.signalled.Equal(a.rec.Since) {
		if err := a.leaveRoutes(ctx); err != nil {
			return err
		}
		left := func() time.Duration { return timeout - a.w.now().Sub(a.rec.Since) }
		call, cancel := context.WithTimeout(ctx, min(callTimeout, max(left(), killWait)))
		err := a.w.runtime.Signal(call, a.id, sig)
		cancel()
		if err != nil && !fault.Is(err, fault.NotFound) && left() > 0 {
			return err // asked again: what cannot be asked in time is killed
		}
		a.signalled = a.rec.Since
	}
	t := time.NewTimer(max(0, timeout-a.w.now().Sub(a.rec.Since)))
	defer t.Stop()
	select {
	case e := <-a.exit:
		a.exit <- e // kill reads it
	case <-t.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// leaveRoutes gives the edges time to hear that this Machine is no longer started
// before it stops answering: a request that is not idempotent cannot be sent twice.
func (a *actor) leaveRoutes(ctx context.Context) error {
	cfg, err := configOf(a.asg)
	if err != nil || len(cfg.Services) == 0 {
		return nil
	}
	select {
	case e := <-a.exit:
		a.exit <- e // kill reads it
	case <-time.After(a.w.opt.RouteGrace - a.w.now().Sub(a.rec.Since)):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// kill ends the process if it still runs, and returns how it ended.
func (a *actor) kill(ctx context.Context) sandbox.Exit {
	select {
	case e := <-a.exit:
		a.exit <- e // to be read again if it cannot be journaled now
		return known(e)
	default:
	}
	call, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	if err := a.w.runtime.Signal(call, a.id, 9); err != nil && !fault.Is(err, fault.NotFound) {
		a.log.Warn("SIGKILL could not be sent; the sandbox is removed at once", "err", err)
		return sandbox.Exit{Code: 137, Signal: 9, At: a.w.now()}
	}
	select {
	case e := <-a.exit:
		a.exit <- e // to be read again if it cannot be journaled now
		return known(e)
	case <-call.Done():
		return sandbox.Exit{Code: 137, Signal: 9, At: a.w.now()}
	}
}

// known gives an end whose wait failed the code for "unknown".
func known(e sandbox.Exit) sandbox.Exit {
	if e.At.IsZero() {
		return sandbox.Exit{Code: -1, At: time.Now()}
	}
	return e
}

// remove removes the sandbox and notes that it is gone.
func (a *actor) remove(ctx context.Context) error {
	a.detach()
	if err := a.callRemove(ctx); err != nil {
		return err
	}
	a.w.capacity.release(a.id)
	a.dropSecrets()
	return a.update("removed", func(r *record) error {
		r.Sandbox, r.Ran, r.Ended = "", false, false
		return nil
	})
}

func (a *actor) callRemove(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.w.runtime.Remove(call, a.id)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
