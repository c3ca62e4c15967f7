//go:build linux

// Package room knows how much room a file system has left, and who must stop using
// it first: images and pushes, which are large and can be asked for again, before
// new apps and Machines, and these before the records without which nothing that
// runs could be stopped, watched or mended.
package room

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/notice"
)

// Use is what room is wanted for.
type Use int

// The uses, in the order in which they are refused.
const (
	Images  Use = iota // what is pushed, fetched and sealed
	Objects            // new apps and Machines
	Records            // every other change
)

// String names the use in a sentence.
func (u Use) String() string {
	return [...]string{"images", "new apps and machines", "changes"}[u]
}

// The bytes that a use leaves free: most of them, and the part of a small disk.
var keep = [...]struct{ most, part int64 }{
	Images:  {512 << 20, 10},
	Objects: {128 << 20, 20},
	Records: {16 << 20, 80},
}

// fewInodes is how many inodes every use leaves free, on file systems that count them.
const fewInodes = 64

// Space is the room of a file system.
type Space struct {
	Dir         string // that was asked about
	Free, Total int64  // bytes, for users that are not root
	Inodes      uint64 // that are free
	Counted     bool   // the file system has a fixed number of inodes
}

// Of asks for the room where dir lies.
func Of(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, fault.System(err, "the file system of %s cannot be asked for its room", dir)
	}
	return Space{
		Dir: dir, Free: int64(st.Bavail) * st.Bsize, Total: int64(st.Blocks) * st.Bsize,
		Inodes: st.Ffree, Counted: st.Files > 0,
	}, nil
}

// Keep is how many bytes the use leaves free here.
func (s Space) Keep(u Use) int64 { return min(keep[u].most, s.Total/keep[u].part) }

// Room returns nil when n more bytes for the use leave enough for the uses after it,
// else an error of kind Full that says so.
func (s Space) Room(n int64, u Use) error {
	switch left := s.Keep(u); {
	case s.Counted && s.Inodes < fewInodes:
		return fault.New(fault.Full, "the file system of %s has %d inodes left; remove files there that are not needed, and it goes on by itself", s.Dir, s.Inodes).WithStatus(fault.DiskFull)
	case s.Free-n < left:
		return fault.New(fault.Full, "there is too little room: %s of %s are free on the disk where %s lies, and %s are refused when less than %s would be left; remove images, apps or files that are not needed or give it more room, and it goes on by itself",
			size(s.Free), size(s.Total), s.Dir, u, size(left)).WithStatus(fault.DiskFull)
	}
	return nil
}

// Check is Space.Room for where dir lies. A file system that cannot be asked has room:
// the write itself will tell.
func Check(dir string, n int64, u Use) error {
	s, err := Of(dir)
	if err != nil {
		return nil
	}
	return s.Room(n, u)
}

// size words a number of bytes.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// watchEvery is how often Watch looks.
const watchEvery = 5 * time.Second

// Watch notes on board when the room where dir lies gets so low that something is
// refused, when more is refused, and when there is enough again, until ctx ends.
func Watch(ctx context.Context, dir string, board *notice.Board) {
	for {
		Look(dir, board)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
	}
}

// Look is one look of Watch's.
func Look(dir string, board *notice.Board) {
	const what = "the disk is low, and something is refused"
	s, err := Of(dir)
	if err != nil {
		board.Trouble("the disk cannot be watched", err)
		return
	}
	for u := Records; u >= Images; u-- {
		if err := s.Room(0, u); err != nil {
			board.Trouble(what, err, "refused", refused(u))
			return
		}
	}
	board.Over(what, "free", size(s.Free))
}

// refused lists the uses up to u.
func refused(u Use) string {
	out := Images.String()
	for v := Objects; v <= u; v++ {
		out += ", " + v.String()
	}
	return out
}
