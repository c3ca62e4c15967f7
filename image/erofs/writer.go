package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// File is where an image is written: an empty regular file.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Punch makes the bytes [off, off+n) read as zeros and gives their space back.
	// An error means that it cannot, not that the bytes are damaged.
	Punch(off, n int64) error
}

// Writer writes one image. It is not safe for concurrent use.
type Writer struct {
	f    File
	off  int64  // where the next byte goes; everything before is in f or in buf
	buf  []byte // bytes just before off that are not in f yet
	copy []byte // for Append
	dead []Extent
}

// WriteError is a failure of the output, which is no fault of what was written.
type WriteError struct{ Err error }

// Error gives the cause.
func (e *WriteError) Error() string { return "writing the image: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *WriteError) Unwrap() error { return e.Err }

const (
	bufferSize = 512 << 10
	inodeSize  = 64
	slotSize   = 32   // an inode's number is its offset in the metadata in these
	superblock = 1024 // offset of the superblock in block 0
)

// maxBlocks is the number of blocks whose address fits the superblock.
const maxBlocks = math.MaxUint32 - 1

// NewWriter returns a Writer that writes to f. f stays the caller's.
func NewWriter(f File) *Writer {
	// Block 0 holds the superblock and is written last.
	return &Writer{f: f, off: BlockSize, buf: make([]byte, 0, bufferSize), copy: make([]byte, 128<<10)}
}

// Append stores the size bytes of r as the contents of a file. When r ends early
// the error is io.ErrUnexpectedEOF. Long runs of zeros become holes of the output.
func (w *Writer) Append(r io.Reader, size uint64) (Extent, error) {
	if size == 0 {
		return Extent{}, nil
	}
	if uint64(w.off)/BlockSize+blocks(size) > maxBlocks {
		return Extent{}, errors.New("the image is larger than EROFS can hold")
	}
	ext := Extent{Block: uint32(w.off / BlockSize), Size: size}
	for left := size; left > 0; {
		p := w.copy[:min(left, uint64(len(w.copy)))]
		n, err := io.ReadFull(r, p)
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return Extent{}, err
		}
		left -= uint64(n)
		if n == len(w.copy) && allZero(p) {
			if err := w.skip(int64(n)); err != nil {
				return Extent{}, err
			}
			continue
		}
		if err := w.write(p); err != nil {
			return Extent{}, err
		}
	}
	return ext, w.align()
}

// Discard says that nothing names the contents at e any more: Finish overwrites
// them, so that what a later layer deletes is not in the image.
func (w *Writer) Discard(e Extent) {
	if e.Size > 0 {
		w.dead = append(w.dead, e)
	}
}

// ReadAt reads the contents at e from off, for a file that was appended before.
func (w *Writer) ReadAt(e Extent, p []byte, off uint64) (int, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	if off >= e.Size {
		return 0, io.EOF
	}
	p = p[:min(uint64(len(p)), e.Size-off)]
	return w.f.ReadAt(p, int64(e.Block)*BlockSize+int64(off))
}

// Finish writes the tree below root, which must be a directory, and the
// superblock. It returns the size of the image in bytes and the number of its
// inodes. The names of each directory must differ, and pass for names: not empty,
// not "." or "..", without a slash or NUL, at most MaxName bytes.
func (w *Writer) Finish(root *Inode) (size int64, inodes int, err error) {
	if !root.isDir() {
		return 0, 0, errors.New("the root is not a directory")
	}
	p := plan{w: w, next: uint64(w.off) / BlockSize}
	// Number 0 means "no such file" to programs that read directories: start past it.
	p.meta = 2 * slotSize
	p.add(root, root)
	if p.next+blocks(p.meta) > maxBlocks {
		return 0, 0, errors.New("the image is larger than EROFS can hold")
	}
	for _, e := range p.order {
		if err := w.writeBody(e.inode, e.parent); err != nil {
			return 0, 0, err
		}
	}
	metaBlock := w.off / BlockSize
	base := w.off
	for _, e := range p.order {
		if err := w.writeInode(base, e.inode, e.parent); err != nil {
			return 0, 0, err
		}
	}
	if err := w.align(); err != nil {
		return 0, 0, err
	}
	if err := w.erase(); err != nil {
		return 0, 0, err
	}
	total := w.off
	if err := w.writeSuperblock(uint32(metaBlock), root, len(p.order), uint32(total/BlockSize)); err != nil {
		return 0, 0, err
	}
	return total, len(p.order), nil
}

// planned is an inode with the directory that lists it first.
type planned struct{ inode, parent *Inode }

// plan gives every inode its place.
type plan struct {
	w     *Writer
	order []planned
	meta  uint64 // next free byte of the metadata
	next  uint64 // next free block
}

// add places i and, for a directory, everything below it, parents first and names
// in order. Its depth is that of the tree.
func (p *plan) add(i, parent *Inode) {
	i.nlink++
	if i.seen {
		return
	}
	i.seen = true
	var tail uint64 // what has to fit behind the inode
	switch i.Mode & TypeMask {
	case TypeReg:
		i.size = i.Data.Size
	case TypeLink:
		i.size = uint64(len(i.Target))
		tail = i.size
	case TypeDir:
		i.nlink = 2
		i.size = listingSize(listing(i, parent))
		tail = i.size
	}
	i.inline = tail > 0 && inodeSize+tail <= BlockSize
	if tail > 0 && !i.inline {
		i.block = uint32(p.next)
		p.next += blocks(tail)
		tail = 0
	}
	// Neither an inode nor what is inlined behind it may cross a block's end.
	if room := BlockSize - p.meta%BlockSize; room < inodeSize+tail {
		p.meta += room
	}
	i.nid = p.meta / slotSize
	p.meta = (p.meta + inodeSize + tail + slotSize - 1) &^ (slotSize - 1)
	p.order = append(p.order, planned{i, parent})
	if !i.isDir() {
		return
	}
	for _, d := range listing(i, parent) {
		if d.Name == "." || d.Name == ".." {
			continue
		}
		if d.Inode.isDir() {
			i.nlink++
		}
		p.add(d.Inode, i)
	}
}

