// Package boltcheck says whether a bbolt file is sound before anybody relies on it:
// bbolt itself dies of most kinds of damage, by a panic in a goroutine of its own or
// by a signal.
//
// A power cut damages no bbolt file: what a transaction changes lies beside what it
// was, and one of two meta pages always points to the older whole. What is found
// here, a disk has done, or a person. Values have no checksum: that one of them has
// changed is not found.
package boltcheck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is returned by File when another process has the file open.
var ErrInUse = errors.New("another process has it open")

// Error is damage: what is wrong with a file's content, as opposed to a file that
// cannot be read.
type Error struct{ Reason string }

// Error implements error.
func (e *Error) Error() string { return e.Reason }

func damage(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// The format, version 2 (bbolt's internal/common): numbers in the machine's order,
// pages of one size, each with a header of id u64, flags u16, count u16, overflow u32.
const (
	magic      = 0xED0CDAED
	version    = 2
	headerSize = 16
	metaSize   = 64 // without the header; the last 8 bytes are a checksum
	elemSize   = 16

	flagBranch, flagLeaf, flagMeta, flagFreelist = 0x01, 0x02, 0x04, 0x10

	leafBucket = 0x01                 // flag of an element that is a bucket
	noFreelist = ^uint64(0)           // in a meta page: the free pages are not written down
	bigCount   = uint16(0xFFFF)       // a freelist whose count is its first element
	maxPages   = uint64(1) << 40 >> 9 // of a file; more is nonsense
)

var order = binary.NativeEndian

// File reads every page that is in use and returns what is wrong with the file: an
// *Error when it is damaged. A file that is not there, or empty, is sound: bbolt
// makes a new one of it. It changes nothing, and waits until another process has let
// go of the file, for at most wait.
func File(path string, wait time.Duration) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // gives up the lock too
	if err := lock(f, wait); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	c := &checker{f: f, size: info.Size()}
	if err := c.readMeta(); err != nil {
		return err
	}
	return c.run()
}

// lock takes the lock that bbolt takes, shared.
func lock(f *os.File, wait time.Duration) error {
	for end := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		case time.Now().After(end):
			return ErrInUse
		}
	}
}

// checker walks one file.
type checker struct {
	f        *os.File
	size     int64
	pageSize uint64
	root     uint64
	freelist uint64
	pages    uint64 // the high-water mark: no page has this number or a higher one
	seen     []bool
}

// readMeta takes the newer of the two meta pages that is sound.
func (c *checker) readMeta() error {
	var best uint64
	found := false
	for _, at := range []int64{0, 4096, 8192, 16384, 32768, 65536} { // the second lies at the page size
		b := make([]byte, headerSize+metaSize)
		if n, err := c.f.ReadAt(b, at); n < len(b) {
			if at == 0 {
				return short(c.size, err)
			}
			break
		}
		m := b[headerSize:]
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		if order.Uint16(b[8:])&flagMeta == 0 || order.Uint32(m) != magic || order.Uint32(m[4:]) != version || order.Uint64(m[56:]) != sum.Sum64() {
			continue
		}
		pageSize, txid := uint64(order.Uint32(m[8:])), order.Uint64(m[48:])
		if at != 0 && uint64(at) != pageSize || found && txid < best {
			continue
		}
		found, best = true, txid
		c.pageSize, c.root, c.freelist, c.pages = pageSize, order.Uint64(m[16:]), order.Uint64(m[32:]), order.Uint64(m[40:])
	}
	switch {
	case !found:
		return damage("neither of its two meta pages is sound")
	case c.pageSize < 512 || c.pageSize > 1<<16 || c.pages < 3 || c.pages > maxPages:
		return damage("its meta page speaks of %d pages of %d bytes", c.pages, c.pageSize)
	case int64(c.pages*c.pageSize) > c.size:
		return damage("it is %d bytes long and should be %d", c.size, c.pages*c.pageSize)
	}
	c.seen = make([]bool, c.pages)
	c.seen[0], c.seen[1] = true, true
	return nil
}

func short(size int64, err error) error {
	if errors.As(err, new(*fs.PathError)) {
		return err
	}
	return damage("it is only %d bytes long", size)
}

func (c *checker) run() error {
	if c.freelist != noFreelist {
		if err := c.free(); err != nil {
			return err
		}
	}
	return c.tree(c.root, 0, span{top: true})
}

