package worker

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"bulkhead/api/internalpb"
	"bulkhead/boltcheck"
	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/notice"
	"bulkhead/privnet"
)

// journalVersion is the schema of journal.db: never reuse a number.
//
//	1: buckets machines (id → record in JSON), assignments (id → Assignment), slots (slot → id),
//	   meta (version; rebuild: the mark, in JSON, while the journal is not whole)
const journalVersion = 1

// lockWait is how long a worker waits for the one before it to let go of the file.
var lockWait = 10 * time.Second

var (
	bucketMeta        = []byte("meta")
	bucketMachines    = []byte("machines")
	bucketAssignments = []byte("assignments")
	bucketSlots       = []byte("slots")
	keyVersion        = []byte("version")
	keyMark           = []byte("rebuild")
)

// errDamaged is in the error of a journal whose content cannot be relied on. One that
// cannot be read, or is another's, is not damaged.
var errDamaged = errors.New("its content cannot be relied on")

// errJournal is in every error of a write to the journal, which the journal's board
// has been told of.
var errJournal = errors.New("journal")

// journalStands is what the board calls writes that fail.
const journalStands = "no machine's record can be changed; what runs, runs on"

// journal is the worker's memory on disk: one bbolt file. Every method that writes
// is one transaction, on disk when it returns nil.
type journal struct {
	db   *bbolt.DB
	path string
	mark *mark // as openJournal found or made it; nil when the journal is whole
	// board is told of writes that fail, and that they work again.
	board *notice.Board
	// point is called before and after each write; tests crash there.
	point func(name string) error
	// skip is a seeded fault for tests: writes that it names are not made.
	skip func(name string) bool
	held int64 // bytes of the file that the disk's blocks are given to; see hold
}

// entry is a record and its assignment.
type entry struct {
	rec *record
	asg *internalpb.Assignment
}

// openJournal opens or makes journal.db in dir; a new one is marked as not whole. A
// damaged file is an error with errDamaged in it, and is not changed.
func openJournal(dir string) (j *journal, err error) {
	path := filepath.Join(dir, "journal.db")
	damaged := func(err error) error {
		return fault.Wrap(fault.Internal, fmt.Errorf("%w: %w", errDamaged, err), "the worker's journal %s is damaged", path)
	}
	defer func() { // bbolt panics on some kinds of damage
		if p := recover(); p != nil {
			j, err = nil, damaged(fmt.Errorf("%v", p))
		}
	}()
	switch err := boltcheck.File(path, lockWait); {
	case errors.Is(err, boltcheck.ErrInUse):
		return nil, fault.Wrap(fault.Conflict, err, "the worker's journal %s is in use by another process", path)
	case errors.As(err, new(*boltcheck.Error)):
		return nil, damaged(err)
	case err != nil:
		return nil, fault.System(err, "the worker's journal %s cannot be read", path)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fault.Wrap(fault.Conflict, err, "the worker's journal %s is in use by another process", path)
	case err != nil:
		// What the host refuses, or has too little of, says nothing about the file.
		if said := fault.System(err, "the worker's journal %s cannot be opened", path); wordOf(said) != "" {
			return nil, said
		}
		return nil, damaged(err)
	}
	j = &journal{db: db, path: path, board: notice.New(slog.New(slog.DiscardHandler)), point: func(string) error { return nil }}
	if err := j.prepare(); err != nil {
		db.Close()
		if said := fault.System(err, "the worker's journal %s cannot be made", path); wordOf(said) != "" {
			return nil, said
		}
		if fault.KindOf(err) == fault.Internal {
			return nil, damaged(err)
		}
		return nil, err
	}
	j.db.View(func(tx *bbolt.Tx) error { j.hold(tx.Size()); return nil }) // nobody else has it yet
	return j, nil
}

// wordOf is the status of the first *fault.Error in err's chain.
func wordOf(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Status
	}
	return ""
}

