package worker

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// TestNoDamageIsNotReplaced: a journal of another version, in another process's
// hands, or that cannot be read, is as good as before: it is left where it is.
func TestNoDamageIsNotReplaced(t *testing.T) {
	defer func(d time.Duration) { lockWait = d }(lockWait)
	lockWait = time.Millisecond
	for how, do := range map[string]func(t *testing.T, dir string){
		"another version": func(t *testing.T, dir string) {
			j, err := openJournal(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer j.close()
			if err := j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte{0, 0, 0, 99}) }); err != nil {
				t.Fatal(err)
			}
		},
		"in use": func(t *testing.T, dir string) {
			j, err := openJournal(dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { j.close() })
		},
		"cannot be read": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "journal.db")
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(how, func(t *testing.T) {
			dir := filled(t, 3)
			do(t, dir)
			if _, _, err := openOrReplace(dir, time.Now(), slog.New(slog.DiscardHandler)); err == nil || errors.Is(err, errDamaged) {
				t.Fatalf("%v", err)
			}
			if kept := setAside(dir); len(kept) > 0 {
				t.Fatalf("moved away: %v", kept)
			}
		})
	}
}

// TestDamagedJournalsAreKept: two at most, and it is said once for each.
func TestDamagedJournalsAreKept(t *testing.T) {
	dir := filled(t, 3)
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	path := filepath.Join(dir, "journal.db")
	now := time.Now()
	for i := range 4 {
		garbage := bytes.Repeat([]byte{byte(i)}, 1<<14)
		if err := os.WriteFile(path, garbage, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 { // starts that come to nothing else
			now = now.Add(time.Second)
			j, entries, err := openOrReplace(dir, now, log)
			if err != nil || j.mark == nil || len(entries) > 0 {
				t.Fatalf("%v, %v", entries, err)
			}
			j.close()
		}
		kept := setAside(dir)
		if b, err := os.ReadFile(filepath.Join(dir, kept[len(kept)-1])); err != nil || !bytes.Equal(b, garbage) || len(kept) != min(i+1, asideMax) {
			t.Fatalf("kept %v: %v", kept, err)
		}
		if n := strings.Count(said.String(), "level=ERROR"); n != i+1 {
			t.Fatalf("said %d times for %d:\n%s", n, i+1, said.String())
		}
	}
}
