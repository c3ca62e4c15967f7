package started

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
)

var epoch = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// clock is a time that tests set.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func id(n int) key.MachineID { return key.MachineID(fmt.Sprintf("%014x", n)) }

// raise starts a Machine of a generation with a grant of now.
func raise(t *testing.T, r *Register, c *clock, m key.MachineID, generation int64) {
	t.Helper()
	if err := r.Check(m, generation); err != nil {
		t.Fatal(err)
	}
	if err := r.Raise(m, generation, c.Add(grant.Life)); err != nil {
		t.Fatal(err)
	}
}

// refused reports whether r refuses a generation as replaced.
func refused(t *testing.T, r *Register, m key.MachineID, generation int64) bool {
	t.Helper()
	err := r.Check(m, generation)
	if err != nil && !fault.Is(err, fault.Denied) {
		t.Fatal(err)
	}
	return err != nil
}

// TestReplacedIsRemembered: by this warden and by the next; a generation that was
// started is good again, and so is every newer one.
func TestReplacedIsRemembered(t *testing.T) {
	c := &clock{epoch}
	path := filepath.Join(t.TempDir(), "started")
	r := Open(path, c.now)
	raise(t, r, c, id(1), 1)
	raise(t, r, c, id(1), 5)
	raise(t, r, c, id(2), 3)
	raise(t, r, c, id(2), 4)
	for _, again := range []bool{false, true} {
		if again {
			r = Open(path, c.now)
		}
		for _, x := range []struct {
			m          key.MachineID
			generation int64
			want       bool
		}{{id(1), 1, true}, {id(1), 4, true}, {id(1), 5, false}, {id(1), 6, false}, {id(2), 3, true}, {id(2), 4, false}, {id(3), 1, false}, {id(1), 0, true}} {
			if refused(t, r, x.m, x.generation) != x.want {
				t.Errorf("opened again: %v; generation %d of %s: refused is %v", again, x.generation, x.m, !x.want)
			}
		}
	}
	// The control: without the file, which only root removes, nothing is remembered.
	if os.Remove(path) != nil || refused(t, Open(path, c.now), id(1), 1) {
		t.Error("an empty register refuses something")
	}
}

