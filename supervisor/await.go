package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bulkhead/room"
)

// noPlatform is what the board calls a start that a full disk holds up.
const noPlatform = "the platform does not answer as a whole, and waits for room on the disk"

// awaitPlatform returns when the controller says that it and its worker serve, and
// the API answers a client through the edge. Too late is an error, but not while the
// disk is full: what runs is of use, and ending it, over and over, makes no room.
func (s *Supervisor) awaitPlatform(ctx context.Context, a *admin) (login, error) {
	full := func() bool { return room.Check(s.in.dir, 0, room.Records) != nil }
	for {
		was := full() // with room again there is the whole time anew
		l, err := s.awaitOnce(ctx, a)
		if err == nil {
			s.board.Over(noPlatform)
			return l, nil
		}
		if ctx.Err() != nil || s.gaveUp() != nil || !was && !full() {
			return l, err
		}
		s.waitForRoom(err)
	}
}

// waitForRoom says once that the start goes on when the disk has room, and tells a
// service manager not to wait: it would begin it anew, over and over.
func (s *Supervisor) waitForRoom(why error) {
	s.board.Trouble(noPlatform, why)
	s.ready("\nSTATUS=" + noPlatform)
}

// gaveUp is the failure of a role that is not tried any more.
func (s *Supervisor) gaveUp() error {
	for _, r := range s.runners {
		select {
		case <-r.ended:
			return s.explain(r, r.failure)
		default:
		}
	}
	return nil
}

// awaitOnce is awaitPlatform for as long as that should take.
func (s *Supervisor) awaitOnce(ctx context.Context, a *admin) (login, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.timing.platform, errors.New("too late"))
	defer cancel()
	var last error
	for {
		l, err := a.answers(ctx, s.state)
		if err == nil {
			return l, nil
		}
		if ctx.Err() == nil {
			last = err
		}
		if err := s.gaveUp(); err != nil {
			return login{}, err
		}
		select {
		case <-ctx.Done():
			if last == nil {
				last = ctx.Err()
			}
			return login{}, fmt.Errorf("the roles run, but the API does not answer after %s: %w", s.timing.platform, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// answers says whether the platform serves as a whole, through the edge too.
func (a *admin) answers(ctx context.Context, st State) (login, error) {
	if err := a.ready(ctx); err != nil {
		return login{}, err
	}
	l, err := a.login(ctx)
	if err == nil {
		err = probeAPI(ctx, st.HTTPSAddr, st.Domain, l)
	}
	return l, err
}
