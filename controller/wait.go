package controller

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

// maxWait is the longest that one wait blocks, and how long it does by default.
const maxWait = 60 * time.Second

// waitStates are the states that can be waited for.
var waitStates = []machine.State{machine.Started, machine.Stopped, machine.Suspended, machine.Destroyed, machine.Failed, "settled"}

// waitQuery is what a wait waits for.
type waitQuery struct {
	states  []machine.State
	version key.InstanceID // empty for the newest, whichever it is
	after   string         // id of an event; only later ones count
	limit   time.Duration
}

func parseWait(r *call) (waitQuery, error) {
	q := r.URL.Query()
	w := waitQuery{after: q.Get("from_event_id"), limit: maxWait}
	for _, s := range csv(q["state"]) {
		if !slices.Contains(waitStates, machine.State(s)) {
			return w, fault.New(fault.Invalid, "state %q cannot be waited for; use started, stopped, suspended, destroyed, failed or settled", fault.Clip(s))
		}
		w.states = append(w.states, machine.State(s))
	}
	if len(w.states) == 0 {
		w.states = []machine.State{machine.Started}
	}
	v := q.Get("version")
	if v == "" {
		v = q.Get("instance_id")
	}
	if v != "" {
		id, err := key.ParseInstanceID(v)
		if err != nil {
			return w, err
		}
		w.version = id
	}
	if t := q.Get("timeout"); t != "" {
		d, err := queryDuration(t)
		if err != nil {
			return w, err
		}
		w.limit = min(max(d, time.Second), maxWait)
	}
	return w, nil
}

// WaitResult is the answer to a wait.
type WaitResult struct {
	OK      bool   `json:"ok"`
	State   string `json:"state"`
	Version string `json:"version"`
	EventID string `json:"event_id,omitempty"`
}

// waitMachine blocks until a Machine has reached one of the states, cannot any
// more, or the time is over. It looks again only when something has changed.
func (c *Controller) waitMachine(r *call) (int, any, error) {
	q, err := parseWait(r)
	if err != nil {
		return 0, nil, err
	}
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	w, stop := c.view.follow(m.ID)
	defer stop()
	ctx, cancel := context.WithTimeout(r.Context(), q.limit)
	defer cancel()
	var last *seen
	for {
		m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
		if err != nil {
			return 0, nil, err
		}
		if err := c.checkVersion(r, m, q.version); err != nil {
			return 0, nil, err
		}
		reports := w.take()
		if cur := c.view.get(m.ID); cur != nil {
			reports = append(reports, cur)
		}
		if len(reports) == 0 {
			reports = []*seen{nil}
		}
		for _, s := range reports {
			if res, done := q.look(m, s); done {
				return http.StatusOK, res, nil
			}
			last = s
		}
		if err := q.hopeless(m, last); err != nil {
			return 0, nil, err
		}
		select {
		case <-w.poke:
		case <-ctx.Done():
			if r.Context().Err() != nil {
				return 0, nil, r.Context().Err()
			}
			st := merge(m, last)
			return 0, nil, fault.New(fault.Timeout, "machine failed to reach desired state, %s, currently %s", q.wanted(), st.State)
		case <-c.closing.Done():
			return 0, nil, fault.New(fault.Unavailable, "the controller is restarting; wait again")
		}
	}
}

// checkVersion refuses to wait for a version that is not the newest.
func (c *Controller) checkVersion(r *call, m *record.Machine, v key.InstanceID) error {
	if v == "" || v == m.Instance {
		return nil
	}
	old, _, err := record.Get[record.Version](r.Context(), c.store, record.VersionKey(m.App, m.ID, v))
	if err != nil {
		return err
	}
	if old == nil {
		return fault.New(fault.NotFound, "machine %s has no version %s", m.ID, v)
	}
	return fault.New(fault.Conflict, "version %s of machine %s is replaced, by %s", v, m.ID, m.Instance)
}

func (q *waitQuery) wanted() string {
	ss := make([]string, len(q.states))
	for i, s := range q.states {
		ss[i] = string(s)
	}
	return strings.Join(ss, " or ")
}

// look reports whether a report, with the record, is what is waited for.
func (q *waitQuery) look(m *record.Machine, s *seen) (*WaitResult, bool) {
	st := merge(m, s)
	res := &WaitResult{OK: true, State: string(st.State), Version: string(m.Instance)}
	if len(st.Events) > 0 {
		res.EventID = st.Events[0].ID
	}
	for _, want := range q.states {
		if q.after == "" && reached(m, s, want) {
			return res, true
		}
	}
	if q.after == "" || s != nil && s.Generation < m.Generation {
		return nil, false
	}
	// Events newest first: those before the one named are later.
	for _, e := range st.Events {
		if e.ID == q.after {
			break
		}
		want := machine.State(e.Status)
		if slices.Contains(q.states, want) || slices.Contains(q.states, "settled") && !machine.Passing(want) && want != "" {
			return &WaitResult{OK: true, State: string(want), Version: string(m.Instance), EventID: e.ID}, true
		}
	}
	return nil, false
}

// hopeless says why none of the states can be reached any more, if so.
func (q *waitQuery) hopeless(m *record.Machine, s *seen) error {
	st := merge(m, s)
	ended := final(st.State) || m.Desired == machine.WantDestroyed
	failed := st.State == machine.Failed && acted(m, s)
	for _, want := range q.states {
		if want == machine.Destroyed || want == "settled" {
			ended = ended && m.Gone != nil
		}
		if want == machine.Failed || want == "settled" {
			failed = false
		}
		if want == machine.Destroyed {
			failed = false // somebody may destroy it
		}
	}
	if !ended && !failed {
		return nil
	}
	reason := st.Error
	if reason == "" {
		reason = "it is " + string(st.State)
	}
	return fault.New(fault.Conflict, "machine cannot reach desired state, %s: %s", q.wanted(), reason)
}
