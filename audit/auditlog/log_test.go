package auditlog_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/audit"
	"bulkhead/audit/auditlog"
	"bulkhead/internal/await"
	"bulkhead/notice"
)

func config(t testing.TB, dir string) auditlog.Config {
	t.Helper()
	signer, key, err := auditlog.OpenKey(dir+".key", "bulkhead.test/audit")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	return auditlog.Config{Dir: dir, Signer: signer, Key: key, Log: log, Board: notice.New(log)}
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// fill appends n records of a few organizations, many at a time.
func fill(t testing.TB, l *auditlog.Log, n int) {
	t.Helper()
	errs := make(chan error, n)
	for i := range n {
		r := audit.Record{ID: fmt.Sprint("r", i), Org: []string{"", "acme", "personal"}[i%3], Name: "ann", From: "192.0.2.1", Action: "POST /v1/apps", App: fmt.Sprint("app", i), Code: 201, Result: audit.OK}
		go func() { errs <- l.Append(bounded(t), r) }()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// checkpoint waits until the log's checkpoint has n records.
func checkpoint(t testing.TB, l *auditlog.Log, n uint64) *audit.Checkpoint {
	t.Helper()
	var cp *audit.Checkpoint
	await.True(t, fmt.Sprintf("there is a checkpoint of %d records", n), func() bool {
		b, err := l.Checkpoint()
		if err != nil {
			return false
		}
		if cp, err = audit.ParseCheckpoint(b, l.Key()); err != nil {
			t.Fatal(err)
		}
		return cp.Size >= n
	})
	return cp
}

func verify(t testing.TB, dir, key string, kept *audit.Checkpoint) *audit.Report {
	t.Helper()
	r, err := audit.VerifyDir(context.Background(), dir, key, kept)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestOneByteAnywhere flips one byte in every file of a log, one after the other, at
// three places of each: every time the check says so. Control: the log as it is passes.
func TestOneByteAnywhere(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	cfg := config(t, dir)
	l := auditlog.Start(cfg)
	fill(t, l, 300) // over one full tile
	kept := checkpoint(t, l, 300)
	fill(t, l, 17)
	checkpoint(t, l, 317)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := verify(t, dir, cfg.Key, kept)
	if len(r.Problems) > 0 || r.Records != 317 || r.Orgs != 3 || r.Later != 0 || r.Checkpoint.Size != 317 {
		t.Fatalf("untouched: %d records, %d orgs, %d later, %q", r.Records, r.Orgs, r.Later, r.Problems)
	}
	files, flips := 0, 0
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		files++
		for _, at := range []int{0, len(b) / 2, len(b) - 1} {
			for _, bit := range []byte{0x20, 0x01} { // the case of a letter, and the least one
				c := append([]byte(nil), b...)
				c[at] ^= bit
				os.WriteFile(path, c, 0o600)
				if r, err := audit.VerifyDir(context.Background(), dir, cfg.Key, kept); err == nil && len(r.Problems) == 0 {
					t.Errorf("%s: byte %d is %q instead of %q, and nothing was said", strings.TrimPrefix(path, dir), at, c[at], b[at])
				}
				flips++
			}
		}
		return os.WriteFile(path, b, 0o600)
	})
	t.Logf("%d files, %d flips", files, flips)
	if files < 12 || files != r.Files-2 { // two locks are empty
		t.Errorf("%d files were touched, the check read %d", files, r.Files)
	}
	if r := verify(t, dir, cfg.Key, kept); len(r.Problems) > 0 {
		t.Errorf("put back: %q", r.Problems)
	}
	for _, gone := range []string{audit.SegmentPath(0), audit.SegmentPath(1), audit.IndexPath("acme"), "log/checkpoint", "log/tile/0/000", "log/tile/entries/000"} {
		c := copyDir(t, dir)
		if err := os.Remove(filepath.Join(c, gone)); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, c, cfg.Key, kept); len(r.Problems) == 0 {
			t.Errorf("%s is gone, and nothing was said", gone)
		}
	}
}

// TestRolledBack: an older copy of the whole directory is right in itself, and is found
// against a checkpoint that was kept; so is a log that somebody who has the key wrote
// anew. The same directory passes against a checkpoint as old as itself.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	cfg := config(t, dir)
	l := auditlog.Start(cfg)
	fill(t, l, 20)
	early := checkpoint(t, l, 20)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old := copyDir(t, dir)
	l = auditlog.Start(cfg)
	fill(t, l, 5)
	late := checkpoint(t, l, 25)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir, cfg.Key, early); len(r.Problems) > 0 || r.Records != 25 {
		t.Errorf("the log does not extend itself: %q", r.Problems)
	}
	if r := verify(t, old, cfg.Key, early); len(r.Problems) > 0 {
		t.Errorf("the copy against its own checkpoint: %q", r.Problems)
	}
	if r := verify(t, old, cfg.Key, late); len(r.Problems) == 0 {
		t.Error("a log that was rolled back passes")
	}
	cfg.Dir = filepath.Join(t.TempDir(), "forged")
	l = auditlog.Start(cfg)
	fill(t, l, 30)
	checkpoint(t, l, 30)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, cfg.Dir, cfg.Key, late); len(r.Problems) == 0 {
		t.Error("a log that was written anew passes")
	}
	read := func(dir string) audit.ReadFunc {
		return func(_ context.Context, path string) ([]byte, error) {
			return os.ReadFile(filepath.Join(dir, audit.LogDir, path))
		}
	}
	b, _ := os.ReadFile(filepath.Join(cfg.Dir, "log/checkpoint"))
	forged, err := audit.ParseCheckpoint(b, cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.NewVerifier(forged, read(cfg.Dir)).Extends(t.Context(), late); err == nil {
		t.Error("a proof of consistency for a log that was written anew")
	}
	if err := audit.NewVerifier(late, read(dir)).Extends(t.Context(), early); err != nil {
		t.Error(err)
	}
	if err := audit.NewVerifier(early, read(dir)).Extends(t.Context(), late); err == nil {
		t.Error("a smaller log extends a larger one")
	}
}

