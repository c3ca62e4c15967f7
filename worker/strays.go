package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bulkhead/fault"
)

// noSurvey is what the board calls a census that cannot be taken.
const noSurvey = "the node's sandboxes cannot be listed, or strays cannot be removed"

// clearStrays removes the sandboxes of Machines that the journal does not know. A
// census that the runtime cannot give is asked for again before anything is started;
// a stray that resists once is not waited for: the runtime itself refuses a second
// sandbox in its place, and it is tried again until it is gone.
func (w *Worker) clearStrays() {
	select {
	case <-w.whole:
	case <-w.life.Done():
		return
	}
	surveyed := false
	for wait := retryFirst; ; wait = min(2*wait, retryMax) {
		left, err := w.clearOnce(!surveyed)
		if err == nil && !surveyed {
			surveyed = true
			close(w.survey)
		}
		if err == nil && left == nil || w.life.Err() != nil {
			w.board.Over(noSurvey)
			return
		}
		w.board.Trouble(noSurvey, errors.Join(err, left))
		if sleep(w.life, wait) != nil {
			return
		}
	}
}

// clearOnce takes a census and tries to remove every stray; left says why one stays.
// Before anything is started these are also sandboxes of known Machines that should
// have none; after it their actors may be at work on them.
func (w *Worker) clearOnce(first bool) (left, err error) {
	ctx, cancel := context.WithTimeout(w.life, callTimeout)
	defer cancel()
	all, err := w.runtime.List(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var removals sync.WaitGroup
	for _, info := range all {
		w.mu.Lock()
		s := w.seen[info.Machine]
		w.mu.Unlock()
		if s != nil && (s.rec.Sandbox != "" || !first) {
			continue // its actor sees to it
		}
		w.log.Warn("a sandbox that no record names is removed", "machine", info.Machine, "slot", info.Slot)
		removals.Go(func() {
			if err := w.runtime.Remove(ctx, info.Machine); err != nil {
				mu.Lock()
				defer mu.Unlock()
				left = errors.Join(left, fmt.Errorf("machine %s: %w", info.Machine, err))
			}
		})
	}
	removals.Wait()
	return left, nil
}

// surveyed waits until strays are gone: nothing is started before.
func (w *Worker) surveyed(ctx context.Context) error {
	select {
	case <-w.survey:
		return nil
	default:
	}
	t := time.NewTimer(5 * time.Second)
	defer t.Stop()
	select {
	case <-w.survey:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return fault.New(fault.Unavailable, "the node's sandboxes cannot be listed yet; the warden does not answer")
	}
}
