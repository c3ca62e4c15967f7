package controller

import (
	"time"

	"bulkhead/controller/record"
	"bulkhead/machine"
)

// status is a Machine as the API shows it: the wish merged with what was seen.
type status struct {
	State     machine.State
	Events    []machine.Event
	PrivateIP string
	Error     string
	UpdatedAt time.Time
	// Known is whether the worker has ever reported the Machine to this controller.
	Known bool
	// Settled is whether the worker has taken up the newest wish and the Machine
	// rests in a lasting state.
	Settled bool
}

// merge derives a Machine's status. s may be nil.
//
// The worker's word counts for what is; the record's only where the worker has not
// spoken yet, and for a destruction, which cannot be taken back.
func merge(r *record.Machine, s *seen) status {
	if r.Gone != nil {
		st := status{State: machine.Destroyed, UpdatedAt: r.UpdatedAt, Known: true, Settled: true}
		if r.Last != nil {
			st.Events, st.Error, st.PrivateIP = r.Last.Events, r.Last.Error, r.Last.PrivateIP
		}
		return st
	}
	if s == nil {
		st := status{State: machine.Created, UpdatedAt: r.UpdatedAt}
		switch {
		case r.Desired == machine.WantDestroyed:
			st.State = machine.Destroying
		case r.Generation == 1:
		case r.Desired == machine.WantStarted:
			st.State = machine.Starting
		default:
			st.State = machine.Stopping
		}
		return st
	}
	st := status{State: s.State, Events: s.Events, PrivateIP: s.PrivateIP, Error: s.Error, UpdatedAt: r.UpdatedAt, Known: true}
	if s.UpdatedAt.After(st.UpdatedAt) {
		st.UpdatedAt = s.UpdatedAt
	}
	if r.Desired == machine.WantDestroyed && !final(st.State) {
		st.State = machine.Destroying
	}
	st.Settled = settled(r, s)
	return st
}

// wants is what is wanted of a Machine: the user's last word, or what traffic has made
// of it since. The record holds the first and the worker's journal the second; neither
// is ever written over the other. A worker is believed only as far as the Machine's
// config lets traffic go.
func wants(r *record.Machine, s *seen) machine.Desired {
	if s == nil || s.Local == "" || s.Wish != r.Wish || r.Desired == machine.WantDestroyed {
		return r.Desired
	}
	may := r.Config.Traffic()
	if s.Local == machine.WantStarted && may.Autostart || s.Local == machine.WantStopped && may.Autostop {
		return s.Local
	}
	return r.Desired
}

// final states lead to nothing but the end.
func final(s machine.State) bool {
	return s == machine.Destroyed || s == machine.Destroying || s == machine.LaunchFailed
}

// acted reports whether the worker has taken up the newest wish.
func acted(r *record.Machine, s *seen) bool {
	if s == nil || s.Generation < r.Generation {
		return false
	}
	if wants(r, s) != machine.WantStarted {
		return true
	}
	return s.StartNonce >= r.StartNonce && s.RestartNonce >= r.RestartNonce
}

// settled reports whether the Machine rests where the newest wish leaves it.
func settled(r *record.Machine, s *seen) bool {
	if !acted(r, s) || machine.Passing(s.State) {
		return false
	}
	switch s.State {
	case machine.Started:
		return wants(r, s) == machine.WantStarted && s.Instance == r.Instance
	case machine.Stopped:
		return r.Desired != machine.WantDestroyed && s.Instance == r.Instance
	case machine.Created:
		return r.Desired == machine.WantStopped
	case machine.Destroyed:
		return true
	}
	return r.Desired != machine.WantDestroyed
}

// reached reports whether the Machine has got where a caller waits for it: in the
// state, by the newest wish, and in the newest version.
func reached(r *record.Machine, s *seen, want machine.State) bool {
	if r.Gone != nil {
		return want == machine.Destroyed || want == "settled"
	}
	if s == nil {
		return false
	}
	switch want {
	case "settled":
		return settled(r, s)
	case machine.Destroyed:
		return s.State == machine.Destroyed
	}
	return s.State == want && settled(r, s)
}
