package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/fault"
)

func (s *session) passkeyCommand() *cobra.Command {
	c := group("passkey", "Your passkeys", "Your passkeys: what your devices keep so that you sign in without a password.")
	c.AddCommand(s.passkeyAddCommand(), s.passkeyListCommand(), s.passkeyRemoveCommand())
	return c
}

func (s *session) passkeyAddCommand() *cobra.Command {
	var name string
	var noBrowser bool
	c := &cobra.Command{
		Use: "add", Short: "Add a passkey, in a browser", Args: exactly(),
		Long: `Add a passkey. It opens a page of the cluster, on which your browser has the device
make it: this computer, a phone, or a security key.

The address is a secret: it is good once, in the browser that opens it first, for
ten minutes. It takes the token of a login that is for no organization; with a
passkey you sign in as yourself everywhere but where single sign-on is required.`,
		Example: `  bulkhead auth passkey add
  bulkhead auth passkey add --name "key on my ring" --no-browser`,
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			if name == "" {
				name = "made at " + hostHere()
			}
			l, err := api.AddPasskey(ctx, name)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(l.URL, api.URL()+"/") {
				return fault.New(fault.Internal, "the cluster answered with a page that is not its own: %s", l.URL)
			}
			if noBrowser || s.browse(l.URL) != nil {
				s.ui.progress("open the address in the browser that shall have the passkey")
			}
			s.ui.progress(caHint)
			return s.ui.result(l, func(w io.Writer) { fmt.Fprintln(w, l.URL) })
		}),
	}
	c.Flags().StringVar(&name, "name", "", "name of the passkey (default says where this was run)")
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "only print the address of the page")
	return c
}

// hostHere is this computer's name, as short as a passkey's name is.
func hostHere() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "a terminal"
	}
	return host[:min(len(host), 50)]
}

func (s *session) passkeyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List your passkeys", Args: exactly(),
		RunE: s.with(func(ctx context.Context, api *client.Client, _ []string) error {
			all, err := api.Passkeys(ctx)
			if err != nil {
				return err
			}
			return s.ui.result(all, func(w io.Writer) {
				var rows [][]string
				for _, p := range all {
					note := ""
					if p.Synced {
						note = "synced by its maker"
					}
					if p.SuspectAt != "" {
						note = "REFUSED: there may be a copy of it, seen " + p.SuspectAt + "; remove it"
					}
					rows = append(rows, []string{p.ID, p.Name, p.CreatedAt, orElse(p.UsedAt, "never"), note})
				}
				table(w, []string{"ID", "NAME", "ADDED", "LAST USED", ""}, rows)
			})
		}),
	}
}

func (s *session) passkeyRemoveCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "remove PASSKEY", Aliases: []string{"rm"}, Short: "Remove a passkey, and end what came by it", Args: exactly("PASSKEY"),
		Long: `Remove a passkey, by its id or name. Sessions that came by it end, and their tokens:
also this one, if you logged in with it.

Your last passkey stays unless --force is given, if you do not come by single
sign-on: you would have no way in when your token is over.`,
		Example: "  bulkhead auth passkey remove 0123456789abcdef",
		RunE: s.with(func(ctx context.Context, api *client.Client, args []string) error {
			if err := api.RemovePasskey(ctx, args[0], force); err != nil {
				return err
			}
			s.ui.progress("removed passkey %s", args[0])
			return s.ui.result(map[string]string{"passkey": args[0]}, func(io.Writer) {})
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "remove it also if you have no other way in")
	return c
}
