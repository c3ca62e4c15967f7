package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
)

func (s *session) machineCommand() *cobra.Command {
	c := group("machine", "Run, list and control Machines",
		"Run, list and control single Machines. \"bulkhead deploy\" manages those of an app as a whole.")
	c.Aliases = []string{"machines", "m"}
	c.AddCommand(s.machineRunCommand(), s.machineListCommand(), s.machineStatusCommand(),
		s.machineStartCommand(), s.machineStopCommand(), s.machineRestartCommand(),
		s.machineDestroyCommand(), s.machineExecCommand())
	return c
}

func (s *session) machineListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the Machines of an app", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, app, err := s.clientAndApp()
			if err != nil {
				return err
			}
			ms, err := s.machines(c.Context(), api, app)
			if err != nil {
				return err
			}
			return s.ui.result(ms, func(w io.Writer) { machineTable(w, ms) })
		},
	}
}

// machines lists the Machines of an app that is there.
func (s *session) machines(ctx context.Context, api *client.Client, app string) ([]client.Machine, error) {
	ms, err := api.Machines(ctx, app)
	if fault.Is(err, fault.NotFound) {
		_, err = api.App(ctx, app)
		return nil, s.noApp(ctx, api, app, err)
	}
	if ms == nil {
		ms = []client.Machine{}
	}
	return ms, err
}

// machineArg describes the argument that names a Machine.
const machineArg = "MACHINE is an id or a name, and may be left out where the app has one Machine"

func machineTable(w io.Writer, ms []client.Machine) {
	var rows [][]string
	for _, m := range ms {
		image := ""
		if m.Config != nil {
			image = m.Config.Image
		}
		rows = append(rows, []string{string(m.ID), m.Name, string(m.State), m.Group(), m.Region, m.PrivateIP,
			shortImage(image)})
	}
	table(w, []string{"ID", "NAME", "STATE", "GROUP", "REGION", "PRIVATE IP", "IMAGE"}, rows)
}

// shortImage shortens the digest of a reference.
func shortImage(ref string) string {
	if i := strings.Index(ref, "@sha256:"); i >= 0 && len(ref) > i+20 {
		return ref[:i+20]
	}
	return ref
}

func (s *session) machineStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status [MACHINE]", Short: "Show a Machine and its last events", Args: atMostOne("MACHINE"),
		Long: "Show a Machine and its last events. " + machineArg + ".",
		RunE: func(c *cobra.Command, args []string) error {
			api, app, id, err := s.oneMachine(c.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			m, err := api.Machine(c.Context(), app, id)
			if err != nil {
				return machineError(err, app, id)
			}
			return s.ui.result(m, func(w io.Writer) { printMachine(w, m) })
		},
	}
}

func printMachine(w io.Writer, m client.Machine) {
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-11s %s\n", name, clean(value))
		}
	}
	field("id", string(m.ID))
	field("name", m.Name)
	field("state", string(m.State))
	if m.HostStatus != "" && m.HostStatus != "ok" {
		field("host", m.HostStatus+": what is shown here is what was last heard of the Machine")
	}
	field("region", m.Region)
	field("private ip", m.PrivateIP)
	field("version", string(m.InstanceID))
	field("created", m.CreatedAt)
	field("updated", m.UpdatedAt)
	if m.Config != nil {
		field("image", m.Config.Image)
		field("group", m.Group())
		g := m.Config.EffectiveGuest()
		field("size", fmt.Sprintf("%d %s cpu, %d MiB", g.CPUs, g.CPUKind, g.MemoryMB))
	}
	for _, ch := range m.Checks {
		field("check", ch.Name+" "+ch.Status+" "+ch.Output)
	}
	if len(m.Events) == 0 {
		return
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, e := range m.Events {
		rows = append(rows, []string{time.UnixMilli(e.Timestamp).UTC().Format(time.RFC3339), e.Type, e.Status,
			eventDetail(e)})
	}
	table(w, []string{"TIME", "EVENT", "STATE", "DETAIL"}, rows)
}

