package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

const (
	slowest      = 12  // how many packages the table at the end lists
	lastReports  = 3   // how many reports of a failed test the end repeats
	reportLength = 600 // bytes of each
)

// event is a line of go test -json (see go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output and build-fail
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

// counts is what the events add up to. Subtests count like tests.
type counts struct {
	passed  int
	seconds map[string]float64 // by package
	skips   []string
	fails   []string            // every test, package and step that failed, once
	said    map[string][]string // by test that failed: what it reported last
}

// pkg is a package whose tests run.
type pkg struct {
	tests  []*test // in the order in which they began or wrote
	byName map[string]*test
	failed int    // its tests that failed
	death  string // the line that says why its process died
}

// test is a test that has not ended. The test without a name is the package itself.
type test struct {
	name   string
	state  string // "running" or "paused", and empty for what writes and is not run
	output strings.Builder
	death  string // the first line that says why a process died
}

// get returns a test of p by its name.
func (p *pkg) get(name string) *test {
	if t := p.byName[name]; t != nil {
		return t
	}
	t := &test{name: name}
	p.tests, p.byName[name] = append(p.tests, t), t
	return t
}

// wrote adds output. Output of tests is indented by go test, so a line that begins like
// this is the runtime's.
func (t *test) wrote(output string) {
	t.output.WriteString(output)
	for _, prefix := range []string{"panic: ", "fatal error: ", "SIG", "signal: ", "*** Test killed"} {
		if t.death == "" && strings.HasPrefix(output, prefix) {
			t.death = strings.TrimSpace(output)
		}
	}
}

// reports returns the last lines that a test itself reported, each with its place. The
// output of go test does not tell an error from a log line, and a test's clean-up may
// write thousands of lines of another program below them.
func reports(output string) []string {
	all := reportRE.FindAllString(output, -1)
	all = all[max(0, len(all)-lastReports):]
	for i, report := range all {
		report = strings.Join(strings.Fields(report), " ")
		if len(report) > reportLength {
			report = strings.ToValidUTF8(report[:reportLength], "") + "…"
		}
		all[i] = report
	}
	return all
}

// reportRE matches a line that a test file reported, with the lines that continue it,
// which are indented further.
var reportRE = regexp.MustCompile(`(?m)^ +\w+_test\.go:\d+: .*(?:\n {8,}.*)*`)

// failure counts something that failed.
func (c *counts) failure(name string) { c.fails = append(c.fails, name) }

// read counts the events in r and shows on w what a person wants to see.
func (c *counts) read(r io.Reader, w io.Writer) error {
	open := map[string]*pkg{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	broken := "" // the first words of go itself that say that it failed
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(w, s.Text()) // such as a module that cannot be downloaded
			if broken == "" && strings.Contains(s.Text(), "FAIL") {
				broken = s.Text()
			}
			continue
		}
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
			continue
		case "build-fail": // the packages that needed it fail too
			continue
		}
		p := open[e.Package]
		if p == nil {
			p = &pkg{byName: map[string]*test{}}
			open[e.Package] = p
		}
		switch e.Action {
		case "run", "cont":
			p.get(e.Test).state = "running"
		case "pause":
			p.get(e.Test).state = "paused"
		case "output":
			p.get(e.Test).wrote(e.Output)
		case "pass", "fail", "skip":
			if e.Test != "" {
				c.testEnded(p, e, w)
				continue
			}
			delete(open, e.Package)
			c.packageEnded(p, e, w)
		}
	}
	// The input broke off: go test itself was killed.
	for _, name := range slices.Sorted(maps.Keys(open)) {
		c.packageEnded(open[name], event{Action: "fail", Package: name}, w)
	}
	if broken != "" {
		c.failure(broken)
	}
	return s.Err()
}

// testEnded counts the end of a test.
func (c *counts) testEnded(p *pkg, e event, w io.Writer) {
	name, t := e.Package+" "+e.Test, p.get(e.Test)
	switch e.Action {
	case "pass":
		c.passed++
	case "skip":
		c.skips = append(c.skips, name)
	default:
		p.failed++
		p.death = cmp.Or(p.death, t.death)
		c.failure(name)
		if c.said == nil {
			c.said = map[string][]string{}
		}
		c.said[name] = reports(t.output.String())
		fmt.Fprint(w, t.output.String())
	}
	delete(p.byName, e.Test)
	p.tests = slices.DeleteFunc(p.tests, func(o *test) bool { return o == t })
}

// packageEnded counts the end of a package, and of the tests that its death cut off.
func (c *counts) packageEnded(p *pkg, e event, w io.Writer) {
	if e.Action == "skip" {
		return // it has no tests
	}
	if c.seconds == nil {
		c.seconds = map[string]float64{}
	}
	c.seconds[e.Package] += e.Elapsed
	if e.Action == "fail" {
		why := ""
		for _, t := range p.tests {
			p.death = cmp.Or(p.death, t.death)
		}
		if p.death != "" {
			why = ": " + p.death
		}
		for _, t := range p.tests {
			if t.state != "" {
				p.failed++
				c.failure(e.Package + " " + t.name + ": " + t.state + " when its package died" + why)
				fmt.Fprintf(w, "--- %s when %s died: %s\n", t.state, e.Package, t.name)
			}
			fmt.Fprint(w, t.output.String())
		}
		switch {
		case e.FailedBuild != "":
			c.failure(e.Package + ": it does not build")
		case p.failed == 0:
			c.failure(e.Package + ": the package failed, and none of its tests" + why)
		}
	}
	fmt.Fprintf(w, "%-4s %s (%.1f s)\n", e.Action, e.Package, e.Elapsed)
}

// print shows what is known at the end. The counts stand alone on the last line, for
// programs that read it, and what failed right above them.
func (c *counts) print(w io.Writer) {
	names := slices.SortedFunc(maps.Keys(c.seconds), func(a, b string) int {
		return cmp.Or(cmp.Compare(c.seconds[b], c.seconds[a]), cmp.Compare(a, b))
	})
	fmt.Fprintf(w, "the slowest of %d packages, in seconds:\n", len(names))
	for _, name := range names[:min(slowest, len(names))] {
		fmt.Fprintf(w, "%8.1f  %s\n", c.seconds[name], name)
	}
	for _, s := range c.skips {
		fmt.Fprintln(w, "skipped", s)
	}
	for _, f := range c.fails {
		fmt.Fprintln(w, "FAILED ", f)
		for _, line := range c.said[f] {
			fmt.Fprintln(w, "       ", line)
		}
	}
	fmt.Fprintf(w, "tests: %d passed, %d failed, %d skipped\n", c.passed, len(c.fails), len(c.skips))
}
