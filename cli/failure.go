package cli

import (
	"context"
	"errors"
	"fmt"

	"bulkhead/client"
	"bulkhead/deployfile"
	"bulkhead/fault"
)

// Exit codes. They are a promise to scripts: never change one.
const (
	ExitOK           = 0
	ExitFailed       = 1
	ExitUsage        = 2
	ExitNotFound     = 3
	ExitUnauthorized = 4
	ExitConflict     = 5
	ExitTimeout      = 6
	ExitUnavailable  = 7
	ExitInterrupted  = 130
)

// exitCodeHelp documents them in --help and docs/cli.md.
const exitCodeHelp = `Exit codes:
  0    done
  1    failed
  2    the command line, or a file it names, is wrong
  3    the app or Machine is not there
  4    not authorized: no or a bad token, or a server with another key than the pinned one
  5    conflict: the name is taken, or somebody else is changing the Machine
  6    not in time
  7    the platform cannot be reached, or is overloaded
  130  interrupted by Ctrl-C
"bulkhead machine exec" exits with the code of the command it ran.`

// failure is an error on its way to the user.
type failure struct {
	msg     string
	kind    string
	hint    string
	more    []string // further sentences, for errors that come in numbers
	details any      // for --json
	exit    int
	silent  bool
	cause   error
}

// Error gives the sentence.
func (f *failure) Error() string { return f.msg }

// Unwrap returns what the failure was made from.
func (f *failure) Unwrap() error { return f.cause }

// usagef returns an error in what the user typed.
func usagef(format string, args ...any) error {
	return &failure{msg: fmt.Sprintf(format, args...), kind: "usage", exit: ExitUsage}
}

// hint adds the next step to an error, in place of the standard one; a hint given
// before stays.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	var given *failure
	f := *classify(err)
	if !errors.As(err, &given) || f.hint == "" {
		f.hint = fmt.Sprintf(format, args...)
	}
	return &f
}

// detailed adds what scripts may read to an error.
func detailed(err error, details any) error {
	if err == nil {
		return nil
	}
	f := *classify(err)
	f.details = details
	return &f
}

// exitStatus ends the command with a code and without a word: the code of a
// command run inside a Machine.
func exitStatus(code int) error {
	if code == 0 {
		return nil
	}
	return &failure{msg: fmt.Sprintf("exit status %d", code), exit: code, silent: true}
}

// classify turns any error into a failure with its exit code and a standard hint.
func classify(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	if errors.Is(err, context.Canceled) {
		return &failure{msg: "interrupted", kind: "interrupted", exit: ExitInterrupted, cause: err}
	}
	var de *deployfile.Error
	if errors.As(err, &de) {
		f := &failure{msg: de.Error(), kind: "usage", exit: ExitUsage, cause: err}
		for _, n := range de.Notes[1:] {
			f.more = append(f.more, n.String())
		}
		f.details = f.more
		if len(f.more) == 0 {
			f.details = nil
		}
		return f
	}
	var se *startError
	if errors.As(err, &se) {
		f := &failure{msg: se.Error(), kind: "start_failed", exit: ExitFailed, cause: err}
		if se.late {
			f.kind, f.exit = string(fault.Timeout), ExitTimeout
		}
		return f
	}
	var fe *fault.Error
	if !errors.As(err, &fe) {
		return &failure{msg: err.Error(), kind: string(fault.Internal), exit: ExitFailed, cause: err}
	}
	return &failure{msg: fe.Msg, kind: string(fe.Kind), exit: exitCode(fe), hint: standardHint(fe), cause: err}
}

func exitCode(e *fault.Error) int {
	switch e.Kind {
	case fault.NotFound:
		return ExitNotFound
	case fault.Unauthenticated, fault.Denied:
		return ExitUnauthorized
	case fault.Conflict, fault.Precondition:
		return ExitConflict
	case fault.Timeout:
		return ExitTimeout
	case fault.Unavailable, fault.TooMany:
		return ExitUnavailable
	case fault.Unprocessable:
		if e.Status == "name_taken" {
			return ExitConflict
		}
	}
	return ExitFailed
}

// loginHint says how to get a token. The line that "bulkheadd up" printed is good once, so
// it is of no use to a user whose token has ended.
const loginHint = "log in with \"bulkhead auth login\", or make a new login line on the server, as root: \"bulkheadd token\""

// loginLineHint says how to log in where nothing is known of the cluster.
const loginLineHint = "run a login line here: \"bulkheadd token\", as root on the server, prints one, " +
	"and so does \"bulkhead orgs invite\""

// pinHint says where the pin of a cluster is found.
const pinHint = "\"bulkheadd token\", as root on the server, prints a line that has it, " +
	"and \"bulkhead clusters list --json\" shows it to a user of the cluster; without the pin the server cannot be told from an impostor"

func standardHint(e *fault.Error) string {
	switch {
	case e.Status == client.PinMismatch:
		return "if the cluster was set up again, log in with a new line of it (\"bulkheadd token\", as root on the server); if not, somebody may be listening in"
	case client.NeedsDischarge(e) || e.Status == "session_ended":
		return "log in with \"bulkhead auth login --org ORG\" as the user whose token it is; for CI an owner may allow it: \"bulkhead orgs sso set --help\""
	case e.Kind == fault.Unauthenticated:
		return loginHint
	case e.Status == client.Unreachable:
		return "check that bulkheadd runs on the server and that its port can be reached from here, through the proxy if you named one"
	case e.Kind == fault.TooMany && e.RetryAfter > 0:
		return fmt.Sprintf("wait %v and try again", e.RetryAfter)
	case e.Kind == fault.TooMany:
		return "wait a moment and try again"
	}
	return ""
}
