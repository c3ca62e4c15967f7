package worker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"bulkhead/api/internalpb"
	"bulkhead/boltcheck"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
)

// filled returns a directory with a journal of n Machines, closed.
func filled(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		r := &record{Machine: key.NewMachineID(), State: machine.Created}
		if err := j.create(r, &internalpb.Assignment{MachineId: string(r.Machine), Config: bytes.Repeat([]byte("x"), 2000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestCreateAgainKeepsTheSlot: a create that was made and reported as failed is done
// again, and takes no second slot that nobody would give back.
func TestCreateAgainKeepsTheSlot(t *testing.T) {
	j, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	r := &record{Machine: key.NewMachineID(), State: machine.Created}
	a := &internalpb.Assignment{MachineId: string(r.Machine)}
	for range 2 {
		if err := j.create(r, a); err != nil {
			t.Fatal(err)
		}
	}
	other := &record{Machine: key.NewMachineID(), State: machine.Created}
	if err := j.create(other, a); err != nil {
		t.Fatal(err)
	}
	if r.Slot != 1 || other.Slot != 2 {
		t.Errorf("the slots are %d and %d, want 1 and 2", r.Slot, other.Slot)
	}
}

func TestJournalKeeps(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &record{Machine: key.NewMachineID(), State: machine.Started, Instance: key.NewInstanceID(), Events: []machine.Event{{ID: "1", Type: "start"}}}
	a := &internalpb.Assignment{MachineId: string(r.Machine), Generation: 3}
	if err := j.create(r, a); err != nil {
		t.Fatal(err)
	}
	a.Generation = 4
	r.Seq = 9
	if err := j.put("x", r, r.Slot, a); err != nil {
		t.Fatal(err)
	}
	r.Error = "later"
	if err := j.put("x", r, r.Slot, nil); err != nil {
		t.Fatal(err)
	}
	j.close()
	if j, err = openJournal(dir); err != nil {
		t.Fatal(err)
	}
	defer j.close()
	got, err := j.load()
	if err != nil || len(got) != 1 || got[0].asg.Generation != 4 || got[0].rec.Seq != 9 || got[0].rec.Error != "later" || got[0].rec.Slot != 1 || len(got[0].rec.Events) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
}

// TestSlots: the lowest free one is given, a freed one again, none twice.
func TestSlots(t *testing.T) {
	j, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	add := func() *record {
		r := &record{Machine: key.NewMachineID()}
		if err := j.create(r, &internalpb.Assignment{}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	var rs []*record
	for want := privnet.Slot(1); want <= 5; want++ {
		r := add()
		if r.Slot != want {
			t.Fatalf("slot %d, want %d", r.Slot, want)
		}
		rs = append(rs, r)
	}
	was := rs[2].Slot
	rs[2].Slot = 0
	if err := j.put("gone", rs[2], was, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.remove(rs[0].Machine, rs[0].Slot); err != nil {
		t.Fatal(err)
	}
	if a, b, c := add().Slot, add().Slot, add().Slot; a != 1 || b != 3 || c != 6 {
		t.Fatalf("slots %d, %d, %d; want 1, 3, 6", a, b, c)
	}
	// A node without a free slot gives none.
	if err := j.db.Update(func(tx *bbolt.Tx) error {
		for s := privnet.Slot(1); s <= privnet.MaxSlot; s++ {
			if err := tx.Bucket(bucketSlots).Put(slotKey(s), []byte("x")); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if r := add(); r.Slot != 0 {
		t.Fatalf("slot %d of a full node", r.Slot)
	}
}

// inPages returns how much of a database's file holds pages: bbolt lets the file grow
// ahead of them, by more than their length at times.
func inPages(t *testing.T, path string) int {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin(false)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	return int(tx.Size())
}

// TestDamagedJournal: every way of tearing it gives an error that names the file, and
// is told from all that is not damage; the file is not changed. Control: a file that
// has lost only what bbolt let it grow by is not damaged.
func TestDamagedJournal(t *testing.T) {
	path := filepath.Join(filled(t, 20), "journal.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	size := inPages(t, path)
	if err := os.Truncate(path, int64(size)); err != nil {
		t.Fatal(err)
	}
	if err := boltcheck.File(path, time.Second); err != nil {
		t.Fatalf("a file without its unused end: %v", err)
	}
	cases := map[string][]byte{
		"not a database": []byte(strings.Repeat("hello", 5000)),
		"cut in half":    whole[:size/2/page*page],
		"a page short":   whole[:size-page],
		"one page":       whole[:page],
		"a few bytes":    whole[:100],
		"no meta":        append(make([]byte, 2*page), whole[2*page:]...),
		"no data":        append(append([]byte(nil), whole[:2*page]...), make([]byte, len(whole)-2*page)...),
	}
	for name, content := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "journal.db")
			os.WriteFile(path, content, 0o600)
			j, err := openJournal(dir)
			if err == nil {
				entries, lerr := j.load()
				j.close()
				t.Fatalf("opened with %d machines, %v", len(entries), lerr)
			}
			if !strings.Contains(fault.MessageOf(err), path) || !errors.Is(err, errDamaged) {
				t.Fatalf("%v", err)
			}
			if now, _ := os.ReadFile(path); !bytes.Equal(now, content) {
				t.Fatal("the damaged file was changed")
			}
		})
	}
}

func TestJournalOfAnotherVersion(t *testing.T) {
	dir := filled(t, 1)
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyVersion, binary.BigEndian.AppendUint32(nil, 99))
	})
	j.close()
	if _, err := openJournal(dir); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "version") {
		t.Fatalf("%v", err)
	}
}

func TestJournalHasOneWorker(t *testing.T) {
	defer func(d time.Duration) { lockWait = d }(lockWait)
	lockWait = time.Millisecond
	dir := filled(t, 1)
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if _, err := openJournal(dir); !fault.Is(err, fault.Conflict) {
		t.Fatalf("%v", err)
	}
}

// TestJournalOnAFullDisk: a journal is opened on a disk that is full without a write,
// and the records of Machines that it has can be changed again and again, because it
// holds blocks of the disk. Control: one that gave them back cannot.
func TestJournalOnAFullDisk(t *testing.T) {
	for _, holds := range []bool{true, false} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
			t.Fatalf("mount a file system: %v (run the tests as root)", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		j, err := openJournal(dir)
		if err != nil {
			t.Fatal(err)
		}
		var all []*record
		for range 100 {
			r := &record{Machine: key.NewMachineID(), State: machine.Created}
			if err := j.create(r, &internalpb.Assignment{MachineId: string(r.Machine), Config: bytes.Repeat([]byte("x"), 2000)}); err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		if !holds {
			b, err := os.ReadFile(j.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Remove(j.path), os.WriteFile(j.path, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Create(filepath.Join(dir, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		for chunk := 1 << 20; chunk > 0; {
			if _, err := f.Write(make([]byte, chunk)); err != nil {
				chunk /= 2
			}
		}
		f.Close()
		was, err := os.ReadFile(j.path)
		if err != nil {
			t.Fatal(err)
		}
		if j, err = openJournal(dir); err != nil {
			t.Fatal(err)
		}
		defer j.close()
		if is, err := os.ReadFile(j.path); err != nil || !bytes.Equal(is, was) {
			t.Errorf("opening it changed it (%v)", err)
		}
		var full error
		for n := range 5 {
			for _, r := range all {
				r.Error = strings.Repeat("e", 475*n) // they grow
				if err := j.put("up", r, r.Slot, nil); err != nil && full == nil {
					full = err
				}
			}
		}
		if holds != (full == nil) || full != nil && !fault.Is(full, fault.Full) {
			t.Errorf("held %v: %v", holds, full)
		}
	}
}
