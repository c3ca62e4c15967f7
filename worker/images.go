package worker

import (
	"context"
	"io"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/machine"
)

// images is Images over a store, the cluster's own registry behind the controller,
// and registries elsewhere.
type images struct {
	*image.Store
	remote     *image.Remote
	controller internalpb.ControllerClient
}

// NewImages returns Images that keeps images in store and fetches them from the
// cluster's own registry through the controller, or from the registry that the
// reference names.
func NewImages(store *image.Store, remote *image.Remote, controller internalpb.ControllerClient) Images {
	return &images{Store: store, remote: remote, controller: controller}
}

// Resolve implements Images.
func (i *images) Resolve(ctx context.Context, ref string) (machine.ImageRef, error) {
	out, _, err := i.remote.Resolve(ctx, ref)
	return out, err
}

// Ensure implements Images.
func (i *images) Ensure(ctx context.Context, id key.MachineID, ref machine.ImageRef) (*image.Image, error) {
	if ref.Registry == "" {
		return i.Store.Ensure(ctx, &clusterSource{i.controller, id, ref.Repository}, ref)
	}
	src, err := i.remote.Source(ref)
	if err != nil {
		return nil, err
	}
	return i.Store.Ensure(ctx, src, ref)
}

// Check implements Images. What the controller will not show before the Machine is
// assigned is checked when the image is sealed.
func (i *images) Check(ctx context.Context, id key.MachineID, ref machine.ImageRef, manifest []byte) error {
	src := &checkSource{clusterSource{i.controller, id, ref.Repository}, ref.Digest, manifest}
	_, err := image.Inspect(ctx, src, ref.Digest, i.Limits)
	switch fault.KindOf(err) {
	case "", fault.Denied, fault.NotFound, fault.Unavailable, fault.Internal:
		return nil
	}
	return err
}

// checkSource is a clusterSource of which one manifest is known.
type checkSource struct {
	clusterSource
	digest   key.Digest
	manifest []byte
}

// Manifest implements image.Source.
func (s *checkSource) Manifest(ctx context.Context, digest key.Digest) ([]byte, string, error) {
	if digest == s.digest && len(s.manifest) > 0 {
		return s.manifest, "", nil
	}
	return s.clusterSource.Manifest(ctx, digest)
}

// clusterSource is a repository of the cluster's own registry, for an image of one
// Machine. It is an image.Source.
type clusterSource struct {
	controller internalpb.ControllerClient
	machine    key.MachineID
	repository string
}

// Manifest implements image.Source.
func (s *clusterSource) Manifest(ctx context.Context, digest key.Digest) ([]byte, string, error) {
	r, err := s.controller.FetchManifest(ctx, &internalpb.FetchManifestRequest{MachineId: string(s.machine), Repository: s.repository, Digest: string(digest)})
	if err != nil {
		return nil, "", err
	}
	return r.GetContent(), r.GetMediaType(), nil
}

// Blob implements image.Source. A stream that breaks off is taken up again where it
// broke, a few times, so that a restart of the controller does not cost a fetch.
func (s *clusterSource) Blob(ctx context.Context, digest key.Digest, _ int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	b := &blob{ctx: ctx, cancel: cancel, src: s, digest: digest}
	if err := b.open(); err != nil {
		cancel()
		return nil, err
	}
	return b, nil
}

// blobResumes is how often a broken stream is taken up again without progress.
const blobResumes = 5

// blob reads one FetchBlob stream after another.
type blob struct {
	ctx    context.Context
	cancel context.CancelFunc
	src    *clusterSource
	digest key.Digest

	stream interface {
		Recv() (*internalpb.BlobChunk, error)
	}
	rest   []byte
	offset int64
	broken int
}

func (b *blob) open() error {
	st, err := b.src.controller.FetchBlob(b.ctx, &internalpb.FetchBlobRequest{MachineId: string(b.src.machine), Repository: b.src.repository, Digest: string(b.digest), Offset: b.offset})
	if err != nil {
		return err
	}
	b.stream = st
	return nil
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		c, err := b.stream.Recv()
		if err == nil {
			b.rest, b.broken = c.GetData(), 0
			continue
		}
		if !fault.Is(err, fault.Unavailable) || b.ctx.Err() != nil || b.broken == blobResumes {
			return 0, err
		}
		if err := sleep(b.ctx, retryFirst<<b.broken); err != nil {
			return 0, err
		}
		b.broken++
		if err := b.open(); err != nil && !fault.Is(err, fault.Unavailable) {
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	b.offset += int64(n)
	return n, nil
}

// Close ends the stream.
func (b *blob) Close() error { b.cancel(); return nil }
