//go:build linux

package image

import (
	"bytes"
	"context"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/image/imagetest"
	"bulkhead/key"
	"bulkhead/machine"
)

// twisted is a source whose answers a test changes.
type twisted struct {
	Source
	manifest func([]byte) []byte
	blob     func(key.Digest, []byte) []byte
}

func (w twisted) Manifest(ctx context.Context, d key.Digest) ([]byte, string, error) {
	p, mt, err := w.Source.Manifest(ctx, d)
	if w.manifest != nil {
		p = w.manifest(p)
	}
	return p, mt, err
}

func (w twisted) Blob(ctx context.Context, d key.Digest, size int64) (io.ReadCloser, error) {
	r, err := w.Source.Blob(ctx, d, size)
	if err != nil || w.blob == nil {
		return r, err
	}
	defer r.Close()
	p, err := io.ReadAll(r)
	return io.NopCloser(bytes.NewReader(w.blob(d, p))), err
}

// TestWrongDigest: every byte that comes from a source counts.
func TestWrongDigest(t *testing.T) {
	img := imagetest.New(t, v1.Config{}, small...)
	cfg, _ := img.ConfigName()
	isConfig := func(d key.Digest) bool { return string(d) == cfg.String() }
	ref := machine.ImageRef{Digest: imagetest.Digest(t, img)}
	// A gzip header's time can change without changing what the layer unpacks to.
	changeTime := func(p []byte) []byte { return flip(p, 4) }
	tests := map[string]struct {
		src  twisted
		want string
	}{
		"manifest": {twisted{manifest: func(p []byte) []byte { return append(p, ' ') }}, "its manifest has the digest"},
		"config": {twisted{blob: func(d key.Digest, p []byte) []byte {
			if isConfig(d) {
				return flip(p, 10)
			}
			return p
		}}, "its config"},
		"layer": {twisted{blob: func(d key.Digest, p []byte) []byte {
			if !isConfig(d) {
				return changeTime(p)
			}
			return p
		}}, "its contents have the digest"},
		"layer too short": {twisted{blob: func(d key.Digest, p []byte) []byte {
			if !isConfig(d) {
				return p[:len(p)-1]
			}
			return p
		}}, "ends after"},
		"layer too long": {twisted{blob: func(d key.Digest, p []byte) []byte {
			if !isConfig(d) {
				return append(p, 0)
			}
			return p
		}}, "longer than"},
		"config too short": {twisted{blob: func(d key.Digest, p []byte) []byte { return p[:len(p)-1] }}, "its config is not the"},
		"config too long":  {twisted{blob: func(d key.Digest, p []byte) []byte { return append(p, ' ') }}, "its config is not the"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			tt.src.Source = FromImage(img)
			_, err := s.Ensure(ctxT(t), tt.src, ref)
			refused(t, s, err, tt.want)
		})
	}
	// The control: with the check of layers turned off, the changed layer passes, so
	// that it is this check that the case above sees.
	t.Run("control", func(t *testing.T) {
		s := openStore(t)
		s.trustLayers = true
		src := tests["layer"].src
		src.Source = FromImage(img)
		if _, err := s.Ensure(ctxT(t), src, ref); err != nil {
			t.Errorf("without the check the layer is refused all the same: %v", err)
		}
	})
}
