package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/machine"
)

// maxSecretInput bounds what is read from standard input, in bytes.
const maxSecretInput = 1 << 20

func (s *session) secretsCommand() *cobra.Command {
	c := group("secrets", "Set, list and unset an app's secrets", `Set, list and unset an app's secrets: environment variables of its Machines that the
platform keeps encrypted and never shows again, to anybody.`)
	c.AddCommand(s.secretsSetCommand(), s.secretsImportCommand(), s.secretsListCommand(), s.secretsUnsetCommand(),
		s.secretsDeployCommand())
	return c
}

// secretFlags are the flags of commands that change secrets.
type secretFlags struct {
	stage bool
	wait  time.Duration
}

func (f *secretFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.stage, "stage", false, "change nothing of running Machines: each has it from its next start on")
	c.Flags().DurationVar(&f.wait, "wait", 5*time.Minute, "how long to wait for each Machine to run again")
}

func (s *session) secretsSetCommand() *cobra.Command {
	var f secretFlags
	c := &cobra.Command{
		Use: "set NAME=VALUE|NAME=-...", Short: "Set secrets and restart the app's Machines with them", Args: atLeast("NAME=VALUE"),
		Long: `Set secrets of an app, then restart its running Machines one by one so that they have
them; --stage leaves the Machines alone.

A VALUE on the command line can be read by every user of this computer while the
command runs ("ps"), and stays in your shell's history. NAME=- reads the value from
standard input, where neither happens; a line break at its end is dropped.`,
		Example: `  bulkhead secrets set --app shop DATABASE_URL=- < url.txt
  pass shop/token | bulkhead secrets set --app shop TOKEN=- --stage`,
		RunE: func(c *cobra.Command, args []string) error {
			values, err := s.secretArgs(args)
			if err != nil {
				return err
			}
			return s.changeSecrets(c.Context(), values, f)
		},
	}
	f.add(c)
	return c
}

// secretArgs reads NAME=VALUE arguments. Errors never show a value.
func (s *session) secretArgs(args []string) (map[string]*string, error) {
	values, stdin := map[string]*string{}, ""
	for i, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok || name == "" {
			return nil, hint(usagef("argument %d is not of the form NAME=VALUE", i+1),
				"NAME=- reads the value from standard input")
		}
		if values[name] != nil {
			return nil, usagef("%s is given twice", name)
		}
		if value == "-" {
			if stdin != "" {
				return nil, usagef("%s and %s would both be read from standard input; set one at a time, or use \"bulkhead secrets import\"", stdin, name)
			}
			stdin = name
			b, err := s.readSecretInput()
			if err != nil {
				return nil, err
			}
			value = strings.TrimSuffix(strings.TrimSuffix(b, "\n"), "\r")
		}
		values[name] = &value
	}
	return values, nil
}

func (s *session) readSecretInput() (string, error) {
	if s.env.StdinTTY {
		s.ui.progress("reading standard input; Ctrl-D ends it")
	}
	b, err := io.ReadAll(io.LimitReader(s.env.Stdin, maxSecretInput+1))
	if err != nil {
		return "", fmt.Errorf("standard input cannot be read: %w", err)
	}
	if len(b) > maxSecretInput {
		return "", usagef("standard input has more than %d KiB", maxSecretInput>>10)
	}
	return string(b), nil
}

func (s *session) secretsImportCommand() *cobra.Command {
	var f secretFlags
	c := &cobra.Command{
		Use: "import", Short: "Set secrets from lines of NAME=VALUE on standard input", Args: exactly(),
		Long: `Set secrets from standard input, then restart the app's running Machines with them;
--stage leaves the Machines alone. Each line is NAME=VALUE. Empty lines and comments are
left out, and so is "export " before a name. A comment begins with # at the start of a line
or after a blank. A value may stand in 'single' quotes or backticks, taken as it is, or in
"double" quotes, in which \n, \t, \r, \", \$ and \\ mean what they do in a shell. A quoted
value may have several lines. Nothing is expanded: $NAME stays as it is.`,
		Example: `  bulkhead secrets import --app shop < .env`,
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := s.readSecretInput()
			if err != nil {
				return err
			}
			values, err := parseDotenv(b)
			if err != nil {
				return err
			}
			if len(values) == 0 {
				return usagef("standard input holds no NAME=VALUE line")
			}
			return s.changeSecrets(c.Context(), values, f)
		},
	}
	f.add(c)
	return c
}

func (s *session) secretsUnsetCommand() *cobra.Command {
	var f secretFlags
	c := &cobra.Command{
		Use: "unset NAME...", Short: "Unset secrets and restart the app's Machines without them", Args: atLeast("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			api, app, err := s.clientAndApp()
			if err != nil {
				return err
			}
			have, err := api.Secrets(c.Context(), app)
			if err != nil {
				return s.noApp(c.Context(), api, app, err)
			}
			values := map[string]*string{}
			for _, name := range args {
				if !slices.ContainsFunc(have.Secrets, func(x client.Secret) bool { return x.Name == name }) {
					return hint(fault.New(fault.NotFound, "app %s has no secret %s", app, name),
						"\"bulkhead secrets list --app %s\" shows those there are", app)
				}
				values[name] = nil
			}
			return s.changeSecrets(c.Context(), values, f)
		},
	}
	f.add(c)
	return c
}