func eventDetail(e machine.Event) string {
	if e.Request != nil && e.Request.Error != "" {
		if e.Request.Step != "" {
			return e.Request.Step + ": " + e.Request.Error
		}
		return e.Request.Error
	}
	if x := exitOf(e); x != nil {
		if x.RequestedStop {
			return fmt.Sprintf("stopped as asked, exit code %d", x.ExitCode)
		}
		return describeExit(x)
	}
	if e.Request != nil {
		return e.Request.Reason
	}
	return ""
}

// oneMachine is what commands on one Machine start with. arg is its id or its name; "" is
// the one Machine of the app.
func (s *session) oneMachine(ctx context.Context, arg string) (*client.Client, string, key.MachineID, error) {
	api, app, err := s.clientAndApp()
	if err != nil {
		return nil, "", "", err
	}
	id, err := s.machineID(ctx, api, app, arg)
	return api, app, id, err
}

// machineID finds a Machine by its id or its name; "" is the one Machine of the app.
func (s *session) machineID(ctx context.Context, api *client.Client, app, arg string) (key.MachineID, error) {
	if id, err := key.ParseMachineID(arg); err == nil {
		return id, nil
	}
	all, err := s.machines(ctx, api, app)
	if err != nil {
		return "", err
	}
	var found []client.Machine
	var names []string
	for _, m := range all {
		if m.State == machine.Destroyed || m.State == machine.Replaced {
			continue
		}
		names = append(names, m.Name)
		if arg == "" || m.Name == arg {
			found = append(found, m)
		}
	}
	const list = "\"bulkhead machine list --app %s\" shows those there are"
	switch {
	case len(found) == 1:
		return found[0].ID, nil
	case len(found) > 1 && arg == "":
		return "", hint(usagef("missing ID: app %s has %d Machines", app, len(found)), list, app)
	case len(found) > 1:
		return "", hint(usagef("%d Machines of app %s have the name %q; give the id", len(found), app, arg), list, app)
	case arg == "":
		return "", hint(fault.New(fault.NotFound, "app %s has no Machine", app),
			"\"bulkhead deploy --app %s --image IMAGE\" makes one", app)
	}
	none := fault.New(fault.NotFound, "there is no Machine %q in app %s", fault.Clip(arg), app)
	if near := fault.Nearest(arg, names); near != "" {
		return "", hint(none, "did you mean %q?", near)
	}
	return "", hint(none, list, app)
}

// machineError names the Machine and the app in "not found".
func machineError(err error, app string, id key.MachineID) error {
	if fault.Is(err, fault.NotFound) {
		return hint(fault.Wrap(fault.NotFound, nil, "there is no Machine %s in app %s", id, app),
			"\"bulkhead machine list --app %s\" shows those there are", app)
	}
	switch statusOf(err) {
	case client.Leased:
		return hint(err, "another deploy may hold it; try again when it has ended")
	case client.NoCapacity:
		return hint(err, "stop or destroy another Machine, or ask for less memory with --memory in a deploy")
	}
	return err
}

// statusOf is the word that the API gives an error for programs, "" for none.
func statusOf(err error) string {
	var e *fault.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return ""
}

// each runs one action on every Machine named, stops at the first error, and prints
// what was done.
func (s *session) each(ctx context.Context, ids []string, verb string, act func(*client.Client, string,
	key.MachineID) error) error {
	if len(ids) == 0 {
		ids = []string{""}
	}
	type done struct {
		ID     string `json:"id"`
		Result string `json:"result"`
	}
	list := []done{}
	for _, arg := range ids {
		api, app, id, err := s.oneMachine(ctx, arg)
		if err != nil {
			return err
		}
		stop := s.ui.waiting("waiting for machine " + string(id))
		err = act(api, app, id)
		stop()
		if err != nil {
			if len(list) > 0 {
				s.ui.warn("%d of %d Machines were %s before this error", len(list), len(ids), verb)
			}
			return machineError(err, app, id)
		}
		list = append(list, done{string(id), verb})
		s.ui.progress("%s %s", verb, id)
	}
	return s.ui.result(list, func(io.Writer) {})
}

