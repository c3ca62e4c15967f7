package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/machine"
)

const (
	// defaultSettle is how long a Machine must go on running: what ends later than that
	// ended for another reason than its release, most often.
	defaultSettle = 8 * time.Second
	// listenWithin bounds the wait for an app that does not listen yet.
	listenWithin = time.Minute
	// elsewhereAfter bounds the wait for an app that listens on other ports or addresses only.
	// Some apps open a port of their own before the one of the service.
	elsewhereAfter = 10 * time.Second
	// routedWithin bounds the wait for the edge to hear of a Machine.
	routedWithin = 10 * time.Second
)

// answering waits until all ports of a running Machine answer from the network. The
// controller tries them. An app that listens on other ports or addresses only gets
// elsewhereAfter; one that does not listen yet may still be starting, and gets listenWithin.
// If a port does not answer in time, the error is a *startError.
func answering(ctx context.Context, api *client.Client, app string, m client.Machine, timeout time.Duration) (client.Machine, error) {
	if m.Config == nil || m.Cordoned || !slices.ContainsFunc(m.Config.Services, public) {
		return m, nil
	}
	began := time.Now()
	for {
		got, err := api.Ports(ctx, app, m.ID)
		now, gerr := api.Machine(ctx, app, m.ID)
		switch {
		case passing(gerr):
			now = m
		case gerr != nil:
			return m, gerr
		case idled(now):
			return now, nil // it had answered, or nobody asked for it
		case now.State != machine.Started || crashed(now):
			return now, endedSoon(now)
		case fault.Is(err, fault.NotFound):
			return now, nil // an older server, which cannot try
		case err != nil && !passing(err) && !fault.Is(err, fault.Precondition):
			return now, err
		}
		var silent []string
		for _, p := range got.Ports {
			if !p.Answers {
				silent = append(silent, fmt.Sprint(p.Port))
			}
		}
		waited := time.Since(began)
		switch {
		case err == nil && len(got.Ports) > 0 && len(silent) == 0:
			return now, nil
		case err == nil && len(got.Ports) == 0 && waited > min(routedWithin, timeout):
			return now, &startError{machine: now, reason: "the edge has no route to it"}
		case len(silent) > 0 && (waited > min(listenWithin, timeout) || waited > elsewhereAfter && elsewhere(silent, got.Listens)):
			return now, &startError{machine: now, reason: deaf(silent, got.Listens)}
		case waited > timeout:
			return now, &startError{machine: now, reason: "its ports could not be tried: " + fault.MessageOf(err)}
		}
		if err := sleep(ctx, pollPause); err != nil {
			return now, err
		}
	}
}

// passing reports whether an error may be over at the next try.
func passing(err error) bool {
	return fault.Is(err, fault.Unavailable) || fault.Is(err, fault.TooMany) || fault.Is(err, fault.Timeout)
}

// elsewhere reports whether an app listens, but does not offer one of the silent ports to
// the network: it does not listen on that port, or on a loopback address only.
func elsewhere(silent, listens []string) bool {
	for _, port := range silent {
		if !slices.ContainsFunc(listens, func(at string) bool {
			a, err := netip.ParseAddrPort(at)
			return err == nil && fmt.Sprint(a.Port()) == port && !a.Addr().IsLoopback()
		}) {
			return len(listens) > 0
		}
	}
	return false
}

// deaf says which ports nobody listens on, and where the app listens instead.
func deaf(silent, listens []string) string {
	ports := "port " + silent[0] + " does not answer"
	if len(silent) > 1 {
		ports = "ports " + strings.Join(silent, ", ") + " do not answer"
	}
	if len(listens) == 0 {
		return ports + "; the app listens on no port"
	}
	return fmt.Sprintf("%s; the app listens on %s, and must listen on 0.0.0.0:%s", ports, strings.Join(listens, ", "), silent[0])
}

// public reports whether a service has a public port that takes connections.
func public(s machine.Service) bool { return s.Protocol != "udp" && len(s.Ports) > 0 }

// idled reports whether the platform stopped a Machine because no request came.
func idled(m client.Machine) bool {
	return (m.State == machine.Stopped || m.State == machine.Stopping || m.State == machine.Suspended) && !crashed(m) &&
		slices.ContainsFunc(m.Config.Services, func(s machine.Service) bool { return s.Autostop != nil && *s.Autostop != "off" })
}

// endedSoon is the error of a Machine that started and did not go on running.
func endedSoon(m client.Machine) *startError {
	if reason := reasonOf(m, nil, ""); reason != "" {
		return &startError{machine: m, reason: reason}
	}
	return &startError{machine: m, reason: "it started and then was " + string(m.State)}
}
