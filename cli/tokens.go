package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/client"
	"bulkhead/key"
	"bulkhead/token"
)

func (s *session) tokensCommand() *cobra.Command {
	c := group("tokens", "Make, narrow, read, list and revoke tokens", `Make, narrow, read, list and revoke tokens: for CI, for programs, for a part of what you may.

A token may what you may at the moment of its use, less what its caveats forbid. "create"
prints it on standard output, this once. "attenuate" and "debug" ask no server.`)
	c.AddCommand(s.tokenCreateCommand(), s.tokenListCommand(), s.tokenAttenuateCommand(), s.tokenDischargeCommand(),
		s.tokenDebugCommand(), s.tokenRevokeCommand())
	return c
}

func (s *session) tokenCreateCommand() *cobra.Command {
	var org, name, expiry string
	var commands []string
	var exact, existing, platform bool
	c := &cobra.Command{
		Use: "create KIND", Short: "Make a token, and show it once", Args: exactly("KIND"),
		Long: `Make a token, and show it once, on standard output.

  org           what a member may in an organization, but for members, settings and tokens
  deploy        everything about one app (--app)
  readonly      to see an organization, or one app (--app)
  machine-exec  certain commands (--command) in the Machines of an app (--app)
  ssh           to see an app (--app), and SSH certificates for it
  wireguard     peers of an organization's network
  metrics       the metrics of an organization's apps, or with --platform of everything

It is good for 30 days unless --expiry or the organization says otherwise, and for a
year at most. "readonly --from-existing" makes it of the token in use, without asking
the server: it ends with that one.`,
		Example: `  bulkhead tokens create deploy --app hello --name CI --expiry 168h > token.txt
  bulkhead tokens create machine-exec --app hello --command "bin/migrate up"
  bulkhead tokens create metrics --org acme --name prometheus --expiry 8760h > metrics-token`,
		RunE: func(c *cobra.Command, args []string) error {
			kind, err := token.ParseKind(args[0])
			if err != nil {
				return usagef("%s", err)
			}
			if platform && (kind != token.Metrics || org != "" || s.appFlag != "") {
				return usagef("--platform is for kind %s, without --org and --app", token.Metrics)
			}
			if kind == token.Metrics && s.appFlag != "" {
				return hint(usagef("a token of kind %s is for an organization, not for an app", kind), "give --org NAME")
			}
			if existing {
				return s.readonlyFromExisting(kind)
			}
			if s.appFlag == "" && (kind == token.Deploy || kind == token.MachineExec || kind == token.SSH) {
				return hint(usagef("a token of kind %s is for an app", kind), "give --app NAME")
			}
			in := client.TokenRequest{Kind: string(kind), App: s.appFlag, Name: name, Expiry: expiry, Exact: exact}
			for _, line := range commands {
				in.Commands = append(in.Commands, strings.Fields(line))
			}
			return s.with(func(ctx context.Context, api *client.Client, _ []string) error {
				if platform {
					made, err := api.CreatePlatformToken(ctx, in)
					return s.showToken(api, "", made, err)
				}
				return s.createToken(ctx, api, org, in)
			})(c, args)
		},
	}
	f := c.Flags()
	f.StringVar(&org, "org", "", "organization (default the app's, or the only one you are a member of)")
	f.StringVar(&name, "name", "", "a name for it, for people")
	f.StringVar(&expiry, "expiry", "", "how long it is good, such as 168h")
	f.StringArrayVar(&commands, "command", nil, "for machine-exec: how a command that it may run begins; repeatable")
	f.BoolVar(&exact, "exact", false, "for machine-exec: the commands are these, without more words")
	f.BoolVar(&platform, "platform", false, "for metrics: of the whole platform, for operators")
	f.BoolVar(&existing, "from-existing", false, "for readonly: of the token in use, offline")
	return c
}

func (s *session) createToken(ctx context.Context, api *client.Client, org string, in client.TokenRequest) error {
	var err error
	if org == "" {
		if org, err = orgFor(ctx, api, in.App); err != nil {
			return err
		}
	}
	t, err := api.CreateToken(ctx, org, in)
	return s.showToken(api, org, t, err)
}

