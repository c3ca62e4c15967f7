package pki_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bulkhead/pki"
	"bulkhead/pki/pkitest"
)

// TestIdentityHealsAfterLongOutage: a machine comes back after months. What its roles have
// on disk is over, and nobody lends a hand: they get new certificates and know each other.
func TestIdentityHealsAfterLongOutage(t *testing.T) {
	ca, dir := newCA(t, "c-1", "apps.test"), t.TempDir()
	log := slog.New(slog.DiscardHandler)
	long := func(id pki.ID) pki.Signer {
		return func(_ context.Context, csr []byte) ([][]byte, []byte, error) {
			return ca.IssueIdentityAt(csr, id, time.Now().Add(-90*24*time.Hour))
		}
	}
	var ids []*pki.Identity
	for _, r := range []string{"controller", "worker"} {
		id := pki.ID{Cluster: "c-1", Role: r, Node: "n1"}
		file := filepath.Join(dir, r+".pem")
		must(pki.OpenIdentity(t.Context(), file, long(id), log)).Close()
		block, rest := pem.Decode(must(os.ReadFile(file)))
		for block != nil && block.Type != "CERTIFICATE" {
			block, rest = pem.Decode(rest)
		}
		if leaf := must(x509.ParseCertificate(block.Bytes)); time.Since(leaf.NotAfter) < 80*24*time.Hour {
			t.Fatalf("the certificate on disk ends at %v: the test is no good", leaf.NotAfter)
		}
		i := must(pki.OpenIdentity(t.Context(), file, pkitest.Signer(ca, id), log))
		defer i.Close()
		ids = append(ids, i)
	}
	if serr, cerr := handshake(t, ids[0].ServerTLS(), ids[1].ClientTLS("controller", "n1")); serr != nil || cerr != nil {
		t.Errorf("%v, %v", serr, cerr)
	}
}
