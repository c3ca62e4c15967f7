package pki_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bulkhead/internal/await"
	"bulkhead/pki"
	"bulkhead/pki/pkitest"
)

// TestIdentityOutlivesARestart: what is on disk serves while nobody signs, is renewed
// when somebody does, and is not used when it is not sound.
func TestIdentityOutlivesARestart(t *testing.T) {
	ca := pkitest.CA(t, "c-1", "apps.test")
	file := filepath.Join(t.TempDir(), "identity.pem")
	log := slog.New(slog.DiscardHandler)
	signer := pkitest.Signer(ca, pki.ID{Cluster: "c-1", Role: "edge", Node: "n1"})
	away := func(context.Context, []byte) ([][]byte, []byte, error) { return nil, nil, errors.New("away") }
	open := func(s pki.Signer) (*pki.Identity, error) {
		// It goes on asking: until it was refused once.
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		return pki.OpenIdentity(ctx, file, untilRefused(s, cancel), log)
	}
	if _, err := open(away); err == nil {
		t.Fatal("an identity without a certificate")
	}
	first := must(open(signer))
	first.Close()
	whole := must(os.ReadFile(file))
	if fi := must(os.Stat(file)); fi.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v", fi.Mode())
	}
	second, err := open(away)
	if err != nil {
		t.Fatalf("with a good certificate on disk: %v", err)
	}
	if got := second.ID().String(); got != "spiffe://c-1/edge/n1" {
		t.Errorf("recalled %s", got)
	}
	second.Close()
	// Renewed at once when somebody signs.
	third := must(open(signer))
	await.True(t, "the recalled certificate is renewed", func() bool { return string(must(os.ReadFile(file))) != string(whole) })
	third.Close()
	for name, b := range map[string][]byte{"empty": {}, "cut": whole[:len(whole)/2], "no PEM": []byte("x")} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := open(away); err == nil {
			id.Close()
			t.Errorf("a file that is %s was used", name)
		}
	}
}

// untilRefused is s that calls stop when it has no certificate to give.
func untilRefused(s pki.Signer, stop func()) pki.Signer {
	return func(ctx context.Context, csr []byte) ([][]byte, []byte, error) {
		chain, roots, err := s(ctx, csr)
		if err != nil {
			stop()
		}
		return chain, roots, err
	}
}

// TestIdentityIsKeptLater: a certificate that cannot be written serves, and is on disk
// as soon as it can be: a disk that is full gets room.
func TestIdentityIsKeptLater(t *testing.T) {
	ca := pkitest.CA(t, "c-1", "apps.test")
	file := filepath.Join(t.TempDir(), "later", "identity.pem")
	id := must(pki.OpenIdentity(t.Context(), file, pkitest.Signer(ca, pki.ID{Cluster: "c-1", Role: "edge", Node: "n1"}), slog.New(slog.DiscardHandler)))
	defer id.Close()
	if got := id.ID().String(); got != "spiffe://c-1/edge/n1" {
		t.Errorf("it is %s", got)
	}
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	await.True(t, "the certificate is kept", func() bool { _, err := os.Stat(file); return err == nil })
}
