// Package h2spec runs the HTTP/2 conformance suite of that name, for tests. The suite is
// built from a module of its own, edge/testdata/h2spec, so that it stays out of go.mod.
package h2spec

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Suite is the built program.
type Suite struct{ program string }

// Build builds the suite from the module's folder.
func Build(t testing.TB, module string) *Suite {
	t.Helper()
	s := &Suite{filepath.Join(t.TempDir(), "h2spec")}
	build := exec.Command("go", "build", "-o", s.program, ".")
	build.Dir = module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return s
}

// Run runs sections of the suite, or all of it, against a server on a port of the
// loopback, under a host name, and returns how many cases passed and which did not.
func (s *Suite) Run(report, host, port string, sections ...string) (passed int, failed []string, err error) {
	if out, err := exec.Command(s.program, append([]string{host, port, report}, sections...)...).CombinedOutput(); err != nil {
		return 0, nil, fmt.Errorf("h2spec: %w\n%s", err, out)
	}
	b, err := os.ReadFile(report)
	if err != nil {
		return 0, nil, err
	}
	var r struct {
		Suites []struct {
			Cases []struct {
				Package string    `xml:"package,attr"`
				Class   string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &r); err != nil {
		return 0, nil, err
	}
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			switch {
			case c.Failure != nil || c.Error != nil:
				failed = append(failed, c.Package+": "+c.Class)
			case c.Skipped == nil:
				passed++
			}
		}
	}
	return passed, failed, nil
}
