package controller

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/controller/schedule"
	"bulkhead/fault"
	"bulkhead/machine"
	"bulkhead/store"
)

// alive refuses a wish about a Machine that is on its way out.
func alive(m *record.Machine, s *seen) error {
	if m.Desired == machine.WantDestroyed || s != nil && final(s.State) {
		return fault.New(fault.Precondition, "failed_precondition: machine %s is %s", m.ID, merge(m, s).State)
	}
	return nil
}

func (c *Controller) startMachine(r *call) (int, any, error) {
	var previous machine.State
	m, err := c.change(r.Context(), r.app(), r.machine(), r.nonce(), func(m *record.Machine) ([]store.Op, error) {
		s := c.view.get(m.ID)
		if err := alive(m, s); err != nil {
			return nil, err
		}
		previous = merge(m, s).State
		// What traffic does meanwhile may not have been heard of: then the word is passed on.
		if previous == machine.Started && m.Desired == machine.WantStarted && !m.Config.Traffic().Autostop {
			return nil, errUnchanged
		}
		if wants(m, s) != machine.WantStarted {
			if err := c.roomFor(m); err != nil {
				return nil, err
			}
		}
		m.Desired = machine.WantStarted
		m.Wish++
		m.StopSignal, m.StopTimeout = "", 0
		m.StartNonce++
		m.Generation++
		return nil, nil
	})
	if err != nil {
		return 0, nil, err
	}
	c.awaitWorker(r.Context(), m)
	return http.StatusOK, struct {
		PreviousState machine.State `json:"previous_state"`
		Migrated      bool          `json:"migrated"`
		NewHost       string        `json:"new_host"`
	}{PreviousState: previous}, nil
}

// roomFor refuses to start a Machine on a node whose memory is promised to others.
func (c *Controller) roomFor(m *record.Machine) error {
	st, _ := c.view.node(m.Node)
	if schedule.Fits(m.Config.EffectiveGuest().MemoryMB, schedule.Node{MemoryMB: st.MemoryMB, UsedMemoryMB: c.ledger.used(m.Node)}) {
		return nil
	}
	return fault.New(fault.Conflict, "aborted: could not reserve resource for machine: insufficient memory available to fulfill request").WithStatus("insufficient_capacity")
}

// signalName is a signal in JSON: a name or a number.
type signalName string

// UnmarshalJSON takes both forms.
func (s *signalName) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] != '"' {
		if string(b) != "null" {
			*s = signalName(b)
		}
		return nil
	}
	return json.Unmarshal(b, (*string)(s))
}

// stopWish is the signal and the timeout that override the config's for one stop.
type stopWish struct {
	signal  string
	timeout time.Duration
}

func newStopWish(signal string, timeout time.Duration) (stopWish, error) {
	if signal != "" {
		if _, err := machine.ParseSignal(signal); err != nil {
			return stopWish{}, err
		}
	}
	if timeout < 0 || timeout > machine.MaxStopTimeout {
		return stopWish{}, fault.New(fault.Invalid, "timeout %v must be between 0s and %v", timeout, machine.MaxStopTimeout)
	}
	return stopWish{signal, timeout}, nil
}

func (c *Controller) stopMachine(r *call) (int, any, error) {
	var in struct {
		ID      string            `json:"id"` // clients repeat it
		Signal  signalName        `json:"signal"`
		Timeout *machine.Duration `json:"timeout"`
	}
	if err := r.read(&in, false); err != nil {
		return 0, nil, err
	}
	if in.ID != "" && in.ID != r.machine() {
		return 0, nil, fault.New(fault.Invalid, "id is %q, but the path names machine %s", fault.Clip(in.ID), r.machine())
	}
	var timeout time.Duration
	if in.Timeout != nil {
		timeout = time.Duration(*in.Timeout)
	}
	wish, err := newStopWish(string(in.Signal), timeout)
	if err != nil {
		return 0, nil, err
	}
	return c.stop(r, wish)
}

// suspendMachine falls back to a stop: there are no snapshots yet.
func (c *Controller) suspendMachine(r *call) (int, any, error) { return c.stop(r, stopWish{}) }

func (c *Controller) stop(r *call, wish stopWish) (int, any, error) {
	m, err := c.change(r.Context(), r.app(), r.machine(), r.nonce(), func(m *record.Machine) ([]store.Op, error) {
		if err := alive(m, c.view.get(m.ID)); err != nil {
			return nil, err
		}
		if m.Desired == machine.WantStopped && wish == (stopWish{}) && !m.Config.Traffic().Autostart {
			return nil, errUnchanged
		}
		m.Desired = machine.WantStopped
		m.Wish++
		m.StopSignal, m.StopTimeout = wish.signal, wish.timeout.Milliseconds()
		m.Generation++
		return nil, nil
	})
	if err != nil {
		return 0, nil, err
	}
	if r.who.Kind != access.ByMachine { // which has its voice no longer, and is told while it is there
		c.awaitWorker(r.Context(), m)
	}
	return ok()
}

