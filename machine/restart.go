package machine

import "time"

// The restart policies. OnFailure is the default, as on Fly: it covers a config
// that names none and a fly.toml alike.
const (
	RestartNo        = "no"
	RestartOnFailure = "on-failure"
	RestartAlways    = "always"
)

// The numbers of the restart policies.
const (
	// DefaultMaxRetries is how many restarts on-failure allows when the config names
	// no number.
	DefaultMaxRetries = 10
	// RestartWindow is the time over which restarts are counted.
	RestartWindow = 5 * time.Minute
	// HealthyAfter is how long a process must have run for the back-off to begin anew.
	HealthyAfter = time.Minute
	// FirstBackoff is the wait before the first restart; each further one doubles it.
	FirstBackoff = 500 * time.Millisecond
	// MaxBackoff bounds the wait.
	MaxBackoff = 30 * time.Second
)

// End is how a process ended, as far as the restart policy cares.
type End struct {
	Code    int       // as ExitEvent.ExitCode
	Unknown bool      // it vanished: a power cut, or a kill from outside that left no status
	Started time.Time // when it had started
	At      time.Time // when it ended
}

// History is what the restart policy remembers between two ends. Its zero value is
// a Machine that was never restarted. It holds at most maxRecent times.
type History struct {
	Recent []time.Time `json:"recent,omitempty"` // restarts inside RestartWindow, oldest first
	Streak int         `json:"streak,omitempty"` // restarts since the process was last healthy
	Total  int         `json:"total,omitempty"`  // restarts since a user last started it
}

// maxRecent bounds History.Recent. The back-off alone keeps a window below twenty.
const maxRecent = 64

// Action is what the restart policy decides.
type Action string

// The actions there are.
const (
	ActRestart Action = "restart" // start it again after Decision.After
	ActStop    Action = "stop"    // it stays stopped
	ActGiveUp  Action = "give up" // it failed: the retries are used up
)

// Decision is the answer of Decide.
type Decision struct {
	Action  Action
	After   time.Duration // only with ActRestart
	History History       // to be kept in place of the one given
}

// Decide says what becomes of a Machine whose process ended by itself.
//
// "no" never restarts, "on-failure" restarts after a code other than 0, until
// max_retries restarts fell within RestartWindow or as many in a row without a
// healthy run between, and "always" restarts whatever the code was. A process that
// vanished (End.Unknown) did not end by itself: whatever the policy, it is started
// again, because what ran before a power cut runs after it; but it counts, so that
// something that keeps killing it is not a loop.
func Decide(r *Restart, e End, h History) Decision {
	policy, max := RestartOnFailure, DefaultMaxRetries
	if r != nil {
		if r.Policy != "" {
			policy = r.Policy
		}
		if r.MaxRetries > 0 {
			max = r.MaxRetries
		}
	}
	// It cannot have ended long before it was seen started: the clock was set back. How
	// long it ran is not known then, and what was counted by that clock means nothing.
	ran := e.At.Sub(e.Started)
	if ran < -HealthyAfter {
		h.Streak, h.Recent = 0, nil
	}
	if ran >= HealthyAfter {
		h.Streak = 0
	}
	h.Recent = since(h.Recent, e.At.Add(-RestartWindow))
	if !e.Unknown && (policy == RestartNo || policy == RestartOnFailure && e.Code == 0) {
		return Decision{Action: ActStop, History: h}
	}
	if policy != RestartAlways && (len(h.Recent) >= max || h.Streak >= max) {
		return Decision{Action: ActGiveUp, History: h}
	}
	after := Backoff(h.Streak)
	if e.Unknown && h.Streak == 0 {
		after = 0
	}
	next := History{Recent: append(append([]time.Time(nil), h.Recent...), e.At.Add(after)), Streak: h.Streak + 1, Total: h.Total + 1}
	if n := len(next.Recent); n > maxRecent {
		next.Recent = next.Recent[n-maxRecent:]
	}
	return Decision{Action: ActRestart, After: after, History: next}
}

// Backoff is the wait before the restart that follows n others in a row.
func Backoff(n int) time.Duration {
	d := FirstBackoff
	for ; n > 0 && d < MaxBackoff; n-- {
		d *= 2
	}
	return min(d, MaxBackoff)
}

// since drops the times before t.
func since(ts []time.Time, t time.Time) []time.Time {
	for len(ts) > 0 && ts[0].Before(t) {
		ts = ts[1:]
	}
	return ts
}
