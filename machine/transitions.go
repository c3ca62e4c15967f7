package machine

import (
	"time"

	"bulkhead/fault"
)

// Input is something that happens to a Machine and may move it to another State.
type Input string

// The inputs there are.
const (
	InLaunch     Input = "launch"      // the first start is asked for
	InBegin      Input = "begin"       // everything before the sandbox is ready: start it
	InUp         Input = "up"          // its process runs
	InExit       Input = "exit"        // its process ended by itself and stays ended
	InCrash      Input = "crash"       // its process ended by itself and the policy restarts it
	InGiveUp     Input = "give up"     // its process ended by itself and the policy's retries are used up
	InRestart    Input = "restart"     // a user asks for a restart
	InUpdate     Input = "update"      // a new version of its config is to be taken up
	InStop       Input = "stop"        // a user asks for a stop
	InDown       Input = "down"        // nothing of it runs any more
	InFail       Input = "fail"        // a step failed for good
	InLaunchFail Input = "launch fail" // a step of its first start failed for good
	InTimeout    Input = "timeout"     // it was in a passing state for longer than Deadline allows
	InDestroy    Input = "destroy"     // it is to be removed with everything it holds
	InGone       Input = "gone"        // nothing of it is left
)

// Rule is one row of the transition table.
type Rule struct {
	From State
	On   Input
	To   State
}

// rules is the table: what is not in it cannot happen. The order is the one in
// which the picture in docs/machine-states.md shows them.
var rules = []Rule{
	{Created, InLaunch, Creating},
	{Created, InDestroy, Destroying},

	{Creating, InBegin, Starting},
	{Creating, InStop, Stopping},
	{Creating, InFail, Failed},
	{Creating, InLaunchFail, LaunchFailed},
	{Creating, InTimeout, Failed},
	{Creating, InDestroy, Destroying},

	{Starting, InUp, Started},
	{Starting, InUpdate, Updating},
	{Starting, InStop, Stopping},
	{Starting, InFail, Failed},
	{Starting, InLaunchFail, LaunchFailed},
	{Starting, InTimeout, Failed},
	{Starting, InDestroy, Destroying},

	{Started, InExit, Stopped},
	{Started, InCrash, Restarting},
	{Started, InGiveUp, Failed},
	{Started, InRestart, Restarting},
	{Started, InUpdate, Updating},
	{Started, InStop, Stopping},
	{Started, InDestroy, Destroying},

	{Restarting, InBegin, Starting},
	{Restarting, InUpdate, Updating},
	{Restarting, InStop, Stopping},
	{Restarting, InFail, Failed},
	{Restarting, InTimeout, Failed},
	{Restarting, InDestroy, Destroying},

	{Updating, InBegin, Starting},
	{Updating, InDown, Stopped},
	{Updating, InStop, Stopping},
	{Updating, InFail, Failed},
	{Updating, InTimeout, Failed},
	{Updating, InDestroy, Destroying},

	{Stopping, InDown, Stopped},
	{Stopping, InTimeout, Failed},
	{Stopping, InDestroy, Destroying},

	{Stopped, InBegin, Starting},
	{Stopped, InUpdate, Updating},
	{Stopped, InDestroy, Destroying},

	{Suspended, InBegin, Starting},
	{Suspended, InUpdate, Updating},
	{Suspended, InStop, Stopping},
	{Suspended, InDestroy, Destroying},

	{Failed, InBegin, Starting},
	{Failed, InUpdate, Updating},
	{Failed, InStop, Stopping},
	{Failed, InDestroy, Destroying},

	{Replacing, InGone, Destroyed},
	{Replacing, InTimeout, Failed},
	{Replacing, InDestroy, Destroying},

	{LaunchFailed, InGone, Destroyed},
	{LaunchFailed, InTimeout, Destroying},
	{LaunchFailed, InDestroy, Destroying},

	{Destroying, InGone, Destroyed},
	{Destroying, InTimeout, Failed},
}

// Rules returns a copy of the transition table.
func Rules() []Rule { return append([]Rule(nil), rules...) }

// deadlines holds the passing states and how long each may last. Stopping,
// Restarting and Updating leave room for the longest stop timeout.
var deadlines = map[State]time.Duration{
	Creating:     15 * time.Minute,
	Starting:     5 * time.Minute,
	Stopping:     MaxStopTimeout + 2*time.Minute,
	Restarting:   MaxStopTimeout + 5*time.Minute,
	Updating:     MaxStopTimeout + 15*time.Minute,
	Destroying:   MaxStopTimeout + 5*time.Minute,
	LaunchFailed: 5 * time.Minute,
	Replacing:    10 * time.Minute,
}

// index finds the row of a (state, input).
var index = func() map[State]map[Input]State {
	m := map[State]map[Input]State{}
	for _, r := range rules {
		if m[r.From] == nil {
			m[r.From] = map[Input]State{}
		}
		m[r.From][r.On] = r.To
	}
	return m
}()

// States lists every state of a Machine in the order of a life.
func States() []State {
	return []State{Created, Creating, Starting, Started, Restarting, Updating, Stopping, Stopped, Suspended, Failed, Replacing, LaunchFailed, Destroying, Destroyed}
}

// Inputs lists every input.
func Inputs() []Input {
	return []Input{InLaunch, InBegin, InUp, InExit, InCrash, InGiveUp, InRestart, InUpdate, InStop, InDown, InFail, InLaunchFail, InTimeout, InDestroy, InGone}
}

// Next is the one door through which a Machine's state changes. An input that the
// table does not have for the state is a Conflict, and the state stays.
func Next(s State, in Input) (State, error) {
	to, ok := index[s][in]
	if !ok {
		return s, fault.New(fault.Conflict, "a machine that is %s cannot take %q", s, in)
	}
	return to, nil
}

// Can reports whether Next(s, in) succeeds.
func Can(s State, in Input) bool { _, ok := index[s][in]; return ok }

// Passing reports whether s is a state that a Machine leaves by itself.
func Passing(s State) bool { _, ok := deadlines[s]; return ok }

// Deadline is how long a Machine may stay in a passing state before InTimeout is
// due; 0 for a lasting state.
func Deadline(s State) time.Duration { return deadlines[s] }