// TestPages reads records by page, in both directions, with filters, and proves each to
// be in the tree.
func TestPages(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	l := auditlog.Start(config(t, dir))
	defer l.Close()
	fill(t, l, 900)
	cp := checkpoint(t, l, 900)
	v := audit.NewVerifier(cp, func(_ context.Context, path string) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, audit.LogDir, path))
	})
	for _, up := range []bool{false, true} {
		seen, q := map[uint64]bool{}, auditlog.Query{Org: "acme", Limit: 77, Up: up}
		for {
			p, err := l.List(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range p.Entries {
				r, err := e.Open()
				if err != nil || r.Org != "acme" || seen[r.Seq] {
					t.Fatalf("%+v, %v", r, err)
				}
				seen[r.Seq] = true
				if err := v.Included(t.Context(), e); err != nil {
					t.Fatal(err)
				}
				e.Record = append([]byte(nil), e.Record...)
				e.Record[len(e.Record)/2] ^= 1
				if v.Included(t.Context(), e) == nil {
					t.Fatal("a changed record is included")
				}
			}
			if q.From = p.Next; p.Next == 0 || p.Next > p.Last {
				break
			}
		}
		if len(seen) != 300 || !seen[1] || !seen[300] {
			t.Errorf("up %v: %d records", up, len(seen))
		}
	}
	p, err := l.List(t.Context(), auditlog.Query{Org: "acme", App: "app1"})
	if err != nil || len(p.Entries) != 1 {
		t.Errorf("one app: %v, %v", p, err)
	}
	for name, q := range map[string]auditlog.Query{
		"nobody":     {Org: "acme", User: "bob"},
		"later":      {Org: "acme", Since: time.Now().Add(time.Hour)},
		"earlier":    {Org: "acme", Until: time.Now().Add(-time.Hour)},
		"up earlier": {Org: "acme", Until: time.Now().Add(-time.Hour), Up: true},
		"another":    {Org: "acm"},
	} {
		if p, err := l.List(t.Context(), q); err != nil || len(p.Entries) != 0 {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { fill(t, l, 3); cancel() }()
	if err := l.Wait(bounded(t), "acme", 301); err != nil {
		t.Error(err)
	}
	<-ctx.Done()
}

// TestReadOnlyUnderABatch mounts the log's disk read-only while records are on their way
// into the tree: it stays writable until they are there, since what writes them panics.
func TestReadOnlyUnderABatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bulkhead-test", dir, "tmpfs", 0, "size=16m,mode=0700"); err != nil {
		t.Fatalf("mount a tmpfs: %v; this test needs root", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	l := auditlog.Start(config(t, dir))
	fill(t, l, 1)
	checkpoint(t, l, 1)
	busy, rounds := 0, 0
	for ; rounds < 10 || busy == 0 && rounds < 100; rounds++ {
		// A round that was read-only before the batch began has left the tree waiting: what
		// is wanted here is one under way.
		await.True(t, fmt.Sprintf("the tree follows again in round %d", rounds), func() bool { return l.Ready() == nil })
		fill(t, l, 1)
		<-time.After(time.Duration(rounds%10) * 5 * time.Millisecond) // at another place of the batch each round
		await.True(t, fmt.Sprintf("the disk is read-only in round %d", rounds), func() bool {
			err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=16m")
			if err != nil {
				busy++
			}
			return err == nil
		})
		// A batch that is under way would fail now, and end this process: nothing says that it
		// does not, so the disk stays read-only for longer than a batch takes.
		<-time.After(120 * time.Millisecond)
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
			t.Fatal(err)
		}
	}
	checkpoint(t, l, uint64(rounds+1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if busy == 0 {
		t.Error("the disk was never held: nothing was tried")
	}
	t.Logf("%d times read-only, put off %d times", rounds, busy)
}
