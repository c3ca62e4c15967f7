// Package doctor looks at a host that runs Bulkhead, as its root would: what listens,
// whether each of it really refuses who has no credentials, and what about the host or
// the installation takes away from what the platform promises.
//
// It believes nothing that is written down: sockets are found in the processes and
// asked themselves, refusals are seen by trying, file systems and devices are asked
// of the kernel. It changes nothing.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"bulkhead/doctor/posture"
)

// Level says how bad what was found is.
type Level string

// Levels, from good to bad. Note is what nothing follows from.
const (
	OK   Level = "ok"
	Note Level = "note"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that was looked at, and what was found.
type Finding struct {
	Check string `json:"check"` // one word for programs; the same check may find several things
	Level Level  `json:"level"`
	Found string `json:"found"` // a sentence
	// Remedy is a sentence that says what to do; empty when there is nothing to do.
	Remedy string `json:"remedy,omitempty"`
}

// Platform is what is examined.
type Platform struct {
	DataDir string
	RunDir  string // empty when nothing was ever started
	LibDir  string
	Config  string // the configuration file; empty: none
	Domain  string
	// Addresses of the TCP sockets, as they are listened on; empty: none.
	HTTPAddr, HTTPSAddr, ClusterAddr string
	// Nameservers are those that the configuration sets for Machines.
	Nameservers []netip.Addr
	// Supervisor is the process of bulkheadd; 0 when it does not run.
	Supervisor int
	// Probe does what a sandbox needs, and says what the host refuses. nil: not tried.
	Probe func(context.Context) error
	// Posture asks the controller what it alone knows. nil when it does not run.
	Posture func(context.Context) (posture.Posture, error)
}

// Report is everything that was found.
type Report struct {
	At        time.Time  `json:"at"`
	Running   bool       `json:"running"` // without the platform there are no listeners to try
	Listeners []Listener `json:"listeners"`
	Findings  []Finding  `json:"findings"`
}

// Examine looks at everything.
func Examine(ctx context.Context, p Platform) (*Report, error) {
	r := &Report{At: time.Now().UTC(), Running: p.Supervisor != 0}
	if r.Running {
		procs, err := Processes(p)
		if err != nil {
			return nil, err
		}
		if r.Listeners, err = Listeners(p, procs); err != nil {
			return nil, err
		}
		if err := Try(ctx, p, r.Listeners); err != nil {
			return nil, err
		}
		r.Findings = append(r.Findings, judgeListeners(r.Listeners)...)
		r.Findings = append(r.Findings, leftSockets(p, r.Listeners)...)
		r.Findings = append(r.Findings, thisHost.memory(procs)...)
	} else {
		r.Findings = append(r.Findings, Finding{"running", Warn,
			"the platform does not run: nothing that listens could be tried, and what the controller knows could not be asked", "start it with bulkheadd up and run the doctor again"})
	}
	r.Findings = append(r.Findings, hostFindings(p, thisHost)...)
	r.Findings = append(r.Findings, strangerReads(func(uid uint32, errands []errand) ([]errandResult, error) {
		return asStranger(ctx, uid, ownNetns, errands)
	}, p.DataDir)...)
	r.Findings = append(r.Findings, p.probe(ctx)...)
	r.Findings = append(r.Findings, p.posture(ctx)...)
	return r, nil
}

// Count returns how many findings are of a level.
func (r *Report) Count(l Level) (n int) {
	for _, f := range r.Findings {
		if f.Level == l {
			n++
		}
	}
	return n
}

// Err is not nil when something failed, or, if strict, when there is a warning.
func (r *Report) Err(strict bool) error {
	switch fails, warns := r.Count(Fail), r.Count(Warn); {
	case fails > 0:
		return fmt.Errorf("%d failed", fails)
	case strict && warns > 0:
		return fmt.Errorf("%d warnings, and --strict was asked for", warns)
	}
	return nil
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText writes the report for people: the summary, then what failed, what is to be
// warned of, and notes. Verbose adds what is in order, and every socket with what was tried.
func (r *Report) WriteText(w io.Writer, verbose bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d failed, %s, %s, %d ok", r.Count(Fail), counted(r.Count(Warn), "warning"), counted(r.Count(Note),
		"note"), r.Count(OK))
	if !verbose {
		b.WriteString(" (-v shows what was tried)")
	}
	b.WriteString("\n\n")
	for _, level := range []Level{Fail, Warn, Note, OK} {
		if level == OK && !verbose {
			continue
		}
		for _, f := range r.Findings {
			if f.Level != level {
				continue
			}
			fmt.Fprintf(&b, "%-5s %-18s %s\n", f.Level, f.Check, printable(f.Found))
			if f.Remedy != "" {
				fmt.Fprintf(&b, "%24s %s\n", "->", printable(f.Remedy))
			}
		}
	}
	if verbose && r.Running {
		r.writeListeners(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeListeners writes every listening socket, and what was tried with it.
func (r *Report) writeListeners(b *strings.Builder) {
	fmt.Fprintf(b, "\nListening sockets: %d\n", len(r.Listeners))
	for _, l := range r.Listeners {
		fmt.Fprintf(b, "  %-8s %-60s %-8s %s\n", l.Network, printable(l.Addr), l.Namespace, printable(l.Role()))
		for _, t := range l.Trials {
			word := "refused"
			if !t.Refused {
				word = "NOT REFUSED"
			}
			fmt.Fprintf(b, "           %s: %s (%s)\n", t.What, word, printable(t.Got))
		}
	}
}

// counted words a number of things.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printable keeps what others chose, names of processes and answers, from driving a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
