package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// pollWait is how long one call waits for a state before the Machine is looked at
// again; pollPause is the least time between two looks.
const (
	pollWait  = time.Second
	pollPause = 200 * time.Millisecond
)

// startError says that a Machine did not come up, or did not stay up.
type startError struct {
	machine client.Machine
	reason  string
	late    bool // it may still come up; the time allowed is over
}

// Error gives one sentence.
func (e *startError) Error() string {
	return fmt.Sprintf("machine %s did not start: %s", e.machine.ID, e.reason)
}

// failedMachine returns the Machine that an error is about, "" for other errors.
func failedMachine(err error) key.MachineID {
	var se *startError
	if errors.As(err, &se) {
		return se.machine.ID
	}
	return ""
}

// awaitStarted waits until the version of m that m describes runs, and then for
// settle to see it stay so. States on the way go to show. It ends with a
// *startError as soon as the Machine cannot get there.
func awaitStarted(ctx context.Context, api *client.Client, app string, m client.Machine, timeout, settle time.Duration, show func(machine.State)) (client.Machine, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errWaitedLongEnough)
	defer cancel()
	seen, stopped := m.State, 0
	for {
		began := time.Now()
		err := api.Wait(ctx, app, m.ID, m.InstanceID, machine.Started, pollWait)
		now, gerr := api.Machine(ctx, app, m.ID)
		if ctx.Err() != nil {
			return m, waitEnded(ctx, api, app, m, timeout)
		}
		if fault.Is(gerr, fault.NotFound) {
			return m, &startError{machine: m, reason: reasonOf(m, err, "it is gone")}
		}
		if gerr != nil {
			return m, gerr
		}
		if now.InstanceID != m.InstanceID && m.InstanceID != "" && now.InstanceID != "" {
			return now, fault.New(fault.Conflict, "machine %s got another version from somebody else", m.ID)
		}
		if now.State != seen {
			seen = now.State
			show(seen)
		}
		switch {
		case err == nil:
			return stays(ctx, api, app, now, settle)
		case dead(now.State):
			return now, &startError{machine: now, reason: reasonOf(now, err, "it is "+string(now.State))}
		case now.State == machine.Stopped:
			// It may pass through stopped while it takes up a new version.
			if stopped++; stopped >= 3 {
				return now, &startError{machine: now, reason: reasonOf(now, nil, "it stopped")}
			}
		default:
			stopped = 0
		}
		if !fault.Is(err, fault.Timeout) && !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.TooMany) {
			return now, &startError{machine: now, reason: reasonOf(now, err, "")}
		}
		if err := sleep(ctx, pollPause-time.Since(began)); err != nil {
			return now, waitEnded(ctx, api, app, now, timeout)
		}
	}
}

var errWaitedLongEnough = fault.New(fault.Timeout, "the wait is over")

// waitEnded tells Ctrl-C from the end of the time allowed, and looks a last time
// where the Machine is then.
func waitEnded(ctx context.Context, api *client.Client, app string, m client.Machine, timeout time.Duration) error {
	if context.Cause(ctx) != error(errWaitedLongEnough) {
		return context.Canceled
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if now, err := api.Machine(last, app, m.ID); err == nil {
		m = now
	}
	return &startError{machine: m, reason: fmt.Sprintf("it was still %s after %s", m.State, timeout), late: true}
}

// stays watches a Machine that has started for a while: most apps that cannot run
// end in their first second.
func stays(ctx context.Context, api *client.Client, app string, m client.Machine, settle time.Duration) (client.Machine, error) {
	for end := time.Now().Add(settle); ; {
		if idled(m) {
			return m, nil
		}
		if m.State != machine.Started || crashed(m) {
			return m, endedSoon(m)
		}
		left := time.Until(end)
		if left <= 0 {
			return m, nil
		}
		if err := sleep(ctx, min(left, 300*time.Millisecond)); err != nil {
			return m, err
		}
		now, err := api.Machine(ctx, app, m.ID)
		if err != nil {
			return m, err
		}
		m = now
	}
}

// crashed reports whether the process ended on its own since the Machine was
// last launched, updated or started by somebody. Events are newest first.
func crashed(m client.Machine) bool {
	for _, e := range m.Events {
		if begins(e) {
			return false
		}
		if e.Type == "exit" {
			x := exitOf(e)
			return x == nil || !x.RequestedStop
		}
	}
	return false
}

// begins reports whether an event is where what is being waited for began: what is
// older has nothing to do with it.
func begins(e machine.Event) bool {
	switch e.Type {
	case "launch", "update":
		return true
	case "start", "restart":
		return e.Source == "user"
	}
	return false
}

// dead reports whether a state cannot lead to started any more.
func dead(s machine.State) bool {
	switch s {
	case machine.Failed, machine.LaunchFailed, machine.Destroying, machine.Destroyed, machine.Replaced:
		return true
	}
	return false
}

// gone reports whether a Machine cannot be updated any more. One that failed can: that is
// how it gets a version that works.
func gone(s machine.State) bool { return s != machine.Failed && dead(s) }

// reasonOf says in one sentence what went wrong with a Machine: what its newest
// telling event says, else what the server answered, else fallback.
func reasonOf(m client.Machine, answer error, fallback string) string {
	for _, e := range m.Events {
		if e.Request != nil && e.Request.Error != "" {
			if e.Request.Step != "" && !strings.HasPrefix(e.Request.Error, e.Request.Step) {
				return e.Request.Step + ": " + e.Request.Error
			}
			return e.Request.Error
		}
		if x := exitOf(e); x != nil && !x.RequestedStop {
			return describeExit(x)
		}
		if begins(e) {
			break
		}
	}
	if answer != nil && !fault.Is(answer, fault.Timeout) {
		return fault.MessageOf(answer)
	}
	if answer != nil && fallback == "" {
		return fault.MessageOf(answer)
	}
	return fallback
}

// exitOf returns the exit event that an event carries, nil when it carries none.
func exitOf(e machine.Event) *machine.ExitEvent {
	switch {
	case e.Request == nil:
		return nil
	case e.Request.ExitEvent != nil:
		return e.Request.ExitEvent
	case e.Request.MonitorEvent != nil:
		return e.Request.MonitorEvent.ExitEvent
	}
	return nil
}

func describeExit(x *machine.ExitEvent) string {
	switch {
	case x.OOMKilled:
		return "it ran out of memory and was killed"
	case x.Signal > 0:
		return fmt.Sprintf("its process was ended by signal %d", x.Signal)
	}
	return fmt.Sprintf("its process ended with exit code %d", x.ExitCode)
}

// sleep waits for d, or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Canceled
	case <-t.C:
		return nil
	}
}

// awaitState waits for another state than started.
func awaitState(ctx context.Context, api *client.Client, app string, m client.Machine, state machine.State, timeout time.Duration) error {
	for end := time.Now().Add(timeout); ; {
		began := time.Now()
		err := api.Wait(ctx, app, m.ID, m.InstanceID, state, min(time.Until(end), 10*time.Second))
		if err == nil || (state == machine.Destroyed && fault.Is(err, fault.NotFound)) {
			return nil
		}
		if !fault.Is(err, fault.Timeout) || time.Now().After(end) {
			return err
		}
		if err := sleep(ctx, pollPause-time.Since(began)); err != nil {
			return err
		}
	}
}
