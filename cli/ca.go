package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"io"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
)

// caHint tells how a browser gets to trust the cluster.
const caHint = "if the browser warns of the certificate, have it trust the authority that \"bulkhead clusters ca\" prints"

func (s *session) clusterCACommand() *cobra.Command {
	return &cobra.Command{
		Use: "ca", Short: "Print the certificate of the cluster's authority, for browsers", Args: exactly(),
		Long: `Print the certificate of the cluster's authority, in PEM: two during a change of it. A
browser that trusts it accepts the certificates of the cluster and of its apps, and of no
other names: the authority may sign for the cluster's domain alone.

It comes over a connection that the pin checks. No token is needed.`,
		Example: `  bulkhead clusters ca > bulkhead-ca.pem
  curl --cacert bulkhead-ca.pem https://shop.example.com`,
		RunE: func(c *cobra.Command, _ []string) error {
			target, err := s.chooseCluster()
			if err != nil {
				return err
			}
			api, err := s.connect(client.Config{URL: target.URL, Pin: target.Pin, Anonymous: true})
			if err != nil {
				return err
			}
			certs, err := api.RootCertificates(c.Context())
			if err != nil {
				return err
			}
			type entry struct {
				PEM       string    `json:"pem"`
				SHA256    string    `json:"sha256"`
				ExpiresAt time.Time `json:"expires_at"`
			}
			list, text := []entry{}, bytes.Buffer{}
			for _, cert := range certs {
				sum := sha256.Sum256(cert.Raw)
				e := entry{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})),
					hex.EncodeToString(sum[:]), cert.NotAfter.UTC()}
				list = append(list, e)
				text.WriteString(e.PEM)
				s.ui.progress("authority of %s, SHA-256 %s, good until %s", api.URL(), e.SHA256, e.ExpiresAt.Format(time.DateOnly))
			}
			return s.ui.result(list, func(w io.Writer) { w.Write(text.Bytes()) })
		},
	}
}
