package registry_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"testing"
)

// zeros reads as n zero bytes.
type zeros struct{ n int64 }

func (z *zeros) Read(b []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), z.n)
	clear(b[:n])
	z.n -= n
	return int(n), nil
}

// digestOfReader returns the digest of everything in r.
func digestOfReader(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// partsOf lists the digests of a manifest's config and layers.
func partsOf(t testing.TB, m []byte) []string {
	t.Helper()
	var doc struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	check(t, json.Unmarshal(m, &doc))
	parts := []string{doc.Config.Digest}
	for _, l := range doc.Layers {
		parts = append(parts, l.Digest)
	}
	return parts
}

// memDir makes a directory in memory until the test ends. A kill does not lose what
// the kernel holds, on whatever file system; on this one a test of kills is quick.
func memDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "registry-test-")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}
