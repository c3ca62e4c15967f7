package cli

import (
	"bytes"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/key"
)

func (s *session) machineExecCommand() *cobra.Command {
	var timeout time.Duration
	var stdin bool
	c := &cobra.Command{
		Use:   "exec [MACHINE] -- COMMAND ARG...",
		Short: "Run a command inside a Machine",
		Long: `Run a command inside a started Machine, without a terminal. What it writes comes
out while it runs, byte for byte and without a limit.

bulkhead exits with the command's own exit code, 128+N when signal N ended it. Where
the command could not be run at all, the exit code is one of those that
"bulkhead --help" lists; --json tells the two apart.

` + machineArg + `: the command follows "--" then.`,
		Example: `  bulkhead machine exec --app shop -- ls -l /data
  bulkhead machine exec 3d8d413b4d6e89 --app shop --stdin -- sh < script.sh`,
		Args: func(c *cobra.Command, args []string) error {
			if _, command := execArgs(c, args); len(command) == 0 {
				call, rest := []string{"bulkhead machine exec"}, "COMMAND"
				if s.appFlag != "" {
					call = append(call, "--app", s.appFlag)
				}
				if len(args) > 0 {
					if _, err := key.ParseMachineID(args[0]); err == nil {
						call = append(call, args[0])
					} else {
						rest = args[0] // of the two it is the command
					}
				}
				return hint(usagef("missing COMMAND"), "write it after \"--\": %s -- %s", strings.Join(call, " "), rest)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if timeout < 0 {
				return usagef("--timeout %s is negative", timeout)
			}
			which, command := execArgs(c, args)
			api, app, id, err := s.oneMachine(c.Context(), which)
			if err != nil {
				return err
			}
			in := client.ExecInput{Command: command, Timeout: int((timeout + time.Second - 1) / time.Second)}
			var stdout, stderr bytes.Buffer
			to := client.Streams{Stdout: s.env.Stdout, Stderr: s.env.Stderr}
			if s.ui.json {
				to.Stdout, to.Stderr = &limited{b: &stdout}, &limited{b: &stderr}
			}
			if stdin {
				to.Stdin = s.env.Stdin
			}
			began := time.Now()
			out, err := api.ExecStream(c.Context(), app, id, in, to)
			if err != nil {
				if strings.Contains(command[0], " ") {
					err = hint(err, "each word of a command is an argument of its own; sh -c 'COMMAND' runs a line")
				}
				return machineError(err, app, id)
			}
			if timeout > 0 && out.ExitSignal == 9 && time.Since(began) >= timeout {
				s.ui.warn("the command did not end within %s, and was killed", timeout)
			}
			code := out.ExitCode
			if out.ExitSignal > 0 && code <= 0 {
				code = 128 + out.ExitSignal
			}
			if s.ui.json {
				out.Stdout, out.StdoutBase64 = textOf(stdout.Bytes())
				out.Stderr, out.StderrBase64 = textOf(stderr.Bytes())
				if err := s.ui.result(out, nil); err != nil {
					return err
				}
			}
			return exitStatus(code)
		},
	}
	c.Flags().SetInterspersed(true)
	c.Flags().DurationVar(&timeout, "timeout", 0, "how long the command may run (default 24h)")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "give the command this command's standard input, as it comes")
	return c
}

// execArgs are the Machine and the command in the arguments of exec: without "--" the first
// is the Machine, and before "--" there is one Machine or none.
func execArgs(c *cobra.Command, args []string) (which string, command []string) {
	if c.ArgsLenAtDash() == 0 || len(args) == 0 {
		return "", args
	}
	return args[0], args[1:]
}

// maxExecJSON bounds each stream of a command that --json collects, in bytes.
const maxExecJSON = 64 << 20

// limited collects up to maxExecJSON bytes; more is an error.
type limited struct{ b *bytes.Buffer }

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if l.b.Len()+len(p) > maxExecJSON {
		return 0, usagef("--json collects at most %d bytes of output; leave it out", maxExecJSON)
	}
	return l.b.Write(p)
}

// textOf gives bytes as text, and as they are when the text is not the same.
func textOf(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return strings.ToValidUTF8(string(b), "\uFFFD"), b
}
