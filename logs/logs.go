// Package logs keeps what Machines print: a bounded ring of lines on disk for each
// Machine, with time and stream.
//
// A Machine's ring is a directory of segment files. Lines are appended to the
// segment "current"; when it is full it is renamed to its number, and the oldest
// segments are removed so that the whole never takes more than Options.Cap bytes.
// Each line is framed with its length and a checksum: a frame that a crash tore is
// cut off when the ring is opened, and everything before it stays. Lines are
// written to the operating system at once and never fsynced: they survive the
// death of the process, and a power cut may take the newest.
package logs

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"bulkhead/fault"
	"bulkhead/key"
)

// MaxLine is the longest line, in bytes; a longer one is split.
const MaxLine = 64 << 10

// Whole is how many of the first most bytes of b make a part of a line: it ends between
// characters. Bytes that are no text end anywhere.
func Whole(b []byte, most int) int {
	if len(b) <= most {
		return len(b)
	}
	for n := most; n > most-utf8.UTFMax && n > 0; n-- {
		if utf8.RuneStart(b[n]) {
			return n
		}
	}
	return most
}

// Streams of a Line.
const (
	Stdout   = "stdout"
	Stderr   = "stderr"
	Platform = "bulkhead" // the platform's own words about the Machine
)

// Line is one line, without its newline.
type Line struct {
	Time   time.Time
	Stream string
	Text   []byte
}

// Options bound a Store. Zero fields get the defaults.
type Options struct {
	Cap  int64 // bytes on disk for each Machine; 10 MiB
	Rate int64 // bytes per second that a Machine may print for long; 1 MiB
	// Burst is how many bytes it may print at once; 8 MiB. What goes beyond is dropped
	// and counted, and a line of stream Platform says so.
	Burst int64
	Log   *slog.Logger
}

// segments is how many files a ring is spread over: dropping the oldest drops
// this part of what is kept.
const segments = 8

// Store holds the rings of all Machines of a node. Its methods may be called at
// the same time.
type Store struct {
	dir string
	opt Options

	mu     sync.Mutex
	rings  map[key.MachineID]*ring
	closed bool
}

// Open opens the store in dir, which it makes when it is missing.
func Open(dir string, opt Options) (*Store, error) {
	if opt.Cap == 0 {
		opt.Cap = 10 << 20
	}
	opt.Cap = max(opt.Cap, segments*(MaxLine+headerSize))
	if opt.Rate == 0 {
		opt.Rate = 1 << 20
	}
	if opt.Burst == 0 {
		opt.Burst = 8 << 20
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.System(err, "the log directory %s cannot be made", dir)
	}
	return &Store{dir: dir, opt: opt, rings: map[key.MachineID]*ring{}}, nil
}

// ring returns the Machine's ring, opening it; with create false, NotFound when
// the Machine has none on disk.
func (s *Store) ring(id key.MachineID, create bool) (*ring, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fault.New(fault.Unavailable, "the log store is closed")
	}
	if r := s.rings[id]; r != nil {
		return r, nil
	}
	dir := filepath.Join(s.dir, string(id))
	if !create {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "machine %s has no logs", id)
		}
	}
	r, err := openRing(dir, s.opt)
	if err != nil {
		return nil, err
	}
	s.rings[id] = r
	return r, nil
}

// Append adds lines to the Machine's ring, in order. A line longer than MaxLine is
// split, and lines beyond the rate are dropped: neither is an error.
func (s *Store) Append(id key.MachineID, lines ...Line) error {
	r, err := s.ring(id, true)
	if err != nil {
		return err
	}
	return r.append(lines)
}

// Read returns the newest tail lines that are kept, oldest first; all for tail 0.
// A Machine that never printed has none.
func (s *Store) Read(id key.MachineID, tail int) ([]Line, error) {
	r, err := s.ring(id, false)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lines, _, err := r.read(tail)
	return lines, err
}

// Follow calls fn with the newest tail lines (all for 0) and then with each line as
// it comes, until ctx is done, fn returns an error, or the ring is removed (nil). A
// follower that is slower than the Machine misses lines once the ring has dropped
// them; a line of stream Platform stands in their place.
func (s *Store) Follow(ctx context.Context, id key.MachineID, tail int, fn func(Line) error) error {
	r, err := s.ring(id, true)
	if err != nil {
		return err
	}
	return r.follow(ctx, tail, fn)
}

