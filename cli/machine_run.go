package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"bulkhead/client"
	"bulkhead/deployfile"
	"bulkhead/machine"
)

// sizeFlags are the flags that say how big a Machine is.
type sizeFlags struct {
	memory, cpus int
	kind         string
	set          *pflag.FlagSet // says which were given
}

func (f *sizeFlags) add(c *cobra.Command) {
	f.set = c.Flags()
	c.Flags().IntVar(&f.memory, "memory", 0, "memory in MiB (default 256)")
	c.Flags().IntVar(&f.cpus, "cpus", 0, "number of CPUs (default 1)")
	c.Flags().StringVar(&f.kind, "cpu-kind", "", "\"shared\" or \"performance\" (default shared)")
}

// apply changes a config's size where a flag was given.
func (f *sizeFlags) apply(c *machine.Config) error {
	for _, name := range []string{"memory", "cpus"} {
		if f.set != nil && f.set.Changed(name) && f.set.Lookup(name).Value.String() == "0" {
			return usagef("--%s is 0; leave it out for the default", name)
		}
	}
	if f.memory == 0 && f.cpus == 0 && f.kind == "" {
		return nil
	}
	g := c.EffectiveGuest()
	if f.memory != 0 {
		g.MemoryMB = f.memory
	}
	if f.cpus != 0 {
		g.CPUs = f.cpus
	}
	if f.kind != "" {
		g.CPUKind = f.kind
	}
	c.Guest, c.Size = &g, ""
	return nil
}

// pairs reads NAME=VALUE arguments.
func pairs(flag string, args []string) (map[string]string, error) {
	m := map[string]string{}
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return nil, usagef("--%s %q is not of the form NAME=VALUE", flag, a)
		}
		m[k] = v
	}
	return m, nil
}

// runFlags are the flags of machine run.
type runFlags struct {
	size       sizeFlags
	name       string
	region     string
	env        []string
	metadata   []string
	port       int
	restart    string
	entrypoint string
	rm         bool
	detach     bool
	keepFailed bool
	wait       time.Duration
}

func (s *session) machineRunCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run IMAGE [-- COMMAND ARG...]",
		Short: "Run an image in a new Machine",
		Long: `Run an image in a new Machine of an app, and wait until it runs. IMAGE is a
reference, or an OCI layout folder or archive on this computer, which is uploaded to
the cluster's registry first. What follows "--" replaces the image's command.

With --rm, what the command writes comes out line by line until it ends, and bulkhead
exits with its exit code, 128+N when signal N ended it. Ctrl-C destroys the Machine.

"bulkhead deploy" leaves Machines made in this way alone.`,
		Example: `  bulkhead machine run registry.example.com/app:1 --app shop --env MODE=debug
  bulkhead machine run ./job.tar --app shop --rm -- ./migrate --all`,
		Args: func(c *cobra.Command, args []string) error {
			n := c.ArgsLenAtDash()
			if n < 0 {
				n = len(args)
			}
			if n > 1 {
				return hint(usagef("unexpected argument %q", args[1]), "a command for the Machine follows \"--\"")
			}
			return exactly("IMAGE")(c, args[:n])
		},
		RunE: func(c *cobra.Command, args []string) error {
			return s.machineRun(c.Context(), args[0], args[1:], f)
		},
	}
	f.size.add(c)
	fl := c.Flags()
	fl.StringVar(&f.name, "name", "", "name of the Machine (default one is made up)")
	fl.StringVar(&f.region, "region", "", "region to run in (default the cluster's)")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment variable NAME=VALUE; may be repeated")
	fl.StringArrayVar(&f.metadata, "metadata", nil, "metadata KEY=VALUE; may be repeated")
	fl.IntVar(&f.port, "port", 0, "port the app listens on, to be reached at the app's HTTPS address (default none)")
	fl.StringVar(&f.restart, "restart", "",
		"restart policy: no, on-failure or always (default no with --rm, else on-failure)")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "program to run instead of the image's entrypoint")
	fl.BoolVar(&f.rm, "rm", false, "show the output until the process ends, then destroy the Machine")
	fl.BoolVarP(&f.detach, "detach", "d", false, "do not wait until it runs")
	fl.BoolVar(&f.keepFailed, "keep-failed", false, "keep a Machine that does not start, to look at it")
	fl.DurationVar(&f.wait, "wait", 5*time.Minute, "how long to wait until it runs")
	return c
}

