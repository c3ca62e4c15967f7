// Package cli is the command bulkhead: what a developer types.
//
// Each file holds one command or a family of them; output.go holds the rules of
// what is printed where, failure.go the exit codes, deploy*.go the deploy. The
// package knows the platform only through package client.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"bulkhead/client"
	"bulkhead/deployfile"
	"bulkhead/fault"
	"bulkhead/key"
)

// Env is what the command finds around itself.
type Env struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	// ConfigDir is the user's configuration directory, as os.UserConfigDir gives it;
	// "" where there is none.
	ConfigDir string
	// StdinTTY, StdoutTTY and StderrTTY say which streams are terminals.
	StdinTTY, StdoutTTY, StderrTTY bool
}

// Main runs the command with the process's own environment and returns its exit code.
func Main() int {
	ctx, stop := interruptible(context.Background())
	defer stop()
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = "" // only login needs one, and says so
	}
	return Run(ctx, Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, ConfigDir: dir,
		StdinTTY: isTTY(os.Stdin), StdoutTTY: isTTY(os.Stdout), StderrTTY: isTTY(os.Stderr),
	})
}

func isTTY(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// interruptible returns a context that the first Ctrl-C or SIGTERM cancels, which
// gives commands time to put things in order. The second one kills.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case <-c:
			signal.Stop(c)
			cancel()
		case <-done:
		}
	}()
	return ctx, func() { signal.Stop(c); close(done); cancel() }
}

// cleanupTime is what commands have, after Ctrl-C or a failure, to put things in order.
const cleanupTime = 15 * time.Second

// session is one run of the command.
type session struct {
	env Env
	ui  *ui

	// Global flags.
	configPath string
	cluster    string
	appFlag    string
	proxy      string
	json       bool
	quiet      bool

	api *client.Client // made by client()
}

// Run runs one command and returns its exit code.
func Run(ctx context.Context, env Env) int {
	out := &checked{w: env.Stdout}
	env.Stdout = out
	s := &session{env: env, ui: &ui{out: env.Stdout, err: env.Stderr, outTTY: env.StdoutTTY, errTTY: env.StderrTTY}}
	root := s.rootCommand()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	// Before flags are parsed an error must already know its form.
	s.ui.json = wantsJSON(env.Args)
	err := root.ExecuteContext(ctx)
	if s.api != nil {
		s.api.Close()
	}
	return s.ui.finish(s.unwritten(out.failed(), err))
}

// unwritten turns the end of a command whose output was lost, such as on a full disk, into
// an error: what was cut is no result.
func (s *session) unwritten(lost, err error) error {
	if lost == nil || err != nil && !errors.Is(err, lost) {
		return err
	}
	s.ui.json = false // nobody would read it there
	return fault.Wrap(fault.Internal, lost, "standard output cannot be written: %v", lost)
}

// wantsJSON reports whether --json stands among the arguments before "--".
func wantsJSON(args []string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if a == "--json" || a == "--json=true" {
			return true
		}
	}
	return false
}

// rootCommand builds the tree of commands.
func (s *session) rootCommand() *cobra.Command {
	root := group("bulkhead", "Run apps in sandboxes on your own servers", `Bulkhead runs container images as Machines: sandboxes with a kernel of their own,
on servers that you own.

`+exitCodeHelp)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Short: "Show help for a command",
		RunE: func(c *cobra.Command, args []string) error {
			target, rest, err := c.Root().Find(args)
			if err != nil || target == nil || len(rest) > 0 {
				return usagef("there is no command %q", strings.Join(args, " "))
			}
			return target.Help()
		}})
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return hint(usagef("%s", flagError(err)), "see %q", c.CommandPath()+" --help")
	})
	f := root.PersistentFlags()
	f.StringVar(&s.configPath, "config", "",
		"file that holds the clusters and tokens (default bulkhead/config.json in the user's configuration directory; env BULKHEAD_CONFIG)")
	f.StringVar(&s.cluster, "cluster", "", "cluster to speak to, by name (default the one logged in to last)")
	f.StringVarP(&s.appFlag, "app", "a", "", "app to act on (default the one named in ./bulkhead.toml or ./fly.toml)")
	f.StringVar(&s.proxy, "proxy", "",
		"http:// or socks5:// proxy to connect through (default none, whatever the environment says; env BULKHEAD_PROXY)")
	f.BoolVar(&s.json, "json", false, "print results, and errors, as JSON on standard output")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "print no progress and no hints")
	root.PersistentPreRun = func(*cobra.Command, []string) {
		s.ui.json, s.ui.quiet = s.json, s.quiet
	}
	root.AddCommand(
		s.loginCommand(), s.logoutCommand(), s.authCommand(), s.clustersCommand(),
		s.appsCommand(), s.deployCommand(), s.statusCommand(), s.logsCommand(), s.openCommand(),
		s.machineCommand(), s.envCommand(), s.secretsCommand(), s.tokensCommand(), s.orgsCommand(), s.usersCommand(), s.nodeCommand(), s.auditCommand(), s.issuerCommand(), s.versionCommand(), s.completionCommand(),
	)
	return root
}