// Rate is what a Machine may print for long, and for how many seconds' worth at once.
type Rate struct {
	Bytes, Lines int64 // per second; 0 leaves the Store's, which for lines is none
	Burst        int64 // seconds
}

// Limit gives a Machine a rate of its own, until the Store is closed.
func (s *Store) Limit(id key.MachineID, rate Rate) {
	if r, err := s.ring(id, true); err == nil { // else nothing can be printed either
		r.limit(rate)
	}
}

// DroppedOf returns how many of a Machine's lines a rate has dropped since the Store
// was opened.
func (s *Store) DroppedOf(id key.MachineID) uint64 {
	s.mu.Lock()
	r := s.rings[id]
	s.mu.Unlock()
	if r == nil {
		return 0
	}
	return r.droppedTotal()
}

// Dropped returns how many lines the rate limit has dropped since the Store was
// opened.
func (s *Store) Dropped() (lines uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rings {
		lines += r.droppedTotal()
	}
	return lines
}

// Release closes the files of a Machine that prints no more; the next call opens
// them again.
func (s *Store) Release(id key.MachineID) {
	s.mu.Lock()
	r := s.rings[id]
	s.mu.Unlock()
	if r != nil {
		r.release()
	}
}

// Remove deletes the Machine's lines and ends its followers. It is idempotent.
func (s *Store) Remove(id key.MachineID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rings[id]; r != nil {
		r.end()
		delete(s.rings, id)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, string(id))); err != nil {
		return fault.Wrap(fault.Internal, err, "the logs of machine %s cannot be removed", id)
	}
	return nil
}

// retiredMark is the file that keeps the lines of a Machine that is no more. Its time is when
// that began.
const retiredMark = "retired"

// Retire ends the Machine's followers, once they have read everything, and keeps its lines
// for some time: see SweepRetired.
func (s *Store) Retire(id key.MachineID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rings[id]; r != nil {
		r.retire()
		delete(s.rings, id)
	}
	err := os.WriteFile(filepath.Join(s.dir, string(id), retiredMark), nil, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has no lines
	}
	if err != nil {
		return fault.System(err, "the logs of machine %s cannot be kept", id)
	}
	return nil
}

// Retired reports whether there are lines of a Machine that is no more.
func (s *Store) Retired(id key.MachineID) bool {
	_, err := os.Stat(filepath.Join(s.dir, string(id), retiredMark))
	return err == nil
}

// SweepRetired removes lines that were retired before a time, and the oldest ones of more
// than most Machines.
func (s *Store) SweepRetired(before time.Time, most int) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the log directory cannot be read")
	}
	type retired struct {
		id key.MachineID
		at time.Time
	}
	var all []retired
	for _, e := range entries {
		id, err := key.ParseMachineID(e.Name())
		if err != nil {
			continue
		}
		if fi, err := os.Stat(filepath.Join(s.dir, e.Name(), retiredMark)); err == nil {
			all = append(all, retired{id, fi.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b retired) int { return b.at.Compare(a.at) }) // newest first
	var errs []error
	for i, r := range all {
		if i >= most || r.at.Before(before) {
			errs = append(errs, s.Remove(r.id))
		}
	}
	return errors.Join(errs...)
}

// Sweep removes what belongs to no Machine that keep names and is not retired.
func (s *Store) Sweep(keep func(key.MachineID) bool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the log directory cannot be read")
	}
	var errs []error
	for _, e := range entries {
		id, err := key.ParseMachineID(e.Name())
		if err == nil && (keep(id) || s.Retired(id)) {
			continue
		}
		if err != nil {
			errs = append(errs, os.RemoveAll(filepath.Join(s.dir, e.Name())))
			continue
		}
		errs = append(errs, s.Remove(id))
	}
	return errors.Join(errs...)
}

// Close closes every file and ends every follower.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, r := range s.rings {
		r.end()
		delete(s.rings, id)
	}
	return nil
}
