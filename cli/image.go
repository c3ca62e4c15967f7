package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
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

	"bulkhead/deployfile"
	"bulkhead/fault"
	"bulkhead/image/platform"
)

// localImage is an image on this computer: an OCI layout in a folder or an archive,
// or the output of docker save. Nothing of it is unpacked.
type localImage struct {
	v1.Image
	path  string
	kind  string       // what it is, for messages
	plain *plainLayers // set where the layers must be compressed first
	close func()
}

// Bounds on the documents of an image; layers are streamed.
const (
	maxManifest   = 8 << 20
	maxIndexDepth = 4
)

var pathLikeRE = regexp.MustCompile(`^(\.{0,2}[/\\]|\.{1,2}$|~/|[A-Za-z]:[/\\])|\.(tar|tgz|tbz2?|txz|tar\.gz|tar\.zst|tar\.bz2|tar\.xz|oci)$`)

// imageSource is an image as the user, or the deploy file, names it.
type imageSource struct {
	name string // a reference or a path
	// folder is where everything read must stay, "" for anywhere: the folder of the
	// deploy file that names the image.
	folder string
}

// errOutside says that a path leads out of the folder of an imageSource.
var errOutside = deployfile.ErrOutside

// open opens a file of the image.
func (i imageSource) open(path string) (*os.File, error) {
	if i.folder == "" {
		return os.Open(path)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f := deployfile.File{Path: filepath.Join(i.folder, "bulkhead.toml")}
	return f.Open(abs)
}

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
func openImage(src imageSource, arches []string) (*localImage, error) {
	path := src.name
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, usagef("there is no image at %s", path)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read the image at %s: %v", path, errors.Unwrap(err))
	}
	var img *localImage
	if st.IsDir() {
		img, err = openLayout(src, arches)
	} else {
		img, err = openArchive(src, arches)
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

func openLayout(src imageSource, arches []string) (*localImage, error) {
	path := src.name
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
		return nil, hint(malformed(path, "the folder is not an OCI layout (it has no file oci-layout)"), "to deploy the app whose deploy file is in this folder: bulkhead deploy %s", path)
	}
	img, err := fromLayout(path, dirBlobs(src), arches)
	if err != nil {
		return nil, err
	}
	return &localImage{Image: img, path: path, kind: "OCI layout", close: func() {}}, nil
}

// openArchive opens a tar file, plain or compressed, and looks what is inside.
func openArchive(src imageSource, arches []string) (*localImage, error) {
	path := src.name
	f, cleanup, err := plainTar(src)
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
	var plain *plainLayers
	kind := "OCI archive"
	switch {
	case entries.has("oci-layout") && entries.has("index.json"):
		img, err = fromLayout(path, entries.blobs(f), arches)
	case entries.has("manifest.json"):
		kind = "docker archive"
		img, plain, err = fromDocker(path, f, entries)
	default:
		err = malformed(path, "the archive holds neither an OCI layout nor the output of \"docker save\"")
	}
	if err != nil {
		cleanup()
		return nil, err
	}
	return &localImage{Image: img, path: path, kind: kind, plain: plain, close: cleanup}, nil
}

// fromDocker opens the one image in the output of "docker save". An image that is listed
// twice counts once.
func fromDocker(path string, f *os.File, entries archive) (v1.Image, *plainLayers, error) {
	opener := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, 1<<62)), nil }
	list, err := tarball.LoadManifest(opener)
	if err != nil {
		return nil, nil, malformed(path, "%v", err)
	}
	var tag *name.Tag
	var names []string
	seen := map[string]bool{}
	for _, d := range list {
		if !seen[d.Config] {
			seen[d.Config] = true
			names = append(names, append(d.RepoTags, d.Config)[0])
		}
	}
	if len(names) > 1 {
		return nil, nil, malformed(path, "it holds %d images (%s); make an archive with one", len(names), strings.Join(names, ", "))
	}
	if len(list) > 1 && len(list[0].RepoTags) > 0 {
		if t, err := name.NewTag(list[0].RepoTags[0]); err == nil {
			tag = &t
		}
	}
	img, err := tarball.Image(opener, tag)
	if err != nil {
		return nil, nil, malformed(path, "%v", err)
	}
	plain, err := plainOf(img, list[0], f, entries)
	if err != nil {
		return nil, nil, malformed(path, "%v", err)
	}
	return img, plain, nil
}

// plainOf returns the layers of an image that are not compressed, nil where they are.
func plainOf(img v1.Image, d tarball.Descriptor, f *os.File, entries archive) (*plainLayers, error) {
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(cf.RootFS.DiffIDs) != len(d.Layers) {
		return nil, fmt.Errorf("it has %d layers, and its configuration names %d", len(d.Layers), len(cf.RootFS.DiffIDs))
	}
	p := &plainLayers{config: raw}
	for i, name := range d.Layers {
		at, ok := entries[strings.TrimPrefix(name, "./")]
		if !ok { // a link, which the library follows
			return nil, nil
		}
		var head [2]byte
		if _, err := f.ReadAt(head[:], at.off); err != nil && err != io.EOF {
			return nil, err
		}
		if head == [2]byte{0x1f, 0x8b} {
			return nil, nil
		}
		p.layers = append(p.layers, plainLayer{diffID: cf.RootFS.DiffIDs[i], size: at.size, open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(f, at.off, at.size)), nil
		}})
	}
	return p, nil
}

// plainTar opens path for random access, decompressed into a temporary file where
// it must be.
func plainTar(src imageSource) (*os.File, func(), error) {
	path := src.name
	f, err := src.open(path)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Invalid, err, "cannot read the image at %s: %v", path, errors.Unwrap(err))
	}
	br := bufio.NewReader(f)
	head, _ := br.Peek(6)
	var r io.Reader
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(br)
	case bytes.HasPrefix(head, []byte("BZh")):
		r = bzip2.NewReader(br)
	case bytes.Equal(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		f.Close()
		return nil, nil, hint(malformed(path, "it is compressed with xz, which is not supported"), "decompress it with \"xz -d\", or use gzip or zstd")
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
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

// checkPlatform refuses an image that the cluster cannot run.
func checkPlatform(img *localImage, arches []string) error {
	cf, err := img.ConfigFile()
	if err != nil {
		return malformed(img.path, "its config cannot be read: %v", err)
	}
	if img.plain == nil {
		if _, err := img.Layers(); err != nil {
			return malformed(img.path, "%v", err)
		}
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
