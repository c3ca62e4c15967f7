package cli

import (
	"context"
	"io"
	"time"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/machine"
)

// allLines asks for every line that the platform keeps.
const allLines = 100_000

// attach shows what a Machine that is destroyed at its end writes, until then, and gives its
// exit code as bulkhead's own.
func (s *session) attach(ctx context.Context, api *client.Client, app string, m client.Machine) error {
	out := &attached{s: s}
	for {
		began := time.Now()
		err := out.read(ctx, api, client.LogQuery{App: app, Machine: m.ID, Tail: allLines, Follow: true})
		if ctx.Err() != nil {
			return s.abandon(ctx, api, app, []client.Machine{m}, false, context.Canceled)
		}
		now, gerr := api.Machine(ctx, app, m.ID)
		switch {
		case fault.Is(gerr, fault.NotFound):
			return machineError(gerr, app, m.ID)
		case gerr == nil && now.State == machine.Destroyed:
			// The stream may have ended before the last lines came.
			if err := out.read(ctx, api, client.LogQuery{App: app, Machine: m.ID, Tail: allLines}); err != nil {
				s.ui.warn("the last lines of machine %s could not be read: %v", m.ID, err)
			}
			return s.ended(now)
		case gerr == nil && dead(now.State):
			return s.explain(ctx, api, app, &startError{machine: now, reason: reasonOf(now, nil, "it is "+string(now.State))})
		case out.failed != nil:
			return s.abandon(ctx, api, app, []client.Machine{m}, false, err)
		}
		if sleep(ctx, pollPause-time.Since(began)) != nil {
			return s.abandon(ctx, api, app, []client.Machine{m}, false, context.Canceled)
		}
	}
}

// ended shows how the process of a Machine ended, and exits as it did.
func (s *session) ended(m client.Machine) error {
	x := exitOfMachine(m)
	if err := s.ui.result(m, func(io.Writer) {}); err != nil {
		return err
	}
	if x == nil {
		return fault.New(fault.Conflict, "machine %s was destroyed before its process ended", m.ID)
	}
	code := x.ExitCode
	if x.Signal > 0 && code <= 0 {
		code = 128 + x.Signal
	}
	if x.OOMKilled || x.Signal > 0 {
		s.ui.progress("machine %s: %s", m.ID, describeExit(x))
	}
	if code < 0 {
		return fault.New(fault.Unavailable, "the process of machine %s vanished without an exit code", m.ID)
	}
	return exitStatus(code)
}

// exitOfMachine is the newest exit among a Machine's events; nil when there is none.
func exitOfMachine(m client.Machine) *machine.ExitEvent {
	for _, e := range m.Events {
		if x := exitOf(e); x != nil {
			return x
		}
	}
	return nil
}

// attached writes lines to this command's own streams, each once.
type attached struct {
	s      *session
	shown  int // lines
	failed error
}

// read reads lines from the first, and writes those that are new.
func (a *attached) read(ctx context.Context, api *client.Client, q client.LogQuery) error {
	n := 0
	return api.Logs(ctx, q, func(l client.LogLine) error {
		if n++; n <= a.shown {
			return nil
		}
		a.shown = n
		to := a.s.env.Stdout
		switch {
		case l.Stream == "stderr" || a.s.ui.json:
			to = a.s.env.Stderr
		case l.Stream != "stdout":
			a.s.ui.progress("%s", l.Message)
			return nil
		}
		_, a.failed = to.Write(append(l.Raw(), '\n'))
		return a.failed
	})
}
