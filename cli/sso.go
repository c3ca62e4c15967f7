package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

func (s *session) orgSSOCommand() *cobra.Command {
	c := group("sso", "An organization's single sign-on", "An organization's single sign-on by OpenID Connect.")
	c.AddCommand(s.ssoShowCommand(), s.ssoSetCommand(), s.ssoUnsetCommand())
	return c
}

func (s *session) showSSO(sso client.SSO) error {
	return s.ui.result(sso, func(w io.Writer) {
		rows := [][]string{{"mode", sso.Mode}, {"issuer", sso.Issuer}, {"client id", sso.ClientID}, {"redirect URL", sso.RedirectURL}, {"domains", strings.Join(sso.Domains, " ")}}
		for _, g := range slices.Sorted(maps.Keys(sso.Groups)) {
			rows = append(rows, []string{"group " + g, sso.Groups[g]})
		}
		rows = append(rows, []string{"everybody else", orElse(sso.Role, "not let in")}, []string{"session", fmt.Sprintf("%d hours", sso.SessionHours)}, []string{"tokens of programs without a session", orElse(sso.ServiceTokens, "refused")})
		table(w, []string{"SETTING", "VALUE"}, rows)
	})
}

func (s *session) ssoShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show ORG", Short: "Show an organization's single sign-on", Args: exactly("ORG"),
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			sso, err := api.SSO(ctx, args[0])
			if err != nil {
				return err
			}
			return s.showSSO(sso)
		}),
	}
}

func (s *session) ssoSetCommand() *cobra.Command {
	var in client.SSO
	var secretStdin bool
	c := &cobra.Command{
		Use: "set ORG", Short: "Configure an organization's single sign-on", Args: exactly("ORG"),
		Long: `Configure an organization's single sign-on. What is not given stays as it is.

The provider must let the browser come back to the redirect URL that is shown, and
use the authorization code flow. Let in are people with a verified address of one
of the domains, as what their groups say, or else as --role.

Required means that only tokens behind which somebody's live session stands are good for
the organization. Sign in by it once before you require it.`,
		Example: `  bulkhead orgs sso set acme --issuer https://accounts.example.com --client-id bulkhead --secret-stdin \
    --domain example.com --group ops=admin --group staff=viewer < secret.txt
  bulkhead auth login --org acme
  bulkhead orgs sso set acme --mode required`,
	}
	f := c.Flags()
	f.StringVar(&in.Issuer, "issuer", "", "the provider's issuer, an https:// address")
	f.StringVar(&in.ClientID, "client-id", "", "the client's id at the provider")
	f.BoolVar(&secretStdin, "secret-stdin", false, "read the client's secret from standard input")
	f.StringSliceVar(&in.Scopes, "scope", nil, "scope to ask for besides openid, email and profile; may be repeated")
	f.StringVar(&in.GroupsClaim, "groups-claim", "", "claim that lists the groups (default \"groups\")")
	f.StringSliceVar(&in.Domains, "domain", nil, "e-mail domain that is let in; may be repeated")
	f.StringToStringVar(&in.Groups, "group", nil, "GROUP=ROLE: who is in the group has the role; may be repeated")
	f.StringVar(&in.Role, "role", "", "role of those in none of the groups (default none: not let in)")
	f.StringVar(&in.Mode, "mode", "", "optional or required")
	f.StringVar(&in.ServiceTokens, "service-tokens", "", "allowed or refused: deploy, machine-exec and readonly tokens of one app without a session, for CI (allowed by owners alone; default refused)")
	f.IntVar(&in.SessionHours, "session-hours", 0, "how long a session lasts (default 12)")
	c.RunE = s.with(func(ctx context.Context, api *client.Client, args []string) error {
		set := c.Flags().Changed
		now, err := api.SSO(ctx, args[0])
		if err != nil && (!set("issuer") || !set("client-id")) {
			return err
		}
		if secretStdin {
			b, err := io.ReadAll(io.LimitReader(s.env.Stdin, 4<<10))
			if err != nil {
				return usagef("cannot read the secret from standard input: %v", err)
			}
			in.ClientSecret = strings.TrimSpace(string(b))
		}
		in = mergeSSO(now, in, set)
		out, err := api.SetSSO(ctx, args[0], in)
		if err != nil {
			return err
		}
		return s.showSSO(out)
	})
	return c
}

// mergeSSO puts what was given over what there is.
func mergeSSO(now, in client.SSO, set func(string) bool) client.SSO {
	keep := func(flag string, f func()) {
		if !set(flag) {
			f()
		}
	}
	keep("issuer", func() { in.Issuer = now.Issuer })
	keep("client-id", func() { in.ClientID = now.ClientID })
	keep("scope", func() { in.Scopes = now.Scopes })
	keep("groups-claim", func() { in.GroupsClaim = now.GroupsClaim })
	keep("domain", func() { in.Domains = now.Domains })
	keep("group", func() { in.Groups = now.Groups })
	keep("role", func() { in.Role = now.Role })
	keep("mode", func() { in.Mode = now.Mode })
	keep("service-tokens", func() { in.ServiceTokens = now.ServiceTokens })
	keep("session-hours", func() { in.SessionHours = now.SessionHours })
	return in
}

func (s *session) ssoUnsetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unset ORG", Short: "End an organization's single sign-on", Args: exactly("ORG"),
		Long: "End an organization's single sign-on. Sessions and tokens that came by it end with it.\nAn operator of the cluster may do this for every organization: it is the way back\nwhen the provider is gone.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := api.UnsetSSO(ctx, args[0]); err != nil {
				return err
			}
			s.ui.progress("organization %s has no single sign-on any more", args[0])
			return s.ui.result(map[string]string{"organization": args[0]}, func(io.Writer) {})
		}),
	}
}