// prepare makes the buckets of a new journal and checks those of an old one. One that
// has them all is not written to: the disk may be full.
func (j *journal) prepare() error {
	has := true
	err := j.db.View(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketMeta, bucketMachines, bucketAssignments, bucketSlots} {
			has = has && tx.Bucket(b) != nil
		}
		if has = has && tx.Bucket(bucketMeta).Get(keyVersion) != nil; !has {
			return nil
		}
		return j.readMeta(tx.Bucket(bucketMeta))
	})
	if err != nil || has {
		return err
	}
	return j.db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		if meta.Get(keyVersion) == nil {
			if err := j.prepareNew(meta); err != nil {
				return err
			}
		}
		if err := j.readMeta(meta); err != nil {
			return err
		}
		for _, b := range [][]byte{bucketMachines, bucketAssignments, bucketSlots} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// readMeta checks the version and reads the mark.
func (j *journal) readMeta(meta *bbolt.Bucket) error {
	switch v := meta.Get(keyVersion); {
	case len(v) != 4:
		return fault.New(fault.Internal, "its version is %x", v)
	case binary.BigEndian.Uint32(v) != journalVersion:
		return fault.New(fault.Precondition, "the worker's journal %s has version %x, this worker reads version %d; run the version of Bulkhead that wrote it, or a newer one", j.path, v, journalVersion)
	}
	if b := meta.Get(keyMark); b != nil {
		j.mark = new(mark)
		if err := json.Unmarshal(b, j.mark); err != nil {
			return fault.Wrap(fault.Internal, err, "its mark cannot be read")
		}
	}
	return nil
}

// ahead is how many bytes of the disk beyond what is in use the journal holds.
const ahead = 4 << 20

// hold has the disk's blocks given to the journal's first n bytes and some more. So
// what runs can be started again, stopped and watched on a disk that is full: what is
// written for it goes to pages that are there. Where no more can be had the writes
// themselves will tell. It is called within a transaction that writes.
func (j *journal) hold(n int64) {
	if n+ahead <= j.held {
		return
	}
	f, err := os.OpenFile(j.path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n+2*ahead) == nil {
		j.held = n + 2*ahead
	}
}

// load reads everything, and sees whether it fits together.
func (j *journal) load() (out []entry, err error) {
	damaged := func(err error) error {
		return fault.Wrap(fault.Internal, fmt.Errorf("%w: %w", errDamaged, err), "the worker's journal %s is damaged", j.path)
	}
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, damaged(fmt.Errorf("%v", p))
		}
	}()
	err = j.db.View(func(tx *bbolt.Tx) error {
		asgs, slots := tx.Bucket(bucketAssignments), tx.Bucket(bucketSlots)
		return tx.Bucket(bucketMachines).ForEach(func(k, v []byte) error {
			e := entry{rec: new(record), asg: new(internalpb.Assignment)}
			if err := json.Unmarshal(v, e.rec); err != nil {
				return fmt.Errorf("the record of machine %q: %w", k, err)
			}
			if err := proto.Unmarshal(asgs.Get(k), e.asg); err != nil {
				return fmt.Errorf("the assignment of machine %q: %w", k, err)
			}
			out = append(out, e)
			return e.check(string(k), slots)
		})
	})
	if err != nil {
		return nil, damaged(err)
	}
	return out, nil
}

// check finds values that have changed since they were written, as far as that shows:
// bbolt has checksums for none.
func (e entry) check(id string, slots *bbolt.Bucket) error {
	r := e.rec
	switch {
	case string(r.Machine) != id || e.asg.GetMachineId() != id:
		return fmt.Errorf("under machine %q lie the record of %q and the assignment of %q", id, r.Machine, e.asg.GetMachineId())
	case !slices.Contains(machine.States(), r.State):
		return fmt.Errorf("machine %s is %q, which is no state", id, r.State)
	case r.Slot != 0 && string(slots.Get(slotKey(r.Slot))) != id:
		return fmt.Errorf("machine %s has slot %d, which is that of machine %q", id, r.Slot, slots.Get(slotKey(r.Slot)))
	}
	return nil
}

// write is one transaction between its two crash points.
func (j *journal) write(name string, fn func(tx *bbolt.Tx) error) error {
	return j.writeBy(j.db.Update, name, fn)
}

