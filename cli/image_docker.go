package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// fromDocker opens the one image in the output of "docker save". An image that is listed
// twice counts once.
func fromDocker(file string, f *os.File, entries archive) (v1.Image, *plainLayers, error) {
	opener := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, 1<<62)), nil }
	list, err := tarball.LoadManifest(opener)
	if err != nil {
		return nil, nil, malformed(file, "%v", err)
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
		return nil, nil, malformed(file, "it holds %d images (%s); make an archive with one", len(names),
			strings.Join(names, ", "))
	}
	if len(list) > 1 && len(list[0].RepoTags) > 0 {
		if t, err := name.NewTag(list[0].RepoTags[0]); err == nil {
			tag = &t
		}
	}
	img, err := tarball.Image(opener, tag)
	if err != nil {
		return nil, nil, malformed(file, "%v", err)
	}
	plain, err := plainOf(img, list[0], f, entries)
	if err != nil {
		return nil, nil, malformed(file, "%v", err)
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
		at, ok := entries[path.Clean(name)]
		if !ok { // the library says what is missing
			return nil, nil
		}
		head := make([]byte, 6)
		if n, err := f.ReadAt(head, at.off); err != nil && err != io.EOF {
			return nil, err
		} else if head = head[:min(int64(n), at.size)]; bytes.HasPrefix(head, []byte{0x1f, 0x8b}) {
			return nil, nil
		}
		how := unsupported(head)
		if bytes.HasPrefix(head, []byte("BZh")) {
			how = "bzip2" // the whole archive may be, but no layer: nodes read none
		}
		if how != "" {
			return nil, fmt.Errorf("its layer %s is compressed with %s, which is not supported; use gzip or zstd", name, how)
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, at.off, at.size)), nil }
		p.layers = append(p.layers, plainLayer{diffID: cf.RootFS.DiffIDs[i], size: at.size, open: open})
	}
	return p, nil
}
