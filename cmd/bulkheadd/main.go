// Command bulkheadd runs a Bulkhead node: see package supervisor.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"bulkhead/coredump"
	"bulkhead/doctor"
	"bulkhead/supervisor"
)

// version is set by make build.
var version = "devel"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `bulkheadd runs a Bulkhead node.

Usage:
  bulkheadd up [flags]       run the platform until SIGTERM or Ctrl-C; Machines outlive it
  bulkheadd down [flags]     after "up" has ended: end the Machines, remove what they left on this machine
  bulkheadd restart [flags]  replace the running "up" by the program that is installed now; no connection is refused
  bulkheadd token [flags]    make a new admin token of the running platform, print the line to log in with
  bulkheadd ca ACTION        the cluster's certificate authority: status, seal, discard, rotate, finish
  bulkheadd doctor [flags]   find what listens, prove that it refuses strangers, warn of what weakens this host
  bulkheadd secrets ACTION   the cluster key: rotate-key, new-key
  bulkheadd join TOKEN       make this server a node of a cluster: get and keep its identity
  bulkheadd version          print the version

"bulkheadd COMMAND --help" lists the flags. All but version must run as root.
`

func main() {
	// Keys and the first token pass through its memory. Roles and whatever else it starts
	// have the limit too, whatever the one is that it was started with.
	if err := coredump.ForbidBelow(); err != nil && os.Getuid() == 0 {
		fmt.Fprintln(os.Stderr, "bulkheadd:", err)
		os.Exit(exitFailed)
	}
	if len(os.Args) > 1 && os.Args[1] == supervisor.StageCommand {
		fmt.Fprintln(os.Stderr, "bulkheadd:", supervisor.Stage(os.Args[2:]))
		os.Exit(exitFailed)
	}
	if len(os.Args) == 2 && os.Args[1] == supervisor.ProbeCommand {
		os.Exit(supervisor.ProbeHost())
	}
	if len(os.Args) > 1 && os.Args[1] == doctor.StrangerCommand {
		os.Exit(doctor.Stranger(os.Args[2:]))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	name, args := args[0], args[1:]
	switch name {
	case "doctor":
		return examine(args, stdout, stderr)
	case "up", "down", "restart", "token":
		return command(name, args, stdout, stderr)
	case "ca":
		return caCommand(args, stdout, stderr)
	case "secrets":
		return secretsCommand(args, stdout, stderr)
	case "join":
		return joinCommand(args, os.Stdin, stdout, stderr)
	case "version", "--version":
		fmt.Fprintf(stdout, "bulkheadd %s (%s, %s/%s)\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return exitOK
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	fmt.Fprintf(stderr, "bulkheadd: there is no command %q; \"bulkheadd --help\" lists them\n", name)
	return exitUsage
}

// command parses the flags that up, down, restart and token share and runs one of them.
func command(name string, args []string, stdout, stderr io.Writer) int {
	var flags supervisor.Config
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	file := fs.String("config", "", "")
	for _, f := range fieldsOf(name) {
		fs.StringVar(f.Value(&flags), f.Flag, "", "")
	}
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		help(stdout, name)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "bulkheadd: %v; \"bulkheadd %s --help\" lists the flags\n", err, name)
		return exitUsage
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "bulkheadd: %s takes no argument, but got %q\n", name, fs.Arg(0))
		return exitUsage
	}
	empty := ""
	fs.Visit(func(f *flag.Flag) {
		if f.Value.String() == "" {
			empty = f.Name // most often an unset variable of a script
		}
	})
	if empty != "" {
		fmt.Fprintf(stderr, "bulkheadd: --%s is empty; give a value, or leave it out\n", empty)
		return exitUsage
	}
	config, explicit, err := configure(*file, flags)
	if err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitUsage
	}
	if config.LogFormat == "" {
		config.LogFormat = "json"
		if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			config.LogFormat = "text"
		}
	}
	if err := execute(name, config, explicit, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "bulkheadd: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// configure puts the flags over the configuration file and completes the result.
// explicit says that the domain was asked for.
func configure(file string, flags supervisor.Config) (c supervisor.Config, explicit bool, err error) {
	optional := file == ""
	if optional {
		file = supervisor.DefaultConfigFile
	}
	base, err := supervisor.ReadConfig(file, optional)
	if err != nil {
		return c, false, err
	}
	c = flags.Over(base)
	explicit = c.Domain != ""
	c, err = c.Complete()
	return c, explicit, err
}

func execute(name string, c supervisor.Config, explicit bool, stdout, stderr io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	switch name {
	case "up":
		s := supervisor.New(c)
		s.ExplicitDomain, s.Stdout, s.Stderr = explicit, stdout, stderr
		again := make(chan os.Signal, 1)
		signal.Notify(again, supervisor.RestartSignal)
		s.Restart = again
		return s.Up(ctx)
	case "restart":
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		return supervisor.Restart(ctx, c)
	case "down":
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		return supervisor.Down(ctx, c, supervisor.NewLog(stderr, c.LogFormat))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	line, err := supervisor.Token(ctx, c)
	if err == nil {
		err = show(stdout, line)
	}
	return err
}

// show writes the line with a new token. Nothing else has the token.
func show(w io.Writer, line string) error {
	if _, err := fmt.Fprintln(w, line); err != nil {
		return fmt.Errorf("the line with the new token cannot be written: %w; run it again", err)
	}
	return nil
}

// fieldsOf lists the configuration fields that are flags of a command. down, restart and
// token find the rest in the data directory.
func fieldsOf(name string) []supervisor.Field {
	if name == "up" {
		return supervisor.Fields
	}
	var out []supervisor.Field
	for _, f := range supervisor.Fields {
		if f.Name == "data_dir" || f.Name == "log_format" {
			out = append(out, f)
		}
	}
	return out
}

// help prints a command's flags, and for up the fields of the configuration file.
func help(w io.Writer, name string) {
	fmt.Fprintf(w, "Usage: bulkheadd %s [flags]\n\n", name)
	fmt.Fprintln(w, map[string]string{
		"up": "Runs the platform until SIGTERM or Ctrl-C. The first start on a data directory installs it\n" +
			"and prints the line to log in with. Machines keep running when bulkheadd ends: the next\n" +
			"\"up\" finds them again, \"bulkheadd down\" ends them.",
		"down": "Ends every Machine of a data directory and removes sandboxes, network namespaces, cgroups and\n" +
			"firewall rules from this machine. The data directory stays as it is: the next \"up\" starts the\n" +
			"Machines again. It refuses while \"up\" runs on the same data directory: stop that first.",
		"restart": "Makes the running bulkheadd execute its program again (signal SIGUSR2), for instance after an\n" +
			"installation, and waits until the platform is ready. The process, its arguments and its public\n" +
			"sockets stay; the roles stop and start. Connections wait that long, and Machines run on.\n" +
			"A program that does not run is refused before anything stops.",
		"token": "Asks the running platform for a new admin token and prints the line to log in with.",
	}[name])
	fmt.Fprintf(w, "\nFlags; each but --config is also a field of the configuration file (TOML), and wins over it:\n\n")
	fmt.Fprintf(w, "  --config FILE\n      configuration file (default %s, if it exists)\n", supervisor.DefaultConfigFile)
	for _, f := range fieldsOf(name) {
		fmt.Fprintf(w, "  --%s %s   (field %s)\n      %s (default %s)\n", f.Flag, f.Arg, f.Name, f.Doc, f.Default)
	}
}

// versionText is the version that make build set, else the commit.
func versionText() string {
	if version != "devel" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				return strings.Join([]string{"devel", s.Value[:min(12, len(s.Value))]}, "-")
			}
		}
	}
	return version
}
