package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"bulkhead/secret"
	"bulkhead/supervisor"
)

const secretsUsage = `Usage: bulkheadd secrets ACTION [flags]

The cluster key, which wraps everything secret in the store. docs/secrets.md says where it
may lie and what to keep a copy of.

Actions:
  rotate-key   replace the cluster key while the platform runs; run it again if it was cut short
  new-key      print a new cluster key, for a credential that you keep yourself

Flags of rotate-key:
  --config FILE     configuration file
  --data-dir DIR    data directory
`

func secretsCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, secretsUsage)
		return exitUsage
	}
	action, args := args[0], args[1:]
	switch action {
	case "help", "--help", "-h":
		fmt.Fprint(stdout, secretsUsage)
		return exitOK
	case "rotate-key", "new-key":
	default:
		fmt.Fprintf(stderr, "bulkheadd: there is no action %q; \"bulkheadd secrets --help\" lists them\n", action)
		return exitUsage
	}
	var flags supervisor.Config
	fs := flag.NewFlagSet("secrets "+action, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	file := fs.String("config", "", "")
	fs.StringVar(&flags.DataDir, "data-dir", "", "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, secretsUsage)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "bulkheadd: %v; \"bulkheadd secrets --help\" lists the flags\n", err)
		return exitUsage
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "bulkheadd: secrets %s takes no argument, but got %q\n", action, fs.Arg(0))
		return exitUsage
	}
	if action == "new-key" {
		stdout.Write(secret.FormatKeys([]secret.Key{secret.NewKey()}))
		return exitOK
	}
	config, _, err := configure(*file, flags)
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitUsage
	}
	text, err := supervisor.RotateKey(context.Background(), config)
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitFailed
	}
	fmt.Fprintln(stdout, text)
	return exitOK
}
