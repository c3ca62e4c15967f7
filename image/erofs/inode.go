// Package erofs writes EROFS images: the kernel's read-only file system, in the
// narrow form that gVisor reads as well.
//
// A Writer appends file contents to the output as they arrive and writes the
// metadata behind them at the end, so memory holds the tree and never a file.
// What it writes, and why:
//
//   - 4096-byte blocks, extended inodes, no feature that is incompatible with
//     gVisor: no compression, no chunks, no extended attributes.
//   - The contents of a regular file are whole blocks, never inlined behind the
//     inode: gVisor maps files straight from the image. Directories and symbolic
//     links are inlined where they fit.
//   - A hard link is one more directory entry for the same inode.
//   - The same tree and contents in the same order give the same bytes.
//
// The module github.com/erofs/go-erofs writes EROFS too. It inlines small files
// and stores each hard link as a copy, and neither can be turned off; the tests
// use it as an independent reader.
package erofs

import (
	"cmp"
	"slices"
)

// BlockSize is the size of a block in bytes.
const BlockSize = 4096

// Limits of the format as the readers apply it.
const (
	MaxName   = 255  // bytes of one name
	MaxTarget = 4095 // bytes of a symbolic link's target
)

// File types, the upper bits of Inode.Mode.
const (
	TypeMask = 0o170000
	TypeFIFO = 0o010000
	TypeDir  = 0o040000
	TypeReg  = 0o100000
	TypeLink = 0o120000
)

// Inode is one file, directory, symbolic link or FIFO. Several directory entries
// may name the same Inode, unless it is a directory.
type Inode struct {
	Mode     uint16 // type and permission bits
	UID, GID uint32
	Mtime    uint64 // seconds since 1970
	MtimeNs  uint32
	Data     Extent // of a regular file
	Target   string // of a symbolic link
	Entries  []Dirent

	// Set by Finish.
	nid    uint64
	nlink  uint32
	block  uint32 // of a directory or symbolic link that is not inlined
	inline bool
	size   uint64
	seen   bool
}

// Dirent is one entry of a directory.
type Dirent struct {
	Name  string
	Inode *Inode
}

// Extent says where in the output the contents of a regular file lie.
type Extent struct {
	Block uint32 // meaningless when Size is 0
	Size  uint64 // bytes
}

// blocks is the number of blocks that size bytes take.
func blocks(size uint64) uint64 { return (size + BlockSize - 1) / BlockSize }

func (i *Inode) isDir() bool { return i.Mode&TypeMask == TypeDir }

// fileType is the type code of a directory entry.
func (i *Inode) fileType() byte {
	switch i.Mode & TypeMask {
	case TypeReg:
		return 1
	case TypeDir:
		return 2
	case TypeFIFO:
		return 5
	case TypeLink:
		return 7
	}
	return 0
}

// listing returns the directory's entries with "." and "..", in the order of
// their bytes, which both readers search by halving.
func listing(dir, parent *Inode) []Dirent {
	all := make([]Dirent, 0, len(dir.Entries)+2)
	all = append(all, Dirent{".", dir}, Dirent{"..", parent})
	all = append(all, dir.Entries...)
	slices.SortFunc(all, func(a, b Dirent) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

const direntSize = 12

// fit returns how many of the entries go into one directory block, and the bytes
// that they take.
func fit(all []Dirent) (n, used int) {
	for n < len(all) {
		need := used + direntSize + len(all[n].Name)
		if need > BlockSize {
			break
		}
		used = need
		n++
	}
	return n, used
}

// listingSize is the size of a directory that holds all.
func listingSize(all []Dirent) uint64 {
	var size uint64
	for len(all) > 0 {
		n, used := fit(all)
		all = all[n:]
		if len(all) > 0 {
			used = BlockSize
		}
		size += uint64(used)
	}
	return size
}
