package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/deployfile"
	"bulkhead/fault"
)

func (s *session) envCommand() *cobra.Command {
	c := group("env", "List, set and unset an app's environment variables", `List, set and unset environment variables of the Machines that deploys of an app manage.
Everyone who may read the app sees their values: what nobody may see is a secret
("bulkhead secrets").

In an app with a deploy file, the next deploy sets the environment to that of the file.`)
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List an app's environment variables", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error { return s.listEnv(c.Context()) },
	}
	var wait, settle time.Duration
	change := func(use, arg, short string, parse func([]string) (map[string]*string, error)) *cobra.Command {
		x := &cobra.Command{
			Use: use, Short: short, Args: atLeast(arg),
			RunE: func(c *cobra.Command, args []string) error {
				values, err := parse(args)
				if err != nil {
					return err
				}
				return s.changeEnv(c.Context(), values, wait, settle)
			},
		}
		x.Flags().DurationVar(&wait, "wait", defaultWait, "how long one Machine may take to start")
		x.Flags().DurationVar(&settle, "settle", defaultSettle,
			"how long a started Machine must go on running to count as well")
		return x
	}
	set := change("set NAME=VALUE...", "NAME=VALUE", "Set environment variables and update the app's Machines",
		func(args []string) (map[string]*string, error) {
			given, err := pairs("env", args)
			if err != nil {
				return nil, usagef("%s", strings.Replace(err.Error(), "--env ", "", 1))
			}
			values := map[string]*string{}
			for k, v := range given {
				values[k] = &v
			}
			return values, nil
		})
	unset := change("unset NAME...", "NAME", "Unset environment variables and update the app's Machines",
		func(args []string) (map[string]*string, error) {
			values := map[string]*string{}
			for _, k := range args {
				values[k] = nil
			}
			return values, nil
		})
	c.AddCommand(list, set, unset)
	return c
}

// platformEnv reports whether the platform, or deploy, sets a variable itself.
func platformEnv(name string) bool {
	return strings.HasPrefix(name, "FLY_") || name == "PRIMARY_REGION"
}

// listEnv prints the variables of the Machines that deploys manage.
func (s *session) listEnv(ctx context.Context) error {
	api, app, err := s.clientAndApp()
	if err != nil {
		return err
	}
	ms, err := s.managed(ctx, api, app)
	if err != nil {
		return err
	}
	type entry struct {
		Name     string   `json:"name"`
		Value    string   `json:"value"`
		Machines []string `json:"machines"`
	}
	list := []entry{}
	for _, m := range ms {
		for _, k := range slices.Sorted(maps.Keys(m.Config.Env)) {
			if platformEnv(k) {
				continue
			}
			i := slices.IndexFunc(list, func(e entry) bool { return e.Name == k && e.Value == m.Config.Env[k] })
			if i < 0 {
				i = len(list)
				list = append(list, entry{Name: k, Value: m.Config.Env[k]})
			}
			list[i].Machines = append(list[i].Machines, string(m.ID))
		}
	}
	slices.SortStableFunc(list, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	return s.ui.result(list, func(w io.Writer) {
		var rows [][]string
		for _, e := range list {
			where := "all"
			if len(e.Machines) < len(ms) {
				where = strings.Join(e.Machines, " ")
			}
			rows = append(rows, []string{e.Name, e.Value, where})
		}
		table(w, []string{"NAME", "VALUE", "MACHINES"}, rows)
	})
}

// managed lists the Machines of an app that deploys manage.
func (s *session) managed(ctx context.Context, api *client.Client, app string) ([]client.Machine, error) {
	all, err := s.machines(ctx, api, app)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all,
		func(m client.Machine) bool { return m.Group() == "" || m.Config == nil || gone(m.State) }), nil
}

// changeEnv gives the Machines another environment as a rolling deploy does: under leases,
// one after another, with the old version back if one does not start.
func (s *session) changeEnv(ctx context.Context, values map[string]*string, wait, settle time.Duration) error {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if platformEnv(k) {
			return usagef("%s is set by the platform", k)
		}
	}
	api, app, err := s.clientAndApp()
	if err != nil {
		return err
	}
	d := &deployment{s: s, api: api, app: app, strategy: "rolling", wait: wait, flags: deployFlags{settle: settle}}
	ms, err := s.managed(ctx, api, app)
	if err != nil {
		return err
	}
	if len(ms) == 0 {
		return hint(fault.New(fault.NotFound, "app %s has no Machine that a deploy made", app),
			"\"bulkhead deploy --app %s --image IMAGE -e NAME=VALUE\" makes one with it", app)
	}
	known := map[string]bool{}
	for _, m := range ms {
		c, changed := m.Config.Clone(), false
		for k, v := range values {
			old, had := c.Env[k]
			known[k] = known[k] || had
			switch {
			case v == nil && had:
				delete(c.Env, k)
				changed = true
			case v != nil && (!had || old != *v):
				if c.Env == nil {
					c.Env = map[string]string{}
				}
				c.Env[k] = *v
				changed = true
			}
		}
		if err := checkConfig(c); err != nil {
			return err
		}
		if changed {
			d.updates = append(d.updates, &update{old: m, now: m, config: c, keep: staysStopped(m, c)})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if values[k] == nil && !known[k] {
			return hint(fault.New(fault.NotFound, "app %s has no environment variable %s", app, fault.Clip(k)),
				"\"bulkhead env list --app %s\" shows those there are", app)
		}
	}
	if err := d.run(ctx); err != nil {
		return err
	}
	if path := deployfile.Find("."); path != "" {
		if f, err := deployfile.Load(path); err == nil && f.App == app {
			s.ui.warn("the next deploy sets the environment to that of %s", path)
		}
	}
	updated := []string{}
	for _, u := range d.updates {
		updated = append(updated, string(u.old.ID))
	}
	s.ui.progress("%s updated", plural(len(updated), "Machine"))
	return s.ui.result(map[string]any{"app": app, "updated": updated}, func(io.Writer) {})
}

// kept says which variables of before a deploy without a deploy file keeps.
func (d *deployment) kept() {
	names := map[string]bool{}
	for _, u := range d.updates {
		for k := range u.config.Env {
			if _, given := d.env[k]; !given && !platformEnv(k) {
				names[k] = true
			}
		}
	}
	if d.file == nil && len(names) > 0 {
		d.s.ui.progress("keeping %s of before: %s; \"bulkhead env unset --app %s NAME\" removes one",
			plural(len(names), "environment variable"), fmt.Sprint(strings.Join(slices.Sorted(maps.Keys(names)), ", ")), d.app)
	}
}
