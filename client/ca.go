package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"net/http"

	"bulkhead/fault"
)

// RootCertificates returns the cluster's root certificates. The connection is checked by
// the pin, so they are those of the cluster that the user logged in to.
func (c *Client) RootCertificates(ctx context.Context) ([]*x509.Certificate, error) {
	var out struct {
		PEM string `json:"pem"`
	}
	if err := c.do(ctx, call{method: http.MethodGet, path: []string{"ca"}, out: &out}); err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for rest := []byte(out.PEM); len(bytes.TrimSpace(rest)) > 0; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			return nil, fault.New(fault.Internal, "%s sent something else than certificates", c.base.Host)
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil || !cert.IsCA {
			return nil, fault.New(fault.Internal, "%s sent a certificate that is no authority's", c.base.Host)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fault.New(fault.Internal, "%s sent no certificate", c.base.Host)
	}
	return certs, nil
}
