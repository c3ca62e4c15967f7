package worker

import (
	"context"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// fetchNext makes a new version's image ready while the old version still counts as
// started and is routed to: an update costs an app the time of a start, not that of a
// download. What goes wrong here goes wrong again when the version is taken up, and
// is told there.
func (a *actor) fetchNext(ctx context.Context) error {
	// The old version's output is read on meanwhile.
	if err := a.attach(ctx); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	fetch, cancel := context.WithTimeout(ctx, machine.Deadline(machine.Updating))
	defer cancel()
	if _, err := a.ensureImage(fetch); err != nil {
		if ctx.Err() != nil {
			return err
		}
		a.log.Info("the new version's image is not ready; the update goes on to say why", "err", err)
	}
	return a.update("fetched", func(r *record) error { r.Fetched = instanceOf(a.asg); return nil })
}

// takeUp takes up a new version: its image is made ready while the old one runs, if
// it is to be started at all.
func (a *actor) takeUp(ctx context.Context) error {
	if a.rec.Sandbox != "" && !a.rec.Ended {
		// The old version is read on while the new image is fetched.
		if err := a.attach(ctx); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	in := machine.InDown
	next := key.Digest("")
	if a.rec.wanted(a.asg) == machine.WantStarted {
		img, err := a.ensureImage(ctx)
		if err != nil {
			return err
		}
		if _, err := a.spec(img); err != nil {
			return err
		}
		in, next = machine.InBegin, img.Digest
	} else if trafficOf(a.asg).Autostart {
		// A request may wake it when the controller is away: have its image here. What goes
		// wrong is told when it is started.
		if img, err := a.ensureImage(ctx); err == nil {
			next = img.Digest
		} else if ctx.Err() != nil {
			return err
		}
	}
	if err := a.end(ctx, true); err != nil {
		return err
	}
	return a.update("taken up", func(r *record) error {
		r.Instance, r.Image = instanceOf(a.asg), next
		r.History, r.NextStart, r.Error, r.ByUser = machine.History{}, time.Time{}, "", false
		a.noted(r)
		return r.move(in, a.w.now())
	})
}
