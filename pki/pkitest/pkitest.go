// Package pkitest gives tests identities of a throw-away cluster.
package pkitest

import (
	"context"
	"log/slog"
	"net/url"
	"testing"

	"bulkhead/pki"
)

// CA returns an authority in a directory of the test's.
func CA(t testing.TB, cluster, domain string) *pki.CA {
	t.Helper()
	ca, err := pki.OpenCA(t.TempDir(), cluster, domain)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// Signer signs for one identity with ca.
func Signer(ca *pki.CA, id pki.ID) pki.Signer {
	return func(_ context.Context, csr []byte) ([][]byte, []byte, error) { return ca.IssueIdentity(csr, id) }
}

// Identity returns an identity signed by ca; it is closed with the test.
func Identity(t testing.TB, ca *pki.CA, id pki.ID) *pki.Identity {
	t.Helper()
	i, err := pki.NewIdentity(context.Background(), Signer(ca, id), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

// URL parses s.
func URL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
