package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// verifier holds a stream against the digest and size it is to have.
type verifier struct {
	want v1.Hash
	size int64
	n    int64
	h    hash.Hash
}

func newVerifier(want v1.Hash, size int64) *verifier {
	return &verifier{want: want, size: size, h: sha256.New()}
}

// see takes the next bytes and tells what is wrong. The digest is checked as soon as
// the last byte is there, so that whoever reads on gets the error and not the end.
func (v *verifier) see(p []byte, end bool) error {
	v.n += int64(len(p))
	v.h.Write(p)
	switch {
	case v.n > v.size:
		return fmt.Errorf("the layer %s has more than the %d bytes that the manifest says", v.want, v.size)
	case v.n < v.size && end:
		return fmt.Errorf("the layer %s has %d bytes, and the manifest says %d", v.want, v.n, v.size)
	case v.n < v.size:
		return nil
	}
	if got := hex.EncodeToString(v.h.Sum(nil)); got != v.want.Hex {
		return fmt.Errorf("the layer %s has the digest sha256:%s", v.want, got)
	}
	return nil
}
