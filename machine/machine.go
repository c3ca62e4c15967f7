// Package machine is the vocabulary of a Machine's life: its config, its states,
// the events it reports, and the pure rules by which one state follows another.
// Nothing here does I/O.
package machine

import (
	"time"

	"bulkhead/key"
)

// State is where a Machine is in its life, in the words of the Machines API. The
// values are stored and answered: never rename one.
type State string

// Lasting states.
const (
	Created   State = "created"   // accepted, never started
	Started   State = "started"   // its process runs
	Stopped   State = "stopped"   // its process ended, or it was stopped; start brings it back
	Suspended State = "suspended" // not reached yet: suspend falls back to stop
	Failed    State = "failed"    // it could not be started, or the restart policy gave up; its last event says why
	Destroyed State = "destroyed" // gone; shown for a while, then forgotten
)

// Passing states: each has a deadline, and a way out when the deadline passes.
const (
	Creating     State = "creating"      // fetching and sealing the image for the first time
	Starting     State = "starting"      // the steps from address to running process
	Stopping     State = "stopping"      // signalled, waiting for the process to end
	Restarting   State = "restarting"    // between an end and the start that follows it
	Updating     State = "updating"      // taking up a new version of its config
	Destroying   State = "destroying"    // removing everything it held
	LaunchFailed State = "launch_failed" // its first start failed for good; Destroyed follows
	Replacing    State = "replacing"     // an old version, while its successor takes over
)

// Replaced is the answer to a question about a version that is no longer current.
const Replaced State = "replaced"

// Desired is what the controller wants of a Machine.
type Desired string

// The wishes there are.
const (
	WantStarted   Desired = "started"
	WantStopped   Desired = "stopped"
	WantDestroyed Desired = "destroyed"
)

// Event is one thing that happened to a Machine. Events are shown to the user and
// never carry a secret.
type Event struct {
	ID        string        `json:"id"`        // ULID
	Type      string        `json:"type"`      // launch, start, exit, stop, restart, update, destroy, limit ...
	Status    string        `json:"status"`    // the state that it led to
	Source    string        `json:"source"`    // "user" or "flyd", as clients expect
	Timestamp int64         `json:"timestamp"` // Unix milliseconds
	Request   *EventRequest `json:"request,omitempty"`
}

// EventRequest carries an Event's detail.
type EventRequest struct {
	ExitEvent    *ExitEvent    `json:"exit_event,omitempty"`
	LimitEvent   *LimitEvent   `json:"limit_event,omitempty"`
	MonitorEvent *MonitorEvent `json:"MonitorEvent,omitempty"`
	RestartCount int           `json:"restart_count,omitempty"`
	// Error says in one sentence why a step failed, and Step which.
	Error string `json:"error,omitempty"`
	Step  string `json:"step,omitempty"`
	// Reason says why the platform started or stopped a Machine that nobody asked it
	// to: a request, or that none came; or what a start lacks.
	Reason string `json:"reason,omitempty"`
}

// MonitorEvent repeats an ExitEvent where older clients look for it.
type MonitorEvent struct {
	ExitEvent *ExitEvent `json:"exit_event,omitempty"`
}

// ExitEvent says how a Machine's process ended.
type ExitEvent struct {
	ExitCode      int       `json:"exit_code"`       // 128+signal when signalled; -1 when unknown
	GuestExitCode int       `json:"guest_exit_code"` // the same; Fly tells init's code apart
	GuestSignal   int       `json:"guest_signal"`
	Signal        int       `json:"signal"` // -1 when not signalled
	OOMKilled     bool      `json:"oom_killed"`
	RequestedStop bool      `json:"requested_stop"`
	Restarting    bool      `json:"restarting"`
	ExitedAt      time.Time `json:"exited_at"`
}

// ImageRef is what Config.Image resolved to.
type ImageRef struct {
	Registry   string            `json:"registry,omitempty"`
	Repository string            `json:"repository,omitempty"`
	Tag        string            `json:"tag,omitempty"`
	Digest     key.Digest        `json:"digest,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}