// changeSecrets sets and unsets, and deploys unless it is only to be staged.
func (s *session) changeSecrets(ctx context.Context, values map[string]*string, f secretFlags) error {
	api, app, err := s.clientAndApp()
	if err != nil {
		return err
	}
	out, err := api.SetSecrets(ctx, app, values)
	if err != nil {
		return s.noApp(ctx, api, app, err)
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if values[name] == nil {
			s.ui.progress("unset %s", name)
		} else {
			s.ui.progress("set %s", name)
		}
	}
	s.warnShadows(ctx, api, app, values)
	restarted := []string{}
	if f.stage {
		s.ui.progress("staged: Machines have it from their next start on; \"bulkhead secrets deploy --app %s\" restarts them now", app)
	} else if restarted, err = s.deploySecrets(ctx, api, app, f.wait); err != nil {
		return hint(err, "the secrets are set; \"bulkhead secrets deploy --app %s\" goes on", app)
	}
	return s.ui.result(map[string]any{"app": app, "version": out.Version, "staged": f.stage, "restarted": restarted},
		func(io.Writer) {})
}

// warnShadows warns of secrets that take the place of an environment variable.
func (s *session) warnShadows(ctx context.Context, api *client.Client, app string, values map[string]*string) {
	ms, err := s.managed(ctx, api, app)
	if err != nil {
		return // the secrets are set; whatever is wrong says itself elsewhere
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		has := func(m client.Machine) bool { _, ok := m.Config.Env[name]; return ok }
		if values[name] != nil && slices.ContainsFunc(ms, has) {
			s.ui.warn("%s is an environment variable too; the secret takes its place", name)
		}
	}
}

func (s *session) secretsListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List an app's secrets, without their values", Args: exactly(),
		Long: `List an app's secrets. A value is never shown; its digest is the same as long as the
value is. STATUS says whether the running Machines have it: staged, partly deployed, deployed.`,
		RunE: func(c *cobra.Command, _ []string) error {
			api, app, err := s.clientAndApp()
			if err != nil {
				return err
			}
			out, err := api.Secrets(c.Context(), app)
			if err != nil {
				return s.noApp(c.Context(), api, app, err)
			}
			return s.ui.result(out.Secrets, func(w io.Writer) {
				var rows [][]string
				for _, x := range out.Secrets {
					rows = append(rows, []string{x.Name, x.Digest, x.CreatedAt, x.Status})
				}
				table(w, []string{"NAME", "DIGEST", "CREATED", "STATUS"}, rows)
			})
		},
	}
}

func (s *session) secretsDeployCommand() *cobra.Command {
	var f secretFlags
	c := &cobra.Command{
		Use: "deploy", Short: "Restart the app's Machines with the secrets as they are now", Args: exactly(),
		Long: `Restart the app's running Machines one by one, each after the one before runs again, so
that they have the secrets as they are now. Machines that are stopped have them when they
start.`,
		RunE: func(c *cobra.Command, _ []string) error {
			api, app, err := s.clientAndApp()
			if err != nil {
				return err
			}
			restarted, err := s.deploySecrets(c.Context(), api, app, f.wait)
			if err != nil {
				return s.noApp(c.Context(), api, app, err)
			}
			return s.ui.result(map[string]any{"app": app, "restarted": restarted}, func(io.Writer) {})
		},
	}
	c.Flags().DurationVar(&f.wait, "wait", 5*time.Minute, "how long to wait for each Machine to run again")
	return c
}

// deploySecrets restarts the Machines that run, and says which.
func (s *session) deploySecrets(ctx context.Context, api *client.Client, app string,
	wait time.Duration) ([]string, error) {
	machines, err := api.Machines(ctx, app)
	if err != nil {
		return nil, err
	}
	defer s.ui.waiting("waiting for the Machines of " + app)()
	restarted := []string{}
	for _, m := range machines {
		if m.State != machine.Started && m.State != machine.Starting && m.State != machine.Restarting {
			continue
		}
		s.ui.progress("restarting machine %s", m.ID)
		if err := api.RestartMachine(ctx, app, m.ID, 0, false, ""); err != nil {
			return restarted, fmt.Errorf("machine %s: %w", m.ID, err)
		}
		if err := api.Wait(ctx, app, m.ID, m.InstanceID, machine.Started, wait); err != nil {
			return restarted, fmt.Errorf("machine %s was restarted and does not run: %w", m.ID, err)
		}
		restarted = append(restarted, string(m.ID))
	}
	out, err := api.Secrets(ctx, app)
	if err != nil || len(restarted) == 0 {
		return restarted, err
	}
	for _, x := range out.Secrets {
		if x.Status == "staged" || x.Status == "partly deployed" {
			return restarted, errors.New("a Machine started again with older secrets, because its node could not reach the controller; try again")
		}
	}
	s.ui.progress("%s restarted", plural(len(restarted), "Machine"))
	return restarted, nil
}
