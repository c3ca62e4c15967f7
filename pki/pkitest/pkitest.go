// Package pkitest gives tests identities of a throw-away cluster.
package pkitest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// Forge signs t, whatever it says, with one of the intermediates ("identity" or "server") of
// the authority in dir, for a new key. Zero times mean from an hour ago for two hours.
func Forge(t testing.TB, dir, issuer string, cert x509.Certificate) tls.Certificate {
	t.Helper()
	by, err := pki.ReadKey(filepath.Join(dir, issuer+".key"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, issuer+".crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	parent, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if cert.NotAfter.IsZero() {
		cert.NotBefore, cert.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	cert.SerialNumber, cert.KeyUsage = big.NewInt(time.Now().UnixNano()), x509.KeyUsageDigitalSignature
	leaf, err := x509.CreateCertificate(rand.Reader, &cert, parent, k.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf, block.Bytes}, PrivateKey: k}
}
