package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/key"
)

func (s *session) orgsCommand() *cobra.Command {
	c := group("orgs", "Organizations, their members and invitations", `Organizations, their members and invitations. Apps belong to an organization, and people have a role in it:

  owner     everything
  admin     everything but owners and the organization's end
  deployer  apps, Machines, their secrets and commands in them
  viewer    sees apps, Machines and their output
  auditor   sees who did and may do what, and no app's output`)
	c.AddCommand(s.domainsCommand(), s.orgListCommand(), s.orgCreateCommand(), s.orgDeleteCommand(),
		s.orgMembersCommand(), s.orgInviteCommand(),
		s.orgInvitationsCommand(), s.orgUninviteCommand(), s.orgJoinCommand(), s.orgRoleCommand(), s.orgRemoveCommand(), s.orgSSOCommand())
	return c
}

func (s *session) orgListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the organizations you have to do with", Args: exactly(),
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			orgs, err := api.Orgs(ctx)
			if err != nil {
				return err
			}
			return s.ui.result(orgs, func(w io.Writer) {
				var rows [][]string
				for _, o := range orgs {
					rows = append(rows, []string{o.Slug, o.Name, strconv.Itoa(o.Apps), strconv.Itoa(o.Members)})
				}
				table(w, []string{"SLUG", "NAME", "APPS", "MEMBERS"}, rows)
			})
		}),
	}
}

// with is the body of a command that calls the API and needs no app.
func (s *session) with(
	f func(ctx context.Context, api *client.Client, args []string) error,
) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		api, err := s.client()
		if err != nil {
			return err
		}
		return f(c.Context(), api, args)
	}
}

func (s *session) orgCreateCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "create SLUG", Short: "Make an organization (operators)", Args: exactly("SLUG"),
		Long: "Make an organization. You are its owner. It takes an operator of the cluster.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			o, err := api.CreateOrg(ctx, args[0], name)
			if err != nil {
				return err
			}
			s.ui.progress("made organization %s", o.Slug)
			return s.ui.result(o, func(io.Writer) {})
		}),
	}
	c.Flags().StringVar(&name, "name", "", "its name for people (default the slug)")
	return c
}

func (s *session) orgDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete ORG", Short: "Remove an organization that has no apps", Args: exactly("ORG"),
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := api.DeleteOrg(ctx, args[0]); err != nil {
				return err
			}
			s.ui.progress("removed organization %s", args[0])
			return s.ui.result(map[string]string{"organization": args[0]}, func(io.Writer) {})
		}),
	}
}

func (s *session) orgMembersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "members ORG", Short: "List an organization's members", Args: exactly("ORG"),
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			all, err := api.Members(ctx, args[0])
			if err != nil {
				return err
			}
			return s.ui.result(all, func(w io.Writer) {
				var rows [][]string
				for _, m := range all {
					rows = append(rows, []string{m.User.Name, rolesText(m.Roles), m.Source, m.Since})
				}
				table(w, []string{"NAME", "ROLE", "FROM", "SINCE"}, rows)
			})
		}),
	}
}

// rolesText is a member's roles in one cell: "viewer, web=deployer".
func rolesText(r client.Roles) string {
	var parts []string
	if r.Role != "" {
		parts = append(parts, r.Role)
	}
	for _, a := range slices.Sorted(maps.Keys(r.Apps)) {
		parts = append(parts, string(a)+"="+r.Apps[a])
	}
	return strings.Join(parts, ", ")
}

// parseRoles reads roles as the terminal takes them: "viewer", "web=deployer".
func parseRoles(args []string) (client.Roles, error) {
	r := client.Roles{}
	for _, a := range args {
		app, role, ok := strings.Cut(a, "=")
		switch {
		case !ok && r.Role != "":
			return r, usagef("two roles for the organization: %s and %s", r.Role, a)
		case !ok:
			r.Role = a
		default:
			name, err := checkApp(app)
			if err != nil {
				return r, err
			}
			if r.Apps == nil {
				r.Apps = map[key.AppName]string{}
			}
			r.Apps[key.AppName(name)] = role
		}
	}
	return r, nil
}

