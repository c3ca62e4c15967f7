package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"bulkhead/doctor"
	"bulkhead/supervisor"
)

const doctorHelp = `Usage: bulkheadd doctor [flags]

Finds every socket on which the platform listens, proves by trying that each refuses who
has no credentials, and tells what about this host or this installation takes away from
what the platform promises. It changes nothing. Its attempts are refused calls like any
others: they are in the audit log and in the log of the platform.

The exit code is 0 when nothing failed, 1 when something did, 2 when the command line is
wrong. Warnings count as failures with --strict alone. docs/doctor.md explains every check.

  -v               show also what is in order, and every socket with what was tried
  --data-dir DIR   directory of the installation (default %s)
  --config FILE    configuration file (default %s, if it exists)
  --json           the report for programs
  --strict         warnings are failures
`

// examine is the command doctor.
func examine(args []string, stdout, stderr io.Writer) int {
	var flags supervisor.Config
	fs := flag.NewFlagSet("doctor", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	file := fs.String("config", "", "")
	asJSON := fs.Bool("json", false, "")
	strict := fs.Bool("strict", false, "")
	verbose := fs.Bool("v", false, "")
	fs.StringVar(&flags.DataDir, "data-dir", "", "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, doctorHelp, supervisor.DefaultDataDir, supervisor.DefaultConfigFile)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "bulkheadd: %v; \"bulkheadd doctor --help\" lists the flags\n", err)
		return exitUsage
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "bulkheadd: doctor takes no argument, but got %q\n", fs.Arg(0))
		return exitUsage
	}
	config, _, err := configure(*file, flags)
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitUsage
	}
	if *file == "" {
		*file = supervisor.DefaultConfigFile
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintln(stderr, "looking at this host; it takes some seconds")
	}
	report, err := diagnose(ctx, config, *file)
	if err == nil {
		if *asJSON {
			err = report.WriteJSON(stdout)
		} else {
			err = report.WriteText(stdout, *verbose)
		}
	}
	if err == nil {
		err = report.Err(*strict)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd doctor: %v\n", err)
		return exitFailed
	}
	return exitOK
}

func diagnose(ctx context.Context, c supervisor.Config, file string) (*doctor.Report, error) {
	if _, err := os.Stat(file); err != nil {
		file = ""
	}
	p, err := supervisor.Patient(c, file)
	if err != nil {
		return nil, err
	}
	return doctor.Examine(ctx, p)
}