// page reads a page with what overflows of it, and marks it as used.
func (c *checker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.pages {
		return nil, damage("a page %d is named, and there are %d", id, c.pages)
	}
	b := make([]byte, c.pageSize)
	if _, err := c.f.ReadAt(b, int64(id*c.pageSize)); err != nil {
		return nil, err
	}
	if self := order.Uint64(b); self != id {
		return nil, damage("page %d says that it is page %d", id, self)
	}
	more := uint64(order.Uint32(b[12:]))
	if id+more >= c.pages {
		return nil, damage("page %d goes beyond the end of the file", id)
	}
	for i := id; i <= id+more; i++ {
		if c.seen[i] {
			return nil, damage("page %d is used twice", i)
		}
		c.seen[i] = true
	}
	if more > 0 {
		b = append(b, make([]byte, more*c.pageSize)...)
		if _, err := c.f.ReadAt(b[c.pageSize:], int64((id+1)*c.pageSize)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// free reads the list of free pages; none of them may be used.
func (c *checker) free() error {
	b, err := c.page(c.freelist)
	if err != nil {
		return err
	}
	n, ids := uint64(order.Uint16(b[10:])), b[headerSize:]
	if order.Uint16(b[8:]) != flagFreelist {
		return damage("page %d is not the list of free pages", c.freelist)
	}
	if uint16(n) == bigCount {
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return damage("the list of free pages is longer than its page")
	}
	for i := range n {
		id := order.Uint64(ids[8*i:])
		if id < 2 || id >= c.pages || c.seen[id] {
			return damage("page %d cannot be free", id)
		}
		c.seen[id] = true
	}
	return nil
}

// maxDepth is far more than any tree has.
const maxDepth = 64

// span is what a page may hold: the keys from from on and before to, where there are
// bounds. bbolt searches by them: a key beyond them is there and not found. Right below
// top there are buckets alone.
type span struct {
	top      bool
	from, to []byte
}

// tree checks a page, and those below it.
func (c *checker) tree(id uint64, depth int, in span) error {
	if depth > maxDepth {
		return damage("page %d lies too deep", id)
	}
	b, err := c.page(id)
	if err != nil {
		return err
	}
	return c.elements(b, fmt.Sprintf("page %d", id), depth, in)
}

// elements checks what is on a page, or in a bucket that lies within another's page.
func (c *checker) elements(b []byte, name string, depth int, in span) error {
	flags, n := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if flags != flagBranch && flags != flagLeaf || headerSize+n*elemSize > len(b) {
		return damage("%s is no part of a tree", name)
	}
	keys := make([][]byte, n)
	for i := range n {
		at := headerSize + i*elemSize
		e := b[at : at+elemSize]
		var pos, ksize, vsize uint64
		if flags == flagBranch {
			pos, ksize = uint64(order.Uint32(e)), uint64(order.Uint32(e[4:]))
		} else {
			pos, ksize, vsize = uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
		}
		start := uint64(at) + pos
		if start+ksize+vsize > uint64(len(b)) {
			return damage("%s: an entry goes beyond its end", name)
		}
		k, v := b[start:start+ksize], b[start+ksize:start+ksize+vsize]
		if i > 0 && bytes.Compare(keys[i-1], k) >= 0 {
			return damage("%s: its keys are not in order", name)
		}
		if in.from != nil && bytes.Compare(k, in.from) < 0 || in.to != nil && bytes.Compare(k, in.to) >= 0 {
			return damage("%s: a key is not where it is looked for", name)
		}
		if keys[i] = k; flags == flagBranch {
			continue
		}
		switch what := order.Uint32(e); {
		case what > leafBucket:
			return damage("%s: an entry is neither a value nor a bucket", name)
		case what == leafBucket:
			if err := c.bucket(v, name, depth); err != nil {
				return err
			}
		case in.top:
			return damage("%s: a value lies among the buckets", name)
		}
	}
	if flags == flagBranch {
		return c.below(b, keys, depth, in)
	}
	return nil
}

// below checks the pages below a branch: each holds the keys from its own on and before
// the next one's.
func (c *checker) below(b []byte, keys [][]byte, depth int, in span) error {
	for i, k := range keys {
		to := in.to
		if i+1 < len(keys) {
			to = keys[i+1]
		}
		if err := c.tree(order.Uint64(b[headerSize+i*elemSize+8:]), depth+1, span{in.top, k, to}); err != nil {
			return err
		}
	}
	return nil
}

// bucket checks a bucket by its value: its root page, and a number. A small one has
// its only page right there.
func (c *checker) bucket(v []byte, name string, depth int) error {
	if len(v) < 16 {
		return damage("%s: a bucket is cut short", name)
	}
	if root := order.Uint64(v); root != 0 {
		return c.tree(root, depth+1, span{})
	}
	if len(v) < 16+headerSize {
		return damage("%s: a bucket is cut short", name)
	}
	if order.Uint16(v[16+8:]) != flagLeaf {
		return damage("%s: a bucket's only page is none of entries", name)
	}
	return c.elements(v[16:], name, depth+1, span{})
}
