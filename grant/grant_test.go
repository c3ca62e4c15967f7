package grant_test

import (
	"crypto/ed25519"
	"testing"

	"bulkhead/fault"
	"bulkhead/grant"
)

func TestGrant(t *testing.T) {
	pub, priv, _ := ed25519.GenerateKey(nil)
	_, other, _ := ed25519.GenerateKey(nil)
	want := grant.Grant{Machine: "0123456789abcd", Node: "n1", Network: 7, CPUs: 1, MemoryMB: 256, MaxPIDs: 100}
	enc, sig, err := grant.Sign(priv, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := grant.Verify(pub, "n1", enc, sig); err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	_, forged, _ := grant.Sign(other, want)
	changed := append([]byte{}, enc...)
	changed[len(changed)-2] ^= 1
	raw := ed25519.Sign(priv, enc) // a signature by the same key, made for something else
	for name, c := range map[string]struct {
		pub      ed25519.PublicKey
		enc, sig []byte
		node     string
	}{
		"another key":      {pub, enc, forged, "n1"},
		"changed":          {pub, changed, sig, "n1"},
		"another purpose":  {pub, enc, raw, "n1"},
		"no signature":     {pub, enc, nil, "n1"},
		"another node":     {pub, enc, sig, "n2"},
		"no key to verify": {nil, enc, sig, "n1"},
	} {
		t.Run(name, func(t *testing.T) {
			node := want.Node
			if c.node != "n1" {
				node = "n2"
			}
			if _, err := grant.Verify(c.pub, node, c.enc, c.sig); !fault.Is(err, fault.Denied) {
				t.Fatalf("accepted: %v", err)
			}
		})
	}
}