// showToken prints a token that was made, this once.
func (s *session) showToken(api *client.Client, org string, t client.Token, err error) error {
	if err != nil {
		return err
	}
	s.ui.progress("made token %s of kind %s, good until %s; it is shown this once", t.ID, t.Kind, t.ExpiresAt)
	if all, err := token.Tickets(t.Token, api.ThirdParty()); err == nil && len(all) > 0 {
		s.ui.progress("organization %s requires single sign-on: the token is good while you are logged in (see \"bulkhead tokens discharge --help\")", org)
	}
	return s.ui.result(t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
}

// orgFor is the organization of an app, or the only one that the caller has to do with.
func orgFor(ctx context.Context, api *client.Client, app string) (string, error) {
	if app != "" {
		a, err := api.App(ctx, app)
		return a.Organization.Slug, err
	}
	self, err := api.Self(ctx)
	if err != nil {
		return "", err
	}
	if len(self.Organizations) != 1 {
		return "", hint(usagef("missing --org"), "you have to do with %d organizations; \"bulkhead orgs list\" shows them",
			len(self.Organizations))
	}
	return self.Organizations[0].Org, nil
}

func (s *session) readonlyFromExisting(kind token.Kind) error {
	if kind != token.ReadOnly {
		return usagef("--from-existing is for readonly")
	}
	t, err := s.chooseToken(tokenInUse)
	if err != nil {
		return err
	}
	return s.narrow(t, ptr(resset.ActionRead))
}

func ptr[T any](v T) *T { return &v }

// narrow adds caveats to a token, prints it, and says on standard error which it was.
func (s *session) narrow(t tokenAtHand, caveats ...macaroon.Caveat) error {
	out, err := token.Attenuate(t.text, caveats...)
	if err != nil {
		return usagef("%s", err)
	}
	s.ui.progress("narrowed %s, %s", tokenNames(t.text), t.from)
	return s.ui.result(map[string]string{"token": out}, func(w io.Writer) { fmt.Fprintln(w, out) })
}

// tokenNames are the ids in a token, for messages.
func tokenNames(text string) string {
	all, err := token.Describe(text)
	if err != nil {
		return "a token"
	}
	var ids []string
	for _, d := range all {
		if d.ID != "" && !d.Discharge {
			ids = append(ids, "token "+string(d.ID))
		}
	}
	if len(ids) == 0 {
		return "a token of another cluster"
	}
	return strings.Join(ids, ", ")
}

// tokenAtHand is the token to work on, and where it is from, for messages.
type tokenAtHand struct{ text, from string }

// tokenInUse names the token of this login in --token.
const tokenInUse = "current"

// tokenHelp describes --token of the commands that work on one.
const tokenHelp = "the token; \"-\" reads standard input, \"current\" is the one in use (default that one, on a terminal)"

// chooseToken returns the token that --token names. Without the flag it is the one in use,
// but only when standard input is a terminal: a token that was sent there is the one meant.
func (s *session) chooseToken(flag string) (tokenAtHand, error) {
	switch {
	case flag == "" && !s.env.StdinTTY:
		return tokenAtHand{}, hint(usagef("no --token given, and standard input is not a terminal"),
			"--token - reads the token from standard input, --token %s takes the one in use", tokenInUse)
	case flag != "" && flag != tokenInUse:
		text, err := s.readToken(flag)
		if flag == "-" {
			return tokenAtHand{text, "which came on standard input"}, err
		}
		return tokenAtHand{text, "which --token gave"}, err
	}
	if t := s.env.Getenv("BULKHEAD_TOKEN"); t != "" {
		return tokenAtHand{t, "which BULKHEAD_TOKEN holds"}, nil
	}
	c, err := s.chooseCluster()
	return tokenAtHand{c.Token, "the login to " + c.URL}, err
}

func (s *session) tokenAttenuateCommand() *cobra.Command {
	var n narrowing
	var text string
	c := &cobra.Command{
		Use: "attenuate", Short: "Narrow a token, offline", Args: exactly(),
		Long: `Narrow a token: add to what it forbids, without asking a server. Nobody can take that off
again. The token is that of --token: "-" reads standard input, "current" is the one in use.
On a terminal the flag may be left out for the one in use. The narrower one is printed, and
has the same id: to revoke one is to revoke both.`,
		Example: `  bulkhead tokens attenuate --token current --readonly --expiry 1h
  bulkhead tokens attenuate --token - --app hello --command "ls" --from-address 203.0.113.0/24 < token.txt`,
		RunE: func(c *cobra.Command, _ []string) error {
			caveats, err := n.caveats(s.appFlag, time.Now())
			if err != nil {
				return err
			}
			t, err := s.chooseToken(text)
			if err != nil {
				return err
			}
			return s.narrow(t, caveats...)
		},
	}
	f := c.Flags()
	f.StringVar(&text, "token", "", tokenHelp)
	f.DurationVar(&n.expiry, "expiry", 0, "how long it is good from now, such as 1h")
	f.StringArrayVar(&n.machines, "machine", nil, "only this Machine, by id; repeatable")
	f.BoolVar(&n.readonly, "readonly", false, "only reading")
	f.StringVar(&n.actions, "action", "",
		"only these actions: letters of r (read), w (write), c (create), d (delete), C (control)")
	f.StringArrayVar(&n.commands, "command", nil,
		"of commands only those that begin so, and otherwise reading; repeatable")
	f.BoolVar(&n.exact, "exact", false, "the commands are these, without more words")
	f.StringArrayVar(&n.networks, "from-address", nil,
		"only from this address or network, such as 203.0.113.0/24; repeatable")
	return c
}

// narrowing is what attenuate adds.
type narrowing struct {
	expiry                       time.Duration
	machines, commands, networks []string
	readonly, exact              bool
	actions                      string
}

func (n *narrowing) caveats(app string, now time.Time) ([]macaroon.Caveat, error) {
	var out []macaroon.Caveat
	if n.expiry < 0 {
		return nil, usagef("--expiry %s is in the past", n.expiry)
	}
	if n.expiry > 0 {
		out = append(out, &macaroon.ValidityWindow{NotBefore: now.Add(-time.Minute).Unix(),
			NotAfter: now.Add(n.expiry).Unix()})
	}
	if app != "" {
		name, err := checkApp(app)
		if err != nil {
			return nil, err
		}
		out = append(out, &token.AppNames{Names: []string{name}})
	}
	if len(n.machines) > 0 {
		for _, id := range n.machines {
			if _, err := checkMachine(id); err != nil {
				return nil, err
			}
		}
		out = append(out, &flyio.Machines{Machines: resset.New(resset.ActionAll, n.machines...)})
	}
	if n.readonly {
		out = append(out, ptr(resset.ActionRead))
	}
	if n.actions != "" {
		if strings.Trim(n.actions, "rwcdC") != "" {
			return nil, usagef("--action %q is made of the letters r, w, c, d and C", n.actions)
		}
		out = append(out, ptr(resset.ActionFromString(n.actions)))
	}
	if len(n.commands) > 0 {
		var words [][]string
		for _, line := range n.commands {
			words = append(words, strings.Fields(line))
		}
		out = append(out, token.OnlyCommands(words, n.exact))
	}
	if len(n.networks) > 0 {
		for _, text := range n.networks {
			if _, err := token.ParseNetwork(text); err != nil {
				return nil, usagef("--from-address: %s", err)
			}
		}
		out = append(out, &token.FromAddress{Networks: n.networks})
	}
	if len(out) == 0 {
		return nil, hint(usagef("nothing to narrow it by"), "see \"bulkhead tokens attenuate --help\"")
	}
	return out, nil
}

func (s *session) tokenDebugCommand() *cobra.Command {
	var text string
	c := &cobra.Command{
		Use: "debug", Short: "Say what is in a token, offline", Args: exactly(),
		Long: `Say what is in a token, each caveat in words, without asking a server. The token is that of
--token: "-" reads standard input, "current" is the one in use, as on a terminal without
the flag.

Nothing is verified: that takes the cluster's keys. What a token says of itself is
what its maker, or somebody who only pretends to be, has written into it.`,
		RunE: func(*cobra.Command, []string) error {
			t, err := s.chooseToken(text)
			if err != nil {
				return err
			}
			all, err := token.Describe(t.text)
			if err != nil {
				return usagef("%s", err)
			}
			return s.ui.result(all, func(w io.Writer) { describeTokens(w, all) })
		},
	}
	c.Flags().StringVar(&text, "token", "", tokenHelp)
	return c
}

func describeTokens(w io.Writer, all []token.Description) {
	fmt.Fprintln(w, "Not verified. It says:")
	for _, d := range all {
		what := "token " + string(d.ID)
		if d.ID == "" {
			what = "token of another cluster"
		}
		if d.Discharge {
			what = "discharge"
		}
		fmt.Fprintf(w, "\n%s, of %s\n", what, clean(d.Location))
		if d.Until != nil {
			fmt.Fprintf(w, "good until %s\n", d.Until.Format(time.RFC3339))
		} else {
			fmt.Fprintln(w, "without an end of its own")
		}
		for _, l := range d.Caveats {
			fmt.Fprintf(w, "%s- %s: %s\n", strings.Repeat("  ", l.Depth), l.Name, clean(l.Words))
		}
	}
}

func (s *session) tokenListCommand() *cobra.Command {
	var org string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tokens", Args: exactly(),
		Long: `List your tokens, those of logins too. With --org those of an organization: your own, and
everybody's if you may see them.`,
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			all, err := api.Tokens(ctx, org)
			if err != nil {
				return err
			}
			return s.ui.result(all, func(w io.Writer) {
				var rows [][]string
				for _, t := range all {
					rows = append(rows, []string{string(t.ID), t.Kind, t.Org, string(t.App), t.User, t.Name, t.ExpiresAt})
				}
				table(w, []string{"ID", "KIND", "ORG", "APP", "USER", "NAME", "EXPIRES"}, rows)
			})
		}),
	}
	c.Flags().StringVar(&org, "org", "", "organization")
	return c
}

func (s *session) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID...", Short: "End tokens, and all that were narrowed from them", Args: atLeast("ID"),
		Long: `End tokens by their ids, and all that were narrowed from them, at once: what they have open
ends too. You need not hold them. "list" shows the ids, and "debug" that of a token.`,
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			for _, arg := range args {
				id, err := key.ParseTokenID(arg)
				if err != nil {
					return hint(usagef("%s", err), "\"bulkhead tokens list\" shows the ids")
				}
				if err := api.RevokeToken(ctx, id); err != nil {
					return err
				}
				s.ui.progress("revoked %s", id)
			}
			return s.ui.result(args, func(io.Writer) {})
		}),
	}
}
