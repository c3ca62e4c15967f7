package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/fault"
)

func (s *session) authCommand() *cobra.Command {
	c := group("auth", "Log in through a browser, and see and end your sessions",
		`Log in through a browser, by a passkey or by your organization's single sign-on, and see and end your sessions.`)
	sessions := group("sessions", "Your sessions", "Your sessions: browsers and command lines in which you are signed in.")
	sessions.AddCommand(s.sessionListCommand(), s.sessionEndCommand())
	c.AddCommand(s.authLoginCommand(), s.authWhoamiCommand(), s.authLogoutCommand(), s.passkeyCommand(), sessions)
	return c
}

func (s *session) authLoginCommand() *cobra.Command {
	var org, pin, name string
	var device, noBrowser bool
	c := &cobra.Command{
		Use: "login [URL --pin PIN]", Short: "Log in through a browser", Args: atMostOne("URL"),
		Long: `Log in through a browser. It opens a page of the cluster, where you sign in and
approve this login; the page and the terminal show the same code.

With --device no browser is opened here: type the code at the address shown, on
any computer. URL and PIN name a cluster that is not known here yet; without them
it is the one that --cluster or the last login chose.`,
		Example: `  bulkhead auth login --org acme
  bulkhead auth login --device
  bulkhead auth login https://api.example.com --pin PIN --org acme`,
		RunE: func(c *cobra.Command, args []string) error {
			return s.authLogin(c.Context(), args, pin, name, org, device, noBrowser)
		},
	}
	c.Flags().StringVar(&org, "org", "", "organization that the login is for")
	c.Flags().BoolVar(&device, "device", false, "show a code to type in a browser elsewhere")
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "only print the address of the page")
	c.Flags().StringVar(&pin, "pin", "", "pin of the server's public key, with URL")
	c.Flags().StringVar(&name, "name", "", "name for this cluster (default its domain)")
	return c
}

// loginTarget is the cluster to log in to: a new one, or one that is known.
func (s *session) loginTarget(args []string, pin, name string) (clusterConfig, string, error) {
	if len(args) == 0 {
		if pin != "" {
			return clusterConfig{}, "", usagef("--pin goes with a URL")
		}
		c, err := s.chooseCluster()
		if err != nil {
			return c, "", err
		}
		if name == "" {
			name, err = clusterName(c.URL)
		}
		if cfg, _, e := s.readConfig(); e == nil && s.env.Getenv("BULKHEAD_URL") == "" {
			if name = cfg.Default; s.cluster != "" {
				name = s.cluster
			}
		}
		return c, name, err
	}
	if pin == "" {
		return clusterConfig{}, "", hint(usagef("missing --pin"), pinHint)
	}
	var err error
	if name == "" {
		if name, err = clusterName(args[0]); err != nil {
			return clusterConfig{}, "", usage(err)
		}
	}
	return clusterConfig{URL: args[0], Pin: pin}, name, nil
}

func (s *session) authLogin(ctx context.Context, args []string, pin, name, org string, device, noBrowser bool) error {
	target, name, err := s.loginTarget(args, pin, name)
	if err != nil {
		return err
	}
	file, err := s.configPathOrErr()
	if err == nil {
		err = canWrite(file)
	}
	if err != nil {
		return err
	}
	api, err := s.connect(client.Config{URL: target.URL, Pin: target.Pin, Anonymous: true})
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	l, err := api.BeginLogin(ctx, host, org, device)
	if err != nil {
		return err
	}
	// This is what the person needs, also with --quiet and --json: it goes to standard error.
	if device {
		fmt.Fprintf(s.env.Stderr, "open %s and type the code %s\n", l.VerificationURI, l.Code)
	} else {
		if !strings.HasPrefix(l.AuthURL, api.URL()+"/") {
			return fault.New(fault.Internal, "the cluster answered with a page that is not its own: %s", l.AuthURL)
		}
		fmt.Fprintf(s.env.Stderr, "open %s\nand approve the login with the code %s\n", l.AuthURL, l.Code)
		if !noBrowser {
			if err := s.browse(l.AuthURL); err != nil {
				s.ui.progress("no browser could be opened: open the address yourself, or use --device")
			}
		}
	}
	s.ui.progress(caHint)
	stop := s.ui.waiting("waiting until the login is approved")
	got, err := api.AwaitLogin(ctx, l)
	stop()
	if err != nil {
		return err
	}
	cfg, path, err := s.readConfig()
	if err != nil {
		return err
	}
	cfg.Clusters[name] = clusterConfig{URL: api.URL(), Pin: target.Pin, Token: got.Token, Session: got.Session}
	cfg.Default = name
	if err := writeConfig(path, cfg); err != nil {
		return err
	}
	s.ui.progress("logged in to %s as %s, until %s", api.URL(), got.User, got.ExpiresAt)
	return s.ui.result(map[string]string{"cluster": name, "url": api.URL(), "user": got.User, "organization": got.Org,
		"expires_at": got.ExpiresAt}, func(io.Writer) {})
}

