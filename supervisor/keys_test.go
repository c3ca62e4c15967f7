package supervisor

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"strings"
	"testing"
)

// TestDamagedGrantKey: each kind of damage to the key that signs grants is told
// apart, and the key is not replaced.
func TestDamagedGrantKey(t *testing.T) {
	_, strange, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		said   string
	}{
		"empty":              {func([]byte) []byte { return nil }, "has 0 bytes instead of 64"},
		"cut short":          {func(b []byte) []byte { return b[:40] }, "has 40 bytes instead of 64"},
		"garbage":            {func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) }, "its two halves do not belong together"},
		"of another cluster": {func([]byte) []byte { return strange }, "do not belong together: one of them is another installation's"},
	} {
		in := &installation{dir: t.TempDir(), users: &users{uid: map[string]uint32{}, gid: map[string]uint32{}}}
		if err := in.ensureGrantKey(nil); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(in.path(grantKey))
		if err != nil {
			t.Fatal(err)
		}
		want := c.change(b)
		if err := os.WriteFile(in.path(grantKey), want, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := in.ensureGrantKey(nil); err == nil || !strings.Contains(err.Error(), c.said) {
			t.Errorf("%s: %v", name, err)
		}
		if now, _ := os.ReadFile(in.path(grantKey)); !bytes.Equal(now, want) {
			t.Errorf("%s: it was replaced", name)
		}
	}
}
