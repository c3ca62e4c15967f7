package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDamagedAuthority: each kind of damage to each file of the authority is told
// apart, names the file, and nothing is made anew in its place.
func TestDamagedAuthority(t *testing.T) {
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	other := t.TempDir()
	if _, err := OpenCA(other, "c-other", "other.example"); err != nil {
		t.Fatal(err)
	}
	cases := 0
	for _, c := range []struct {
		name, said string
		change     func([]byte) []byte
	}{
		{"empty", "is empty; restore it", func([]byte) []byte { return nil }},
		{"cut short", "was cut short or overwritten; restore it", cut},
		{"garbage", "was cut short or overwritten; restore it", func([]byte) []byte { return []byte("\x00\xffgarbage") }},
	} {
		for _, file := range []string{"root.crt", "identity.key", "identity.crt", "server.key", "server.crt"} {
			dir := t.TempDir()
			if _, err := OpenCA(dir, "c-1", "a.example"); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, file)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := c.change(b)
			if err := os.WriteFile(path, want, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenCA(dir, "c-1", "a.example"); err == nil || !strings.Contains(err.Error(), c.said) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s %s: %v", file, c.name, err)
			}
			if now, _ := os.ReadFile(path); string(now) != string(want) {
				t.Errorf("%s %s was replaced", file, c.name)
			}
			cases++
		}
	}
	if _, err := OpenCA(other, "c-1", "a.example"); err == nil || !strings.Contains(err.Error(), "that of cluster [c-other]") {
		t.Errorf("another cluster's: %v", err)
	}
	mixed := t.TempDir()
	if _, err := OpenCA(mixed, "c-1", "a.example"); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"server.key", "server.crt"} {
		b, err := os.ReadFile(filepath.Join(other, f))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(mixed, f), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenCA(mixed, "c-1", "a.example"); err == nil || !strings.Contains(err.Error(), "was not signed by the root beside it") {
		t.Errorf("put together from two: %v", err)
	}
	t.Logf("%d files damaged", cases)
}