func (s *session) authWhoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Who you are to the cluster", Args: exactly(),
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			me, err := api.Self(ctx)
			if err != nil {
				return err
			}
			return s.ui.result(me, func(w io.Writer) {
				fmt.Fprintln(w, me.Name)
				for _, m := range me.Organizations {
					fmt.Fprintf(w, "%s of %s\n", orElse(m.Role, "member for single apps"), m.Org)
				}
				if me.Token != nil {
					fmt.Fprintf(w, "token %s, until %s\n", me.Token.ID, me.Token.ExpiresAt)
				}
			})
		}),
	}
}

func orElse(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func (s *session) authLogoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End this login: its session, its token, and what is stored here", Args: exactly(),
		Long: "End this login. The cluster refuses the token from then on, and it is forgotten here.\nA token that did not come by \"bulkhead auth login\" is only forgotten.",
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := s.client()
			if err != nil {
				return err
			}
			err = api.EndSession(c.Context(), "current")
			switch {
			case fault.Is(err, fault.NotFound):
				s.ui.progress("the token did not come by \"bulkhead auth login\", and stays valid until it expires or is revoked")
			case err != nil && !fault.Is(err, fault.Unauthenticated): // over already
				return err
			}
			cfg, path, err := s.readConfig()
			if err != nil {
				return err
			}
			name := cfg.Default
			if s.cluster != "" {
				name = s.cluster
			}
			kept := cfg.Clusters[name]
			kept.Token, kept.Session = "", "" // where it is, is still known
			cfg.Clusters[name] = kept
			if err := writeConfig(path, cfg); err != nil {
				return err
			}
			if err := os.Remove(dischargesPath(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fault.Wrap(fault.Internal, err, "cannot remove %s: %v", dischargesPath(path), err)
			}
			s.ui.progress("logged out of cluster %q", name)
			return s.ui.result(map[string]string{"cluster": name}, func(io.Writer) {})
		},
	}
}

func (s *session) sessionListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List your sessions", Args: exactly(),
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			all, err := api.Sessions(ctx)
			if err != nil {
				return err
			}
			return s.ui.result(all, func(w io.Writer) {
				var rows [][]string
				for _, x := range all {
					mark := ""
					if x.Current {
						mark = "this one"
					}
					rows = append(rows, []string{x.ID, x.Kind, x.Method, x.Org, x.Name, x.From, x.SeenAt, x.ExpiresAt, mark})
				}
				table(w, []string{"ID", "KIND", "BY", "ORG", "COMPUTER", "FROM", "LAST SEEN", "UNTIL", ""}, rows)
			})
		}),
	}
}

func (s *session) sessionEndCommand() *cobra.Command {
	return &cobra.Command{
		Use: "end SESSION", Short: "End a session and its token", Args: exactly("SESSION"),
		Long: "End a session, by the id that \"bulkhead auth sessions list\" shows, or \"all\". Its token is refused from then on.",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := api.EndSession(ctx, args[0]); err != nil {
				return err
			}
			s.ui.progress("ended %s", args[0])
			return s.ui.result(map[string]string{"session": args[0]}, func(io.Writer) {})
		}),
	}
}