func (f runFlags) config(command []string) (*machine.Config, error) {
	env, err := pairs("env", f.env)
	if err != nil {
		return nil, err
	}
	meta, err := pairs("metadata", f.metadata)
	if err != nil {
		return nil, err
	}
	c := &machine.Config{Env: env, Metadata: meta, AutoDestroy: f.rm}
	if err := f.size.apply(c); err != nil {
		return nil, err
	}
	if len(command) > 0 || f.entrypoint != "" {
		c.Init = &machine.Init{Cmd: command}
		if f.entrypoint != "" {
			c.Init.Entrypoint = []string{f.entrypoint}
		}
	}
	policy := f.restart
	if policy == "" && f.rm {
		policy = "no"
	}
	switch policy {
	case "":
	case "no", "on-failure", "always":
		c.Restart = &machine.Restart{Policy: policy}
	default:
		return nil, usagef("--restart %q is none of no, on-failure and always", f.restart)
	}
	if f.port != 0 {
		if err := checkPortFlag(f.port); err != nil {
			return nil, err
		}
		c.Services = deployfile.HTTPServices(f.port, true)
	}
	return c, checkConfig(c)
}

func checkPortFlag(n int) error {
	if n < 1 || n > 65535 {
		return usagef("--port %d is not a port; it must be 1 to 65535", n)
	}
	return nil
}

func (s *session) machineRun(ctx context.Context, image string, command []string, f runFlags) error {
	cfg, err := f.config(command)
	if err != nil {
		return err
	}
	api, app, err := s.clientAndApp()
	if err != nil {
		return err
	}
	if _, err := api.App(ctx, app); err != nil {
		return s.noApp(ctx, api, app, err)
	}
	if f.region != "" {
		if err := checkRegion(ctx, api, f.region); err != nil {
			return err
		}
	}
	if cfg.Image, _, err = s.resolveImage(ctx, api, app, imageSource{name: image}); err != nil {
		return err
	}
	m, err := api.CreateMachine(ctx, app, client.LaunchInput{Name: f.name, Region: f.region, Config: cfg})
	if err != nil {
		return err
	}
	s.ui.progress("created machine %s", m.ID)
	if !f.detach {
		stop := s.ui.waiting("waiting for machine " + string(m.ID))
		now, err := awaitStarted(ctx, api, app, m, f.wait, 0, func(st machine.State) { s.ui.progress("%s is %s", m.ID, st) })
		stop()
		if err != nil && f.rm && exitOfMachine(now) != nil {
			err = nil // a job that was over before anybody looked
		}
		if err != nil {
			return s.abandon(ctx, api, app, []client.Machine{m}, f.keepFailed, err)
		}
		m = now
		if f.rm {
			return s.attach(ctx, api, app, m)
		}
	}
	return s.ui.result(m, func(w io.Writer) { fmt.Fprintln(w, m.ID) })
}

// logTail is how many log lines a failed start shows.
const logTail = 20

// abandon ends a command whose new Machines did not come up: it shows why, destroys
// them unless they are to be kept, and returns the error. It works on after Ctrl-C.
func (s *session) abandon(ctx context.Context, api *client.Client, app string, made []client.Machine, keep bool,
	err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	err = s.explain(ctx, api, app, err)
	for _, m := range made {
		if keep {
			s.ui.warn("machine %s was kept; \"bulkhead machine destroy --force --app %s %s\" removes it", m.ID, app, m.ID)
			continue
		}
		derr := api.DestroyMachine(ctx, app, m.ID, true, m.Nonce)
		now, gerr := api.Machine(ctx, app, m.ID)
		if gerr == nil && (now.State == machine.Destroyed || now.State == machine.Destroying) {
			derr = nil // it was destroyed by itself
		}
		if derr != nil && classify(derr).exit != ExitNotFound {
			s.ui.warn("machine %s could not be destroyed: %s; \"bulkhead machine destroy --force --app %s %s\" tries again",
				m.ID, classify(derr).msg, app, m.ID)
			continue
		}
		s.ui.progress("destroyed machine %s, which this command had made", m.ID)
	}
	return err
}

// sinceOf returns when the version that did not start was begun with, by the
// platform's clock: what the Machine wrote before is not about it.
func sinceOf(err error) time.Time {
	var se *startError
	if errors.As(err, &se) {
		for _, e := range se.machine.Events {
			if begins(e) {
				return time.UnixMilli(e.Timestamp)
			}
		}
	}
	return time.Time{}
}

// explain prints the last log lines of a Machine that did not start, and adds them
// to the error for --json.
func (s *session) explain(ctx context.Context, api *client.Client, app string, err error) error {
	id := failedMachine(err)
	if id == "" {
		return err
	}
	lines := []string{} // not null for --json
	since := sinceOf(err)
	lerr := api.Logs(ctx, client.LogQuery{App: app, Machine: id, Tail: logTail}, func(l client.LogLine) error {
		if !l.Timestamp.Before(since) {
			lines = append(lines, l.Message)
		}
		return nil
	})
	if lerr == nil && len(lines) > 0 && !s.ui.json {
		s.ui.progress("last log lines of machine %s:", id)
		for _, l := range lines {
			s.ui.progress("  %s", l)
		}
	}
	return detailed(err, map[string]any{"machine": id, "logs": lines})
}
