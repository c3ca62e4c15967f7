package worker

import (
	"context"
	"errors"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// suspectAgain is how long an image that was found whole is not suspected again.
const suspectAgain = 10 * time.Minute

// scrub reads images whole, one at a time: all of them a while after the start and
// then every day, and at once those that something did not run well from. What is
// damaged is removed, and fetched and sealed again when a Machine starts from it.
func (w *Worker) scrub() {
	next := time.NewTimer(w.opt.ScrubAfter)
	defer next.Stop()
	whole := map[key.Digest]time.Time{} // of suspects
	for {
		select {
		case <-w.life.Done():
			return
		case d := <-w.suspects:
			if at, ok := whole[d]; ok && time.Since(at) < suspectAgain {
				continue
			}
			if !w.damaged(w.life, d) {
				whole[d] = time.Now()
			}
		case <-next.C:
			clear(whole)
			for _, img := range w.images.List() {
				began := time.Now()
				w.damaged(w.life, img.Digest)
				// A quarter of the disk at most: this is for nobody who waits.
				if sleep(w.life, 3*time.Since(began)) != nil {
					return
				}
			}
			next.Reset(w.opt.ScrubEvery)
		}
	}
}

// suspect has an image read soon.
func (w *Worker) suspect(d key.Digest) {
	if d == "" {
		return
	}
	select {
	case w.suspects <- d:
	default:
	}
}

// damaged reads an image whole and reports whether it was damaged, and is removed.
func (w *Worker) damaged(ctx context.Context, d key.Digest) bool {
	err := w.images.Verify(ctx, d)
	return err != nil && !fault.Is(err, fault.NotFound) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// verifyLimit bounds the reading of an image that a start failed from.
const verifyLimit = time.Minute

// imageDamaged reads the image of a start that failed, once in a row of failures: a
// command that is not found may be one that the disk has lost.
func (a *actor) imageDamaged(ctx context.Context) bool {
	if a.failures > 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
	defer cancel()
	return a.w.damaged(ctx, a.rec.Image)
}
