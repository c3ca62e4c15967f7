package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"bulkhead/boltcheck"
	"bulkhead/fault"
)

// What a power cut leaves, etcd mends itself: records of its log that were not yet
// synced, and so not acknowledged, are cut off, and the database is brought up to the
// log. Everything else is damage: a disk that lost or changed what it had called
// written. Of that etcd dies, hangs, or mends it by forgetting what was acknowledged.
// So it is looked for before etcd may touch anything, and said in a sentence.

// asideFile is where a damaged database is kept, beside etcd's directory; an older
// one makes way.
const asideFile = "db.damaged"

// damaged is the sentence for damage that nothing here can mend. Nobody else has
// what is in the store.
func damaged(dir string, cause error) error {
	return fault.Wrap(fault.Internal, cause, "the store in %s is damaged, and not by a power cut: look at the disk; apps and machines are known here alone, so put back a copy of the data directory; machines run on meanwhile (%v)", dir, cause)
}

// check finds damage, and mends what can be: as long as etcd's log goes back to the
// beginning, a damaged database is made anew from it.
func check(c Config) error {
	member := filepath.Join(c.Dir, "etcd", "member")
	path, logs := filepath.Join(member, "snap", "db"), filepath.Join(member, "wal")
	dberr := boltcheck.File(path, 10*time.Second)
	if errors.Is(dberr, boltcheck.ErrInUse) {
		return fault.New(fault.Conflict, "another process has the store in %s open; stop it first", c.Dir)
	}
	var applied uint64
	if dberr == nil {
		applied, dberr = appliedIndex(path)
	}
	if dberr != nil && !errors.As(dberr, new(*boltcheck.Error)) {
		return fault.System(dberr, "the store's database %s cannot be read", path)
	}
	whole, last, err := readLog(logs)
	switch {
	case errors.Is(err, fs.ErrNotExist) && applied == 0 && dberr == nil:
		return nil // a new store
	case err != nil:
		return damaged(c.Dir, fmt.Errorf("its log: %w", err))
	case dberr == nil && applied > last:
		return damaged(c.Dir, fmt.Errorf("its log ends at entry %d, and entry %d was written", last, applied))
	case dberr == nil:
		return nil
	case !whole:
		return damaged(c.Dir, fmt.Errorf("its database: %w", dberr))
	}
	aside := filepath.Join(c.Dir, asideFile)
	if err := os.Rename(path, aside); err != nil {
		return errors.Join(damaged(c.Dir, fmt.Errorf("its database: %w", dberr)), err)
	}
	c.Log.Error("the store's database was damaged, and not by a power cut: it is made anew from the store's log, which is whole; look at the disk",
		"err", dberr, "kept", aside)
	return nil
}

// appliedIndex is the last entry of the log that the database holds.
func appliedIndex(path string) (index uint64, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		if meta := tx.Bucket(schema.Meta.Name()); meta != nil {
			if v := meta.Get(schema.MetaConsistentIndexKeyName); len(v) == 8 {
				index = binary.BigEndian.Uint64(v)
			}
		}
		return nil
	})
	return index, err
}

// readLog reads etcd's log, as far as it goes: whole is whether it begins at the
// beginning, so that it alone holds everything (later etcd drops old parts of it), and
// last its last entry. It changes nothing.
func readLog(dir string) (whole bool, last uint64, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	if !wal.Exist(dir) {
		return false, 0, fs.ErrNotExist
	}
	lg := zap.NewNop()
	snaps, err := wal.ValidSnapshotEntries(lg, dir)
	if err != nil {
		return false, 0, err
	}
	if len(snaps) == 0 {
		return false, 0, errors.New("it has no beginning")
	}
	from := snaps[len(snaps)-1]
	w, err := wal.OpenForRead(lg, dir, from)
	if err != nil {
		return false, 0, err
	}
	defer w.Close()
	_, _, entries, err := w.ReadAll()
	if err != nil {
		return false, 0, err
	}
	last = from.GetIndex()
	if n := len(entries); n > 0 {
		last = entries[n-1].GetIndex()
	}
	return from.GetIndex() == 0, last, nil
}

// guard stands between etcd and the end of the process: while the member starts,
// an entry that etcd logs as fatal, or panics with, is an error of Open.
type guard struct{ starting atomic.Bool }

// fatal is what guard panics with.
type fatal struct {
	entry string
	cause error // of the entry's fields; nil when there is none
}

// OnWrite implements zapcore.CheckWriteHook.
func (g *guard) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	if !g.starting.Load() {
		if e.Level == zapcore.PanicLevel {
			zapcore.WriteThenPanic.OnWrite(e, fields)
		}
		zapcore.WriteThenFatal.OnWrite(e, fields)
	}
	f := fatal{entry: e.Message}
	for _, field := range fields {
		if err, ok := field.Interface.(error); ok {
			f.entry, f.cause = f.entry+": "+err.Error(), err
		}
	}
	panic(f)
}

// start is embed.StartEtcd, except that it returns.
func (g *guard) start(cfg *embed.Config, dir string) (member *embed.Etcd, err error) {
	g.starting.Store(true)
	defer g.starting.Store(false)
	defer func() {
		if p := recover(); p != nil {
			f, ok := p.(fatal)
			if err = fault.System(f.cause, "the store in %s cannot be opened", dir); fault.Is(err, fault.Full) {
				return // nothing is damaged
			}
			if ok {
				p = f.entry
			}
			err = damaged(dir, fmt.Errorf("%v", p))
		}
	}()
	return embed.StartEtcd(cfg)
}

// logger is quietLogger with the guard behind it.
func (g *guard) logger(log *slog.Logger) *zap.Logger {
	return quietLogger(log).WithOptions(zap.WithFatalHook(g), zap.WithPanicHook(g))
}
