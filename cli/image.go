package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"bulkhead/fault"
)

// localImage is an image on this computer: an OCI layout in a folder or an archive,
// or the output of docker save. Nothing of it is unpacked.
type localImage struct {
	v1.Image
	path  string
	kind  string // what it is, for messages
	close func()
}

// Bounds on the documents of an image; layers are streamed.
const (
	maxManifest   = 8 << 20
	maxIndexDepth = 4
)

var pathLikeRE = regexp.MustCompile(`^(\.{0,2}[/\\]|\.{1,2}$|~/|[A-Za-z]:[/\\])|\.(tar|tgz|tar\.gz|tar\.zst|oci)$`)

// isLocal decides whether image names something on this computer: a path that
// exists as an image does, and so does a word that can only be a path.
func isLocal(image string) bool {
	st, err := os.Stat(image)
	switch {
	case err != nil:
		return pathLikeRE.MatchString(image)
	case st.IsDir():
		_, err := os.Stat(filepath.Join(image, "oci-layout"))
		return err == nil || pathLikeRE.MatchString(image)
	}
	return true
}

// checkReference checks the form of an image reference.
func checkReference(image string) error {
	if _, err := name.ParseReference(image); err != nil {
		return hint(usagef("%q is neither an image reference nor an image on this computer", image), "give a reference such as registry.example.com/app:tag, an OCI layout folder, or an archive made by \"docker save\"")
	}
	return nil
}

// openImage opens the image at path. arches are the architectures that can run:
// of an image for several, the first that fits is taken, and an image for none of
// them is refused.
func openImage(path string, arches []string) (*localImage, error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, usagef("there is no image at %s", path)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read the image at %s: %v", path, errors.Unwrap(err))
	}
	var img *localImage
	if st.IsDir() {
		img, err = openLayout(path, arches)
	} else {
		img, err = openArchive(path, arches)
	}
	if err != nil {
		return nil, err
	}
	if err := checkPlatform(img, arches); err != nil {
		img.close()
		return nil, err
	}
	return img, nil
}

// malformed is an image that is not what it says.
func malformed(path, format string, args ...any) error {
	return usage(fault.New(fault.Invalid, "the image at %s cannot be used: %s", path, fmt.Sprintf(format, args...)))
}

func openLayout(path string, arches []string) (*localImage, error) {
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
		return nil, hint(malformed(path, "the folder is not an OCI layout (it has no file oci-layout)"), "to deploy the app whose deploy file is in this folder: bulkhead deploy %s", path)
	}
	img, err := fromLayout(path, dirBlobs(path), arches)
	if err != nil {
		return nil, err
	}
	return &localImage{Image: img, path: path, kind: "OCI layout", close: func() {}}, nil
}

// openArchive opens a tar file, plain or compressed, and looks what is inside.
func openArchive(path string, arches []string) (*localImage, error) {
	f, cleanup, err := plainTar(path)
	if err != nil {
		return nil, err
	}
	entries, err := tarEntries(f)
	if err != nil || len(entries) == 0 {
		cleanup()
		if err == nil || errors.Is(err, tar.ErrHeader) {
			return nil, malformed(path, "the file is not a tar archive")
		}
		return nil, malformed(path, "the archive is damaged: %v", err)
	}
	var img v1.Image
	kind := "OCI archive"
	switch {
	case entries.has("oci-layout") && entries.has("index.json"):
		img, err = fromLayout(path, entries.blobs(f), arches)
	case entries.has("manifest.json"):
		kind = "docker archive"
		img, err = tarball.Image(func() (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(f, 0, 1<<62)), nil
		}, nil)
		if err != nil {
			err = malformed(path, "%v", err)
		}
	default:
		err = malformed(path, "the archive holds neither an OCI layout nor the output of \"docker save\"")
	}
	if err != nil {
		cleanup()
		return nil, err
	}
	return &localImage{Image: img, path: path, kind: kind, close: cleanup}, nil
}

