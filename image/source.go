package image

import (
	"bytes"
	"context"
	"errors"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/fault"
	"bulkhead/key"
)

// Source is where an image comes from. What it gives is not trusted: whoever reads
// it verifies digests and sizes. Errors are *fault.Error: NotFound when there is no
// such content, Unavailable when it cannot be reached.
type Source interface {
	// Manifest returns an image manifest or an image index, and the media type that
	// the source gives for it, which may be empty.
	Manifest(ctx context.Context, digest key.Digest) (content []byte, mediaType string, err error)
	// Blob opens a configuration or a layer, of which the manifest says that it is
	// size bytes long. The caller closes it. Reading stops when ctx is done.
	Blob(ctx context.Context, digest key.Digest, size int64) (io.ReadCloser, error)
}

// FromImage is a Source that holds the one image img.
func FromImage(img v1.Image) Source { return imageSource{img} }

type imageSource struct{ img v1.Image }

// Manifest implements Source.
func (s imageSource) Manifest(_ context.Context, digest key.Digest) ([]byte, string, error) {
	got, err := s.img.Digest()
	if err != nil {
		return nil, "", fault.Wrap(fault.Unprocessable, err, "the image cannot be read")
	}
	if got.String() != string(digest) {
		return nil, "", fault.New(fault.NotFound, "there is no manifest %s", digest)
	}
	raw, err := s.img.RawManifest()
	if err != nil {
		return nil, "", fault.Wrap(fault.Unprocessable, err, "the image's manifest cannot be read")
	}
	mt, err := s.img.MediaType()
	return raw, string(mt), err
}

// Blob implements Source.
func (s imageSource) Blob(_ context.Context, digest key.Digest, _ int64) (io.ReadCloser, error) {
	h, err := v1.NewHash(string(digest))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "%q is not a digest", digest)
	}
	if name, err := s.img.ConfigName(); err == nil && name == h {
		raw, err := s.img.RawConfigFile()
		return io.NopCloser(bytes.NewReader(raw)), err
	}
	l, err := s.img.LayerByDigest(h)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "there is no blob %s", digest)
	}
	return l.Compressed()
}

// asFault gives an error of a source a kind, unless it has one.
func asFault(err error, format string, args ...any) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	return fault.Wrap(fault.Unavailable, err, format, args...)
}
