// Command claims holds docs/threat-model.md against the tests: every claim there
// names the tests that prove it, and a claim counts when each of them ran and passed.
//
//	claims                        run these tests, and no others, and print claim, test, pass or fail
//	claims -results FILE...       read what "go test -json" wrote instead of running anything
//	claims -list                  print the claims and where their tests are, run nothing
//
// It exits 1 when a claim has no test, or a test of one does not exist, failed, was
// skipped or did not run. A row that says "open until ..." is printed as open and
// proves nothing; it fails nothing either, so that what is missing can be said.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	file := flag.String("file", "docs/threat-model.md", "the threat model")
	results := flag.Bool("results", false, "read the results of tests from the files named, and run nothing")
	list := flag.Bool("list", false, "print the claims and the packages of their tests, and run nothing")
	failures := flag.Bool("failures", false, "print only what is wrong, and the counts")
	flag.Parse()
	if err := run([]string{".", "cmd/bulkhead-sandbox"}, *file, *results, *list, *failures, flag.Args(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "claims:", err)
		os.Exit(1)
	}
}

func run(modules []string, file string, fromFiles, list, failures bool, args []string, w io.Writer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	doc, err := parse(file, string(text))
	if err != nil {
		return err
	}
	where, err := findTests(modules...)
	if err != nil {
		return err
	}
	r := newReport(doc, where)
	if !list {
		got := newResults()
		switch {
		case fromFiles && len(args) == 0:
			return fmt.Errorf("-results needs the files that \"make test\" left: build/test/*.json")
		case fromFiles:
			err = got.readFiles(args)
		default:
			err = runTests(where, r.wanted(), got)
		}
		if err != nil {
			return err
		}
		r.judge(got)
	}
	r.print(w, failures)
	return r.err()
}
