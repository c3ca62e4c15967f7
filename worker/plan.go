package worker

import (
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/machine"
)

// action is what a Machine's actor does next.
type action int

const (
	actWait      action = iota // nothing to do before something changes, or before wake
	actMove                    // one transition, step.on
	actPrepare                 // fetch and seal the image of a first start
	actStart                   // start the sandbox, or adopt one that is there
	actWatch                   // attach to the running sandbox, and wait for its end
	actEnd                     // stop what runs and remove its sandbox
	actUpdate                  // take up a new version
	actTeardown                // remove everything
	actNote                    // note what of the assignment needs nothing done
	actFetchNext               // fetch a new version's image while the old version runs
)

// String names the action for logs and for events' steps.
func (a action) String() string {
	return [...]string{"wait", "move", "fetch", "start", "watch", "stop", "update", "remove", "note", "fetch"}[a]
}

// event is the type of the events that tell what is in the way of the action.
func (a action) event() string {
	switch a {
	case actEnd:
		return "stop"
	case actTeardown:
		return "destroy"
	}
	return "start"
}

// step is the plan's answer.
type step struct {
	do   action
	on   machine.Input // with actMove
	user bool          // with actMove: a user asked for it
	then machine.Input // with actEnd: what follows
	wake time.Time     // with actWait: look again then, if not zero
}

// plan decides what is to be done next for one Machine: a pure function of what the
// journal holds, so that a worker that comes back decides as the one before it did.
func plan(r *record, a *internalpb.Assignment, now time.Time) step {
	if machine.Passing(r.State) && now.After(r.Since.Add(machine.Deadline(r.State))) {
		return step{do: actMove, on: machine.InTimeout}
	}
	want := r.wanted(a)
	if r.SelfDestroy {
		want = machine.WantDestroyed
	}
	switch r.State {
	case machine.Destroyed:
		return step{do: actWait}
	case machine.LaunchFailed, machine.Destroying, machine.Replacing:
		return step{do: actTeardown}
	}
	if want == machine.WantDestroyed {
		if r.State == machine.Failed && r.Retry && now.Before(r.NextStart) {
			return step{do: actWait, wake: r.NextStart}
		}
		return step{do: actMove, on: machine.InDestroy, user: !r.SelfDestroy}
	}
	if r.State == machine.Stopping {
		return step{do: actEnd, then: machine.InDown}
	}
	if want == machine.WantStopped {
		return planStopped(r, a, now)
	}
	return planStarted(r, a, now)
}

// planStopped is the plan for a Machine that is wanted stopped.
func planStopped(r *record, a *internalpb.Assignment, now time.Time) step {
	switch r.State {
	case machine.Created, machine.Stopped:
		if r.Sandbox != "" {
			return step{do: actEnd}
		}
		if string(r.Instance) != a.GetInstanceId() && r.State == machine.Stopped {
			return step{do: actMove, on: machine.InUpdate, user: true}
		}
		return planNote(r, a)
	case machine.Updating:
		return step{do: actUpdate}
	case machine.Failed:
		if r.Retry && r.Wanted == machine.WantStopped && now.Before(r.NextStart) {
			return step{do: actWait, wake: r.NextStart}
		}
	}
	return step{do: actMove, on: machine.InStop, user: true}
}

// planStarted is the plan for a Machine that is wanted started.
func planStarted(r *record, a *internalpb.Assignment, now time.Time) step {
	newVersion := string(r.Instance) != a.GetInstanceId()
	asked := a.GetStartNonce() != r.StartNonce || a.GetRestartNonce() != r.RestartNonce || r.Wanted != machine.WantStarted || r.Asked
	switch r.State {
	case machine.Created:
		return step{do: actMove, on: machine.InLaunch, user: true}
	case machine.Creating:
		return step{do: actPrepare}
	case machine.Starting:
		if newVersion {
			return step{do: actMove, on: machine.InUpdate, user: true}
		}
		return step{do: actStart}
	case machine.Started:
		if newVersion && string(r.Fetched) != a.GetInstanceId() {
			return step{do: actFetchNext}
		}
		if newVersion {
			return step{do: actMove, on: machine.InUpdate, user: true}
		}
		if a.GetRestartNonce() != r.RestartNonce {
			return step{do: actMove, on: machine.InRestart, user: true}
		}
		if n := planNote(r, a); n.do == actNote {
			return n
		}
		return step{do: actWatch}
	case machine.Restarting:
		if newVersion {
			return step{do: actMove, on: machine.InUpdate, user: true}
		}
		if r.Sandbox != "" {
			return step{do: actEnd}
		}
		if now.Before(r.NextStart) && a.GetStartNonce() == r.StartNonce && a.GetRestartNonce() == r.RestartNonce {
			return step{do: actWait, wake: r.NextStart}
		}
		return step{do: actMove, on: machine.InBegin}
	case machine.Updating:
		return step{do: actUpdate}
	}
	// Stopped, Failed, Suspended.
	retry := r.State == machine.Failed && r.Retry
	if r.Sandbox != "" && !(retry && now.Before(r.NextStart)) {
		return step{do: actEnd}
	}
	if newVersion {
		return step{do: actMove, on: machine.InUpdate, user: true}
	}
	if asked {
		return step{do: actMove, on: machine.InBegin, user: true}
	}
	if retry {
		if now.Before(r.NextStart) {
			return step{do: actWait, wake: r.NextStart}
		}
		return step{do: actMove, on: machine.InBegin}
	}
	return step{do: actWait}
}

// planNote writes down what was wanted when nothing has to be done for it, so that
// the controller sees it acted on.
func planNote(r *record, a *internalpb.Assignment) step {
	if r.Wanted != r.wanted(a) || r.Asked || r.StartNonce != a.GetStartNonce() ||
		r.RestartNonce != a.GetRestartNonce() || string(r.Instance) != a.GetInstanceId() {
		return step{do: actNote}
	}
	return step{do: actWait}
}
