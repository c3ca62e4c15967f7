package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/fault"
)

func (s *session) appsCommand() *cobra.Command {
	c := group("apps", "Create, list and destroy apps", "Create, list and destroy apps.")
	c.AddCommand(s.appsCreateCommand(), s.appsListCommand(), s.appsDestroyCommand())
	return c
}

func (s *session) appsCreateCommand() *cobra.Command {
	var network, org string
	c := &cobra.Command{
		Use: "create NAME", Short: "Create an app", Args: exactly("NAME"),
		Long: "Create an app. Its name is part of its address, https://NAME.<domain>, and is unique in the cluster.",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := s.appArg(args[0])
			if err != nil {
				return err
			}
			api, err := s.client()
			if err != nil {
				return err
			}
			if err := api.CreateApp(c.Context(), name, org, network); err != nil {
				if classify(err).exit != ExitConflict {
					return err
				}
				if _, gerr := api.App(c.Context(), name); gerr != nil {
					return hint(err, "choose another name") // somebody else has the app
				}
				return hint(err, "choose another name, or deploy to the app that is there: "+
					"bulkhead deploy --app %s --image IMAGE", name)
			}
			s.ui.progress("created app %s", name)
			return s.ui.result(map[string]string{"name": name, "url": api.AppURL(name)}, func(w io.Writer) {
				fmt.Fprintln(w, name)
			})
		},
	}
	c.Flags().StringVar(&network, "network", "", "private network to join (default the organization's)")
	c.Flags().StringVar(&org, "org", "", "organization it belongs to (default the only one you are a member of)")
	return c
}

func (s *session) appsListCommand() *cobra.Command {
	var org string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the apps", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := s.client()
			if err != nil {
				return err
			}
			apps, err := api.Apps(c.Context(), org)
			if err != nil {
				return err
			}
			if apps == nil {
				apps = []client.App{}
			}
			return s.ui.result(apps, func(w io.Writer) {
				var rows [][]string
				for _, a := range apps {
					rows = append(rows, []string{a.Name, a.Organization.Slug, a.Status, strconv.Itoa(a.MachineCount),
						api.AppURL(a.Name)})
				}
				table(w, []string{"NAME", "ORGANIZATION", "STATUS", "MACHINES", "URL"}, rows)
			})
		},
	}
	c.Flags().StringVar(&org, "org", "", "one organization's alone")
	return c
}

func (s *session) appsDestroyCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "destroy NAME", Short: "Destroy an app with all its Machines", Args: exactly("NAME"),
		Long: "Destroy an app with all its Machines and images. There is no way back.",
		RunE: func(c *cobra.Command, args []string) error {
			name, err := s.appArg(args[0])
			if err != nil {
				return err
			}
			api, err := s.client()
			if err != nil {
				return err
			}
			app, err := api.App(c.Context(), name)
			if err != nil {
				return s.noApp(c.Context(), api, name, err)
			}
			if !yes {
				if err := s.confirm(c.Context(), name, app.MachineCount); err != nil {
					return err
				}
			}
			if err := api.DestroyApp(c.Context(), name); err != nil {
				return err
			}
			s.ui.progress("destroyed app %s", name)
			return s.ui.result(map[string]any{"name": name, "destroyed": true}, func(io.Writer) {})
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// appArg checks an app that is named by an argument; --app may not name another one.
func (s *session) appArg(name string) (string, error) {
	if s.appFlag != "" && s.appFlag != name {
		return "", usagef("two apps are named: %q, and %q with --app", name, s.appFlag)
	}
	return checkApp(name)
}

// confirm asks the user to type the app's name.
func (s *session) confirm(ctx context.Context, name string, machines int) error {
	if !s.env.StdinTTY || !s.env.StderrTTY {
		return hint(usagef("destroying an app needs a yes, and there is no terminal to ask on"), "add --yes")
	}
	fmt.Fprintf(s.env.Stderr, "this destroys app %s and its %s for good; type its name to go on: ", name,
		plural(machines, "Machine"))
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(s.env.Stdin).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(s.env.Stderr)
		return ctx.Err()
	case a := <-answer:
		if a != name {
			return fault.New(fault.Invalid, "app %s was not destroyed: the name typed was %q", name, a)
		}
	}
	return nil
}

// appError adds the next step to an app that is not there.
func appError(err error) error {
	if fault.Is(err, fault.NotFound) {
		return hint(err, "\"bulkhead apps list\" shows the apps there are, \"bulkhead apps create NAME\" makes one")
	}
	return err
}

// noApp is appError with the nearest of the apps there are, if one is near.
func (s *session) noApp(ctx context.Context, api *client.Client, name string, err error) error {
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	var names []string
	if all, lerr := api.Apps(ctx, ""); lerr == nil {
		for _, a := range all {
			names = append(names, a.Name)
		}
	}
	if near := fault.Nearest(name, names); near != "" && near != name {
		return hint(err, "did you mean %q?", near)
	}
	return appError(err)
}
