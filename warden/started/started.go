// Package started remembers the highest generation that was started of each Machine on
// this node, so that who holds the worker cannot show the warden an older grant once a
// newer one has been used, while the older has not ended.
//
// It is on disk before the start is answered, in one file that only root reads and
// writes: a header and records of 64 bytes, each with a checksum. A record is written
// over in place, within one sector, so that a change is there whole or not at all, needs
// no room on a disk that is full, and costs one write and one sync however many Machines
// there are. Most starts write nothing: a restart and a wake are of the generation that
// is remembered, and a first generation replaces none.
//
// A file that is not there is a new installation's. One that is damaged refuses every
// start until an operator has moved it away: what was in it is not guessed.
package started

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
)

const (
	recordSize = 64
	first      = 63 // records of a new file, which is 4096 bytes with the header
	grow       = 64 // records that it grows by
	// most bounds file and memory. What is remembered are Machines that were changed and
	// started again within the life of a grant.
	most  = 1 << 16
	title = "bulkhead warden, generations started, v1"
)

// Register is what is remembered. Its methods may be called at once by many.
type Register struct {
	path string
	now  func() time.Time
	most int
	put  func(path string, b []byte, at int64) error // writes and syncs; tests watch it

	disk sync.Mutex // held while the file is read or written

	mu     sync.Mutex // guards known; never held while the disk is waited for
	known  map[key.MachineID]entry
	loaded bool

	// Of who holds disk.
	places int   // records in the file
	free   []int // of them, those that are nobody's
}

// entry is a record in memory.
type entry struct {
	generation int64
	until      int64 // Unix seconds: when every older grant has ended
	place      int
}

// Open returns the Register in the file at path. It is read when it is first needed.
func Open(path string, now func() time.Time) *Register {
	return &Register{path: path, now: now, most: most, put: put}
}

// Load reads the file unless it has been read, or makes it.
func (r *Register) Load() error {
	r.disk.Lock()
	defer r.disk.Unlock()
	return r.load()
}

// Check refuses a generation older than one that was started: Denied. Any other error
// is of a file that cannot be relied on.
func (r *Register) Check(m key.MachineID, generation int64) error {
	e, ok, loaded := r.get(m)
	if !loaded {
		if err := r.Load(); err != nil {
			return err
		}
		e, ok, _ = r.get(m)
	}
	if ok && generation < e.generation {
		return fault.New(fault.Denied, "the grant of machine %s is of generation %d, and generation %d was started on this node: a grant that was replaced is not good again",
			m, generation, e.generation).WithStatus(grant.StatusReplaced)
	}
	return nil
}

// Raise remembers that a generation, which Check let through, is started with a grant
// of that end. It is on disk when Raise returns nil.
func (r *Register) Raise(m key.MachineID, generation int64, ends time.Time) error {
	r.disk.Lock()
	defer r.disk.Unlock()
	if err := r.load(); err != nil {
		return err
	}
	e, ok, _ := r.get(m)
	if ok && generation <= e.generation || !ok && generation <= 1 {
		return nil // written, or without an older one to remember it for
	}
	// Every grant of an older generation was made before any of this one, and ends
	// before it but for what clocks were set back meanwhile.
	e.generation, e.until = generation, ends.Add(grant.Skew).Unix()
	if !ok {
		var err error
		if e.place, err = r.place(); err != nil {
			return err
		}
	}
	// Died here, or in the middle: the start was not answered, and what the file said
	// before is still so. Died after: as if the start had come to its end.
	err := failpoint.Write("warden/started/record", func() error { return r.write(e.place, record(m, e)) })
	if err != nil {
		if !ok {
			r.free = append(r.free, e.place)
		}
		return fault.System(err, "%s, the warden's record of what it has started, cannot be written", r.path)
	}
	r.mu.Lock()
	r.known[m] = e
	r.mu.Unlock()
	return nil
}

// get looks a Machine up.
func (r *Register) get(m key.MachineID) (e entry, ok, loaded bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok = r.known[m]
	return e, ok, r.loaded
}

// place finds a place for one Machine more: a free one, one of which every older grant
// has ended, a new one, and at last that of the Machine whose older grants end first.
func (r *Register) place() (int, error) {
	if len(r.free) == 0 {
		r.forgetEnded()
	}
	if len(r.free) == 0 && r.places+grow <= r.most {
		if err := failpoint.Write("warden/started/grow", r.grow); err != nil {
			return 0, fault.System(err, "%s, the warden's record of what it has started, cannot be made larger", r.path)
		}
	}
	if len(r.free) == 0 {
		r.forgetOne()
	}
	last := len(r.free) - 1
	p := r.free[last]
	r.free = r.free[:last]
	return p, nil
}

// forgetEnded frees the places of which every older grant has ended. It is called once
// for each time that the file would have to grow.
func (r *Register) forgetEnded() {
	now := r.now().Unix()
	r.mu.Lock()
	defer r.mu.Unlock()
	for m, e := range r.known {
		if e.until < now {
			delete(r.known, m)
			r.free = append(r.free, e.place)
		}
	}
}

