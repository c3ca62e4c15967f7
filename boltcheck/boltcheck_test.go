package boltcheck_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"bulkhead/boltcheck"
)

// fill makes a file with nested and inline buckets, values larger than a page, several
// levels and free pages.
func fill(t *testing.T, opt *bbolt.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	unsynced := *opt
	unsynced.NoSync = true // the disk is not what is tried here
	db, err := bbolt.Open(path, 0o600, &unsynced)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for round := range 3 {
		err := db.Update(func(tx *bbolt.Tx) error {
			for b := range 4 {
				bucket, err := tx.CreateBucketIfNotExists(fmt.Appendf(nil, "b%d", b))
				if err != nil {
					return err
				}
				in, err := bucket.CreateBucketIfNotExists([]byte("within"))
				if err != nil {
					return err
				}
				if err := in.Put([]byte("k"), []byte("small")); err != nil {
					return err
				}
				for i := range 8 * b {
					k := fmt.Appendf(nil, "k%04d", (i*7+round)%200)
					if i%5 == round {
						err = bucket.Delete(k)
					} else {
						err = bucket.Put(k, bytes.Repeat(k, 1+i*37%900))
					}
					if err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// read has bbolt read everything that a file holds, and fails or panics as it does.
func read(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	sum := 0
	var walk func(*bbolt.Bucket) error
	walk = func(in *bbolt.Bucket) error {
		return in.ForEach(func(k, v []byte) error {
			for _, b := range v {
				sum += int(b)
			}
			if v == nil {
				return walk(in.Bucket(k))
			}
			return nil
		})
	}
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, in *bbolt.Bucket) error {
			return walk(in)
		})
	})
}

// overwrite writes in place: ext4 waits for the disk when a file is made anew.
func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// TestEveryPage damages each page, in one way ("make soak-damage": in every way): damage is
// found, or bbolt reads the file to its end. What a power cut leaves is never called damage.
func TestEveryPage(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("BULKHEAD_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("BULKHEAD_SEED: %v", err)
		}
	}
	t.Logf("BULKHEAD_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	found, harmless := 0, 0
	for _, o := range []struct {
		name string
		opt  *bbolt.Options
	}{
		{"free pages written", &bbolt.Options{}}, {"free pages not written", &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}},
		{"large pages", &bbolt.Options{PageSize: 16384}},
	} {
		name, opt := o.name, o.opt
		path := fill(t, opt)
		if err := boltcheck.File(path, time.Second); err != nil {
			t.Fatalf("%s: a sound file: %v", name, err)
		}
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		size := max(opt.PageSize, 4096)
		for at := 0; at+size <= len(sound); at += size {
			harms := []struct {
				how  string
				harm func(p []byte)
			}{
				{"zeros", func(p []byte) { clear(p) }},
				{"half zeros", func(p []byte) { clear(p[size/2:]) }},
				{"its header", func(p []byte) { p[rnd.IntN(16)] ^= 1 << rnd.IntN(8) }},
				{"its elements", func(p []byte) { p[16+rnd.IntN(12)] ^= 1 << rnd.IntN(8) }},
			}
			if os.Getenv("BULKHEAD_DAMAGE") != "all" {
				i := rnd.IntN(len(harms))
				harms = harms[i : i+1]
			}
			for _, h := range harms {
				how, b := h.how, bytes.Clone(sound)
				h.harm(b[at : at+size])
				overwrite(t, path, b)
				err := boltcheck.File(path, time.Second)
				if err != nil {
					found++
					if !errors.As(err, new(*boltcheck.Error)) {
						t.Errorf("%s, page %d, %s: %v is no damage", name, at/size, how, err)
					}
					if at < 2*size {
						t.Errorf("%s, meta page %d, %s: %v, though the other one is sound", name, at/size, how, err)
					}
					continue
				}
				harmless++
				if err := read(path); err != nil {
					t.Errorf("%s, page %d, %s: called sound, and bbolt says %v", name, at/size, how, err)
				}
			}
		}
		overwrite(t, path, sound)
		for _, n := range []int{len(sound) / 2, 8192, 4096, 100, 1} {
			if err := os.Truncate(path, int64(n)); err != nil {
				t.Fatal(err)
			}
			if err := boltcheck.File(path, time.Second); !errors.As(err, new(*boltcheck.Error)) {
				t.Errorf("%s: cut to %d bytes: %v", name, n, err)
			}
		}
	}
	t.Logf("%d kinds of damage found, %d harmless", found, harmless)
	if found < 30 || harmless < 5 {
		t.Error("too few cases: nothing was tried")
	}
}

// TestEntriesThatMislead changes what bbolt finds its way by, and what it takes an entry
// for: a bucket that becomes a value, a key of a branch. It would find nothing where
// something is, which its callers do not expect of it.
func TestEntriesThatMislead(t *testing.T) {
	path := fill(t, &bbolt.Options{})
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const size, branch, leaf = 4096, 0x01, 0x02
	found := map[string]int{}
	try := func(what string, at int, harm func(b []byte)) {
		b := bytes.Clone(sound)
		harm(b[at:])
		overwrite(t, path, b)
		if err := boltcheck.File(path, time.Second); err != nil {
			found[what]++
		} else if err := read(path); err != nil {
			t.Errorf("%s at %d: called sound, and bbolt says %v", what, at, err)
		}
	}
	for page := 2 * size; page+size <= len(sound); page += size {
		flags, n := sound[page+8], int(sound[page+10])
		for i := range n {
			at := page + 16 + 16*i
			switch flags {
			case branch: // its key
				key := at + int(binary.NativeEndian.Uint32(sound[at:]))
				try("a larger key", key, func(b []byte) { b[0] = 0xff })
				try("a smaller key", key, func(b []byte) { b[0] = 0 })
			case leaf:
				try("neither value nor bucket", at, func(b []byte) { b[0] |= 2 })
				try("what is a bucket", at, func(b []byte) { b[0] ^= 1 })
			}
		}
	}
	for _, what := range []string{"a larger key", "neither value nor bucket", "what is a bucket"} {
		if found[what] == 0 {
			t.Errorf("%s was never found", what)
		}
	}
	t.Log(found)
}

// TestNothingThere: bbolt makes a new file of one that is empty or not there.
func TestNothingThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := boltcheck.File(path, 0); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := boltcheck.File(path, 0); err != nil {
		t.Error(err)
	}
}

// TestInUse: a file that is being written is not judged.
func TestInUse(t *testing.T) {
	path := fill(t, &bbolt.Options{})
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := boltcheck.File(path, 30*time.Millisecond); !errors.Is(err, boltcheck.ErrInUse) {
		t.Errorf("%v", err)
	}
}
