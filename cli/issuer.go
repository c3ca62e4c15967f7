package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

func (s *session) issuerCommand() *cobra.Command {
	c := group("issuer", "Show and rotate the keys of Machines' identity tokens", `Show and rotate the keys of Machines' identity tokens. A Machine gets such a token without
a secret, over the socket /.fly/api inside of it; other services verify it by the issuer's
address. The keys change by themselves every week.`)
	c.AddCommand(s.issuerShowCommand(), s.issuerRotateCommand())
	return c
}

func (s *session) issuerShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the issuer's address and its keys", Args: exactly(),
		Long: "Show the issuer's address, which is what other services are told to trust, and its keys.",
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := s.client()
			if err != nil {
				return err
			}
			is, err := api.Issuer(c.Context())
			if err != nil {
				return err
			}
			return s.issuerResult(is)
		},
	}
}

func (s *session) issuerRotateCommand() *cobra.Command {
	var compromised bool
	c := &cobra.Command{
		Use: "rotate", Short: "Make a new key for identity tokens now", Args: exactly(),
		Long: `Make a new key for identity tokens now. It is published at once and signs a quarter of an
hour later, when every verifier knows it; tokens of the old key stay good until they expire.

With --compromised it signs at once and the old keys are published no more. Verifiers that
still have the old key set take tokens of it for up to five minutes, and refuse new ones
until they fetch the set again.`,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := s.client()
			if err != nil {
				return err
			}
			is, err := api.RotateIssuer(c.Context(), compromised)
			if err != nil {
				return err
			}
			s.ui.progress("made key %s", is.Keys[0].ID)
			return s.issuerResult(is)
		},
	}
	c.Flags().BoolVar(&compromised, "compromised", false, "give the old keys up at once")
	return c
}

func (s *session) issuerResult(is client.Issuer) error {
	return s.ui.result(is, func(w io.Writer) {
		fmt.Fprintln(w, is.Issuer)
		var rows [][]string
		for _, k := range is.Keys {
			rows = append(rows, []string{k.ID, k.State, k.From.Format(time.RFC3339)})
		}
		table(w, []string{"KEY", "STATE", "SIGNS FROM"}, rows)
	})
}
