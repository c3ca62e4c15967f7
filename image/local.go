package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bulkhead/fault"
	"bulkhead/key"
)

// Local is an image in a folder or an archive on this machine. It is a Source, and
// what its Image and Index give can be pushed with go-containerregistry. The folder
// or file must stay as it is until Close.
type Local struct {
	// Digest is that of the image's manifest, or of its index.
	Digest key.Digest
	// Image is the image; nil when there is an Index.
	Image v1.Image
	// Index is the index of one image for several platforms; nil when there is just
	// an Image.
	Index v1.ImageIndex

	Source
	close func() error
}

// Close gives the archive up.
func (l *Local) Close() error {
	if l.close == nil {
		return nil
	}
	return l.close()
}

// OpenLayout opens an OCI image layout: a folder with index.json and blobs. The
// error says what is missing or malformed; it is Invalid.
func OpenLayout(dir string) (*Local, error) {
	l, err := openBlobs(dirBlobs(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Invalid, err, "%s is not an OCI image layout: it has no index.json, or a file that it names is missing", dir)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s is not a usable OCI image layout: %w", dir, err)
	}
	return l, nil
}

// OpenArchive opens an image in a tar archive, uncompressed: an OCI image layout, or
// what "docker save" writes for one image. The error is Invalid.
func OpenArchive(file string) (*Local, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the archive cannot be opened: %w", err)
	}
	l, err := openArchive(f)
	if err != nil {
		f.Close()
		return nil, fault.New(fault.Invalid, "%s is not a usable image archive: %w", file, err)
	}
	l.close = f.Close
	return l, nil
}

func openArchive(f *os.File) (*Local, error) {
	blobs, err := readArchive(f)
	if err != nil {
		return nil, err
	}
	if _, ok := blobs.files["index.json"]; ok {
		return openBlobs(blobs)
	}
	if _, ok := blobs.files["manifest.json"]; !ok {
		return nil, errors.New("it has neither index.json (OCI) nor manifest.json (docker save)")
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return os.Open(f.Name()) }, nil)
	if err != nil {
		return nil, err
	}
	h, err := img.Digest()
	if err != nil {
		return nil, err
	}
	return &Local{Digest: key.Digest(h.String()), Image: img, Source: FromImage(img)}, nil
}

// blobs are the files of an OCI image layout. Names are slash-separated.
type blobs interface {
	open(name string) (io.ReadCloser, error)
}

// dirBlobs is a layout in a folder.
type dirBlobs string

func (d dirBlobs) open(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
}

// tarBlobs is a layout in an archive.
type tarBlobs struct {
	f     *os.File
	files map[string]span
}

type span struct{ off, size int64 }

func (t *tarBlobs) open(name string) (io.ReadCloser, error) {
	s, ok := t.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(t.f, s.off, s.size)), nil
}

// readArchive notes where the regular files of an archive are.
func readArchive(f *os.File) (*tarBlobs, error) {
	t := &tarBlobs{f: f, files: make(map[string]span)}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			var magic [2]byte
			if f.ReadAt(magic[:], 0); magic == [2]byte{0x1f, 0x8b} {
				return nil, errors.New("it is compressed; unpack it with gunzip first")
			}
			return nil, fmt.Errorf("it is not a tar archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		// The tar reader seeks over contents, and so stands at their start now.
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		t.files[path.Clean(strings.TrimPrefix(h.Name, "/"))] = span{off, h.Size}
	}
}

// maxJSON bounds manifests, indexes and configurations of local images, in bytes.
const maxJSON = 4 << 20

// readSmall reads a document and, when digest is not empty, verifies it.
func readSmall(b blobs, name string, digest key.Digest) ([]byte, error) {
	r, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	p, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return nil, err
	}
	if len(p) > maxJSON {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxJSON)
	}
	if digest != "" && digestOf(p) != digest {
		return nil, fmt.Errorf("%s has the digest %s", name, digestOf(p))
	}
	return p, nil
}

func blobName(d key.Digest) string { return "blobs/sha256/" + d.Hex() }

// openBlobs finds the one image, or index, that a layout's index.json names.
func openBlobs(b blobs) (*Local, error) {
	raw, err := readSmall(b, "index.json", "")
	if err != nil {
		return nil, err
	}
	var top v1.IndexManifest
	if err := json.Unmarshal(raw, &top); err != nil {
		return nil, fmt.Errorf("index.json is malformed: %w", err)
	}
	desc, err := onlyOne(top.Manifests)
	if err != nil {
		return nil, err
	}
	digest, err := descriptorDigest(desc)
	if err != nil {
		return nil, fmt.Errorf("index.json %w", err)
	}
	l := &Local{Digest: digest, Source: blobSource{b}}
	if desc.MediaType.IsIndex() {
		idx, err := newLocalIndex(b, digest)
		l.Index = idx
		return l, err
	}
	l.Image, err = newLocalImage(b, digest)
	return l, err
}

