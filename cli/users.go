package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

func (s *session) usersCommand() *cobra.Command {
	c := group("users", "The users of the cluster (operators)",
		"The users of the cluster. These commands take an operator.")
	var end bool
	operator := &cobra.Command{
		Use: "operator NAME", Short: "Make a user an operator of the cluster", Args: exactly("NAME"),
		Long: "Make a user an operator of the cluster: nodes, users, organizations and keys are operators' to manage.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			u, err := api.SetOperator(ctx, args[0], !end)
			if err != nil {
				return err
			}
			s.ui.progress("%s is an operator: %v", u.Name, u.Operator)
			return s.ui.result(u, func(io.Writer) {})
		}),
	}
	operator.Flags().BoolVar(&end, "end", false, "end it instead")
	c.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the users", Args: exactly(),
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			all, err := api.Users(ctx)
			if err != nil {
				return err
			}
			return s.ui.result(all, func(w io.Writer) {
				var rows [][]string
				for _, u := range all {
					mark := ""
					if u.Operator {
						mark = "yes"
					}
					rows = append(rows, []string{u.Name, string(u.ID), u.Email, u.Org, mark, u.CreatedAt})
				}
				table(w, []string{"NAME", "ID", "EMAIL", "SSO OF", "OPERATOR", "SINCE"}, rows)
			})
		}),
	}, s.userRemoveCommand(), operator)
	return c
}

func (s *session) userRemoveCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a user, with all tokens and memberships", Args: exactly("NAME"),
		Long: "Remove a user, with all tokens and memberships. To remove yourself takes --yes: this login ends with it.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := s.notMyself(ctx, api, args[0], yes); err != nil {
				return err
			}
			if err := api.DeleteUser(ctx, args[0]); err != nil {
				return err
			}
			s.ui.progress("removed user %s", args[0])
			return s.ui.result(map[string]string{"user": args[0]}, func(io.Writer) {})
		}),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "also when it is you")
	return c
}

// notMyself refuses to take away what the caller needs to go on, unless that was asked for.
func (s *session) notMyself(ctx context.Context, api *client.Client, name string, yes bool) error {
	if yes {
		return nil
	}
	if self, err := api.Self(ctx); err == nil && self.Name == name {
		return hint(usagef("%s is you", name), "add --yes")
	}
	return nil
}
