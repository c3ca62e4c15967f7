package secret_test

import (
	"bytes"
	"testing"

	"bulkhead/secret"
)

// TestAppKey: a value opens under its own kind, name, version, app and cluster, and
// nowhere else; a digest cannot be computed without the key.
func TestAppKey(t *testing.T) {
	raw := secret.NewAppKey()
	k := secret.AppKeyOf(raw, "c-1", "id")
	s := k.Seal("secret", "A", 3, []byte("v"))
	if b, err := k.Open("secret", "A", 3, s); err != nil || string(b) != "v" {
		t.Fatalf("%q, %v", b, err)
	}
	if bytes.Equal(s, k.Seal("secret", "A", 3, []byte("v"))) {
		t.Error("a nonce twice")
	}
	refused := 0
	for _, c := range []struct {
		k          secret.AppKey
		kind, name string
		version    uint64
	}{
		{k, "secret key", "A", 3}, {k, "secret", "B", 3}, {k, "secret", "A", 2},
		{secret.AppKeyOf(raw, "c-2", "id"), "secret", "A", 3}, {secret.AppKeyOf(raw, "c-1", "other"), "secret", "A", 3},
		{secret.AppKeyOf(secret.NewAppKey(), "c-1", "id"), "secret", "A", 3},
	} {
		if _, err := c.k.Open(c.kind, c.name, c.version, s); err == nil {
			t.Errorf("it opened as %s %s version %d", c.kind, c.name, c.version)
		} else {
			refused++
		}
	}
	if refused != 6 {
		t.Errorf("%d of 6 refused", refused)
	}
	d := k.Digest("A", []byte("1234"))
	if d != k.Digest("A", []byte("1234")) || d == k.Digest("A", []byte("1235")) || d == k.Digest("B", []byte("1234")) {
		t.Error("a digest does not tell values apart")
	}
	if d == secret.AppKeyOf(secret.NewAppKey(), "c-1", "id").Digest("A", []byte("1234")) {
		t.Error("the digest does not depend on the key: it can be guessed")
	}
}

// TestRecipient: only the key pair of the call opens, and for the same purpose only.
func TestRecipient(t *testing.T) {
	r, err := secret.NewRecipient()
	if err != nil {
		t.Fatal(err)
	}
	other, _ := secret.NewRecipient()
	s, err := secret.SealTo(r.Public(), []byte("env"), "m1", "n1")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := r.Open(s, "m1", "n1"); err != nil || string(b) != "env" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := r.Open(s, "m2", "n1"); err == nil {
		t.Error("it opened for another machine")
	}
	if _, err := other.Open(s, "m1", "n1"); err == nil {
		t.Error("another key pair opened it")
	}
	s[len(s)-1] ^= 1
	if _, err := r.Open(s, "m1", "n1"); err == nil {
		t.Error("a flipped bit went unseen")
	}
	if _, err := secret.SealTo([]byte("short"), nil); err == nil {
		t.Error("sealed to no key")
	}
}
