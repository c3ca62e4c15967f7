package key_test

import (
	"strings"
	"testing"

	"bulkhead/key"
)

func TestGrammars(t *testing.T) {
	if _, err := key.ParseMachineID(string(key.NewMachineID())); err != nil {
		t.Error(err)
	}
	if _, err := key.ParseInstanceID(string(key.NewInstanceID())); err != nil {
		t.Error(err)
	}
	hostile := []string{"", ".", "..", "a/b", "a\x00b", "a b", "-a", "a-", "A", "é", "a\n", "../../etc", strings.Repeat("a", 64), "a.b"}
	for name, parse := range map[string]func(string) error{
		"machine":  func(s string) error { _, err := key.ParseMachineID(s); return err },
		"instance": func(s string) error { _, err := key.ParseInstanceID(s); return err },
		"app":      func(s string) error { _, err := key.ParseAppName(s); return err },
		"node":     func(s string) error { _, err := key.ParseNode(s); return err },
		"digest":   func(s string) error { _, err := key.ParseDigest(s); return err },
	} {
		for _, s := range hostile {
			if parse(s) == nil {
				t.Errorf("%s: %q was accepted", name, s)
			}
		}
	}
	for _, s := range []string{"a", "my-app-2", strings.Repeat("a", 63)} {
		if _, err := key.ParseAppName(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"api", "registry"} {
		if _, err := key.ParseAppName(s); err == nil {
			t.Errorf("%s is reserved and was accepted", s)
		}
	}
	if d, err := key.ParseDigest("sha256:" + strings.Repeat("0a", 32)); err != nil || d.Hex() != strings.Repeat("0a", 32) {
		t.Error(d, err)
	}
}
