package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/key"
)

func (s *session) loginCommand() *cobra.Command {
	var pin, token, name, as string
	c := &cobra.Command{
		Use:   "login URL --pin PIN --token TOKEN",
		Short: "Log in to a cluster",
		Long: `Log in to a cluster with the line that the first "bulkheadd up" printed, or that
"bulkheadd token" or "bulkhead orgs invite" prints.

The server is recognized by its public key alone: PIN is the base64url SHA-256 of
that key. The address, pin and token are kept in bulkhead/config.json in the user's
configuration directory, readable by the user alone. The cluster logged in to last
is the default one.

The token in that line, and that in an invitation, is good once: with it you become a
user of the cluster, named by --as, and what is kept is your own token.

In CI, set BULKHEAD_URL, BULKHEAD_PIN and BULKHEAD_TOKEN instead; nothing is stored.`,
		Example: `  bulkhead login https://api.bulkhead.localhost:8443 --pin PIN --token bh_TOKEN
  bulkhead login https://api.example.com --pin PIN --token - < token.txt`,
		Args: exactly("URL"),
		RunE: func(c *cobra.Command, args []string) error {
			return s.login(c.Context(), args[0], pin, token, name, as)
		},
	}
	c.Flags().StringVar(&pin, "pin", "", "pin of the server's public key, base64url SHA-256 (required)")
	c.Flags().StringVar(&token, "token", "", "token; \"-\" reads it from standard input")
	c.Flags().StringVar(&name, "name", "", "name for this cluster (default its domain)")
	c.Flags().StringVar(&as, "as", "",
		"your user name, with a one-time token (default the name of the user on this machine)")
	return c
}

func (s *session) login(ctx context.Context, url, pin, token, name, as string) error {
	if pin == "" {
		return hint(usagef("missing --pin"), pinHint)
	}
	token, err := s.readToken(token)
	if err != nil {
		return err
	}
	if name == "" {
		if name, err = clusterName(url); err != nil {
			return usage(err)
		}
	}
	api, err := s.connect(client.Config{URL: url, Pin: pin, Token: token})
	if err != nil {
		return err
	}
	cfg, path, err := s.readConfig()
	if err != nil {
		return err
	}
	// A one-time token that was spent, and whose login was kept nowhere, would be lost.
	if err := canWrite(path); err != nil {
		return err
	}
	once := client.IsClaim(token)
	who, err := s.enter(ctx, api, &token, as)
	if err != nil {
		if fault.Is(err, fault.Unauthenticated) {
			return hint(&failure{msg: fmt.Sprintf("%s does not accept this token: %s", api.URL(), fault.MessageOf(err)),
				kind: string(fault.Unauthenticated), exit: ExitUnauthorized, cause: err},
				"copy the whole line; a one-time token is good once, and \"bulkheadd token\", run as root on the server, makes another")
		}
		return err
	}
	cfg.Clusters[name] = clusterConfig{URL: api.URL(), Pin: pin, Token: token}
	cfg.Default = name
	if err := writeConfig(path, cfg); err != nil {
		return err
	}
	s.ui.progress("logged in to %s as cluster %q, user %s", api.URL(), name, who)
	if once {
		s.ui.progress("this login ends, and the token you used is spent: add a passkey to sign in again, with \"bulkhead auth passkey add\"")
	}
	return s.ui.result(map[string]string{"cluster": name, "url": api.URL(), "config": path, "user": who},
		func(io.Writer) {})
}

// enter finds out who a token stands for. A one-time token it spends first: token is the
// user's own then.
func (s *session) enter(ctx context.Context, api *client.Client, token *string, as string) (string, error) {
	if !client.IsClaim(*token) {
		if as != "" {
			return "", usagef("--as goes with a one-time token, and this is a user's own")
		}
		self, err := api.Self(ctx)
		return self.Name, err
	}
	if as == "" {
		as = userNameHere(s.env.Getenv)
	}
	done, err := api.Claim(ctx, as)
	if fault.Is(err, fault.Invalid) || fault.Is(err, fault.Unprocessable) {
		return "", hint(err, "choose another name with --as NAME")
	}
	*token = done.Token
	return done.User.Name, err
}

// userNameHere makes a user name of what this machine calls the user.
func userNameHere(getenv func(string) string) string {
	for _, v := range []string{"USER", "LOGNAME", "USERNAME"} {
		if name, err := key.ParseUserName(strings.ToLower(getenv(v))); err == nil {
			return name
		}
	}
	return "admin"
}

