// Command testsum makes the output of "go test -json" readable and counts it.
//
//	go test -json ./... 2>&1 | testsum -save FILE    a line per package; all that failed tests wrote; FILE gets the input
//	testsum -total FILE...                           the slowest packages, what failed, and how many tests passed, failed and were skipped
//
// A test that was running when its package died (a panic, a fatal error, a timeout, os.Exit)
// counts as failed. So does a package that failed without a failing test.
//
// It exits 1 when a test or a package failed.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// steps are names of steps other than tests, from the flag -also.
type steps []string

func (s *steps) String() string     { return strings.Join(*s, ", ") }
func (s *steps) Set(v string) error { *s = append(*s, v); return nil }

func main() {
	save := flag.String("save", "", "copy the input to this file")
	total := flag.Bool("total", false, "read files that -save wrote and print the sum")
	var also steps
	flag.Var(&also, "also", "with -total: a step that failed and is no test; can be repeated")
	flag.Parse()
	c, err := run(*save, *total, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	for _, step := range also {
		c.failure(step)
	}
	if *total {
		c.print(os.Stdout)
	}
	if len(c.fails) > 0 {
		os.Exit(1)
	}
}

// run counts the files, or standard input, which it copies to the file save.
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
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
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
