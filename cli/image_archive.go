package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"bulkhead/fault"
)

// openArchive opens a tar file, plain or compressed, and looks what is inside.
func openArchive(src imageSource, arches []string) (*localImage, error) {
	file := src.name
	f, cleanup, err := plainTar(src)
	if err != nil {
		return nil, err
	}
	entries, err := tarEntries(f)
	if err != nil || len(entries) == 0 {
		st, serr := f.Stat()
		cleanup()
		if err == nil || errors.Is(err, tar.ErrHeader) || serr == nil && st.Size() < tarBlock {
			return nil, malformed(file, "the file is not a tar archive")
		}
		return nil, malformed(file, "the archive is damaged: %v", err)
	}
	var img v1.Image
	var plain *plainLayers
	kind := "OCI archive"
	switch {
	case entries.has("oci-layout") && entries.has("index.json"):
		img, err = fromLayout(file, entries.blobs(f), arches)
	case entries.has("manifest.json"):
		kind = "docker archive"
		img, plain, err = fromDocker(file, f, entries)
	default:
		err = malformed(file, "the archive holds neither an OCI layout nor the output of \"docker save\"")
	}
	if err != nil {
		cleanup()
		return nil, err
	}
	return &localImage{Image: img, path: file, kind: kind, plain: plain, close: cleanup}, nil
}

// plainTar opens path for random access, decompressed into a temporary file where
// it must be.
func plainTar(src imageSource) (*os.File, func(), error) {
	file := src.name
	f, err := src.open(file)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Invalid, err, "cannot read the image at %s: %v", file, errors.Unwrap(err))
	}
	br := bufio.NewReader(f)
	head, _ := br.Peek(6)
	var r io.Reader
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(br)
	case bytes.HasPrefix(head, []byte("BZh")):
		r = bzip2.NewReader(br)
	case unsupported(head) != "":
		f.Close()
		how := unsupported(head)
		return nil, nil, hint(malformed(file, "it is compressed with %s, which is not supported", how),
			"decompress it with \"%s -d\", or use gzip, zstd or bzip2", how)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(br); err == nil {
			defer d.Close()
			r = d
		}
	default:
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			f.Close()
			return nil, nil, malformed(file, "it is not a file that can be read at any place")
		}
		return f, func() { f.Close() }, nil
	}
	defer f.Close()
	if err != nil {
		return nil, nil, malformed(file, "its compression is damaged: %v", err)
	}
	tmp, err := os.CreateTemp("", "bulkhead-image-*.tar")
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a temporary file for the image: %v", err)
	}
	cleanup := func() { tmp.Close(); os.Remove(tmp.Name()) }
	if _, err := io.Copy(tmp, r); err != nil {
		cleanup()
		if wroteBadly(err) {
			return nil, nil, imageError(file, err)
		}
		return nil, nil, malformed(file, "its compression is damaged: %v", err)
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		cleanup()
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot read the temporary file of the image: %v", err)
	}
	return tmp, cleanup, nil
}

// tarBlock is the size of the smallest part of a tar archive.
const tarBlock = 512

// unsupported names the compression that a file begins with, if it is none that is read here.
func unsupported(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "xz"
	case bytes.HasPrefix(head, []byte("LZIP")):
		return "lzip"
	case bytes.HasPrefix(head, []byte{0x04, 0x22, 0x4d, 0x18}):
		return "lz4"
	}
	return ""
}

// section is the offset and the length of an entry's content in an archive.
type section struct{ off, size int64 }

type archive map[string]section

func (a archive) has(name string) bool { _, ok := a[name]; return ok }

// tarEntries lists the regular files of a tar file, and the links to them: older "docker
// save" writes a layer that comes twice as a link. The reader of package tar does
// not read ahead, so the file's position after Next is where the content starts.
func tarEntries(f *os.File) (archive, error) {
	a, links := archive{}, map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeSymlink:
			links[name] = path.Join(path.Dir(name), h.Linkname)
			continue
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
			continue
		case tar.TypeReg:
		default:
			continue
		}
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		a[name] = section{off, h.Size}
		delete(links, name)
	}
	for name, to := range links {
		for range maxLinks {
			if next, ok := links[to]; ok {
				to = next
			}
		}
		if at, ok := a[to]; ok {
			a[name] = at
		}
	}
	return a, nil
}

// maxLinks is how many links may lead on to one another.
const maxLinks = 4

func (a archive) blobs(f *os.File) blobSource {
	return func(name string) (io.ReadCloser, error) {
		s, ok := a[name]
		if !ok {
			return nil, fmt.Errorf("it has no file %s", name)
		}
		return io.NopCloser(io.NewSectionReader(f, s.off, s.size)), nil
	}
}