func (s *session) orgInviteCommand() *cobra.Command {
	var name, expiry string
	c := &cobra.Command{
		Use: "invite ORG ROLE...", Short: "Make a one-time line with which somebody becomes a member", Args: atLeast("ORG", "ROLE"),
		Long: `Make a one-time line with which somebody becomes a member. ROLE is a role in the
organization, or APP=ROLE for one app of it; there may be several of the latter.

Whoever has the line first becomes the member: send it over a way you trust, or say
with --user who alone may use it.`,
		Example: "  bulkhead orgs invite acme deployer --user bob\n  bulkhead orgs invite acme shop=viewer",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			r, err := parseRoles(args[1:])
			if err != nil {
				return err
			}
			inv, err := api.Invite(ctx, args[0], name, r, expiry)
			if err != nil {
				return err
			}
			cluster, err := s.chooseCluster()
			if err != nil {
				return err
			}
			s.ui.progress("good once, until %s; a user who has an account here runs \"bulkhead orgs join -\" and pastes the token", inv.ExpiresAt)
			return s.ui.result(inv, func(w io.Writer) {
				as := ""
				if name != "" {
					as = " --as " + name // the invitation is good for this name alone
				}
				fmt.Fprintf(w, "bulkhead login %s --pin %s --token %s%s\n", cluster.URL, cluster.Pin, inv.Token, as)
			})
		}),
	}
	c.Flags().StringVar(&name, "user", "", "the only user name that the invitation is good for")
	c.Flags().StringVar(&expiry, "expiry", "", "how long it is good, such as 48h (default 7 days, at most 30)")
	return c
}

func (s *session) orgInvitationsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "invitations ORG", Short: "List the invitations that nobody has accepted yet", Args: exactly("ORG"),
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			all, err := api.Invitations(ctx, args[0])
			if err != nil {
				return err
			}
			return s.ui.result(all, func(w io.Writer) {
				var rows [][]string
				for _, i := range all {
					rows = append(rows, []string{i.ID, i.Name, rolesText(i.Roles), i.By, i.ExpiresAt})
				}
				table(w, []string{"ID", "FOR", "ROLE", "BY", "EXPIRES"}, rows)
			})
		}),
	}
}

func (s *session) orgUninviteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "uninvite ORG ID", Short: "Take an invitation back", Args: exactly("ORG", "ID"),
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := api.Uninvite(ctx, args[0], args[1]); err != nil {
				return err
			}
			s.ui.progress("took invitation %s back", args[1])
			return s.ui.result(map[string]string{"id": args[1]}, func(io.Writer) {})
		}),
	}
}

func (s *session) orgJoinCommand() *cobra.Command {
	return &cobra.Command{
		Use: "join TOKEN", Short: "Accept an invitation as the user you are", Args: exactly("TOKEN"),
		Long: "Accept an invitation as the user you are. TOKEN is the one in the invitation's line; \"-\" reads it from standard input.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			token, err := s.readToken(args[0])
			if err != nil {
				return err
			}
			m, err := api.AcceptInvitation(ctx, token)
			if err != nil {
				return err
			}
			s.ui.progress("joined as %s", rolesText(m.Roles))
			return s.ui.result(m, func(io.Writer) {})
		}),
	}
}

func (s *session) orgRoleCommand() *cobra.Command {
	return &cobra.Command{
		Use: "role ORG USER ROLE...", Short: "Replace a member's roles", Args: atLeast("ORG", "USER", "ROLE"),
		Long: "Replace a member's roles. ROLE is a role in the organization, or APP=ROLE for one app of it. What is taken away is gone at once.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			r, err := parseRoles(args[2:])
			if err != nil {
				return err
			}
			m, err := api.SetMember(ctx, args[0], args[1], r)
			if err != nil {
				return err
			}
			s.ui.progress("%s is %s", m.User.Name, rolesText(m.Roles))
			return s.ui.result(m, func(io.Writer) {})
		}),
	}
}

func (s *session) orgRemoveCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "remove ORG USER", Short: "End a membership", Args: exactly("ORG", "USER"),
		Long: "End a membership, with the member's tokens and sessions for the organization, at once.\n" +
			"To leave it yourself takes --yes.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := s.notMyself(ctx, api, args[1], yes); err != nil {
				return err
			}
			if err := api.RemoveMember(ctx, args[0], args[1]); err != nil {
				return err
			}
			s.ui.progress("%s is no member of %s any more", args[1], args[0])
			return s.ui.result(map[string]string{"organization": args[0], "user": args[1]}, func(io.Writer) {})
		}),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "also when it is you")
	return c
}