// flagError words an error of the flags for people, without the names of Go's functions.
func flagError(err error) string {
	var bad *pflag.InvalidValueError
	if !errors.As(err, &bad) {
		return err.Error()
	}
	kind := bad.GetFlag().Value.Type()
	want := map[string]string{"int": "a whole number", "duration": "a duration such as 30s or 5m", "bool": "true or false"}[kind]
	if want == "" {
		return err.Error()
	}
	return fmt.Sprintf("--%s %q is not %s", bad.GetFlag().Name, fault.Clip(bad.GetValue()), want)
}

// group returns a command that only holds others.
func group(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			err := usagef("there is no command %q", c.CommandPath()+" "+args[0])
			var names []string
			for _, sub := range c.Commands() {
				names = append(append(names, sub.Name()), sub.Aliases...)
			}
			near := fault.Nearest(args[0], names)
			if all := c.SuggestionsFor(args[0]); near == "" && len(all) > 0 {
				near = all[0] // it begins so
			}
			if near != "" {
				return hint(err, "did you mean %q?", c.CommandPath()+" "+near)
			}
			return hint(err, "see %q", c.CommandPath()+" --help")
		},
	}
}

// exactly returns an argument check for the named arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return hint(usagef("missing %s", names[len(args)]), "see %q", c.CommandPath()+" --help")
		}
		if len(args) > len(names) {
			return hint(usagef("unexpected argument %q", args[len(names)]), "see %q", c.CommandPath()+" --help")
		}
		return nil
	}
}

// atLeast returns an argument check for the named arguments, the last of them once or more.
func atLeast(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return hint(usagef("missing %s", names[len(args)]), "see %q", c.CommandPath()+" --help")
		}
		return nil
	}
}

// atMostOne returns an argument check for name, which may be left out.
func atMostOne(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return hint(usagef("unexpected argument %q after %s", args[1], name), "see %q", c.CommandPath()+" --help")
		}
		return nil
	}
}

// client returns the client of the chosen cluster.
func (s *session) client() (*client.Client, error) {
	if s.api != nil {
		return s.api, nil
	}
	c, err := s.chooseCluster()
	if err != nil {
		return nil, err
	}
	return s.connect(client.Config{URL: c.URL, Pin: c.Pin, Token: c.Token, Renew: s.renewer(c)})
}

// connect makes the client of this session; c says which cluster and who.
func (s *session) connect(c client.Config) (*client.Client, error) {
	c.Proxy, c.UserAgent = s.proxyAddr(), "bulkhead/"+version()
	c.Waits = s.waits(c.URL)
	api, err := client.New(c)
	if err != nil {
		return nil, usage(err)
	}
	s.api = api
	return api, nil
}

// waits shows on a terminal that a server is waited for.
func (s *session) waits(url string) func() (done func()) {
	return func() func() { return s.ui.waiting("waiting for " + strings.TrimPrefix(url, "https://")) }
}

func (s *session) proxyAddr() string {
	if s.proxy != "" {
		return s.proxy
	}
	return s.env.Getenv("BULKHEAD_PROXY")
}

// app returns the app to act on: --app, or the one that the deploy file in the
// current folder names.
func (s *session) app() (string, error) {
	if s.appFlag != "" {
		return checkApp(s.appFlag)
	}
	path := deployfile.Find(".")
	if path == "" {
		return "", hint(usagef("no app named"), "give --app NAME, or run this in a folder with a bulkhead.toml or fly.toml")
	}
	f, err := deployfile.Load(path)
	if err != nil {
		return "", err
	}
	if f.App == "" {
		return "", hint(usagef("%s names no app", path), "give --app NAME, or write app = \"NAME\" at its top")
	}
	return f.App, nil
}

// clientAndApp is what most commands start with.
func (s *session) clientAndApp() (*client.Client, string, error) {
	app, err := s.app()
	if err != nil {
		return nil, "", err
	}
	c, err := s.client()
	return c, app, err
}

// checkApp checks the form of an app name given on the command line.
func checkApp(name string) (string, error) {
	n, err := key.ParseAppName(name)
	if err != nil {
		return "", usagef("%s", err)
	}
	return string(n), nil
}

// checkMachine checks the form of a Machine id given on the command line.
func checkMachine(id string) (key.MachineID, error) {
	m, err := key.ParseMachineID(id)
	if err != nil {
		return "", hint(usagef("%s", err), "\"bulkhead machine list --app APP\" shows the ids")
	}
	return m, nil
}

// canceled reports whether err is the end of ctx by Ctrl-C.
func canceled(err error) bool { return errors.Is(err, context.Canceled) }
