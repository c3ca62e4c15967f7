package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// testImage makes an image with two layers for linux/arch.
func testImage(arch string) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, content := range []string{"base", "app for " + arch} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		body := []byte(strings.Repeat(content+"\n", 4000))
		w.WriteHeader(&tar.Header{Name: strings.Fields(content)[0], Mode: 0o644, Size: int64(len(body)),
			Typeflag: tar.TypeReg})
		w.Write(body)
		w.Close()
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b.Bytes())),
				nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", arch
	cf.Config.Cmd = []string{"/app"}
	cf.Config.ExposedPorts = map[string]struct{}{"3000/tcp": {}}
	return mutate.ConfigFile(img, cf)
}

// makeImage writes an image to path: kind is layout, oci, oci.gz, docker, docker.gz,
// linked (a docker archive with one layer twice, the second time as a link, as older "docker
// save" writes it), or a broken one: xzlayers, bzip2layers, baddigest (a layer's bytes differ), noblob (a layer is missing),
// truncated, nottar, emptytar. Several architectures make an index.
func makeImage(kind, path string, arches []string) error {
	if len(arches) == 0 {
		arches = []string{"amd64"}
	}
	base, zip := strings.CutSuffix(kind, ".gz")
	switch base {
	case "linked":
		return writeLinked(path, "")
	case "xzlayers":
		return writeLinked(path, "\xfd7zXZ\x00")
	case "bzip2layers":
		return writeLinked(path, "BZh9")
	case "docker":
		img, err := testImage(arches[0])
		if err != nil {
			return err
		}
		tag, err := name.NewTag("test:latest")
		if err != nil {
			return err
		}
		if err := tarball.WriteToFile(path, tag, img); err != nil {
			return err
		}
	case "nottar":
		return os.WriteFile(path, bytes.Repeat([]byte("this is no archive\n"), 100), 0o644)
	case "emptytar":
		return os.WriteFile(path, make([]byte, 1024), 0o644)
	default:
		dir := path
		if base != "layout" && base != "baddigest" && base != "noblob" {
			dir = path + ".layout"
			defer os.RemoveAll(dir)
		}
		if err := writeLayout(dir, arches); err != nil {
			return err
		}
		switch base {
		case "layout":
			return nil
		case "baddigest", "noblob":
			return breakLayer(dir, base == "noblob")
		}
		if err := tarFolder(dir, path); err != nil {
			return err
		}
	}
	if base == "truncated" {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, st.Size()/3)
	}
	if zip {
		return gzipFile(path)
	}
	return nil
}

// writeLinked writes a docker archive of three layers, the third a link to the first. magic
// is what every layer begins with in place of its own bytes.
func writeLinked(path, magic string) error {
	img, err := testImage("amd64")
	if err != nil {
		return err
	}
	ls, err := img.Layers()
	if err != nil {
		return err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs = append(cf.RootFS.DiffIDs, cf.RootFS.DiffIDs[0])
	config, err := json.Marshal(cf)
	if err != nil {
		return err
	}
	manifest := []tarball.Descriptor{{Config: "c.json", RepoTags: []string{"test:latest"},
		Layers: []string{"1/layer.tar", "2/layer.tar", "3/layer.tar"}}}
	list, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	file := func(name string, content []byte) {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
		w.Write(content)
	}
	for i, l := range ls {
		r, err := l.Uncompressed()
		if err != nil {
			return err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		file(fmt.Sprintf("%d/layer.tar", i+1), append([]byte(magic), content[len(magic):]...))
	}
	w.WriteHeader(&tar.Header{Name: "3/layer.tar", Linkname: "../1/layer.tar", Typeflag: tar.TypeSymlink})
	file("c.json", config)
	file("manifest.json", list)
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

func writeLayout(dir string, arches []string) error {
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, a := range arches {
		img, err := testImage(a)
		if err != nil {
			return err
		}
		if err := l.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: a})); err != nil {
			return err
		}
	}
	return nil
}

// breakLayer damages or removes the second layer of a layout for amd64.
func breakLayer(dir string, remove bool) error {
	img, err := testImage("amd64")
	if err != nil {
		return err
	}
	ls, err := img.Layers()
	if err != nil {
		return err
	}
	d, err := ls[1].Digest()
	if err != nil {
		return err
	}
	blob := filepath.Join(dir, "blobs", "sha256", d.Hex)
	if remove {
		return os.Remove(blob)
	}
	b, err := os.ReadFile(blob)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 0xff
	return os.WriteFile(blob, b, 0o644)
}

func tarFolder(dir, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return fmt.Errorf("tar %s: %w", dir, err)
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

func gzipFile(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return os.WriteFile(path, out.Bytes(), 0o644)
}