// usage marks an error of package client as one in what the user typed.
func usage(err error) error {
	f := *classify(err)
	f.kind, f.exit = "usage", ExitUsage
	return &f
}

// readToken returns the token from the flag, standard input or a prompt.
func (s *session) readToken(token string) (string, error) {
	if token == "" {
		token = s.env.Getenv("BULKHEAD_TOKEN")
	}
	if token != "" && token != "-" {
		return token, nil
	}
	if token == "" && !s.env.StdinTTY {
		return "", hint(usagef("missing --token"),
			"\"bulkheadd token\", as root on the server, prints a line that has one; --token - reads it from standard input")
	}
	var b []byte
	var err error
	if f, ok := s.env.Stdin.(interface{ Fd() uintptr }); ok && s.env.StdinTTY {
		fmt.Fprint(s.env.Stderr, "token: ")
		b, err = term.ReadPassword(int(f.Fd())) // not shown
		fmt.Fprintln(s.env.Stderr)
	} else {
		b, err = io.ReadAll(io.LimitReader(s.env.Stdin, 64<<10))
	}
	if err != nil {
		return "", usagef("cannot read the token from standard input: %v", err)
	}
	if t := strings.TrimSpace(string(b)); t != "" {
		return t, nil
	}
	return "", usagef("standard input holds no token")
}

func (s *session) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout [CLUSTER]",
		Short: "Forget a cluster and its token",
		Long:  "Forget a cluster and its token, the default one if none is named. The token itself stays valid.",
		Args:  atMostOne("CLUSTER"),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, path, err := s.readConfig()
			if err != nil {
				return err
			}
			name := cfg.Default
			if s.cluster != "" {
				name = s.cluster
			}
			if len(args) == 1 {
				name = args[0]
			}
			if _, ok := cfg.Clusters[name]; !ok {
				return hint(fault.New(fault.NotFound, "not logged in to a cluster %q", name),
					"\"bulkhead clusters list\" shows those there are")
			}
			delete(cfg.Clusters, name)
			if cfg.Default == name {
				cfg.Default = ""
				if ns := cfg.names(); len(ns) == 1 {
					cfg.Default = ns[0]
				}
			}
			if err := writeConfig(path, cfg); err != nil {
				return err
			}
			s.ui.progress("forgot cluster %q", name)
			return s.ui.result(map[string]string{"cluster": name}, func(io.Writer) {})
		},
	}
}

func (s *session) clustersCommand() *cobra.Command {
	c := group("clusters", "List the clusters logged in to, and choose one",
		"List the clusters logged in to, and choose the default one.")
	c.AddCommand(s.clusterCACommand(), &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the clusters logged in to", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			cfg, _, err := s.readConfig()
			if err != nil {
				return err
			}
			type entry struct {
				Name    string `json:"name"`
				URL     string `json:"url"`
				Pin     string `json:"pin"`
				Default bool   `json:"default"`
			}
			list, rows := []entry{}, [][]string{}
			for _, n := range cfg.names() {
				e := entry{Name: n, URL: cfg.Clusters[n].URL, Pin: cfg.Clusters[n].Pin, Default: n == cfg.Default}
				list = append(list, e)
				mark := ""
				if e.Default {
					mark = "yes"
				}
				rows = append(rows, []string{e.Name, e.URL, mark})
			}
			return s.ui.result(list, func(w io.Writer) { table(w, []string{"NAME", "URL", "DEFAULT"}, rows) })
		},
	}, &cobra.Command{
		Use: "use CLUSTER", Short: "Make a cluster the default one", Args: exactly("CLUSTER"),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, path, err := s.readConfig()
			if err != nil {
				return err
			}
			if _, ok := cfg.Clusters[args[0]]; !ok {
				return hint(fault.New(fault.NotFound, "not logged in to a cluster %q", args[0]),
					"\"bulkhead clusters list\" shows those there are")
			}
			cfg.Default = args[0]
			if err := writeConfig(path, cfg); err != nil {
				return err
			}
			s.ui.progress("cluster %q is the default one now", args[0])
			return s.ui.result(map[string]string{"cluster": args[0]}, func(io.Writer) {})
		},
	})
	return c
}
