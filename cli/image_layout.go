package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bulkhead/deployfile"
	"bulkhead/image/platform"
)

func openLayout(src imageSource, arches []string) (*localImage, error) {
	path := src.name
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
		err := malformed(path, "the folder is not an OCI layout (it has no file oci-layout)")
		if deployfile.Find(path) != "" {
			return nil, hint(err, "to deploy the app whose deploy file is in this folder: bulkhead deploy %s", path)
		}
		return nil, hint(err, "building an image from a folder is not supported yet; build it elsewhere and give its archive")
	}
	img, err := fromLayout(path, dirBlobs(src), arches)
	if err != nil {
		return nil, err
	}
	return &localImage{Image: img, path: path, kind: "OCI layout", close: func() {}}, nil
}

// blobSource opens a file of an OCI layout by its name in it.
type blobSource func(name string) (io.ReadCloser, error)

func dirBlobs(src imageSource) blobSource {
	return func(name string) (io.ReadCloser, error) {
		f, err := src.open(filepath.Join(src.name, filepath.FromSlash(name)))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("it has no file %s", name)
		}
		return f, err
	}
}

// document reads a small file whole.
func (b blobSource) document(name string) ([]byte, error) {
	r, err := b(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err == nil && len(data) > maxManifest {
		err = fmt.Errorf("%s has more than %d bytes", name, maxManifest)
	}
	return data, err
}

// byDigest reads a small blob and checks it against its digest.
func (b blobSource) byDigest(h v1.Hash) ([]byte, error) {
	data, err := b.document(blobName(h))
	if err != nil {
		return nil, err
	}
	if got, _, _ := v1.SHA256(bytes.NewReader(data)); got != h {
		return nil, fmt.Errorf("the blob %s has the digest %s", h, got)
	}
	return data, nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// fromLayout finds the one image of an OCI layout that fits arches.
func fromLayout(path string, blobs blobSource, arches []string) (v1.Image, error) {
	raw, err := blobs.document("index.json")
	if err != nil {
		return nil, malformed(path, "%v", err)
	}
	found, err := manifests(blobs, raw, 0)
	if err != nil {
		return nil, malformed(path, "%v", err)
	}
	fit, others := platform.Choose(found, arches, blobs.platform)
	switch {
	case len(fit) > 1:
		return nil, severalImages(path, fit)
	case len(fit) == 0 && len(others) > 0:
		return nil, wrongPlatform(path, strings.Join(others, ", "), arches)
	case len(fit) == 0:
		return nil, malformed(path, "its index names no image")
	}
	d := fit[0]
	manifest, err := blobs.byDigest(d.Digest)
	if err != nil {
		return nil, malformed(path, "%v", err)
	}
	img, err := partial.CompressedToImage(&layoutImage{blobs: blobs, manifest: manifest, mediaType: d.MediaType})
	if err != nil {
		return nil, malformed(path, "%v", err)
	}
	return img, nil
}

// manifests lists the images that an index names, also through indexes in it.
func manifests(blobs blobSource, raw []byte, depth int) ([]v1.Descriptor, error) {
	if depth > maxIndexDepth {
		return nil, fmt.Errorf("its indexes are nested more than %d deep", maxIndexDepth)
	}
	var ix v1.IndexManifest
	if err := json.Unmarshal(raw, &ix); err != nil {
		return nil, fmt.Errorf("its index is not in order: %v", err)
	}
	var out []v1.Descriptor
	for _, d := range ix.Manifests {
		switch {
		case d.MediaType.IsIndex():
			inner, err := blobs.byDigest(d.Digest)
			if err != nil {
				return nil, err
			}
			more, err := manifests(blobs, inner, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		default:
			out = append(out, d)
		}
	}
	return out, nil
}

// platform finds what an image is built for in its configuration; nil is no image.
func (b blobSource) platform(d v1.Descriptor) *v1.Platform {
	raw, err := b.byDigest(d.Digest)
	if err != nil {
		return nil
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil || !m.Config.MediaType.IsConfig() {
		return nil
	}
	if raw, err = b.byDigest(m.Config.Digest); err != nil {
		return nil
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil || c.OS == "" && c.Architecture == "" {
		return nil // a signature has an empty one
	}
	return &v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
}

// severalImages refuses an archive of which nothing tells which image is meant.
func severalImages(path string, all []v1.Descriptor) error {
	var names []string
	for _, d := range all {
		name := platform.Name(d)
		if name == "" {
			name = d.Digest.String()[:19]
		}
		names = append(names, name)
	}
	return malformed(path, "it holds %d images (%s); make an archive with one", len(all), strings.Join(names, ", "))
}

// layoutImage is an image in an OCI layout.
type layoutImage struct {
	blobs     blobSource
	manifest  []byte
	mediaType types.MediaType
}

func (i *layoutImage) MediaType() (types.MediaType, error) { return i.mediaType, nil }
func (i *layoutImage) RawManifest() ([]byte, error)        { return i.manifest, nil }

func (i *layoutImage) RawConfigFile() ([]byte, error) {
	m, err := partial.Manifest(i)
	if err != nil {
		return nil, err
	}
	return i.blobs.byDigest(m.Config.Digest)
}

func (i *layoutImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	m, err := partial.Manifest(i)
	if err != nil {
		return nil, err
	}
	if h == m.Config.Digest {
		return partial.ConfigLayer(i)
	}
	for _, d := range m.Layers {
		if d.Digest == h {
			return &layoutLayer{i.blobs, d}, nil
		}
	}
	return nil, fmt.Errorf("the manifest names no layer %s", h)
}

// layoutLayer is a layer in an OCI layout.
type layoutLayer struct {
	blobs blobSource
	desc  v1.Descriptor
}

func (l *layoutLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *layoutLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *layoutLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *layoutLayer) Compressed() (io.ReadCloser, error)  { return l.blobs(blobName(l.desc.Digest)) }
func (l *layoutLayer) Descriptor() (*v1.Descriptor, error) { return &l.desc, nil }
