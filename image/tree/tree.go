// Package tree lays the layers of a container image over each other, in memory,
// and nowhere else: no name of a layer ever reaches a file system.
//
// What a layer's entries mean:
//
//   - Names are relative to the root: leading slashes go, "a/../b" is "b", and a
//     name that climbs out of the root is refused.
//   - Parents that are missing are made (mode 0755, root). A parent that is a
//     symbolic link is followed inside the tree, as container engines do, so that
//     a layer may put files below /lib where an earlier one made lib → usr/lib. It
//     cannot lead out: ".." of the root is the root. More than MaxLinks links, or a
//     parent that is a file, is refused.
//   - The last part of a name is never followed: an entry replaces what was there,
//     except that a directory entry on a directory changes its attributes alone.
//     In one layer the last entry of a name counts.
//   - ".wh.NAME" hides NAME of the layers below, ".wh..wh..opq" everything of the
//     layers below in its directory; neither hides what its own layer brings,
//     wherever in the layer it stands. Other names that begin with ".wh..wh." are
//     bookkeeping of AUFS and are left out; hard links to files in ".wh..wh.plnk" of the
//     same layer get those files.
//   - A hard link is one more name for the same file, also of an earlier layer. Its
//     target's parents are resolved as above. A target that does not exist or is a
//     directory is refused. The link's own attributes do not count.
//   - Symbolic links keep their target, byte for byte. FIFOs are kept.
//   - Character and block devices are left out, as if the layer did not hold them: a
//     sandbox has its own /dev. The device 0/0, which overlayfs takes for a whiteout,
//     is no exception. A hard link to a device is left out with it.
//   - Permission bits with setuid, setgid and sticky, numeric owners (0 to 2³²-2)
//     and modification times are kept; a time before 1970 becomes 1970. Names of
//     owners do not count. Extended attributes, file capabilities among them, are
//     left out: gVisor's EROFS cannot open a file that has any.
package tree

import (
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"bulkhead/image/erofs"
)

// Limits bound what a tree may grow to. Every field must be set.
type Limits struct {
	Bytes   int64 // of all layers, uncompressed, and of all files together
	Entries int64 // of all layers together
	Path    int   // bytes of one entry's name, and of a link's target
}

// Bounds that are not configurable: the system's own, and what keeps a walk short.
const (
	MaxLinks = 40   // symbolic links followed for one name
	maxDepth = 1024 // directories above a file
)

