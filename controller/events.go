package controller

import (
	"net/http"

	"bulkhead/machine"
)

// Bounds of a list of events.
const (
	defaultEvents = 20
	maxEvents     = 50
)

// machineEvents answers a Machine's events, newest first.
func (c *Controller) machineEvents(r *call) (int, any, error) {
	limit, err := r.number("limit", defaultEvents, 1, maxEvents)
	if err != nil {
		return 0, nil, err
	}
	m, _, err := c.getMachine(r.Context(), r.app(), r.machine())
	if err != nil {
		return 0, nil, err
	}
	events := merge(m, c.view.get(m.ID)).Events
	if events == nil {
		events = []machine.Event{}
	}
	return http.StatusOK, events[:min(limit, len(events))], nil
}
