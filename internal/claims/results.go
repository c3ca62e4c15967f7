package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// results are the outcomes of tests, by package and name.
type results struct {
	outcome map[string]map[string]string // package -> test -> pass, fail, skip
	output  map[string][]string          // package -> what it wrote
}

func newResults() *results {
	return &results{map[string]map[string]string{}, map[string][]string{}}
}

// read takes the output of "go test -json".
func (r *results) read(in io.Reader) error {
	s := bufio.NewScanner(in)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e struct{ Action, Package, Test, Output string }
		if json.Unmarshal(s.Bytes(), &e) != nil {
			continue // go's own words
		}
		switch e.Action {
		case "run":
			r.set(e.Package, e.Test, "did not end", false)
		case "pass", "fail", "skip":
			r.set(e.Package, e.Test, e.Action, true)
		case "output":
			r.output[e.Package] = append(r.output[e.Package], e.Output)
		}
	}
	return s.Err()
}

// set notes an outcome. A test that ran twice counts as its worse run.
func (r *results) set(pkg, test, outcome string, ended bool) {
	if r.outcome[pkg] == nil {
		r.outcome[pkg] = map[string]string{}
	}
	old := r.outcome[pkg][test]
	if !ended && old != "" || old == "fail" {
		return
	}
	r.outcome[pkg][test] = outcome
}

func (r *results) readFiles(names []string) error {
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = r.read(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// of judges one test. A test passed when it did, and nothing below it was skipped:
// a skipped subtest showed nothing.
func (r *results) of(p place) string {
	tests := r.outcome[p.pkg]
	outcome, ok := tests[subtestName(p.name)]
	if !ok {
		return "did not run"
	}
	if outcome == "pass" {
		for name, o := range tests {
			if o == "skip" && strings.HasPrefix(name, subtestName(p.name)+"/") {
				return "skip (" + name + ")"
			}
		}
	}
	return outcome
}

// subtestName writes a name the way package testing does.
func subtestName(s string) string { return strings.ReplaceAll(s, " ", "_") }

// runTests runs exactly the tests that are wanted, package by package as scripts/test
// does: what starts platforms must have the machine to itself.
func runTests(where places, wanted []string, got *results) error {
	type group struct{ module, pkg string }
	tops := map[group]map[string]bool{}
	for _, test := range wanted {
		for _, p := range where.of(test) {
			g := group{p.module, p.pkg}
			if tops[g] == nil {
				tops[g] = map[string]bool{}
			}
			tops[g][regexp.QuoteMeta(p.top)] = true
		}
	}
	groups := slices.SortedFunc(maps.Keys(tops), func(a, b group) int { return strings.Compare(a.pkg, b.pkg) })
	for _, g := range groups {
		pattern := "^(" + strings.Join(slices.Sorted(maps.Keys(tops[g])), "|") + ")$"
		fmt.Fprintf(os.Stderr, "claims: %d tests of %s\n", len(tops[g]), g.pkg)
		cmd := exec.Command("go", "test", "-C", g.module, "-json", "-count=1", "-timeout=40m", "-run="+pattern, g.pkg)
		cmd.Stderr = os.Stderr
		if g.module != "." {
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		err = got.read(out)
		if werr := cmd.Wait(); werr != nil { // the outcomes say which; what was written says why
			for _, line := range got.output[g.pkg] {
				fmt.Fprint(os.Stderr, line)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
