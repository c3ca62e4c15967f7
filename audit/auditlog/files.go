package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"bulkhead/audit"
	"bulkhead/failpoint"
)

// Modes of what is made. The log is of nobody's but the controller's.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// files are the records and their indexes. One goroutine appends, any number read.
type files struct {
	dir string

	whole  bool              // the last segment is there, and as long as it is to be
	good   int64             // bytes of it that are synced
	behind map[string][]byte // of indexes, what could not be written yet
	dirty  map[string]bool   // indexes that were written since the snapshot
	snap   uint64            // next, when the snapshot was written

	mu    sync.RWMutex
	next  uint64            // number of the next record
	orgs  map[string]uint64 // records of each organization
	shown map[string]uint64 // of these, those in the index
}

// openFiles opens the records below dir, or begins them. What a kill or a power cut
// left half-written was acknowledged to nobody and is cut off.
func openFiles(dir string) (*files, error) {
	for _, d := range []string{dir, filepath.Join(dir, audit.LogDir), filepath.Join(dir, audit.RecordsDir), filepath.Join(dir, audit.OrgsDir)} {
		if err := makeDir(d); err != nil {
			return nil, err
		}
	}
	f := &files{dir: dir, behind: map[string][]byte{}, dirty: map[string]bool{}, orgs: map[string]uint64{}, shown: map[string]uint64{}}
	tree, err := treeSize(dir)
	if err == nil {
		err = f.loadSnapshot()
	}
	if err == nil {
		err = f.replay(tree)
	}
	if err == nil && f.next < tree {
		err = damaged("the tree has %d records, %d are there", tree, f.next)
	}
	if err == nil {
		err = f.check(tree)
	}
	if err == nil {
		err = f.snapshot()
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// loadSnapshot reads how far the indexes are known to be right, and cuts them there.
func (f *files) loadSnapshot() error {
	b, err := readFile(filepath.Join(f.dir, audit.SnapshotPath))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if f.next, f.orgs, err = audit.ParseSnapshot(b); err != nil { // indexes can be made anew
			f.next, f.orgs = 0, map[string]uint64{}
		}
	}
	f.snap, f.shown = f.next, maps.Clone(f.orgs)
	all, err := os.ReadDir(filepath.Join(f.dir, audit.OrgsDir))
	if err != nil {
		return err
	}
	for _, e := range all {
		org, err := audit.OrgOf(e.Name())
		if err != nil {
			continue
		}
		path := filepath.Join(f.dir, audit.OrgsDir, e.Name())
		want := int64(f.orgs[org]) * audit.PlaceSize
		switch st, err := os.Stat(path); {
		case err != nil:
			return err
		case st.Size() < want:
			return damaged("%s has %d bytes of %d", e.Name(), st.Size(), want)
		case want == 0:
			err = os.Remove(path)
			if err != nil {
				return err
			}
		case st.Size() > want:
			if err := os.Truncate(path, want); err != nil {
				return err
			}
		}
	}
	return nil
}

// replay reads the records after the snapshot into the indexes.
func (f *files) replay(tree uint64) error {
	first := f.next
	for i := first / audit.SegmentSize; ; i++ {
		path := filepath.Join(f.dir, audit.SegmentPath(i))
		b, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		n, offset, offsets := i*audit.SegmentSize, 0, map[string][]byte{}
		for line := range bytes.Lines(b) {
			whole, ended := bytes.CutSuffix(line, []byte("\n"))
			e, err := audit.ParseLine(whole)
			if !ended || err != nil || e.N != n {
				if n >= tree {
					break // of what was never acknowledged
				}
				return damaged("%s, record %d: %v", path, n, err)
			}
			r, err := e.Open()
			if err != nil {
				return damaged("%v", err)
			}
			if n >= first {
				f.orgs[r.Org]++
				f.next = n + 1
				offsets[r.Org] = audit.Place{N: n, Offset: uint32(offset), Size: uint32(len(line))}.Append(offsets[r.Org])
			}
			n, offset = n+1, offset+len(line)
		}
		for org, b := range offsets {
			f.appendIndex(org, b)
		}
		f.good = int64(offset)
		if offset < len(b) {
			if err := cut(path, f.good); err != nil {
				return err
			}
		}
		if n < (i+1)*audit.SegmentSize {
			return nil
		}
	}
}

// check holds the last records against the leaves they have in the tree.
func (f *files) check(tree uint64) error {
	if tree == 0 {
		return nil
	}
	i := (tree - 1) / audit.SegmentSize
	leaves, err := readLeaves(f.dir, i, tree)
	if err != nil {
		return err
	}
	entries, err := f.segment(i)
	if err != nil {
		return err
	}
	for k, leaf := range leaves {
		if k >= len(entries) || !bytes.Equal(entries[k].Leaf(), leaf) {
			return damaged("record %d is not what its leaf commits to", i*audit.SegmentSize+uint64(k))
		}
	}
	return nil
}

// segment reads the whole entries of a segment.
func (f *files) segment(i uint64) ([]audit.Entry, error) {
	b, err := readFile(filepath.Join(f.dir, audit.SegmentPath(i)))
	if err != nil {
		return nil, err
	}
	var out []audit.Entry
	for line := range bytes.Lines(b) {
		whole, ended := bytes.CutSuffix(line, []byte("\n"))
		if !ended {
			break
		}
		e, err := audit.ParseLine(whole)
		if err != nil {
			return nil, damaged("a record of segment %d: %v", i, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// room is how many records the last segment takes.
func (f *files) room() int { return int(audit.SegmentSize - f.next%audit.SegmentSize) }

// append writes records, each with its salt, and returns when they are synced. They are
// no more than there is room for. After an error none is there.
func (f *files) append(records []audit.Record, salts []byte) error {
	if f.next%audit.SegmentSize == 0 {
		if err := f.roll(); err != nil {
			return err
		}
	}
	var lines []byte
	places, orgs := make([]audit.Place, len(records)), map[string]uint64{}
	for i := range records {
		r := &records[i]
		orgs[r.Org]++
		r.Seq = f.orgs[r.Org] + orgs[r.Org]
		e, err := audit.NewEntry(f.next+uint64(i), salts[i*audit.SaltSize:(i+1)*audit.SaltSize], *r)
		if err != nil {
			return err
		}
		line, err := e.Line()
		if err != nil {
			return err
		}
		places[i] = audit.Place{N: e.N, Offset: uint32(f.good) + uint32(len(lines)), Size: uint32(len(line))}
		lines = append(lines, line...)
	}
	if err := f.writeLines(lines); err != nil {
		return err
	}
	f.took(records, places)
	return nil
}

// writeLines appends to the last segment and syncs. After an error the segment is cut
// back, now or before the next write: a failed sync leaves pages that nobody would
// write again.
func (f *files) writeLines(lines []byte) error {
	path := filepath.Join(f.dir, audit.SegmentPath(f.next/audit.SegmentSize))
	if !f.whole {
		if err := prepareSegment(path, f.good); err != nil {
			return err
		}
	}
	f.whole = false
	err := failpoint.Write("audit/records", func() error { return writeAt(path, lines, f.good) })
	if err != nil {
		cut(path, f.good)
		return err
	}
	f.whole = true
	f.good += int64(len(lines))
	return nil
}

// prepareSegment makes a segment, or cuts it to what is known to be good.
func prepareSegment(path string, good int64) error {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	s, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	return errors.Join(s.Truncate(good), s.Sync(), s.Close(), syncDir(filepath.Dir(path)))
}

// writeAt writes to a file and syncs it. It is not kept open: a file system can be made
// read-only, and be unmounted, while nothing is written.
func writeAt(path string, b []byte, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// took makes records that are synced visible, in their indexes. These need no sync: they
// are made again from the records.
func (f *files) took(records []audit.Record, places []audit.Place) {
	add := map[string][]byte{}
	for i, p := range places {
		add[records[i].Org] = p.Append(add[records[i].Org])
	}
	f.mu.Lock()
	f.next += uint64(len(places))
	for org, b := range add {
		f.orgs[org] += uint64(len(b) / audit.PlaceSize)
	}
	f.mu.Unlock()
	for org, b := range add {
		f.appendIndex(org, b)
	}
}

// roll ends a segment: the indexes are synced up to here, and the next one begins.
func (f *files) roll() error {
	f.whole, f.good = false, 0
	if f.next-f.snap < audit.SegmentSize {
		return nil
	}
	return f.snapshot()
}

func makeDir(dir string) error {
	switch err := os.Mkdir(dir, dirMode); {
	case err == nil:
		return syncDir(filepath.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		return makeDir(dir)
	default:
		return err
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// cut truncates a file and syncs it.
func cut(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// maxFile bounds what is read whole: a segment is the largest.
const maxFile = 64 << 20

func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes", path, st.Size())
	}
	return os.ReadFile(path)
}
