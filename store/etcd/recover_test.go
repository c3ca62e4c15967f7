package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/store"
	"bulkhead/store/etcd"
)

const (
	walFile = "etcd/member/wal/0000000000000000-0000000000000000.wal"
	dbFile  = "etcd/member/snap/db"
	sound   = 60 // writes that were acknowledged
)

// cutStore is what a disk holds of a store after a power cut.
type cutStore struct {
	files map[string][]byte
	acked int // bytes of the log when the last write was acknowledged
	end   int // bytes of the log with the one record that was being written
}

// beforeCut writes, and takes what is on disk without closing the store: the last
// record, a large one, counts as one whose write was under way.
func beforeCut(t *testing.T) *cutStore {
	t.Helper()
	dir := shortDir(t)
	s, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put := func(i, size int) {
		value := bytes.Repeat([]byte{byte('a' + i%26)}, size)
		if _, err := s.Txn(context.Background(), nil, []store.Op{store.Put(fmt.Sprintf("/k/%03d", i), value)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range sound {
		put(i, 300)
	}
	s.Flush() // etcd's database has it too, as after some time
	c := &cutStore{files: map[string][]byte{}}
	for _, f := range []string{walFile, dbFile} {
		if c.files[f], err = os.ReadFile(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	c.acked = len(bytes.TrimRight(c.files[walFile], "\x00"))
	put(sound, 20<<10)
	if c.files[walFile], err = os.ReadFile(filepath.Join(dir, walFile)); err != nil {
		t.Fatal(err)
	}
	c.end = len(bytes.TrimRight(c.files[walFile], "\x00"))
	return c
}

// opened opens the store with its log and database changed by damage.
func (c *cutStore) opened(t *testing.T, damage func(log, db []byte) (newLog, newDB []byte)) (*etcd.Store, string, string, error) {
	t.Helper()
	dir := shortDir(t)
	log, db := damage(bytes.Clone(c.files[walFile]), bytes.Clone(c.files[dbFile]))
	for f, b := range map[string][]byte{walFile: log, dbFile: db} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var said words
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := etcd.Open(ctx, etcd.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if s != nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, dir, said.String(), err
}

// words is a log that the store may still write to while a test reads it.
type words struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// whole says what of the acknowledged writes is missing, or "".
func whole(s *etcd.Store) string {
	kvs, _, err := s.List(context.Background(), "/k/")
	if err != nil {
		return err.Error()
	}
	if len(kvs) != sound && len(kvs) != sound+1 {
		return fmt.Sprintf("%d keys are there, %d were acknowledged", len(kvs), sound)
	}
	for i, kv := range kvs[:sound] {
		if kv.Key != fmt.Sprintf("/k/%03d", i) || len(kv.Value) != 300 || kv.Value[299] != byte('a'+i%26) {
			return fmt.Sprintf("key %s holds %d bytes", kv.Key, len(kv.Value))
		}
	}
	if _, err := s.Txn(context.Background(), nil, []store.Op{store.Put("/new", []byte("x"))}); err != nil {
		return fmt.Sprintf("a write after it: %v", err)
	}
	return ""
}

// TestTornLog: whatever a power cut leaves of the record that was being written, the
// store opens by itself and holds what was acknowledged. It tries one place of each kind;
// "make soak-damage" tries sixteen.
func TestTornLog(t *testing.T) {
	c := beforeCut(t)
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("BULKHEAD_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("seed %d (BULKHEAD_SEED)", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	within := func() int { return c.acked + 1 + r.IntN(c.end-c.acked-2) }
	// A disk writes sectors as a whole: what begins with the second sector of the record.
	sector := func() int { return (c.acked/512 + 1 + r.IntN((c.end-c.acked)/512-1)) * 512 }
	garbage := func(b []byte) {
		for i := range b {
			b[i] = byte(1 + r.IntN(255))
		}
	}
	same := func(db []byte) []byte { return db }
	cases := map[string]func(log, db []byte) ([]byte, []byte){
		"whole":    func(log, db []byte) ([]byte, []byte) { return log, db },
		"no bytes": func(log, db []byte) ([]byte, []byte) { clear(log[c.acked:]); return log, db },
	}
	times := 1
	if os.Getenv("BULKHEAD_DAMAGE") == "all" {
		times = 16
	}
	for i := range times {
		cases[fmt.Sprintf("file ends within it %d", i)] = func(log, db []byte) ([]byte, []byte) { return log[:within()], same(db) }
		cases[fmt.Sprintf("zeros from a sector of it on %d", i)] = func(log, db []byte) ([]byte, []byte) { clear(log[sector():]); return log, db }
		cases[fmt.Sprintf("a sector of it was not written %d", i)] = func(log, db []byte) ([]byte, []byte) {
			at := sector()
			clear(log[at : at+512])
			return log, db
		}
		// Of a database, a power cut leaves pages of a transaction that was not finished.
		cases[fmt.Sprintf("the meta page being written is torn %d", i)] = func(log, db []byte) ([]byte, []byte) {
			newer := 0
			if txid(db[4096:]) > txid(db) {
				newer = 4096
			}
			garbage(db[newer+16+r.IntN(48) : newer+80])
			return log, db
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) { // in the order of the seed
		damage := cases[name]
		s, _, said, err := c.opened(t, damage)
		if err != nil {
			t.Errorf("seed %d, %s: %v\n%s", seed, name, err, said)
			continue
		}
		if why := whole(s); why != "" {
			t.Errorf("seed %d, %s: %s\n%s", seed, name, why, said)
		}
		if strings.Contains(said, "level=ERROR") {
			t.Errorf("seed %d, %s: what a power cut explains is no error:\n%s", seed, name, said)
		}
		s.Close()
	}
	t.Logf("%d cases", len(cases))
}

// txid is a meta page's transaction.
func txid(page []byte) (n uint64) {
	for i := 7; i >= 0; i-- {
		n = n<<8 | uint64(page[16+48+i])
	}
	return n
}

// TestDamagedLog: what no power cut does to the log is refused with one sentence that
// names the directory, and nothing on disk is changed.
func TestDamagedLog(t *testing.T) {
	c := beforeCut(t)
	for name, damage := range map[string]func(log, db []byte) ([]byte, []byte){
		"a bit in the middle": func(log, db []byte) ([]byte, []byte) { log[c.acked/2] ^= 4; return log, db },
		"zeros in the middle": func(log, db []byte) ([]byte, []byte) {
			clear(log[c.acked/2&^511 : c.acked/2&^511+512])
			return log, db
		},
		"its end is gone, and the database knows": func(log, db []byte) ([]byte, []byte) { clear(log[c.acked/2:]); return log, db },
		"empty": func(log, db []byte) ([]byte, []byte) { return nil, db },
	} {
		s, dir, said, err := c.opened(t, damage)
		if err == nil {
			t.Errorf("%s: opened, %s\n%s", name, whole(s), said)
			continue
		}
		if !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), dir+" is damaged") {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
		if n := strings.Count(said, "level=ERROR"); n > 1 {
			t.Errorf("%s: said %d times:\n%s", name, n, said)
		}
	}
}

// TestDamagedDatabase: the database is made anew from the log, when that is whole.
func TestDamagedDatabase(t *testing.T) {
	c := beforeCut(t)
	for name, damage := range map[string]func(log, db []byte) ([]byte, []byte){
		"cut short":      func(log, db []byte) ([]byte, []byte) { return log, db[:20<<10] },
		"no meta page":   func(log, db []byte) ([]byte, []byte) { clear(db[:8192]); return log, db },
		"pages of zeros": func(log, db []byte) ([]byte, []byte) { clear(db[8192 : 64<<10]); return log, db },
	} {
		s, dir, said, err := c.opened(t, damage)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, said)
			continue
		}
		if why := whole(s); why != "" {
			t.Errorf("%s: %s", name, why)
		}
		if strings.Count(said, "level=ERROR") != 1 || !strings.Contains(said, "db.damaged") {
			t.Errorf("%s: not said once:\n%s", name, said)
		}
		if _, err := os.Stat(filepath.Join(dir, "db.damaged")); err != nil {
			t.Errorf("%s: the damaged file is not kept: %v", name, err)
		}
		s.Close()
	}
}

// TestFullDisk: a store that a full disk cannot hold is not called damaged.
func TestFullDisk(t *testing.T) {
	dir := shortDir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatalf("mount a file system: %v (run the tests as root)", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := open(dir)
	if err == nil {
		s.Close()
	}
	if !fault.Is(err, fault.Full) || strings.Contains(err.Error(), "damaged") {
		t.Errorf("on a disk of 2 MiB: %v", err)
	}
}