// writeBy is write with one of bbolt's ways to make a transaction.
func (j *journal) writeBy(by func(func(*bbolt.Tx) error) error, name string, fn func(tx *bbolt.Tx) error) error {
	if err := j.point("before " + name); err != nil {
		return err
	}
	if j.skip != nil && j.skip(name) {
		return j.point("after " + name)
	}
	err := failpoint.Write("worker/journal/"+strings.ReplaceAll(name, " ", "-"), func() error {
		return by(func(tx *bbolt.Tx) error {
			j.hold(tx.Size())
			return fn(tx)
		})
	})
	if err != nil {
		err = fault.System(fmt.Errorf("%w: %w", errJournal, err), "the worker's journal %s cannot be written", j.path)
		j.board.Trouble(journalStands, err)
		return err
	}
	j.board.Over(journalStands)
	return j.point("after " + name)
}

// create writes the first record of a Machine and gives it a free slot, the lowest
// there is; 0 when the node has none left. One that is there already, from a create
// that was reported as failed and was not, keeps its slot.
func (j *journal) create(r *record, a *internalpb.Assignment) error {
	return j.write("create", func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketMachines).Get([]byte(r.Machine)); b != nil {
			had := new(record)
			if err := json.Unmarshal(b, had); err != nil {
				return err
			}
			r.Slot = had.Slot
			return putBoth(tx, r, a)
		}
		slots := tx.Bucket(bucketSlots)
		free := privnet.Slot(1)
		c := slots.Cursor()
		for k, _ := c.First(); k != nil && privnet.Slot(binary.BigEndian.Uint32(k)) == free; k, _ = c.Next() {
			free++
		}
		r.Slot = 0
		if free <= privnet.MaxSlot {
			r.Slot = free
			if err := slots.Put(slotKey(free), []byte(r.Machine)); err != nil {
				return err
			}
		}
		return putBoth(tx, r, a)
	})
}

// put writes a changed record and, when a is given, its assignment. A record that
// gave its slot back (was is what it had) frees it in the same transaction.
func (j *journal) put(name string, r *record, was privnet.Slot, a *internalpb.Assignment) error {
	return j.write(name, func(tx *bbolt.Tx) error {
		if was != 0 && r.Slot == 0 {
			if err := tx.Bucket(bucketSlots).Delete(slotKey(was)); err != nil {
				return err
			}
		}
		return putBoth(tx, r, a)
	})
}

func putBoth(tx *bbolt.Tx, r *record, a *internalpb.Assignment) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := tx.Bucket(bucketMachines).Put([]byte(r.Machine), b); err != nil || a == nil {
		return err
	}
	if b, err = proto.Marshal(a); err != nil {
		return err
	}
	return tx.Bucket(bucketAssignments).Put([]byte(r.Machine), b)
}

// remove forgets a Machine.
func (j *journal) remove(id key.MachineID, slot privnet.Slot) error {
	return j.write("forget", func(tx *bbolt.Tx) error {
		if slot != 0 {
			if err := tx.Bucket(bucketSlots).Delete(slotKey(slot)); err != nil {
				return err
			}
		}
		if err := tx.Bucket(bucketAssignments).Delete([]byte(id)); err != nil {
			return err
		}
		return tx.Bucket(bucketMachines).Delete([]byte(id))
	})
}

func slotKey(s privnet.Slot) []byte { return binary.BigEndian.AppendUint32(nil, uint32(s)) }

func (j *journal) close() error { return j.db.Close() }

// rebuild writes all that belongs in a journal which is not whole, and makes it so.
// What lies in it is of a try that was reported as failed and was not: nothing has
// been done by it.
func (j *journal) rebuild(all []entry) error {
	return j.write("rebuild", func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketMachines, bucketAssignments, bucketSlots} {
			if err := tx.DeleteBucket(b); err != nil {
				return err
			}
			if _, err := tx.CreateBucket(b); err != nil {
				return err
			}
		}
		for _, e := range all {
			if e.rec.Slot != 0 {
				if err := tx.Bucket(bucketSlots).Put(slotKey(e.rec.Slot), []byte(e.rec.Machine)); err != nil {
					return err
				}
			}
			if err := putBoth(tx, e.rec, e.asg); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Delete(keyMark)
	})
}