// onlyOne picks the image of a layout: the only entry, or the only one for this
// platform.
func onlyOne(all []v1.Descriptor) (v1.Descriptor, error) {
	if len(all) == 1 {
		return all[0], nil
	}
	if len(all) == 0 {
		return v1.Descriptor{}, errors.New("index.json names no image")
	}
	digest, err := choose(all)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("index.json %w", err)
	}
	for _, d := range all {
		if d.Digest.String() == string(digest) {
			return d, nil
		}
	}
	return v1.Descriptor{}, errors.New("index.json names no image")
}

// blobSource is a Source over a layout.
type blobSource struct{ b blobs }

// Manifest implements Source.
func (s blobSource) Manifest(_ context.Context, digest key.Digest) ([]byte, string, error) {
	raw, err := readSmall(s.b, blobName(digest), "")
	return raw, "", notFound(err, "manifest", digest)
}

// Blob implements Source.
func (s blobSource) Blob(_ context.Context, digest key.Digest, _ int64) (io.ReadCloser, error) {
	r, err := s.b.open(blobName(digest))
	return r, notFound(err, "blob", digest)
}

func notFound(err error, what string, digest key.Digest) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err, "there is no %s %s", what, digest)
	}
	return fault.Wrap(fault.Unavailable, err, "the %s %s cannot be read", what, digest)
}

// localImage is the core that go-containerregistry makes a v1.Image of.
type localImage struct {
	b      blobs
	raw    []byte
	config []byte
	m      *v1.Manifest
}

func newLocalImage(b blobs, digest key.Digest) (v1.Image, error) {
	raw, err := readSmall(b, blobName(digest), digest)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("the manifest %s is malformed: %w", digest, err)
	}
	cd, err := descriptorDigest(m.Config)
	if err != nil {
		return nil, fmt.Errorf("the manifest %s %w", digest, err)
	}
	config, err := readSmall(b, blobName(cd), cd)
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(&localImage{b, raw, config, m})
}

func (i *localImage) RawManifest() ([]byte, error)   { return i.raw, nil }
func (i *localImage) RawConfigFile() ([]byte, error) { return i.config, nil }
func (i *localImage) MediaType() (types.MediaType, error) {
	if i.m.MediaType == "" {
		return types.OCIManifestSchema1, nil
	}
	return i.m.MediaType, nil
}

func (i *localImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range append(i.m.Layers, i.m.Config) {
		if d.Digest == h {
			return &localLayer{i.b, d}, nil
		}
	}
	return nil, fmt.Errorf("there is no layer %s", h)
}

// localLayer is one layer, or the configuration, of a localImage.
type localLayer struct {
	b blobs
	d v1.Descriptor
}

func (l *localLayer) Digest() (v1.Hash, error)            { return l.d.Digest, nil }
func (l *localLayer) Size() (int64, error)                { return l.d.Size, nil }
func (l *localLayer) MediaType() (types.MediaType, error) { return l.d.MediaType, nil }
func (l *localLayer) Compressed() (io.ReadCloser, error) {
	return l.b.open(blobName(key.Digest(l.d.Digest.String())))
}

// localIndex is a v1.ImageIndex over a layout.
type localIndex struct {
	b      blobs
	raw    []byte
	digest key.Digest
	m      *v1.IndexManifest
}

func newLocalIndex(b blobs, digest key.Digest) (v1.ImageIndex, error) {
	raw, err := readSmall(b, blobName(digest), digest)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("the index %s is malformed: %w", digest, err)
	}
	return &localIndex{b, raw, digest, m}, nil
}

func (i *localIndex) MediaType() (types.MediaType, error) {
	if i.m.MediaType == "" {
		return types.OCIImageIndex, nil
	}
	return i.m.MediaType, nil
}
func (i *localIndex) Digest() (v1.Hash, error)                  { return v1.NewHash(string(i.digest)) }
func (i *localIndex) Size() (int64, error)                      { return int64(len(i.raw)), nil }
func (i *localIndex) IndexManifest() (*v1.IndexManifest, error) { return i.m.DeepCopy(), nil }
func (i *localIndex) RawManifest() ([]byte, error)              { return i.raw, nil }
func (i *localIndex) Image(h v1.Hash) (v1.Image, error) {
	return newLocalImage(i.b, key.Digest(h.String()))
}
func (i *localIndex) ImageIndex(h v1.Hash) (v1.ImageIndex, error) {
	return newLocalIndex(i.b, key.Digest(h.String()))
}
