package registry

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/room"
)

// disk is every change that the registry makes on disk. Paths are relative to root.
// A method that returns nil has made its change durable, unless it says otherwise.
type disk struct {
	root string
	step func(op, path string) // tests; nil otherwise

	// durable holds the directories whose own entry this process knows to be durable.
	// That a directory is there is not enough: whoever made it may have died, or may
	// be about to, before the entry was synced.
	durable sync.Map
}

// path returns the path for the operating system.
func (d *disk) path(p string) string { return filepath.Join(d.root, p) }

// at announces an operation to the test that watches.
func (d *disk) at(op, p string) {
	if d.step != nil {
		d.step(op, p)
	}
}

// mkdirAll makes a directory and its parents.
func (d *disk) mkdirAll(p string) error {
	if _, ok := d.durable.Load(p); ok {
		return nil
	}
	parent := filepath.Dir(p)
	if parent != "." {
		if err := d.mkdirAll(parent); err != nil {
			return err
		}
	}
	d.at("mkdir", p)
	if err := os.Mkdir(d.path(p), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return diskError(err)
	}
	if err := d.syncDir(parent); err != nil {
		return err
	}
	d.durable.Store(p, true)
	return nil
}

// removeDir removes a directory if it is empty. It is not durable before syncDir.
func (d *disk) removeDir(p string) {
	d.durable.Delete(p)
	d.at("rmdir", p)
	os.Remove(d.path(p)) // fails unless it is empty, as it should
}

// syncDir makes the entries of a directory durable.
func (d *disk) syncDir(p string) error {
	d.at("syncdir", p)
	f, err := os.Open(d.path(p))
	if err != nil {
		return err
	}
	defer f.Close()
	return diskError(f.Sync())
}

// sync makes the content of an open file durable.
func (d *disk) sync(f *os.File, p string) error {
	d.at("sync", p)
	return diskError(f.Sync())
}

// rename moves a synced file to its place and makes that durable. The directory of
// the new name must exist. It replaces a file of that name.
func (d *disk) rename(from, to string) error {
	d.at("rename", from+" "+to)
	if err := os.Rename(d.path(from), d.path(to)); err != nil {
		return diskError(err)
	}
	return d.syncDir(filepath.Dir(to))
}

// writeFile gives p the content b, atomically, and makes p's directory if it must.
func (d *disk) writeFile(p string, b []byte) error {
	if err := d.mkdirAll(filepath.Dir(p)); err != nil {
		return err
	}
	d.at("create", "tmp")
	f, err := os.CreateTemp(d.path("tmp"), "")
	if err != nil {
		return diskError(err)
	}
	tmp := filepath.Join("tmp", filepath.Base(f.Name()))
	if err = d.fill(f, tmp, b); err == nil {
		err = d.rename(tmp, p)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// fill writes b to the new file f, syncs and closes it.
func (d *disk) fill(f *os.File, p string, b []byte) error {
	defer f.Close()
	d.at("write", p)
	if _, err := f.Write(b); err != nil {
		return diskError(err)
	}
	return d.sync(f, p)
}

// link makes the empty file p, or leaves the one that is there.
func (d *disk) link(p string) error {
	if err := d.mkdirAll(filepath.Dir(p)); err != nil {
		return err
	}
	d.at("link", p)
	f, err := os.OpenFile(d.path(p), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return diskError(err)
	}
	f.Close()
	return d.syncDir(filepath.Dir(p))
}

// touch sets p's time to now. It is not durable: after a crash the time may be old.
func (d *disk) touch(p string) error {
	// The time is given, not left to the kernel, whose file clock lags behind
	// time.Now by some milliseconds.
	now := time.Now()
	return os.Chtimes(d.path(p), now, now)
}

// remove removes the file p, if it is there. It is not durable before syncDir.
func (d *disk) remove(p string) error {
	d.at("remove", p)
	if err := os.Remove(d.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// names lists a directory in byte order; one that does not exist is empty.
func (d *disk) names(p string) ([]string, error) {
	entries, err := os.ReadDir(d.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// exists says whether p is there.
func (d *disk) exists(p string) (bool, error) {
	_, err := os.Stat(d.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// readFile reads a file of at most limit bytes.
func (d *disk) readFile(p string, limit int64) ([]byte, error) {
	f, err := os.Open(d.path(p))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fault.New(fault.Internal, "registry file %s is larger than %d bytes", p, limit)
	}
	return b, err
}

// room fails when writing n more bytes would leave less than minFree bytes free.
func (d *disk) room(n, minFree int64) error {
	if minFree < 0 {
		return nil
	}
	s, err := room.Of(d.root)
	if err != nil {
		return err
	}
	if s.Free-n < minFree {
		return diskFull(nil)
	}
	return s.Room(0, room.Records) // it may be short of inodes
}

// diskError turns what the operating system says of a disk into a sentence; other
// errors pass.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return diskFull(err)
	}
	if f := fault.System(err, "the registry cannot write to its disk"); fault.KindOf(f) != fault.Internal {
		return f
	}
	return err
}

// diskFull is the refusal of an upload for want of room.
func diskFull(cause error) error {
	return &refusal{status: 507, code: "UNKNOWN", err: fault.Wrap(fault.Full, cause,
		"the registry's disk is full: delete images that are not needed, or give the server a larger disk").WithStatus(fault.DiskFull)}
}