func (s *session) machineStartCommand() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "start [MACHINE...]", Short: "Start stopped Machines", Args: cobra.ArbitraryArgs,
		Long: "Start stopped Machines. " + machineArg + ".",
		RunE: func(c *cobra.Command, args []string) error {
			return s.each(c.Context(), args, "started", func(api *client.Client, app string, id key.MachineID) error {
				if err := api.StartMachine(c.Context(), app, id, ""); err != nil || wait == 0 {
					return err
				}
				return s.started(c.Context(), api, app, id, wait)
			})
		},
	}
	c.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait until it runs; 0 does not wait")
	return c
}

// started waits until a Machine runs.
func (s *session) started(ctx context.Context, api *client.Client, app string, id key.MachineID,
	wait time.Duration) error {
	m, err := api.Machine(ctx, app, id)
	if err != nil {
		return err
	}
	_, err = awaitStarted(ctx, api, app, m, wait, 0, func(st machine.State) { s.ui.progress("%s is %s", id, st) })
	return err
}

func (s *session) machineStopCommand() *cobra.Command {
	var signal string
	var timeout, wait time.Duration
	c := &cobra.Command{
		Use: "stop [MACHINE...]", Short: "Stop Machines", Args: cobra.ArbitraryArgs,
		Long: "Stop Machines: the signal is sent, and after the timeout the process is killed. A stopped Machine keeps its place and can be started again; where a service of it has autostart, a request starts it. " + machineArg + ".",
		RunE: func(c *cobra.Command, args []string) error {
			in := client.StopInput{Signal: signal}
			if timeout > 0 {
				d := machine.Duration(timeout)
				in.Timeout = &d
			}
			return s.each(c.Context(), args, "stopped", func(api *client.Client, app string, id key.MachineID) error {
				m, err := api.Machine(c.Context(), app, id)
				if err != nil {
					return err
				}
				if err := api.StopMachine(c.Context(), app, id, in, ""); err != nil || wait == 0 {
					return err
				}
				return awaitState(c.Context(), api, app, m, machine.Stopped, wait+timeout)
			})
		},
	}
	c.Flags().StringVar(&signal, "signal", "",
		"signal to send, such as SIGTERM (default what the Machine's config says, or SIGINT)")
	c.Flags().DurationVar(&timeout, "timeout", 0,
		"time to end before the process is killed (default what the Machine's config says, or 5s)")
	c.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait until it has stopped; 0 does not wait")
	return c
}

func (s *session) machineRestartCommand() *cobra.Command {
	var timeout, wait time.Duration
	var force bool
	c := &cobra.Command{
		Use: "restart [MACHINE...]", Short: "Stop and start Machines", Args: cobra.ArbitraryArgs,
		Long: "Stop and start Machines. " + machineArg + ".",
		RunE: func(c *cobra.Command, args []string) error {
			return s.each(c.Context(), args, "restarted", func(api *client.Client, app string, id key.MachineID) error {
				if err := api.RestartMachine(c.Context(), app, id, timeout, force, ""); err != nil || wait == 0 {
					return err
				}
				return s.started(c.Context(), api, app, id, wait)
			})
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0,
		"time to end before the process is killed (default what the Machine's config says, or 5s)")
	c.Flags().BoolVar(&force, "force", false, "kill the process at once")
	c.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait until it runs; 0 does not wait")
	return c
}

func (s *session) machineDestroyCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "destroy MACHINE...", Aliases: []string{"rm"}, Short: "Destroy Machines", Args: atLeast("MACHINE"),
		Long: "Destroy Machines, by id or name. One that runs is refused without --force.",
		RunE: func(c *cobra.Command, args []string) error {
			return s.each(c.Context(), args, "destroyed", func(api *client.Client, app string, id key.MachineID) error {
				err := api.DestroyMachine(c.Context(), app, id, force, "")
				if err == nil || force || statusOf(err) == client.Leased {
					return err
				}
				if m, gerr := api.Machine(c.Context(), app, id); gerr == nil && m.State != machine.Stopped && !dead(m.State) {
					return hint(err, "stop it first, or add --force")
				}
				return err
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "destroy it although it runs")
	return c
}
