package controller

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"testing"

	"bulkhead/controller/directory"
	"bulkhead/secret"
)

// TestRootKeysAreWrapped: what the store holds of a root key makes no token, and opens
// with this cluster's key alone.
func TestRootKeysAreWrapped(t *testing.T) {
	ring := func(cluster string) *secret.Ring {
		r, _, err := secret.OpenRing(t.Context(), cluster, secret.FileKeeper{Path: filepath.Join(t.TempDir(), "cluster.key")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	c := &Controller{ring: ring("bulkhead-a")}
	k, err := c.newRootKey()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := c.ring.Unwrap(directory.PurposeRootKey, k.Wrapped)
	if err != nil || len(plain) < 16 {
		t.Fatalf("control: the key does not open: %d bytes, %v", len(plain), err)
	}
	record, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{k.Wrapped, record} {
		if bytes.Contains(b, plain) || bytes.Contains(b, []byte(base64.StdEncoding.EncodeToString(plain))) {
			t.Errorf("the key stands in its record: %q", b)
		}
	}
	if _, err := ring("bulkhead-b").Unwrap(directory.PurposeRootKey, k.Wrapped); err == nil {
		t.Error("another cluster's key opens it")
	}
	if _, err := c.ring.Unwrap("another purpose", k.Wrapped); err == nil {
		t.Error("it opens as something else")
	}
}