// TestMostStartsWriteNothing: the file is as it was after restarts, wakes and first starts.
func TestMostStartsWriteNothing(t *testing.T) {
	c := &clock{epoch}
	path := filepath.Join(t.TempDir(), "started")
	r := Open(path, c.now)
	raise(t, r, c, id(1), 2)
	before := content(t, path)
	for range 3 {
		c.Time = c.Add(grant.Period)
		raise(t, r, c, id(1), 2)
		raise(t, r, c, id(2), 1)
	}
	if !bytes.Equal(before, content(t, path)) {
		t.Error("a restart was written down")
	}
	raise(t, r, c, id(1), 3)
	if bytes.Equal(before, content(t, path)) {
		t.Error("the control: a new generation was not written down")
	}
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unsynced is put without the sync, for tests that write much.
func unsynced(path string, b []byte, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

// TestDiesWhileItWrites: between any two bytes of any write. What is read after is what
// was there before, or the change, or damage that refuses all; never less than what was
// there before. Between two writes it is never damage.
func TestDiesWhileItWrites(t *testing.T) {
	c := &clock{epoch}
	path := filepath.Join(t.TempDir(), "started")
	r := Open(path, c.now)
	for n := range first - 3 {
		raise(t, r, c, id(n), 5)
	}
	whole, closed := 0, 0
	r.put = func(path string, b []byte, at int64) error {
		before := content(t, path)
		if n := int(at) + len(b) - len(before); n > 0 {
			before = append(before, make([]byte, n)...)
		}
		for n := 0; n <= len(b); n++ { // so much of it is on the disk
			if len(b) > recordSize && n > 0 && n < len(b) && n%29 != 0 {
				continue // blank lines, most of them
			}
			torn := bytes.Clone(before)
			copy(torn[at:], b[:n])
			known, _, _, err := parse(torn)
			if err != nil {
				closed++
				if n == 0 || n == len(b) {
					t.Errorf("damaged by the first %d bytes of a write at %d: %v", n, at, err)
				}
				continue
			}
			whole++
			for m, e := range r.known {
				if known[m].generation < e.generation {
					t.Fatalf("torn at %d of a write at %d: machine %s is forgotten", n, at, m)
				}
			}
		}
		return put(path, b, at)
	}
	for n := first - 3; n < first+3; n++ { // it grows on the way
		raise(t, r, c, id(n), 5)
	}
	raise(t, r, c, id(7), 6)
	raise(t, r, c, id(7), 1<<40)
	t.Logf("register: %d torn files were read whole, %d refuse all", whole, closed)
	if whole < grow || closed < 4*recordSize {
		t.Error("nothing was torn")
	}
}

// TestFileGrows: beyond its first records, and what a growth that was cut off left is
// written over.
func TestFileGrows(t *testing.T) {
	c := &clock{epoch}
	path := filepath.Join(t.TempDir(), "started")
	r := Open(path, c.now)
	const n = first + grow + 10
	for m := range n {
		if m == first { // cut off: it is longer, and the header does not say so
			b := content(t, path)
			if err := os.WriteFile(path, append(b, make([]byte, 1000)...), 0o600); err != nil {
				t.Fatal(err)
			}
			r = Open(path, c.now)
		}
		raise(t, r, c, id(m), 2)
	}
	if size := len(content(t, path)); size != (1+first+2*grow)*recordSize {
		t.Errorf("%d machines take %d bytes", n, size)
	}
	r = Open(path, c.now)
	for m := range n {
		if !refused(t, r, id(m), 1) {
			t.Errorf("machine %d is forgotten", m)
		}
	}
}

// TestFileIsBounded: Machines that come and go use the places of those whose older grants
// have ended, and no more than there may be; then those whose end first are forgotten.
func TestFileIsBounded(t *testing.T) {
	c := &clock{epoch}
	path := filepath.Join(t.TempDir(), "started")
	r := Open(path, c.now)
	r.most, r.put = first+grow, unsynced
	n := 0
	for range 60 { // four a day: those of the last 15 days count
		for range 4 {
			raise(t, r, c, id(n), 2)
			n++
		}
		c.Time = c.Add(grant.Period)
		for back := 1; back <= 4*14; back++ {
			if n-back >= 0 && !refused(t, r, id(n-back), 1) {
				t.Fatalf("machine %d, started %d before the last, is forgotten", n-back, back)
			}
		}
	}
	if size := len(content(t, path)); size > (1+first+grow)*recordSize || len(r.known) > first+grow {
		t.Errorf("%d machines over 60 days take %d bytes and %d entries", n, size, len(r.known))
	}
	// A flood: the newest are known, and the file is not larger.
	for range 500 {
		c.Time = c.Add(time.Second)
		raise(t, r, c, id(n), 2)
		n++
	}
	if size := len(content(t, path)); size != (1+first+grow)*recordSize || len(r.known) != first+grow {
		t.Errorf("a flood took %d bytes and %d entries", size, len(r.known))
	}
	for back := 1; back <= first+grow; back++ {
		if !refused(t, r, id(n-back), 1) {
			t.Fatalf("machine %d, started %d before the last of a flood, is forgotten", n-back, back)
		}
	}
	if err := Open(path, c.now).Load(); err != nil {
		t.Error(err)
	}
}

// TestClockIsSetBack: what was started counts whatever the clock says, also when the
// grant before was made by a clock that was a day ahead.
func TestClockIsSetBack(t *testing.T) {
	c := &clock{epoch}
	path := filepath.Join(t.TempDir(), "started")
	r := Open(path, c.now)
	older := c.Add(grant.Life) // of generation 1, made now
	c.Time = c.Add(-23 * time.Hour)
	raise(t, r, c, id(1), 2) // its grant ends 23 hours before that
	for n := 2; n < 2+first+grow; n++ {
		c.Time = older.Add(-time.Minute) // the last at which the older grant is good
		raise(t, r, c, id(n), 2)         // makes room where it can
	}
	if !refused(t, r, id(1), 1) {
		t.Error("a grant of before the clock was set back is good again")
	}
}

// TestDamagedFile: a file that is not what was written refuses every start, says what to
// do, and after that is done machines start without anything being restarted.
func TestDamagedFile(t *testing.T) {
	c := &clock{epoch}
	good := func() (*Register, string) {
		path := filepath.Join(t.TempDir(), "started")
		r := Open(path, c.now)
		raise(t, r, c, id(1), 2)
		raise(t, r, c, id(2), 9)
		return r, path
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":            func([]byte) []byte { return nil },
		"garbage":          func(b []byte) []byte { return bytes.Repeat([]byte("\xff"), len(b)) },
		"zeros":            func(b []byte) []byte { return make([]byte, len(b)) },
		"cut short":        func(b []byte) []byte { return b[:recordSize*2] },
		"half a header":    func(b []byte) []byte { return b[:10] },
		"of a new version": func(b []byte) []byte { return bytes.Replace(b, []byte("v1"), []byte("v2"), 1) },
		"another count":    func(b []byte) []byte { copy(b, header(1000)); return b },
		"a count below 1":  func(b []byte) []byte { copy(b, header(0)); return b },
		"zeros in a record": func(b []byte) []byte {
			i := bytes.Index(b, []byte(id(2)))
			copy(b[i:], make([]byte, recordSize))
			return b
		},
		"a record of nobody": func(b []byte) []byte {
			copy(b[3*recordSize:], sealed(fmt.Sprintf("%-54s", "x")))
			return b
		},
	} {
		_, path := good()
		if err := os.WriteFile(path, damage(content(t, path)), 0o600); err != nil {
			t.Fatal(err)
		}
		bad := content(t, path)
		r := Open(path, c.now)
		for _, err := range []error{r.Load(), r.Check(id(1), 2), r.Check(id(7), 1), r.Raise(id(7), 3, c.Add(grant.Life))} {
			if err == nil || fault.KindOf(err) != fault.Internal || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "Move the file away") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !bytes.Equal(bad, content(t, path)) {
			t.Errorf("%s: the damaged file was changed", name)
		}
		if err := os.Rename(path, path+".damaged"); err != nil {
			t.Fatal(err)
		}
		raise(t, r, c, id(1), 2)
		if !refused(t, r, id(1), 1) || !refused(t, Open(path, c.now), id(1), 1) {
			t.Errorf("%s: the new file remembers nothing", name)
		}
	}
	// Every single byte that is used counts.
	_, path := good()
	b := content(t, path)
	for i := range 3 * recordSize {
		torn := bytes.Clone(b)
		torn[i] ^= 1
		if _, _, _, err := parse(torn); err == nil {
			t.Errorf("byte %d may be changed", i)
		}
	}
	// The control: unchanged, it is read.
	if _, _, _, err := parse(b); err != nil {
		t.Error(err)
	}
	// One that is moved away although it is good is not half of the next.
	r, path := good()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := r.Raise(id(1), 3, c.Add(grant.Life)); err == nil {
		t.Error("it was written to a file that is not there")
	}
	raise(t, r, c, id(1), 3)
	if !refused(t, Open(path, c.now), id(1), 2) {
		t.Error("what was started since the file was moved away is not remembered")
	}
}

// TestRegisterAtOnce: many starts at once, for the race detector.
func TestRegisterAtOnce(t *testing.T) {
	c := &clock{epoch}
	path := filepath.Join(t.TempDir(), "started")
	r := Open(path, c.now)
	var wg sync.WaitGroup
	for m := range 8 {
		wg.Go(func() {
			for g := range int64(20) {
				if err := r.Check(id(m), g+1); err != nil {
					t.Error(err)
				}
				if err := r.Raise(id(m), g+1, epoch.Add(grant.Life)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r = Open(path, c.now)
	for m := range 8 {
		if !refused(t, r, id(m), 19) {
			t.Errorf("machine %d is forgotten", m)
		}
	}
}

// BenchmarkRaise is what a start costs that is of a new generation, and beside which the
// sandbox boots; BenchmarkRestart one of the same.
func BenchmarkRaise(b *testing.B) {
	r := Open(filepath.Join(b.TempDir(), "started"), time.Now)
	for g := int64(2); b.Loop(); g++ {
		if err := r.Raise(id(1), g, epoch); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRestart is a start of a generation that is remembered.
func BenchmarkRestart(b *testing.B) {
	r := Open(filepath.Join(b.TempDir(), "started"), time.Now)
	if err := r.Raise(id(1), 2, epoch); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := r.Check(id(1), 2); err != nil {
			b.Fatal(err)
		}
		if err := r.Raise(id(1), 2, epoch); err != nil {
			b.Fatal(err)
		}
	}
}
