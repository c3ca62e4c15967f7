package auditlog

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"bulkhead/audit"
)

// appendIndex adds places to an organization's index. What cannot be written is kept,
// and written with the next.
func (f *files) appendIndex(org string, places []byte) error {
	b := append(f.behind[org], places...)
	f.behind[org] = b
	f.dirty[org] = true
	at := int64(f.shown[org]) * audit.PlaceSize
	w, err := os.OpenFile(filepath.Join(f.dir, audit.IndexPath(org)), os.O_WRONLY|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	_, err = w.WriteAt(b, at)
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	delete(f.behind, org)
	f.mu.Lock()
	f.shown[org] += uint64(len(b) / audit.PlaceSize)
	f.mu.Unlock()
	return nil
}

// snapshot syncs the indexes and notes how far they are. After a kill in between they
// are made anew from the last snapshot on.
func (f *files) snapshot() error {
	for org := range maps.Clone(f.behind) {
		if err := f.appendIndex(org, nil); err != nil {
			return err
		}
	}
	for org := range f.dirty {
		w, err := os.OpenFile(filepath.Join(f.dir, audit.IndexPath(org)), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(w.Sync(), w.Close()); err != nil {
			return err
		}
	}
	path := filepath.Join(f.dir, audit.SnapshotPath)
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := replaceFile(path, audit.MarshalSnapshot(f.next, f.orgs)); err != nil {
		return err
	}
	clear(f.dirty)
	f.snap = f.next
	return nil
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, b []byte) error {
	tmp := path + ".tmp"
	w, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err = errors.Join(err, w.Sync(), w.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// probe says whether a record could be written.
func (f *files) probe() error {
	path := filepath.Join(f.dir, audit.RecordsDir, "probe")
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = w.Write(make([]byte, 4096))
	return errors.Join(err, w.Sync(), w.Close(), os.Remove(path))
}

// close writes the snapshot.
func (f *files) close() error {
	if f.next > f.snap || len(f.dirty) > 0 {
		return f.snapshot()
	}
	return nil
}

// place is where an organization's record of a number (from 1) lies. Callers pass an
// index that is open.
func place(idx *os.File, seq uint64) (audit.Place, error) {
	var b [audit.PlaceSize]byte
	if _, err := idx.ReadAt(b[:], int64(seq-1)*audit.PlaceSize); err != nil {
		return audit.Place{}, err
	}
	return audit.ParsePlace(b[:])
}

// count is how many records of an organization can be read.
func (f *files) count(org string) uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.shown[org]
}

// size is how many records there are.
func (f *files) size() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.next
}
