package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// proof is one test of one claim.
type proof struct {
	test    string
	places  []place
	outcome string // "pass", or what is wrong; "" before the tests are judged
}

// report is what is printed: each row that claims something, with its proofs.
type report struct {
	rows   []row
	proofs [][]proof
	judged bool
}

// newReport finds the tests of the rows.
func newReport(rows []row, where places) *report {
	r := &report{rows: rows}
	for _, row := range rows {
		var ps []proof
		for _, test := range row.tests {
			p := proof{test: test, places: where.of(test)}
			if len(p.places) == 0 {
				p.outcome = "no such test"
			}
			ps = append(ps, p)
		}
		r.proofs = append(r.proofs, ps)
	}
	return r
}

// wanted lists the tests that exist, each once.
func (r *report) wanted() (out []string) {
	for _, ps := range r.proofs {
		for _, p := range ps {
			if len(p.places) > 0 {
				out = append(out, p.test)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// judge fills in the outcomes. Of a name that several packages have, each counts.
func (r *report) judge(got *results) {
	r.judged = true
	for _, ps := range r.proofs {
		for i := range ps {
			if len(ps[i].places) == 0 {
				continue
			}
			ps[i].outcome = "pass"
			for _, p := range ps[i].places {
				if o := got.of(p); o != "pass" {
					ps[i].outcome = o
					break
				}
			}
		}
	}
}

// print writes the table: claim, test, outcome.
func (r *report) print(w io.Writer, failures bool) {
	section := ""
	for i, row := range r.rows {
		if !row.kind.proven() {
			continue
		}
		if failures && r.fine(i) {
			continue
		}
		if row.section != section {
			section = row.section
			fmt.Fprintf(w, "\n%s\n", section)
		}
		fmt.Fprintf(w, "  %s\n", row.text)
		if row.until != "" {
			fmt.Fprintf(w, "    open  until %s\n", row.until)
		}
		for _, p := range r.proofs[i] {
			outcome := p.outcome
			if outcome == "" {
				outcome = "-"
			}
			var pkgs []string
			for _, at := range p.places {
				pkgs = append(pkgs, at.pkg)
			}
			slices.Sort(pkgs)
			fmt.Fprintf(w, "    %-5s %s  (%s)\n", outcome, p.test, strings.Join(slices.Compact(pkgs), ", "))
		}
	}
	fmt.Fprintf(w, "\n%s\n", r.summary())
}

// fine reports whether nothing is wrong with a row.
func (r *report) fine(i int) bool {
	for _, p := range r.proofs[i] {
		if p.outcome != "pass" && (p.outcome != "" || r.judged) {
			return false
		}
	}
	return true
}

// count returns the numbers of claims that are proven, wrong, and open.
func (r *report) count() (proven, wrong, open int) {
	for i, row := range r.rows {
		switch {
		case !row.kind.proven():
		case row.until != "":
			open++
		case r.fine(i):
			proven++
		default:
			wrong++
		}
	}
	return proven, wrong, open
}

func (r *report) summary() string {
	proven, wrong, open := r.count()
	if !r.judged {
		return fmt.Sprintf("claims: %d with tests, %d with tests that do not exist, %d open; %d tests; nothing was run", proven, wrong, open, len(r.wanted()))
	}
	return fmt.Sprintf("claims: %d passed, %d failed, %d open; %d tests", proven, wrong, open, len(r.wanted()))
}

// err is not nil when a claim does not hold.
func (r *report) err() error {
	if _, wrong, _ := r.count(); wrong > 0 {
		return fmt.Errorf("%d claims of the threat model have no test that passed", wrong)
	}
	return nil
}
