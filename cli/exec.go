package cli

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

// maxExecStdin bounds what is sent as a command's standard input.
const maxExecStdin = 1 << 20

func (s *session) machineExecCommand() *cobra.Command {
	var timeout time.Duration
	var stdin bool
	c := &cobra.Command{
		Use:   "exec ID -- COMMAND ARG...",
		Short: "Run a command inside a Machine",
		Long: `Run a command inside a started Machine, without a terminal, and print what it
wrote when it has ended.

bulkhead exits with the command's own exit code, 128+N when signal N ended it. Where
the command could not be run at all, the exit code is one of those that
"bulkhead --help" lists; --json tells the two apart.`,
		Example: `  bulkhead machine exec 3d8d413b4d6e89 --app shop -- ls -l /data
  bulkhead machine exec 3d8d413b4d6e89 --app shop --stdin -- sh < script.sh`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactly("ID")(c, args)
			}
			if len(args) == 1 {
				return hint(usagef("missing COMMAND"), "write it after \"--\": bulkhead machine exec %s -- COMMAND", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			api, app, id, err := s.oneMachine(args[0])
			if err != nil {
				return err
			}
			in := client.ExecInput{Command: args[1:], Timeout: int((timeout + time.Second - 1) / time.Second)}
			if stdin {
				b, err := io.ReadAll(io.LimitReader(s.env.Stdin, maxExecStdin+1))
				if err != nil {
					return usagef("cannot read standard input: %v", err)
				}
				if len(b) > maxExecStdin {
					return usagef("standard input has more than %d bytes", maxExecStdin)
				}
				in.Stdin = string(b)
			}
			out, err := api.Exec(c.Context(), app, id, in)
			if err != nil {
				return machineError(err, app, id)
			}
			code := out.ExitCode
			if out.ExitSignal > 0 && code <= 0 {
				code = 128 + out.ExitSignal
			}
			if s.ui.json {
				if err := s.ui.result(out, nil); err != nil {
					return err
				}
			} else {
				// As ssh does: what the command wrote goes through unchanged.
				io.WriteString(s.env.Stdout, out.Stdout)
				io.WriteString(s.env.Stderr, out.Stderr)
			}
			return exitStatus(code)
		},
	}
	c.Flags().SetInterspersed(true)
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long the command may run")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "give the command this command's standard input, read to its end first")
	return c
}