// writeBody writes the blocks of a directory or symbolic link that is not inlined.
func (w *Writer) writeBody(i, parent *Inode) error {
	if i.block == 0 {
		return nil
	}
	if got := uint32(w.off / BlockSize); got != i.block {
		return fmt.Errorf("block %d was planned where block %d is", i.block, got)
	}
	if i.isDir() {
		if err := w.writeListing(listing(i, parent)); err != nil {
			return err
		}
	} else if err := w.write([]byte(i.Target)); err != nil {
		return err
	}
	return w.align()
}

// writeInode writes the inode and what is inlined behind it; base is the offset
// of the metadata.
func (w *Writer) writeInode(base int64, i, parent *Inode) error {
	if err := w.zeros(base + int64(i.nid*slotSize) - w.off); err != nil {
		return err
	}
	const extended, flatInline = 1, 2 << 1
	format, data := uint16(extended), i.block
	if i.inline {
		format |= flatInline
	}
	if i.Mode&TypeMask == TypeReg {
		data = i.Data.Block
	}
	le := binary.LittleEndian
	var b [inodeSize]byte
	le.PutUint16(b[0:], format)
	le.PutUint16(b[4:], i.Mode)
	le.PutUint64(b[8:], i.size)
	le.PutUint32(b[16:], data)
	le.PutUint32(b[20:], uint32(i.nid))
	le.PutUint32(b[24:], i.UID)
	le.PutUint32(b[28:], i.GID)
	le.PutUint64(b[32:], i.Mtime)
	le.PutUint32(b[40:], i.MtimeNs)
	le.PutUint32(b[44:], i.nlink)
	if err := w.write(b[:]); err != nil || !i.inline {
		return err
	}
	if i.isDir() {
		return w.writeListing(listing(i, parent))
	}
	return w.write([]byte(i.Target))
}

// writeListing writes directory blocks: entries first, then their names; all but
// the last block are filled up with zeros.
func (w *Writer) writeListing(all []Dirent) error {
	var block [BlockSize]byte
	for len(all) > 0 {
		n, used := fit(all)
		clear(block[:])
		name := n * direntSize
		for k, d := range all[:n] {
			b := block[k*direntSize:]
			binary.LittleEndian.PutUint64(b, d.Inode.nid)
			binary.LittleEndian.PutUint16(b[8:], uint16(name))
			b[10] = d.Inode.fileType()
			name += copy(block[name:], d.Name)
		}
		if all = all[n:]; len(all) > 0 {
			used = BlockSize
		}
		if err := w.write(block[:used]); err != nil {
			return err
		}
	}
	return nil
}

// writeSuperblock writes block 0. The build time is 0, as every inode has a time
// of its own, and there is no UUID: the bytes depend on the contents alone.
func (w *Writer) writeSuperblock(meta uint32, root *Inode, inodes int, total uint32) error {
	const magic, compatMtime, blockBits = 0xe0f5e1e2, 2, 12
	le := binary.LittleEndian
	var block [BlockSize]byte
	b := block[superblock:]
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(root.nid))
	le.PutUint64(b[16:], uint64(inodes))
	le.PutUint32(b[36:], total)
	le.PutUint32(b[40:], meta)
	if _, err := w.f.WriteAt(block[:], 0); err != nil {
		return &WriteError{err}
	}
	return nil
}

// erase overwrites discarded contents with zeros, as holes where the output can.
func (w *Writer) erase() error {
	if err := w.flush(); err != nil {
		return err
	}
	var zero []byte
	for _, e := range w.dead {
		off, n := int64(e.Block)*BlockSize, int64(blocks(e.Size))*BlockSize
		if w.f.Punch(off, n) == nil {
			continue
		}
		if zero == nil {
			zero = make([]byte, bufferSize)
		}
		for n > 0 {
			k, err := w.f.WriteAt(zero[:min(n, int64(len(zero)))], off)
			if err != nil {
				return &WriteError{err}
			}
			off, n = off+int64(k), n-int64(k)
		}
	}
	w.dead = nil
	return nil
}

// write appends p.
func (w *Writer) write(p []byte) error {
	for len(p) > 0 {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		n := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		w.off += int64(n)
		p = p[n:]
	}
	return nil
}

// skip appends n zeros as a hole.
func (w *Writer) skip(n int64) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.off += n
	return nil
}

// zeros appends n zeros, fewer than a block or two.
func (w *Writer) zeros(n int64) error {
	var block [BlockSize]byte
	for n > 0 {
		k := min(n, BlockSize)
		if err := w.write(block[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// align fills the last block up.
func (w *Writer) align() error {
	if rest := w.off % BlockSize; rest != 0 {
		return w.zeros(BlockSize - rest)
	}
	return nil
}

func (w *Writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.f.WriteAt(w.buf, w.off-int64(len(w.buf)))
	w.buf = w.buf[:0]
	if err != nil {
		return &WriteError{err}
	}
	return nil
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
