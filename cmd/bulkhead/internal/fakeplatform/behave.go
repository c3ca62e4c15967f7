package fakeplatform

import (
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"bulkhead/machine"
)

// step is one thing that happens to a Machine, some time after the one before.
type step struct {
	after time.Duration
	state machine.State
	event string
	req   *machine.EventRequest
	log   string
}

// behave lets a Machine take its course. The image's name says which:
//
//	…missing…  the image cannot be fetched; a new Machine is destroyed, an old one fails
//	…crash…    it starts, writes a line and ends with exit code 3
//	…oneoff…   it starts, writes a line, ends with exit code 3 and is destroyed
//	…never…    it stays starting
//	…deaf…     it starts and listens on 127.0.0.1 alone
//	else       it starts and runs
//
// p.mu is held.
func (p *Platform) behave(a *app, m *fakeMachine, first bool) {
	const tick = 20 * time.Millisecond
	steps := []step{{tick, machine.Starting, "", nil, ""}}
	switch {
	case strings.Contains(m.Config.Image, "missing"):
		end := machine.Failed
		if first {
			end = machine.Destroyed
		}
		steps = append(steps, step{tick, end, "launch_failed", &machine.EventRequest{Step: "fetch", Error: "the image " + m.Config.Image + " is not there"}, ""})
	case strings.Contains(m.Config.Image, "never"):
	case strings.Contains(m.Config.Image, "crash"):
		steps = append(steps, step{tick, machine.Started, "start", nil, "panic: \x1b[31mno database"},
			step{5 * tick, machine.Stopped, "exit", &machine.EventRequest{ExitEvent: &machine.ExitEvent{ExitCode: 3}}, ""})
	case strings.Contains(m.Config.Image, "oneoff"):
		steps = append(steps, step{tick, machine.Started, "start", nil, "half of it"},
			step{5 * tick, machine.Stopped, "exit", &machine.EventRequest{ExitEvent: &machine.ExitEvent{ExitCode: 3, Signal: -1}}, "all of it"},
			step{tick, machine.Destroyed, "destroy", nil, ""})
	default:
		steps = append(steps, step{tick, machine.Started, "start", nil, ""})
	}
	version := m.InstanceID
	go func() {
		for _, s := range steps {
			time.Sleep(s.after)
			p.mu.Lock()
			if m.InstanceID != version || m.State == machine.Destroyed {
				p.mu.Unlock()
				return
			}
			m.State = s.state
			if s.event != "" {
				m.event(s.event, s.state, s.req)
			}
			if s.log != "" {
				a.log(m.ID, s.log)
			}
			p.mu.Unlock()
		}
	}()
}

// event puts an event first, as the API lists them.
func (m *fakeMachine) event(typ string, st machine.State, req *machine.EventRequest) {
	e := machine.Event{ID: ulid.Make().String(), Type: typ, Status: string(st), Source: "flyd", Timestamp: time.Now().UnixMilli(), Request: req}
	m.Events = append([]machine.Event{e}, m.Events...)
}
