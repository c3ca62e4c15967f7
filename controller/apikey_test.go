package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/pki"
	"bulkhead/pki/pkitest"
)

// TestLostAPIKey: the key that every login pins is not made anew without a word, a key in
// its place is seen, and the pin outlives a rotation of the authority.
func TestLostAPIKey(t *testing.T) {
	ca, dir := pkitest.CA(t, "c-1", "apps.test"), t.TempDir()
	key := filepath.Join(dir, "api.key")
	open := func() (*apiCert, error) { return openAPICert(ca, dir, "apps.test") }
	a, err := open()
	if err != nil {
		t.Fatal(err)
	}
	pin := a.pin()
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(key)
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "is missing") || !strings.Contains(err.Error(), pin) {
		t.Errorf("lost: %v", err)
	}
	if _, err := pki.OpenKey(key); err != nil { // somebody else's
		t.Fatal(err)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("replaced: %v", err)
	}
	if err := os.WriteFile(key, good, 0o600); err != nil {
		t.Fatal(err)
	}
	// An installation of before has no such file.
	os.Remove(filepath.Join(dir, "api.pin"))
	if a, err = open(); err != nil || a.pin() != pin {
		t.Fatalf("restored: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "api.pin")); err != nil {
		t.Error(err)
	}

	before, _ := a.get(nil)
	roots := ca.Status().Roots
	rootKey, err := ca.ClearRootKey()
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.ParseRoot(roots[0].DER, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	req, err := ca.Request()
	if err != nil {
		t.Fatal(err)
	}
	in, err := root.Sign(req, "c-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Install(in, false); err != nil {
		t.Fatal(err)
	}
	after, err := a.get(nil)
	if err != nil || string(after.Certificate[1]) == string(before.Certificate[1]) || a.pin() != pin {
		t.Errorf("after a rotation: another intermediate %v, same pin %v, %v", string(after.Certificate[1]) != string(before.Certificate[1]), a.pin() == pin, err)
	}
}