func (c *Controller) restartMachine(r *call) (int, any, error) {
	q := r.URL.Query()
	timeout, err := queryDuration(q.Get("timeout"))
	if err != nil {
		return 0, nil, err
	}
	force, err := r.flag("force_stop")
	if err != nil {
		return 0, nil, err
	}
	signal := q.Get("signal")
	if force {
		signal = "SIGKILL"
	}
	wish, err := newStopWish(signal, timeout)
	if err != nil {
		return 0, nil, err
	}
	m, err := c.change(r.Context(), r.app(), r.machine(), r.nonce(), func(m *record.Machine) ([]store.Op, error) {
		s := c.view.get(m.ID)
		if err := alive(m, s); err != nil {
			return nil, err
		}
		runs := wants(m, s) == machine.WantStarted
		if !runs {
			if err := c.roomFor(m); err != nil {
				return nil, err
			}
		}
		if !runs || merge(m, s).State != machine.Started {
			m.StartNonce++
		}
		m.Desired = machine.WantStarted
		m.Wish++
		m.StopSignal, m.StopTimeout = wish.signal, wish.timeout.Milliseconds()
		m.RestartNonce++
		m.Generation++
		return nil, nil
	})
	if err != nil {
		return 0, nil, err
	}
	c.awaitWorker(r.Context(), m)
	return ok()
}

// queryDuration reads a duration of a query: seconds, or a Go duration.
func queryDuration(v string) (time.Duration, error) {
	if v == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(v); err == nil && n >= 0 && n < 1<<20 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fault.New(fault.Invalid, "timeout %q is neither seconds nor a duration such as 10s", fault.Clip(v))
	}
	return d, nil
}

// signalMachine sends a signal to the Machine's first process. It changes no wish:
// the restart policy sees how the process ends.
func (c *Controller) signalMachine(r *call) (int, any, error) {
	var in struct {
		Signal signalName `json:"signal"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Signal == "" {
		return 0, nil, fault.New(fault.Invalid, "signal is missing; name one such as SIGTERM")
	}
	n, err := machine.ParseSignal(string(in.Signal))
	if err != nil {
		return 0, nil, err
	}
	m, err := c.runningMachine(r)
	if err != nil {
		return 0, nil, err
	}
	if _, _, err := c.checkLease(r.Context(), m, r.nonce()); err != nil {
		return 0, nil, err
	}
	w, ctx, cancel, err := c.worker(r.Context(), m.Node, workerLimit)
	if err != nil {
		return 0, nil, err
	}
	defer cancel()
	if _, err := w.Signal(ctx, &internalpb.SignalRequest{MachineId: string(m.ID), Signal: int32(n)}); err != nil {
		return 0, nil, err
	}
	return ok()
}

// runningMachine returns a Machine whose process runs.
func (c *Controller) runningMachine(r *call) (*record.Machine, error) {
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return nil, err
	}
	if st := merge(m, c.view.get(m.ID)).State; st != machine.Started {
		return nil, fault.New(fault.Precondition, "failed_precondition: machine %s is not running, it is %s; start it first", m.ID, st)
	}
	return m, nil
}

// cordonMachine takes a Machine's services out of the edge's routes, or puts them back.
func (c *Controller) cordonMachine(cordoned bool) handler {
	return func(r *call) (int, any, error) {
		m, err := c.change(r.Context(), r.app(), r.machine(), r.nonce(), func(m *record.Machine) ([]store.Op, error) {
			if err := alive(m, c.view.get(m.ID)); err != nil {
				return nil, err
			}
			if m.Cordoned == cordoned {
				return nil, errUnchanged
			}
			m.Cordoned = cordoned
			m.Generation++
			return nil, nil
		})
		if err != nil {
			return 0, nil, err
		}
		c.awaitWorker(r.Context(), m)
		return ok()
	}
}

// deleteMachine destroys a Machine. One that runs is refused without force.
func (c *Controller) deleteMachine(r *call) (int, any, error) {
	force, err := r.flag("force")
	if err != nil {
		return 0, nil, err
	}
	kill, err := r.flag("kill")
	if err != nil {
		return 0, nil, err
	}
	force = force || kill
	if m, _, err := c.getMachine(r.Context(), r.app(), r.machine()); err != nil {
		return 0, nil, err
	} else if m.Gone != nil {
		return ok()
	}
	m, err := c.change(r.Context(), r.app(), r.machine(), r.nonce(), func(m *record.Machine) ([]store.Op, error) {
		if !force {
			switch st := merge(m, c.view.get(m.ID)).State; st {
			case machine.Created, machine.Stopped, machine.Suspended, machine.Failed, machine.Destroying, machine.LaunchFailed, machine.Destroyed:
				if m.Desired == machine.WantStarted && st == machine.Created {
					return nil, refuseRunning(m, machine.Creating)
				}
			default:
				return nil, refuseRunning(m, st)
			}
		}
		again := m.Desired == machine.WantDestroyed && (m.Force || !force)
		if s := c.view.get(m.ID); again && (s == nil || s.State != machine.Failed) {
			return nil, errUnchanged
		}
		if m.WantDestroyed(force, now()); again { // it failed, and somebody asks: it is tried at once
			m.Generation++
		}
		return nil, nil
	})
	if err != nil {
		return 0, nil, err
	}
	c.awaitWorker(r.Context(), m)
	return ok()
}

func refuseRunning(m *record.Machine, st machine.State) error {
	return fault.New(fault.Precondition, "failed_precondition: unable to destroy machine %s, not currently stopped, suspended or failed: it is %s; stop it first, or use force=true", m.ID, st)
}