// plainTar opens path for random access, decompressed into a temporary file where
// it must be.
func plainTar(path string) (*os.File, func(), error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Invalid, err, "cannot read the image at %s: %v", path, errors.Unwrap(err))
	}
	br := bufio.NewReader(f)
	head, _ := br.Peek(4)
	var r io.Reader
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(br)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(br); err == nil {
			defer d.Close()
			r = d
		}
	default:
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			f.Close()
			return nil, nil, malformed(path, "it is not a file that can be read at any place")
		}
		return f, func() { f.Close() }, nil
	}
	defer f.Close()
	if err != nil {
		return nil, nil, malformed(path, "its compression is damaged: %v", err)
	}
	tmp, err := os.CreateTemp("", "bulkhead-image-*.tar")
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a temporary file for the image: %v", err)
	}
	cleanup := func() { tmp.Close(); os.Remove(tmp.Name()) }
	if _, err := io.Copy(tmp, r); err != nil {
		cleanup()
		return nil, nil, malformed(path, "its compression is damaged: %v", err)
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		cleanup()
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot read the temporary file of the image: %v", err)
	}
	return tmp, cleanup, nil
}

// section is where an entry's content lies in an archive.
type section struct{ off, size int64 }

type archive map[string]section

func (a archive) has(name string) bool { _, ok := a[name]; return ok }

// tarEntries lists the regular files of a tar file. The reader of package tar does
// not read ahead, so the file's position after Next is where the content starts.
func tarEntries(f *os.File) (archive, error) {
	a := archive{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		a[strings.TrimPrefix(h.Name, "./")] = section{off, h.Size}
	}
}

// blobSource opens a file of an OCI layout by its name in it.
type blobSource func(name string) (io.ReadCloser, error)

func (a archive) blobs(f *os.File) blobSource {
	return func(name string) (io.ReadCloser, error) {
		s, ok := a[name]
		if !ok {
			return nil, fmt.Errorf("it has no file %s", name)
		}
		return io.NopCloser(io.NewSectionReader(f, s.off, s.size)), nil
	}
}

func dirBlobs(root string) blobSource {
	return func(name string) (io.ReadCloser, error) {
		f, err := os.Open(filepath.Join(root, filepath.FromSlash(name)))
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
	if len(found) > 1 {
		var have []string
		var fit []v1.Descriptor
		for _, d := range found {
			if d.Platform == nil {
				continue
			}
			have = append(have, d.Platform.String())
			if d.Platform.OS == "linux" && slices.Contains(arches, d.Platform.Architecture) {
				fit = append(fit, d)
			}
		}
		if len(fit) > 1 {
			return nil, malformed(path, "it holds %d images for linux/%s; make an archive with one", len(fit), strings.Join(arches, ", linux/"))
		}
		if len(fit) == 0 {
			return nil, wrongPlatform(path, strings.Join(have, ", "), arches)
		}
		found = fit
	}
	if len(found) == 0 {
		return nil, malformed(path, "its index names no image")
	}
	d := found[0]
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
		case d.Platform != nil && d.Platform.OS == "unknown":
			// An attestation that buildx keeps beside the image.
		case d.MediaType.IsImage():
			out = append(out, d)
		}
	}
	return out, nil
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

// checkPlatform refuses an image that the cluster cannot run.
func checkPlatform(img *localImage, arches []string) error {
	cf, err := img.ConfigFile()
	if err != nil {
		return malformed(img.path, "its config cannot be read: %v", err)
	}
	if _, err := img.Layers(); err != nil {
		return malformed(img.path, "%v", err)
	}
	if cf.OS == "linux" && slices.Contains(arches, cf.Architecture) {
		return nil
	}
	return wrongPlatform(img.path, cf.OS+"/"+cf.Architecture, arches)
}

func wrongPlatform(path, have string, arches []string) error {
	want := "linux/" + strings.Join(arches, ", linux/")
	return hint(malformed(path, "it is built for %s, and the cluster runs %s", have, want), "build it with --platform %s", "linux/"+arches[0])
}

// exposedPort returns the one TCP port that the image says it listens on, 0 when it
// names none or several.
func exposedPort(img v1.Image) int {
	cf, err := img.ConfigFile()
	if err != nil || len(cf.Config.ExposedPorts) != 1 {
		return 0
	}
	port := 0
	for p := range cf.Config.ExposedPorts {
		n, proto, _ := strings.Cut(p, "/")
		if proto == "" || proto == "tcp" {
			fmt.Sscanf(n, "%d", &port)
		}
	}
	return port
}

// defaultArch is what a cluster is taken to run when it does not say.
func defaultArch() []string {
	if runtime.GOOS == "linux" && runtime.GOARCH == "arm64" {
		return []string{"arm64", "amd64"}
	}
	return []string{"amd64"}
}