// forgetOne frees the place of the Machine whose older grants end first.
func (r *Register) forgetOne() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var which key.MachineID
	for m, e := range r.known {
		if which == "" || e.until < r.known[which].until {
			which = m
		}
	}
	r.free = append(r.free, r.known[which].place)
	delete(r.known, which)
}

// load reads the file, or makes it where there is none.
func (r *Register) load() error {
	if r.loaded {
		return nil
	}
	b, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		b = append(header(first), blank(first)...)
		err = failpoint.Write("warden/started/create", func() error { return create(r.path, b) })
	}
	if err != nil {
		return fault.System(err, "%s, the warden's record of what it has started, cannot be read or made; no machine starts", r.path)
	}
	known, free, places, err := parse(b)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "%s, the warden's record of what it has started, is damaged (%v): no machine starts, and what runs runs on. Move the file away: machines then start again by themselves, and until grants of before end, at most %d days, who stole this node's worker could start older versions of machines",
			r.path, err, (grant.Life+grant.Period)/(24*time.Hour))
	}
	r.places, r.free = places, free
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.loaded = known, true
	return nil
}

// parse reads a file whole.
func parse(b []byte) (known map[key.MachineID]entry, free []int, places int, err error) {
	text, err := checked(b, 0)
	if err != nil {
		return nil, nil, 0, err
	}
	name, count, ok := strings.Cut(text, ";")
	places, err = strconv.Atoi(strings.TrimSpace(count))
	if !ok || err != nil || strings.TrimSpace(name) != title {
		return nil, nil, 0, fmt.Errorf("its first line is %q", text)
	}
	if places < 1 || len(b)/recordSize < 1+places {
		return nil, nil, 0, fmt.Errorf("it has %d bytes and should have %d records", len(b), places)
	}
	known = map[key.MachineID]entry{}
	for p := 1; p <= places; p++ { // what follows is of a growth that was not finished
		if string(b[p*recordSize:(p+1)*recordSize]) == string(blank(1)) {
			free = append(free, p)
			continue
		}
		text, err := checked(b, p)
		if err != nil {
			return nil, nil, 0, err
		}
		m, e, err := parseRecord(text)
		if err != nil {
			return nil, nil, 0, fmt.Errorf("record %d: %w", p, err)
		}
		e.place = p
		// Two of one Machine: the write of the one was reported as failed and was not.
		if had, ok := known[m]; ok && had.generation >= e.generation {
			free = append(free, p)
			continue
		} else if ok {
			free = append(free, had.place)
		}
		known[m] = e
	}
	return known, free, places, nil
}

// parseRecord reads what record wrote.
func parseRecord(text string) (m key.MachineID, e entry, err error) {
	f := strings.Fields(text)
	if len(f) != 3 {
		return "", e, fmt.Errorf("it says %q", text)
	}
	if m, err = key.ParseMachineID(f[0]); err != nil {
		return "", e, err
	}
	if e.generation, err = strconv.ParseInt(f[1], 10, 64); err != nil {
		return "", e, err
	}
	e.until, err = strconv.ParseInt(f[2], 10, 64)
	return m, e, err
}

// write writes one record over another; 0 is the header.
func (r *Register) write(place int, rec []byte) error {
	return r.writeAt(rec, int64(place)*recordSize)
}

// writeAt writes to a file that is there. One that was moved away while the warden runs
// is no file to write to: what is in memory would be half of the next one.
func (r *Register) writeAt(b []byte, at int64) error {
	err := r.put(r.path, b, at)
	if errors.Is(err, fs.ErrNotExist) {
		r.mu.Lock()
		r.loaded = false // a new one is made at the next start
		r.mu.Unlock()
	}
	return err
}

// put writes to a file that is there, and syncs it.
func put(path string, b []byte, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Sync(), f.Close())
}

// grow makes room for more records: died before the header counts them, they are not
// there, and are written again.
func (r *Register) grow() error {
	if err := r.writeAt(blank(grow), int64(1+r.places)*recordSize); err != nil {
		return err
	}
	if err := r.write(0, header(r.places+grow)); err != nil {
		return err
	}
	for range grow {
		r.places++
		r.free = append(r.free, r.places)
	}
	return nil
}

// create makes the file whole or not at all.
func create(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// header is the first record of a file with n others.
func header(n int) []byte { return sealed(fmt.Sprintf("%-45s;%8d", title, n)) }

// record is a Machine's record.
func record(m key.MachineID, e entry) []byte {
	return sealed(fmt.Sprintf("%14s %20d %18d", m, e.generation, e.until))
}

// blank are n records that are nobody's.
func blank(n int) []byte {
	return []byte(strings.Repeat(strings.Repeat(" ", recordSize-1)+"\n", n))
}

// sealed adds the checksum to a record's text of 54 bytes.
func sealed(text string) []byte {
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// checked returns the text of a record whose checksum is right.
func checked(b []byte, place int) (string, error) {
	if len(b) < (place+1)*recordSize {
		return "", fmt.Errorf("it ends before record %d", place)
	}
	rec := b[place*recordSize : (place+1)*recordSize]
	text := string(rec[:recordSize-10])
	if string(sealed(text)) != string(rec) {
		return "", fmt.Errorf("record %d is not what was written", place)
	}
	return text, nil
}
