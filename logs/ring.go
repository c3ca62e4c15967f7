package logs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"time"

	"bulkhead/fault"
)

// current is the name of the segment that is written to. Full ones have 12 digits.
const current = "current"

// ring is one Machine's lines.
type ring struct {
	dir string
	opt Options

	mu      sync.Mutex
	f       *os.File // the current segment; nil when released
	size    int64    // of the current segment
	seq     uint64   // number that the current segment will get
	full    []uint64 // numbers of the full segments, oldest first
	bytes   map[uint64]int64
	changed chan struct{} // closed and replaced at each append
	ended   bool
	kept    bool // its files outlive its end

	lineRate, lineBurst float64 // lines per second, and at once; 0 for no limit
	lines               float64 // that may be written now

	tokens   float64 // bytes that may be written now
	filled   time.Time
	dropping uint64 // lines dropped since the last one that was kept
	dropped  uint64
	lost     uint64 // lines that could not be written since one was
}

// openRing reads what is there and cuts a torn tail.
func openRing(dir string, opt Options) (*ring, error) {
	r := &ring{dir: dir, opt: opt, bytes: map[uint64]int64{}, changed: make(chan struct{}), tokens: float64(opt.Burst), filled: time.Now()}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.System(err, "the log directory %s of a machine cannot be made", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the logs of a machine cannot be listed")
	}
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil || e.Name() != segmentName(n) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		r.full = append(r.full, n)
		r.bytes[n] = info.Size()
	}
	sort.Slice(r.full, func(i, j int) bool { return r.full[i] < r.full[j] })
	if n := len(r.full); n > 0 {
		r.seq = r.full[n-1] + 1
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

// open opens the current segment and cuts what a crash left unfinished. r.mu is
// held, or r is not shared yet.
func (r *ring) open() error {
	f, err := os.OpenFile(filepath.Join(r.dir, current), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fault.System(err, "a machine's log in %s cannot be opened", r.dir)
	}
	var good int64
	br := bufio.NewReaderSize(f, 64<<10)
	for {
		_, n, err := readFrame(br)
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, errTorn) {
			r.opt.Log.Warn("a log's torn tail is cut", "dir", filepath.Base(r.dir), "at", good)
			if err := f.Truncate(good); err != nil {
				f.Close()
				return fault.Wrap(fault.Internal, err, "a machine's log cannot be mended")
			}
			break
		}
		if err != nil {
			f.Close()
			return fault.Wrap(fault.Internal, err, "a machine's log cannot be read")
		}
		good += n
	}
	r.f, r.size = f, good
	return nil
}

func segmentName(n uint64) string { return fmt.Sprintf("%012d", n) }

// append writes lines, split and limited. Those that cannot be written are counted,
// and a line of the platform's stands in their place when one can be again.
func (r *ring) append(lines []Line) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil
	}
	lost := r.lost
	if lost > 0 {
		lines = append([]Line{r.note("%d lines were lost: they could not be written to the disk", lost)}, lines...)
		r.lost = 0
	}
	err := r.appendLocked(lines)
	if err != nil && lost > 0 {
		r.lost = lost + uint64(len(lines)-1)
	} else if err != nil {
		r.lost = uint64(len(lines))
	}
	return err
}

func (r *ring) appendLocked(lines []Line) error {
	if r.f == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	var b []byte
	for _, l := range lines {
		for first := true; first || len(l.Text) > 0; first = false {
			part := l
			if len(part.Text) > MaxLine {
				part.Text = part.Text[:Whole(part.Text, MaxLine)]
			}
			l.Text = l.Text[len(part.Text):]
			if !r.admit(part) {
				continue
			}
			if r.dropping > 0 {
				b = appendFrame(b, r.note("%d lines were dropped: more than %s a second were printed", r.dropping, r.rates()))
				r.dropping = 0
			}
			b = appendFrame(b, part)
			if r.size+int64(len(b)) >= r.opt.Cap/segments {
				if err := r.flush(b); err != nil {
					return err
				}
				b = b[:0]
				if err := r.rotate(); err != nil {
					return err
				}
			}
		}
	}
	if err := r.flush(b); err != nil {
		return err
	}
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

// admit takes the line's size from the bucket. The platform's own lines pass.
func (r *ring) admit(l Line) bool {
	if l.Stream == Platform {
		return true
	}
	now := time.Now()
	passed := now.Sub(r.filled).Seconds()
	r.filled = now
	r.tokens = min(float64(r.opt.Burst), r.tokens+passed*float64(r.opt.Rate))
	r.lines = min(r.lineBurst, r.lines+passed*r.lineRate)
	cost := float64(len(l.Text) + headerSize)
	if r.tokens < cost || r.lineRate > 0 && r.lines < 1 {
		r.dropping++
		r.dropped++
		return false
	}
	r.tokens -= cost
	r.lines--
	return true
}

// limit is Store.Limit. The same rate again changes nothing: a Machine does not get
// a new burst with each start.
func (r *ring) limit(rate Rate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bytes := r.opt.Rate
	if rate.Bytes > 0 {
		bytes = rate.Bytes
	}
	seconds := max(rate.Burst, 1)
	burst := max(bytes*seconds, MaxLine+headerSize) // a line must have room, however low the rate
	if bytes == r.opt.Rate && burst == r.opt.Burst && float64(rate.Lines) == r.lineRate {
		return
	}
	r.opt.Rate, r.opt.Burst, r.lineRate, r.lineBurst = bytes, burst, float64(rate.Lines), float64(rate.Lines*seconds)
	r.tokens, r.lines = float64(burst), r.lineBurst
}

// rates says what may be printed.
func (r *ring) rates() string {
	if r.lineRate > 0 {
		return fmt.Sprintf("%d bytes or %.0f lines", r.opt.Rate, r.lineRate)
	}
	return fmt.Sprintf("%d bytes", r.opt.Rate)
}

func (r *ring) droppedTotal() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

func (r *ring) note(format string, args ...any) Line {
	return Line{Time: time.Now(), Stream: Platform, Text: fmt.Appendf(nil, format, args...)}
}

// flush writes b at the end of the current segment. A write that fails half way
// (a full disk) is taken back, so that the next one does not follow a torn frame.
func (r *ring) flush(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := r.f.WriteAt(b, r.size)
	if err != nil {
		r.f.Truncate(r.size)
		return fault.System(err, "a machine's log in %s cannot be written", r.dir)
	}
	r.size += int64(n)
	return nil
}

// rotate renames the current segment to its number, begins a new one and drops the
// oldest ones beyond the cap.
func (r *ring) rotate() error {
	cur := filepath.Join(r.dir, current)
	if err := os.Rename(cur, filepath.Join(r.dir, segmentName(r.seq))); err != nil {
		return fault.System(err, "a machine's log in %s cannot be rotated", r.dir)
	}
	r.f.Close()
	r.f = nil
	r.full = append(r.full, r.seq)
	r.bytes[r.seq] = r.size
	r.size = 0
	r.seq++
	total := r.opt.Cap / segments // what the new current segment may take
	for i := len(r.full) - 1; i >= 0; i-- {
		total += r.bytes[r.full[i]]
		if total > r.opt.Cap {
			for _, n := range r.full[:i+1] {
				os.Remove(filepath.Join(r.dir, segmentName(n)))
				delete(r.bytes, n)
			}
			r.full = append([]uint64(nil), r.full[i+1:]...)
			break
		}
	}
	return r.open()
}

// release closes the file.
func (r *ring) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

// retire ends the ring and keeps its files: a follower still reads them to their end.
func (r *ring) retire() {
	r.mu.Lock()
	r.kept = true
	r.mu.Unlock()
	r.end()
}

// end closes the file for good and wakes the followers.
func (r *ring) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
	close(r.changed)
}

