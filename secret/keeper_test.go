package secret_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/secret"
	"bulkhead/secret/secrettest"
)

// TestKeepers runs the suite of package secrettest on each keeper.
func TestKeepers(t *testing.T) {
	dir, kms := t.TempDir(), secrettest.NewService(t)
	keys := []secret.Key{secret.NewKey(), secret.NewKey()}
	cred := filepath.Join(dir, "credential")
	if err := os.WriteFile(cred, secret.FormatKeys(keys), 0o400); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(cred)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		name  string
		open  func() secret.Keeper
		given []secret.Key
	}{
		{"file", func() secret.Keeper { return secret.FileKeeper{Path: filepath.Join(dir, "a")} }, nil},
		{"kms", func() secret.Keeper {
			return secret.FileKeeper{Path: filepath.Join(dir, "b"), Sealer: secret.KMS{Socket: kms.Socket}}
		}, nil},
		{"credential", func() secret.Keeper { return secret.CredentialKeeper{Name: "k", File: f} }, keys},
	} {
		t.Run(c.name, func(t *testing.T) { secrettest.RunKeeper(t, c.open, c.given) })
	}
}

// TestKMS: the service keeps the contract; what is on the disk opens with it alone, and
// without it nothing is made anew.
func TestKMS(t *testing.T) {
	kms := secrettest.NewService(t)
	secrettest.RunSealer(t, secret.KMS{Socket: kms.Socket})
	k := secret.FileKeeper{Path: filepath.Join(t.TempDir(), "cluster.key"), Sealer: secret.KMS{Socket: kms.Socket}}
	r, check, err := secret.OpenRing(ctx, "c-1", k, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(k.Path)
	if bytes.Contains(b, []byte(r.IDs()[0])) {
		t.Error("the file is not sealed")
	}
	asked := kms.Asked.Load()
	for range 100 {
		if _, err := r.Wrap("x", nil); err != nil {
			t.Fatal(err)
		}
	}
	if kms.Asked.Load() != asked {
		t.Error("the service is asked for each key that is wrapped")
	}
	kms.Down.Store(true)
	if _, _, err := secret.OpenRing(ctx, "c-1", k, check); err == nil || !strings.Contains(err.Error(), "the service is sealed itself") {
		t.Errorf("the service refuses: %v", err)
	}
	gone := secret.FileKeeper{Path: k.Path, Sealer: secret.KMS{Socket: "/nonexistent"}}
	if _, _, err := secret.OpenRing(ctx, "c-1", gone, check); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("the service is away: %v", err)
	}
	kms.Down.Store(false)
	if _, _, err := secret.OpenRing(ctx, "c-1", k, check); err != nil {
		t.Errorf("the service is back: %v", err)
	}
}