// Counts says what the layers held.
type Counts struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`   // of files, uncompressed, before later layers hid some
	Devices int64 `json:"devices"` // left out
	Xattrs  int64 `json:"xattrs"`  // left out
}

// Tree is the merged file system. Make it with New, Apply the layers from the
// lowest up, Root it. It is not safe for concurrent use.
type Tree struct {
	Counts Counts

	out    *erofs.Writer
	limits Limits
	root   *node
	layer  int // of the layer being applied, from 1
	// pseudo are files of AUFS's bookkeeping in the layer being applied, by name.
	pseudo  map[string]*inode
	devices map[string]bool // names of devices that were left out
	stream  int64           // uncompressed bytes read of all layers
}

// node is one name in a directory.
type node struct {
	inode  *inode
	layer  int   // that made or last declared it
	swept  int   // layer in which everything from below it was hidden; directories
	parent *node // of a directory; the root is its own
	depth  int   // of a directory
	kids   map[string]*node
}

// inode is what a name stands for.
type inode struct {
	erofs.Inode
	names int // how many nodes stand for it
}

// New returns an empty tree whose files' contents go to out.
func New(out *erofs.Writer, limits Limits) *Tree {
	root := &node{inode: &inode{Inode: erofs.Inode{Mode: erofs.TypeDir | 0o755}, names: 1}}
	root.parent = root
	return &Tree{out: out, limits: limits, root: root}
}

func (n *node) isDir() bool  { return n.inode.Mode&erofs.TypeMask == erofs.TypeDir }
func (n *node) isLink() bool { return n.inode.Mode&erofs.TypeMask == erofs.TypeLink }

// clean gives the name of an entry relative to the root, "" for the root itself.
func (t *Tree) clean(name string) (string, error) {
	if len(name) > t.limits.Path {
		return "", fmt.Errorf("the name is %d bytes long; %d are allowed", len(name), t.limits.Path)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("the name holds a NUL byte")
	}
	name = path.Clean(strings.TrimLeft(name, "/"))
	if name == "." {
		return "", nil
	}
	if name == ".." || strings.HasPrefix(name, "../") {
		return "", fmt.Errorf("the name leads out of the image")
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > erofs.MaxName {
			return "", fmt.Errorf("a part of the name is %d bytes long; %d are allowed", len(part), erofs.MaxName)
		}
	}
	return name, nil
}

// dir returns the directory of that name, following symbolic links. What is
// missing is made when create is set; otherwise the result is nil.
func (t *Tree) dir(name string, create bool) (*node, error) {
	at, links := t.root, 0
	todo := split(name)
	for len(todo) > 0 {
		part := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			at = at.parent
			continue
		}
		if len(part) > erofs.MaxName {
			return nil, fmt.Errorf("a part of the parent's name is %d bytes long; %d are allowed", len(part), erofs.MaxName)
		}
		next := at.kids[part]
		switch {
		case next == nil && !create:
			return nil, nil
		case next == nil:
			var err error
			if next, err = t.mkdir(at, part); err != nil {
				return nil, err
			}
		case next.isLink():
			if links++; links > MaxLinks {
				return nil, fmt.Errorf("its parent goes through more than %d symbolic links", MaxLinks)
			}
			if strings.HasPrefix(next.inode.Target, "/") {
				at = t.root
			}
			todo = append(todo, split(next.inode.Target)...)
			continue
		case !next.isDir():
			return nil, fmt.Errorf("its parent %q is not a directory", clip(part))
		}
		at = next
	}
	return at, nil
}

// split gives the parts of a path, the last one first.
func split(name string) []string {
	parts := strings.Split(name, "/")
	slices.Reverse(parts)
	return parts
}

// mkdir makes a directory that the layer did not declare.
func (t *Tree) mkdir(at *node, name string) (*node, error) {
	// A name of 4 KiB can ask for a thousand of them: they count as entries.
	if err := t.count(); err != nil {
		return nil, err
	}
	ino := &inode{Inode: erofs.Inode{Mode: erofs.TypeDir | 0o755}}
	return t.link(at, name, ino)
}

// link makes name in at stand for ino, in place of whatever it stood for.
func (t *Tree) link(at *node, name string, ino *inode) (*node, error) {
	if at.depth >= maxDepth {
		return nil, fmt.Errorf("it lies below more than %d directories", maxDepth)
	}
	ino.names++ // first: what gives way may be a directory that holds another name of it
	if old := at.kids[name]; old != nil {
		t.unlink(old)
	}
	if at.kids == nil {
		at.kids = make(map[string]*node)
	}
	n := &node{inode: ino, layer: t.layer}
	if n.isDir() {
		n.parent, n.depth, n.swept = at, at.depth+1, t.layer
	}
	at.kids[name] = n
	return n, nil
}

// unlink lets go of n and everything below it. The caller removes it from its
// directory.
func (t *Tree) unlink(n *node) {
	for _, k := range n.kids {
		t.unlink(k)
	}
	n.kids = nil
	if n.inode.names--; n.inode.names == 0 {
		t.out.Discard(n.inode.Data)
	}
}

// sweep hides what layers below this one put into the directory n. A directory is
// swept once for each layer: what comes later in the layer is the layer's own.
func (t *Tree) sweep(n *node) {
	if n.swept == t.layer {
		return
	}
	n.swept = t.layer
	for name, k := range n.kids {
		t.hide(n, name, k)
	}
}

// hide hides k, which is name in at, as far as it is of a layer below this one.
func (t *Tree) hide(at *node, name string, k *node) {
	if k.isDir() {
		t.sweep(k)
	}
	if k.layer < t.layer && len(k.kids) == 0 {
		t.unlink(k)
		delete(at.kids, name)
	}
}

// Root gives the tree as the Writer wants it. The Tree must not be used after.
func (t *Tree) Root() *erofs.Inode {
	freeze(t.root)
	return &t.root.inode.Inode
}

// freeze turns the map of every directory into its sorted entries.
func freeze(n *node) {
	if len(n.kids) == 0 {
		return
	}
	entries := make([]erofs.Dirent, 0, len(n.kids))
	for name, k := range n.kids {
		freeze(k)
		entries = append(entries, erofs.Dirent{Name: name, Inode: &k.inode.Inode})
	}
	slices.SortFunc(entries, func(a, b erofs.Dirent) int { return cmp.Compare(a.Name, b.Name) })
	n.kids, n.inode.Entries = nil, entries
}

// ReadFile returns the contents of a regular file of the merged tree, following
// symbolic links, cut at its last whole line when it is longer than limit bytes.
// It returns nil when there is no such file.
func (t *Tree) ReadFile(name string, limit int) ([]byte, error) {
	for links := 0; links <= MaxLinks; links++ {
		dir, base := path.Split(name)
		at, err := t.dir(dir, false)
		if err != nil || at == nil {
			return nil, nil // a parent that is no directory: no such file
		}
		n := at.kids[base]
		if n == nil {
			return nil, nil
		}
		if n.isLink() {
			if name = n.inode.Target; !strings.HasPrefix(name, "/") {
				name = dir + name
			}
			continue
		}
		if n.inode.Mode&erofs.TypeMask != erofs.TypeReg {
			return nil, nil
		}
		return t.read(n.inode.Data, limit)
	}
	return nil, nil
}

func (t *Tree) read(e erofs.Extent, limit int) ([]byte, error) {
	p := make([]byte, min(e.Size, uint64(limit)))
	n, err := t.out.ReadAt(e, p, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if p = p[:n]; e.Size > uint64(limit) {
		p = p[:strings.LastIndexByte(string(p), '\n')+1]
	}
	return p, nil
}

// clip bounds a hostile string for a message.
func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}