// cursor is a place between two lines: everything before off in segment seq has
// been read.
type cursor struct {
	seq uint64
	off int64
}

// read returns the newest tail lines (all for 0) and the place after them.
func (r *ring) read(tail int) ([]Line, cursor, error) {
	var lines []Line
	c := cursor{}
	for {
		more, next, gap, err := r.after(c)
		if err != nil {
			return nil, c, err
		}
		if gap {
			lines = nil // what was read before is older than a hole: start anew
		}
		lines = append(lines, more...)
		if tail > 0 && len(lines) > tail {
			lines = append([]Line(nil), lines[len(lines)-tail:]...)
		}
		if next == c {
			return lines, c, nil
		}
		c = next
	}
}

// after reads what follows c in c's segment, or the first of the next one. gap says
// that c's segment is gone, and the oldest one that is left was read instead. When
// there is nothing more, the cursor stays.
func (r *ring) after(c cursor) (lines []Line, next cursor, gap bool, err error) {
	f, end, c, gap, err := r.segment(c)
	if f == nil || err != nil {
		return nil, c, false, err
	}
	defer f.Close()
	br := bufio.NewReaderSize(io.NewSectionReader(f, c.off, end-c.off), 64<<10)
	for c.off < end {
		l, n, err := readFrame(br)
		if errors.Is(err, errTorn) || errors.Is(err, io.EOF) {
			// A full segment that was damaged later: the rest of it is lost.
			c.off = end
			break
		}
		if err != nil {
			return nil, c, gap, fault.Wrap(fault.Internal, err, "a machine's log cannot be read")
		}
		c.off += n
		lines = append(lines, l)
	}
	return lines, c, gap, nil
}

// segment opens the segment in which reading goes on after c and says up to where
// it may be read; nil when there is nothing more.
func (r *ring) segment(c cursor) (f *os.File, end int64, at cursor, gap bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended && !r.kept {
		return nil, 0, c, false, nil
	}
	name := current
	at, end = cursor{seq: r.seq}, r.size
	for _, n := range r.full {
		if n > c.seq || n == c.seq && c.off < r.bytes[n] {
			at, end, name = cursor{seq: n}, r.bytes[n], segmentName(n)
			break
		}
	}
	gap = at.seq > c.seq && c != (cursor{}) && !r.adjacent(c, at)
	if at.seq == c.seq {
		at.off = c.off
	}
	if at.off >= end {
		return nil, 0, c, false, nil
	}
	f, err = os.Open(filepath.Join(r.dir, name))
	if r.ended && errors.Is(err, os.ErrNotExist) {
		return nil, 0, c, false, nil // its time is over
	}
	if err != nil {
		return nil, 0, c, false, fault.Wrap(fault.Internal, err, "a machine's log cannot be opened")
	}
	return f, end, at, gap, nil
}

// adjacent reports whether nothing lies between c, at the end of a segment that is
// still there, and the beginning of at.
func (r *ring) adjacent(c, at cursor) bool {
	size, there := r.bytes[c.seq]
	return there && c.off >= size && at.seq == c.seq+1
}

// follow is Store.Follow.
func (r *ring) follow(ctx context.Context, tail int, fn func(Line) error) error {
	lines, c, err := r.read(tail)
	if err != nil {
		return err
	}
	for {
		for _, l := range lines {
			if err := fn(l); err != nil {
				return err
			}
		}
		r.mu.Lock()
		changed, ended := r.changed, r.ended
		r.mu.Unlock()
		more, next, gap, err := r.after(c)
		if err != nil {
			return err
		}
		lines = more
		if gap {
			lines = append([]Line{r.note("older lines were dropped before they could be read")}, more...)
		}
		if next != c {
			c = next
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
