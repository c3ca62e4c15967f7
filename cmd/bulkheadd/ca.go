package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"bulkhead/pki"
	"bulkhead/supervisor"
)

const caUsage = `Usage: bulkheadd ca ACTION [flags]

The cluster's certificate authority: a root that may sign for this cluster's names alone,
and two intermediates that the controller signs with. Nothing but a rotation needs the
root's key. "bulkheadd up" must be running.

Actions:
  status    what counts now, and where the root's key is
  seal      encrypt the root's key into a file for you to keep elsewhere, and remove it here
  discard   remove the root's key; new intermediates will need a new root
  rotate    make new intermediates; with --root a new root too
  finish    let the newest root alone count at once, instead of at the end of the overlap

Flags:
  --config FILE                 configuration file
  --data-dir DIR                data directory
 seal, and rotate --root for the new root's key:
  --out FILE                    file to write; it must not exist
  --recipient age1...           encrypt for this key of age (repeatable); age-keygen makes one
  --passphrase-file FILE        or with the passphrase in the first line of FILE
 rotate:
  --root-key FILE               the sealed root key; not needed while it lies on this machine
  --identity-file FILE          opens it: the file that age-keygen wrote
  --open-passphrase-file FILE   or the file with its passphrase
  --root                        change the root too
  --discard-root-key            keep the new root's key nowhere, instead of --out
  --now                         nothing signed before counts any more: a key was lost

Nothing is interrupted by a rotation without --now, and the pin of the API stays. What is
sealed is a file of age: "age --decrypt" opens it without Bulkhead.
`

// recipients is a flag that may stand several times.
type recipients []string

// String implements flag.Value.
func (r *recipients) String() string { return fmt.Sprint(*r) }

// Set implements flag.Value.
func (r *recipients) Set(s string) error { *r = append(*r, s); return nil }

func caCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, caUsage)
		return exitUsage
	}
	action, args := args[0], args[1:]
	var flags supervisor.Config
	var rot supervisor.Rotation
	fs := flag.NewFlagSet("ca "+action, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	file := fs.String("config", "", "")
	fs.StringVar(&flags.DataDir, "data-dir", "", "")
	if action == "seal" || action == "rotate" {
		fs.StringVar(&rot.Out, "out", "", "")
		fs.Var((*recipients)(&rot.Sealer.Recipients), "recipient", "")
		fs.StringVar(&rot.Sealer.PassphraseFile, "passphrase-file", "", "")
	}
	if action == "rotate" {
		fs.StringVar(&rot.RootKey, "root-key", "", "")
		fs.StringVar(&rot.Opener.IdentityFile, "identity-file", "", "")
		fs.StringVar(&rot.Opener.PassphraseFile, "open-passphrase-file", "", "")
		fs.BoolVar(&rot.NewRoot, "root", false, "")
		fs.BoolVar(&rot.Discard, "discard-root-key", false, "")
		fs.BoolVar(&rot.Now, "now", false, "")
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp) || action == "help" || action == "--help" || action == "-h":
		fmt.Fprint(stdout, caUsage)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "bulkheadd: %v; \"bulkheadd ca --help\" lists the flags\n", err)
		return exitUsage
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "bulkheadd: ca %s takes no argument, but got %q\n", action, fs.Arg(0))
		return exitUsage
	case rot.NewRoot && (rot.Out == "") == !rot.Discard, !rot.NewRoot && action == "rotate" && (rot.Out != "" || rot.Discard):
		fmt.Fprintln(stderr, "bulkheadd: a new root's key goes to --out FILE, or nowhere with --discard-root-key: say one of them, with --root alone")
		return exitUsage
	}
	config, _, err := configure(*file, flags)
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = caAction(ctx, action, config, rot, stdout)
	if errors.Is(err, errNoAction) {
		fmt.Fprintf(stderr, "bulkheadd: there is no action %q; \"bulkheadd ca --help\" lists them\n", action)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitFailed
	}
	return exitOK
}

var errNoAction = errors.New("no such action")

func caAction(ctx context.Context, action string, config supervisor.Config, rot supervisor.Rotation, stdout io.Writer) error {
	do := map[string]func(*supervisor.CA) error{
		"status":  func(*supervisor.CA) error { return nil },
		"seal":    func(a *supervisor.CA) error { return a.Seal(ctx, rot.Out, rot.Sealer) },
		"discard": func(a *supervisor.CA) error { return a.Discard(ctx) },
		"finish":  func(a *supervisor.CA) error { return a.Finish(ctx) },
		"rotate":  func(a *supervisor.CA) error { _, err := a.Rotate(ctx, rot); return err },
	}[action]
	if do == nil {
		return errNoAction
	}
	a, err := supervisor.OpenCA(config)
	if err != nil {
		return err
	}
	if err := do(a); err != nil {
		return err
	}
	var st pki.Status
	if st, err = a.Status(ctx); err == nil {
		fmt.Fprint(stdout, supervisor.CAText(st))
	}
	return err
}
