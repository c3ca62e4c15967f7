package cli

import (
	"fmt"
	"io"
	"time"

	"bulkhead/client"
	"bulkhead/machine"
)

// unhealthy says of each Machine that is not well what it has: why, how often it was
// restarted, since when, and in which version.
func unhealthy(w io.Writer, ms []client.Machine, now time.Time) {
	var rows [][]string
	for _, m := range ms {
		if row := ailment(m, now); row != nil {
			rows = append(rows, row)
		}
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		table(w, []string{"NOT WELL", "STATE", "FOR", "RESTARTS", "VERSION", "REASON"}, rows)
	}
}

// ailment is the row of one Machine, nil for one that is well: that runs and has not ended
// by itself in this version, or was stopped as asked.
func ailment(m client.Machine, now time.Time) []string {
	reason := reasonOf(m, nil, "")
	restarts := 0
	for _, e := range m.Events {
		if begins(e) {
			break
		}
		if e.Type == "exit" {
			if x := exitOf(e); x == nil || !x.RequestedStop {
				restarts++
			}
		}
	}
	if m.State != machine.Started && m.State != machine.Starting && m.State != machine.Restarting && restarts > 0 {
		restarts-- // it was not started again after the last
	}
	host := ""
	if m.HostStatus != "" && m.HostStatus != "ok" {
		host = "its node is " + m.HostStatus
	}
	settled := m.State == machine.Started || m.State == machine.Stopped || m.State == machine.Suspended || m.State == machine.Destroyed
	if settled && reason == "" && host == "" {
		return nil
	}
	for _, s := range []string{host, "no reason is known yet"} {
		if reason == "" {
			reason = s
		}
	}
	since := "-"
	if len(m.Events) > 0 {
		since = max(now.Sub(time.UnixMilli(m.Events[0].Timestamp)), 0).Round(time.Second).String()
	}
	return []string{string(m.ID), string(m.State), since, fmt.Sprint(restarts), string(m.InstanceID), reason}
}
