package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

func (s *session) usersCommand() *cobra.Command {
	c := group("users", "The users of the cluster (operators)", "The users of the cluster. These commands take an operator.")
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
	}, &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a user, with all tokens and memberships", Args: exactly("NAME"),
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := api.DeleteUser(ctx, args[0]); err != nil {
				return err
			}
			s.ui.progress("removed user %s", args[0])
			return s.ui.result(map[string]string{"user": args[0]}, func(io.Writer) {})
		}),
	}, operator)
	return c
}
