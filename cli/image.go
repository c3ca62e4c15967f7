package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/deployfile"
	"bulkhead/fault"
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
		return hint(usagef("%q is neither an image reference nor an image on this computer", image),
			"give a reference such as registry.example.com/app:tag, an OCI layout folder, or an archive made by \"docker save\"")
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
	if !st.IsDir() && !st.Mode().IsRegular() { // a pipe can be read once only, and opening it may wait without end
		return nil, hint(usagef("the image at %s is neither a file nor a folder", path), "write it to a file: docker save -o image.tar IMAGE")
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

// imageError tells a disk of this computer that is full from an image that is damaged.
func imageError(path string, err error) error {
	if wroteBadly(err) {
		return hint(fault.Wrap(fault.Internal, err, "cannot write a temporary file for the image: %v", err),
			"the environment variable TMPDIR names a folder with room for the image's layers")
	}
	return malformed(path, "%v", err)
}

// wroteBadly reports whether a temporary file could not be written.
func wroteBadly(err error) bool {
	var pe *fs.PathError
	return errors.As(err, &pe) && pe.Op == "write"
}
