package registry

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
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

// do makes a change, op on p, where tests can stand in its way.
func (d *disk) do(op, p string, f func() error) error {
	if d.step != nil {
		d.step(op, p)
	}
	if !failpoint.Enabled {
		return f()
	}
	return failpoint.Write("registry/"+op+"/"+kindOf(p), f)
}

// kindOf says what lies at p, of two paths the last: the name of its directory's kind.
func kindOf(p string) string {
	p = p[strings.LastIndexByte(p, ' ')+1:]
	top, rest, _ := strings.Cut(p, "/")
	if top != "repos" {
		return top
	}
	for part := range strings.SplitSeq(rest, "/") {
		if kind, ok := strings.CutPrefix(part, "_"); ok {
			return kind
		}
	}
	return top
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
	err := d.do("mkdir", p, func() error { return os.Mkdir(d.path(p), 0o700) })
	if err != nil && !errors.Is(err, fs.ErrExist) {
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
	d.do("rmdir", p, func() error { return os.Remove(d.path(p)) }) // fails unless it is empty, as it should
}

// syncDir makes the entries of a directory durable.
func (d *disk) syncDir(p string) error {
	return d.do("syncdir", p, func() error {
		f, err := os.Open(d.path(p))
		if err != nil {
			return err
		}
		defer f.Close()
		return diskError(f.Sync())
	})
}

// sync makes the content of an open file durable.
func (d *disk) sync(f *os.File, p string) error {
	return diskError(d.do("sync", p, f.Sync))
}

// rename moves a synced file to its place and makes that durable. The directory of
// the new name must exist. It replaces a file of that name.
func (d *disk) rename(from, to string) error {
	if err := d.do("rename", from+" "+to, func() error { return os.Rename(d.path(from), d.path(to)) }); err != nil {
		return diskError(err)
	}
	return d.syncDir(filepath.Dir(to))
}

// writeFile gives p the content b, atomically, and makes p's directory if it must.
func (d *disk) writeFile(p string, b []byte) error {
	if err := d.mkdirAll(filepath.Dir(p)); err != nil {
		return err
	}
	var f *os.File
	err := d.do("create", "tmp", func() (err error) { f, err = os.CreateTemp(d.path("tmp"), ""); return err })
	if err != nil && f != nil {
		f.Close()
		os.Remove(f.Name())
	}
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
	if err := d.do("write", p, func() error { _, err := f.Write(b); return err }); err != nil {
		return diskError(err)
	}
	return d.sync(f, p)
}

// link makes the empty file p, or leaves the one that is there.
func (d *disk) link(p string) error {
	if err := d.mkdirAll(filepath.Dir(p)); err != nil {
		return err
	}
	if err := d.do("link", p, func() error { return d.empty(p, os.O_CREATE) }); err != nil {
		return diskError(err)
	}
	return d.syncDir(filepath.Dir(p))
}

// empty makes the file p, without content if it is new. It is not durable.
func (d *disk) empty(p string, flags int) error {
	f, err := os.OpenFile(d.path(p), os.O_WRONLY|flags, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
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
	err := d.do("remove", p, func() error { return os.Remove(d.path(p)) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
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
