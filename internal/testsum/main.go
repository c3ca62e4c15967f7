// Command testsum makes the output of "go test -json" readable and counts it.
//
//	go test -json ./... 2>&1 | testsum -save FILE    a line per package; all that failed tests wrote; FILE gets the input
//	testsum -total FILE...                           how many tests passed, failed and were skipped in all
//
// It exits 1 when a test or a package failed.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
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

// counts is what is counted. Subtests count like tests.
type counts struct {
	passed, failed, skipped int
	packages, failedPkgs    int
	broken                  bool // something else than a test failed: a build, a list of packages
	skips, fails            []string
}

func main() {
	save := flag.String("save", "", "copy the input to this file")
	total := flag.Bool("total", false, "read files that -save wrote and print the sum")
	flag.Parse()
	c, err := run(*save, *total, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	if c.failed > 0 || c.failedPkgs > 0 || c.broken {
		os.Exit(1)
	}
}

func run(save string, total bool, files []string) (*counts, error) {
	c := &counts{}
	if total {
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				return nil, err
			}
			err = c.read(f, io.Discard)
			f.Close()
			if err != nil {
				return nil, err
			}
		}
		c.print(os.Stdout)
		return c, nil
	}
	in := io.Reader(os.Stdin)
	if save != "" {
		f, err := os.Create(save)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = io.TeeReader(in, f)
	}
	return c, c.read(in, os.Stdout)
}

// read counts the events in r and shows on w what a person wants to see.
func (c *counts) read(r io.Reader, w io.Writer) error {
	held := map[string]*strings.Builder{} // output of tests that have not ended, and of packages
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(w, s.Text()) // go's own words: a module that cannot be had
			c.broken = c.broken || strings.Contains(s.Text(), "FAIL")
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "output":
			if held[key] == nil {
				held[key] = &strings.Builder{}
			}
			held[key].WriteString(e.Output)
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "build-fail":
			c.broken = true
		case "pass", "fail", "skip":
			c.ended(e, held[key], w)
			delete(held, key)
		}
	}
	return s.Err()
}

// ended counts the end of a test or a package.
func (c *counts) ended(e event, output *strings.Builder, w io.Writer) {
	name := e.Package + " " + e.Test
	switch {
	case e.Test == "" && e.Action == "skip": // it has no tests
	case e.Test == "":
		c.packages++
		if e.Action == "fail" {
			c.failedPkgs++
			if output != nil {
				fmt.Fprint(w, output.String())
			}
		}
		fmt.Fprintf(w, "%-4s %s (%.1f s)\n", e.Action, e.Package, e.Elapsed)
	case e.Action == "pass":
		c.passed++
	case e.Action == "skip":
		c.skipped++
		c.skips = append(c.skips, name)
	default:
		c.failed++
		c.fails = append(c.fails, name)
		if output != nil {
			fmt.Fprint(w, output.String())
		}
	}
}

func (c *counts) print(w io.Writer) {
	for _, f := range c.fails {
		fmt.Fprintln(w, "FAILED ", f)
	}
	for _, s := range c.skips {
		fmt.Fprintln(w, "skipped", s)
	}
	fmt.Fprintf(w, "in %d packages", c.packages)
	if c.failedPkgs > 0 || c.broken {
		fmt.Fprintf(w, ", of which %d failed", c.failedPkgs)
	}
	// The counts stand alone on a line, for whoever reads it by program.
	fmt.Fprintf(w, "\ntests: %d passed, %d failed, %d skipped\n", c.passed, c.failed, c.skipped)
}
