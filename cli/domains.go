package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

func (s *session) domainsCommand() *cobra.Command {
	c := group("domains", "Which organization vouches for an e-mail domain (operators)",
		"Which organization vouches for the addresses of an e-mail domain. Users whom its identity\nprovider or its invitations make may have such an address as their name; those of others\nhave names that say who vouches, such as ann@example.com@acme. These commands take an operator.")
	show := func(all []client.Domain) func(io.Writer) {
		return func(w io.Writer) {
			var rows [][]string
			for _, d := range all {
				rows = append(rows, []string{d.Domain, d.Org, d.By, d.At})
			}
			table(w, []string{"DOMAIN", "ORGANIZATION", "GRANTED BY", "SINCE"}, rows)
		}
	}
	c.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the domains that were granted", Args: exactly(),
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			all, err := api.Domains(ctx)
			if err != nil {
				return err
			}
			return s.ui.result(all, show(all))
		}),
	}, &cobra.Command{
		Use: "grant DOMAIN ORG", Short: "Have an organization vouch for a domain", Args: exactly("DOMAIN", "ORG"),
		Long: "Have an organization vouch for the addresses of a domain, and no other organization.\nGrant a domain to who owns it: names of users are the whole cluster's.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			d, err := api.GrantDomain(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			s.ui.progress("organization %s vouches for addresses of %s", d.Org, d.Domain)
			return s.ui.result(d, func(io.Writer) {})
		}),
	}, &cobra.Command{
		Use: "withdraw DOMAIN", Short: "Withdraw a domain", Args: exactly("DOMAIN"),
		Long: "Withdraw a domain. Users who have got their names by it keep them.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := api.WithdrawDomain(ctx, args[0]); err != nil {
				return err
			}
			s.ui.progress("nobody vouches for addresses of %s any more", args[0])
			return s.ui.result(map[string]string{"domain": args[0]}, func(io.Writer) {})
		}),
	})
	return c
}
