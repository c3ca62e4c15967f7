// Package imagetest builds container images in memory, for the tests of every
// package that handles them.
package imagetest

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bulkhead/key"
)

// File is one entry of a layer, in the terms of tar.
type File struct {
	Name     string // relative, slash-separated
	Type     byte   // a tar type flag; 0 is a regular file, or a directory when Name ends with "/"
	Mode     int64  // 0 is 0755 for directories, else 0644
	UID, GID int
	Link     string // target of a symbolic or hard link
	Body     []byte
	// Path names a file on disk whose contents are used instead of Body.
	Path  string
	Mtime time.Time         // zero is 2024-01-01
	PAX   map[string]string // further records
	// Major and Minor are a device's.
	Major, Minor int64
}

// Exe is a File with the contents of the program at path, mode 0755.
func Exe(name, path string) File { return File{Name: name, Mode: 0o755, Path: path} }

// Dir is a directory, mode 0755.
func Dir(name string) File { return File{Name: name, Type: tar.TypeDir} }

// Text is a regular file, mode 0644.
func Text(name, body string) File { return File{Name: name, Body: []byte(body)} }

// Symlink is a symbolic link.
func Symlink(name, target string) File { return File{Name: name, Type: tar.TypeSymlink, Link: target} }

// Hard is a hard link.
func Hard(name, target string) File { return File{Name: name, Type: tar.TypeLink, Link: target} }

// Tar returns the files as an uncompressed archive.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := add(w, f); err != nil {
			t.Fatalf("building a layer: %s: %v", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func add(w *tar.Writer, f File) error {
	body := f.Body
	if f.Path != "" {
		var err error
		if body, err = os.ReadFile(f.Path); err != nil {
			return err
		}
	}
	h := &tar.Header{
		Name: f.Name, Typeflag: f.Type, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Linkname: f.Link,
		Size: int64(len(body)), ModTime: f.Mtime, PAXRecords: f.PAX, Devmajor: f.Major, Devminor: f.Minor,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if len(f.Name) > 0 && f.Name[len(f.Name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// New returns an OCI image for linux on this machine's architecture, of one
// gzip-compressed layer with the files.
func New(t testing.TB, config v1.Config, files ...File) v1.Image {
	t.Helper()
	return Layers(t, config, files)
}

// Layers is New with one layer for each list of files.
func Layers(t testing.TB, config v1.Config, layers ...[]File) v1.Image {
	t.Helper()
	var raw []v1.Layer
	for _, files := range layers {
		raw = append(raw, Layer(t, Tar(t, files...)))
	}
	return Image(t, config, raw...)
}

// Layer returns a layer with the uncompressed contents tarball, compressed by gzip.
func Layer(t testing.TB, contents []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(contents)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Image returns an OCI image for linux on this machine's architecture with the
// layers.
func Image(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// Digest returns the digest of img's manifest.
func Digest(t testing.TB, img v1.Image) key.Digest {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return key.Digest(h.String())
}

// WriteLayout writes img as an OCI image layout into a new folder and returns it.
func WriteLayout(t testing.TB, img v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir
}

// WriteArchive writes img as an OCI image layout in a tar archive and returns its
// path.
func WriteArchive(t testing.TB, img v1.Image) string {
	t.Helper()
	dir := WriteLayout(t, img)
	file := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

// BuildUnpack builds cmd/bulkhead-unpack into dir and returns the program's path.
// It may be called from TestMain, which has no testing.TB.
func BuildUnpack(dir string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	out := filepath.Join(dir, "bulkhead-unpack")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, "bulkhead/cmd/bulkhead-unpack")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return out, cmd.Run()
}
