package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"bulkhead/image/erofs"
)

// EntryError says which entry of a layer was refused, and why.
type EntryError struct {
	Entry int64  // from 1; 0 when the layer as a whole is at fault
	Name  string // as the layer gives it, possibly cut
	Err   error
}

// Error gives the sentence for the user.
func (e *EntryError) Error() string {
	switch {
	case e.Entry == 0:
		return e.Err.Error()
	case e.Name == "":
		return fmt.Sprintf("entry %d: %v", e.Entry, e.Err)
	}
	return fmt.Sprintf("entry %d, %q: %v", e.Entry, e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// What stops a layer that unpacks to more than it may.
var (
	errTooLarge = errors.New("too large")
	errTooMany  = errors.New("too many entries")
)

// bounded counts the uncompressed bytes of all layers and stops at the limit.
type bounded struct {
	r io.Reader
	t *Tree
}

func (b bounded) Read(p []byte) (int, error) {
	// One byte past the limit is asked for, so that a layer may end right at it.
	left := b.t.limits.Bytes - b.t.stream
	if left < 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > left+1 {
		p = p[:left+1]
	}
	n, err := b.r.Read(p)
	b.t.stream += int64(n)
	if b.t.stream > b.t.limits.Bytes {
		return n, errTooLarge
	}
	return n, err
}

// Apply lays one layer, an uncompressed tar archive, over the tree and reads r to
// its end. An error is an *EntryError, or an *erofs.WriteError of the output. After an error the tree
// is of no use.
func (t *Tree) Apply(r io.Reader) error {
	t.layer++
	t.pseudo = nil
	in := bounded{r, t}
	tr := tar.NewReader(in)
	for n := int64(1); ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return t.fail(n, "", err)
		}
		if err := t.count(); err != nil {
			return t.fail(n, h.Name, err)
		}
		if err := t.entry(h, tr); err != nil {
			return t.fail(n, h.Name, err)
		}
	}
	// What follows the archive's end is part of the layer's digest.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return t.fail(0, "", err)
	}
	return nil
}

// count counts one entry.
func (t *Tree) count() error {
	if t.Counts.Entries++; t.Counts.Entries > t.limits.Entries {
		return errTooMany
	}
	return nil
}

// fail words an error.
func (t *Tree) fail(entry int64, name string, err error) error {
	var w *erofs.WriteError
	switch {
	case errors.As(err, &w):
		return w
	case errors.Is(err, errTooMany):
		return &EntryError{Err: fmt.Errorf("the image has more than %d entries", t.limits.Entries)}
	case errors.Is(err, errTooLarge):
		return &EntryError{Err: fmt.Errorf("the image is larger than %d bytes when unpacked", t.limits.Bytes)}
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the layer is cut off")
	case errors.Is(err, tar.ErrHeader):
		err = errors.New("it is not a valid tar header")
	}
	return &EntryError{Entry: entry, Name: clip(name), Err: err}
}

// Names that whiteouts have.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	auxiliar = ".wh..wh."
	// plink is where AUFS kept files with several names, as other entries' hard links name them.
	plink = ".wh..wh.plnk/"
)

// entry applies one entry whose contents r gives.
func (t *Tree) entry(h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		if name, err := t.clean(h.Name); err == nil {
			t.leaveOut(name)
		}
		return nil
	}
	name, err := t.clean(h.Name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, plink) && isRegular(h.Typeflag) {
		return t.keepPseudo(name, h, r)
	}
	if name == "" {
		return t.rootEntry(h)
	}
	dirName, base := path.Split(name)
	if skip, err := checkParents(dirName); skip || err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteout) {
		return t.whiteout(dirName, base)
	}
	// A hard link's target is looked up before its parents are made.
	var target *inode
	if h.Typeflag == tar.TypeLink {
		if target, err = t.linkTarget(h.Linkname); errors.Is(err, errLeftOut) {
			t.leaveOut(name)
			return nil
		} else if err != nil {
			return err
		}
	}
	at, err := t.dir(dirName, true)
	if err != nil {
		return err
	}
	if target != nil {
		return t.hardLink(at, base, target)
	}
	ino, err := t.attributes(h)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if old := at.kids[base]; old != nil && old.isDir() {
			t.redeclare(old, ino)
			return nil
		}
	}
	if isRegular(h.Typeflag) {
		if err := t.contents(ino, h.Size, r); err != nil {
			return err
		}
	}
	_, err = t.link(at, base, ino)
	return err
}

// errLeftOut is of a hard link to a device that is left out.
var errLeftOut = errors.New("its target is left out")

// leaveOut counts a device, and remembers its name: a hard link to it is left out, too.
func (t *Tree) leaveOut(name string) {
	t.Counts.Devices++
	if t.devices == nil {
		t.devices = map[string]bool{}
	}
	t.devices[name] = true
}

// keepPseudo keeps a file of AUFS's bookkeeping, for the hard links of the same layer.
func (t *Tree) keepPseudo(name string, h *tar.Header, r io.Reader) error {
	ino, err := t.attributes(h)
	if err != nil {
		return err
	}
	if err := t.contents(ino, h.Size, r); err != nil {
		return err
	}
	if t.pseudo == nil {
		t.pseudo = map[string]*inode{}
	}
	t.pseudo[name] = ino
	return nil
}

// rootEntry applies an entry that names the root.
func (t *Tree) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return errors.New("it would replace the root directory")
	}
	ino, err := t.attributes(h)
	if err != nil {
		return err
	}
	t.redeclare(t.root, ino)
	return nil
}

// redeclare gives the directory n the attributes of ino.
func (t *Tree) redeclare(n *node, ino *inode) {
	n.inode.Mode, n.inode.UID, n.inode.GID = ino.Mode, ino.UID, ino.GID
	n.inode.Mtime, n.inode.MtimeNs = ino.Mtime, ino.MtimeNs
	n.layer = t.layer
}

// checkParents looks for whiteouts' names among the directories of a name: below
// bookkeeping is skipped, below a whiteout is an error.
func checkParents(dirName string) (skip bool, err error) {
	for part := range strings.SplitSeq(dirName, "/") {
		if strings.HasPrefix(part, auxiliar) {
			return true, nil
		}
		if strings.HasPrefix(part, whiteout) {
			return false, errors.New("it lies below a whiteout")
		}
	}
	return false, nil
}

// whiteout applies the whiteout base in the directory dirName.
func (t *Tree) whiteout(dirName, base string) error {
	at, err := t.dir(dirName, false)
	if err != nil {
		return err
	}
	if base == opaque {
		if at != nil {
			t.sweep(at)
		}
		return nil
	}
	if strings.HasPrefix(base, auxiliar) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return errors.New("it is a whiteout of no file")
	}
	if at == nil {
		return nil
	}
	if k := at.kids[name]; k != nil {
		t.hide(at, name, k)
	}
	return nil
}

// linkTarget finds what a hard link names.
func (t *Tree) linkTarget(linkname string) (*inode, error) {
	name, err := t.clean(linkname)
	if err != nil {
		return nil, fmt.Errorf("it is a hard link to %q: %w", clip(linkname), err)
	}
	if ino := t.pseudo[name]; ino != nil {
		return ino, nil
	}
	dirName, base := path.Split(name)
	at, err := t.dir(dirName, false)
	if err != nil {
		return nil, fmt.Errorf("it is a hard link to %q: %w", clip(linkname), err)
	}
	if (at == nil || at.kids[base] == nil) && t.devices[name] {
		return nil, errLeftOut
	}
	if base == "" {
		return nil, errors.New("it is a hard link to the root directory")
	}
	if at == nil || at.kids[base] == nil {
		return nil, fmt.Errorf("it is a hard link to %q, which does not exist", clip(linkname))
	}
	if at.kids[base].isDir() {
		return nil, fmt.Errorf("it is a hard link to %q, which is a directory", clip(linkname))
	}
	return at.kids[base].inode, nil
}

// hardLink makes base in at one more name of target.
func (t *Tree) hardLink(at *node, base string, target *inode) error {
	if old := at.kids[base]; old != nil && old.inode == target {
		old.layer = t.layer
		return nil
	}
	_, err := t.link(at, base, target)
	return err
}

// contents stores a regular file's contents. The header's size is checked before
// a byte is read: a sparse file's may be anything.
func (t *Tree) contents(ino *inode, size int64, r io.Reader) error {
	if size < 0 {
		return errors.New("its size is negative")
	}
	if size > t.limits.Bytes-t.Counts.Bytes {
		return errTooLarge
	}
	t.Counts.Bytes += size
	var err error
	ino.Data, err = t.out.Append(r, uint64(size))
	return err
}

// isRegular reports whether a type flag is that of a file with contents. The reader
// fills a sparse file's holes.
func isRegular(typ byte) bool {
	return typ == tar.TypeReg || typ == tar.TypeCont || typ == tar.TypeGNUSparse
}

// attributes makes an inode from a header, without contents.
func (t *Tree) attributes(h *tar.Header) (*inode, error) {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return nil, fmt.Errorf("its owner %d:%d is not between 0 and %d", h.Uid, h.Gid, uint32(math.MaxUint32-1))
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			t.Counts.Xattrs++
		}
	}
	ino := &inode{Inode: erofs.Inode{
		Mode: uint16(h.Mode & 0o7777),
		UID:  uint32(h.Uid),
		GID:  uint32(h.Gid),
	}}
	if s := h.ModTime.Unix(); s > 0 {
		ino.Mtime, ino.MtimeNs = uint64(s), uint32(h.ModTime.Nanosecond())
	}
	switch {
	case isRegular(h.Typeflag):
		ino.Mode |= erofs.TypeReg
	case h.Typeflag == tar.TypeDir:
		ino.Mode |= erofs.TypeDir
	case h.Typeflag == tar.TypeFifo:
		ino.Mode |= erofs.TypeFIFO
	case h.Typeflag == tar.TypeSymlink:
		ino.Mode = erofs.TypeLink | 0o777
		if h.Linkname == "" || len(h.Linkname) > min(t.limits.Path, erofs.MaxTarget) || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("it is a symbolic link with an unusable target of %d bytes", len(h.Linkname))
		}
		ino.Target = h.Linkname
	default:
		return nil, fmt.Errorf("its type %q is not known", h.Typeflag)
	}
	return ino, nil
}
