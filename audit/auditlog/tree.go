package auditlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"bulkhead/audit"
	"bulkhead/failpoint"
)

// Times of the tree.
const (
	batchAge     = 100 * time.Millisecond // that leaves wait for others: a file for each level and a sync for each file
	addLimit     = 30 * time.Second       // for tessera to integrate a batch
	shutdownTime = 3 * time.Second
)

// tree is the transparency log. One goroutine has it.
type tree struct {
	dir      string
	appender *tessera.Appender
	shutdown func(context.Context) error
	cancel   context.CancelFunc
	size     uint64 // leaves in it
}

var quietOnce sync.Once

// quietTessera sends what tessera logs where everything is logged; what matters of it
// comes back as errors, too.
func quietTessera(log *slog.Logger) {
	quietOnce.Do(func() { klog.SetSlogLogger(slog.New(levelDown{log.Handler()})) })
}

// levelDown is a handler that has nothing above debug.
type levelDown struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h levelDown) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (h levelDown) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h levelDown) WithAttrs(a []slog.Attr) slog.Handler { return levelDown{h.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (h levelDown) WithGroup(n string) slog.Handler { return levelDown{h.Handler.WithGroup(n)} }

// treeState is what tessera notes of the tree.
type treeState struct {
	Size uint64 `json:"size"`
	Root []byte `json:"root"`
}

// treeSize is how many leaves the tree in dir has.
func treeSize(dir string) (uint64, error) {
	b, err := readFile(filepath.Join(dir, audit.LogDir, ".state", "treeState"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var s treeState
	if err := json.Unmarshal(b, &s); err != nil {
		return 0, damaged("treeState: %v", err)
	}
	return s.Size, nil
}

// readLeaves reads a bundle of a tree of the size given.
func readLeaves(dir string, i, size uint64) ([][]byte, error) {
	b, err := readFile(filepath.Join(dir, audit.LogDir, layout.EntriesPath(i, layout.PartialTileSize(0, i, size))))
	if err != nil {
		return nil, damaged("%v", err)
	}
	var e api.EntryBundle
	if err := e.UnmarshalText(b); err != nil {
		return nil, damaged("bundle %d: %v", i, err)
	}
	return e.Entries, nil
}

// writable says whether tessera could take its locks. It panics when it cannot, in a
// goroutine of its own, which nothing can catch: so it is asked nothing before this
// says yes. The file is open for writing and keeps it so: nobody mounts the disk
// read-only until it is closed. (A file system that turns read-only by itself, for an
// error of the disk, can still end the controller, which refuses changes when it is back.)
func writable(dir string) (*os.File, error) {
	var open *os.File
	for _, name := range []string{"treeState.lock", "publish.lock"} {
		path := filepath.Join(dir, audit.LogDir, ".state", name)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if open != nil {
			err = errors.Join(err, open.Close())
		}
		if open = f; err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if err := unix.Access(filepath.Join(dir, audit.LogDir, ".state"), unix.W_OK); err != nil {
		return nil, errors.Join(err, open.Close())
	}
	return open, nil
}

// openTree opens the tree, or begins it.
func openTree(cfg *Config) (t *tree, err error) {
	state := filepath.Join(cfg.Dir, audit.LogDir, ".state")
	if err := makeDir(state); err != nil {
		return nil, err
	}
	held, err := writable(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	size, err := treeSize(cfg.Dir)
	if err != nil {
		return nil, err
	}
	sweep(cfg.Dir, size)
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("tessera: %v", p)
		}
		if err != nil {
			cancel()
		}
	}()
	driver, err := posix.New(ctx, posix.Config{Path: filepath.Join(cfg.Dir, audit.LogDir), HTTPClient: witnessClient()})
	if err != nil {
		return nil, err
	}
	opts := tessera.NewAppendOptions().WithCheckpointSigner(cfg.Signer).
		WithBatching(layout.TileWidth, batchAge).WithCheckpointInterval(CheckpointEvery)
	if err := withWitnesses(opts, cfg); err != nil {
		return nil, err
	}
	a, shutdown, _, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		return nil, err
	}
	return &tree{dir: cfg.Dir, appender: a, shutdown: shutdown, cancel: cancel, size: size}, nil
}

// withWitnesses adds the configured witnesses.
func withWitnesses(opts *tessera.AppendOptions, cfg *Config) error {
	if len(cfg.Witnesses) == 0 {
		return nil
	}
	group, err := tessera.NewWitnessGroupFromPolicy(cfg.Witnesses)
	if err != nil {
		return fmt.Errorf("the policy of witnesses: %w", err)
	}
	opts.WithCheckpointInterval(time.Second).
		WithWitnesses(group, &tessera.WitnessOptions{Timeout: witnessLimit, FailOpen: !cfg.WitnessRequired})
	return nil
}

// add puts leaves into the tree, which is as large as the first one's number, and
// returns when they are integrated and synced. They are at most a bundle, and tessera
// takes them as one batch, so that all are in or none.
func (t *tree) add(ctx context.Context, leaves [][]byte) error {
	held, err := writable(t.dir)
	if err != nil {
		return err
	}
	defer held.Close() // when tessera has answered
	return failpoint.Write("audit/leaves", func() error {
		futures := make([]tessera.IndexFuture, len(leaves))
		for i, l := range leaves {
			futures[i] = t.appender.Add(ctx, tessera.NewEntry(l))
		}
		done := make(chan error, 1)
		go func() {
			for i, f := range futures {
				at, err := f()
				if err == nil && at.Index != t.size+uint64(i) {
					err = damaged("leaf %d was put at %d", t.size+uint64(i), at.Index)
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		select {
		case err := <-done:
			if err == nil {
				t.size += uint64(len(leaves))
			}
			return err
		case <-time.After(addLimit):
			return fmt.Errorf("tessera took longer than %v", addLimit)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// close waits for a checkpoint of everything, for a while, and ends tessera.
func (t *tree) close() {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	t.shutdown(ctx)
	t.cancel()
}

// leftover is a temporary file of tessera's: the name that it was to get, and digits.
var leftover = regexp.MustCompile(`^(treeState|gcState|version|checkpoint)\d+$|^\d{3}\d{4,}$`)

// sweep removes temporary files that a kill left at the tree's right edge, which is
// where they are.
func sweep(dir string, size uint64) {
	dirs := []string{".", ".state"}
	edge := func(path string) { dirs = append(dirs, filepath.Dir(path), path+".p") }
	edge(layout.EntriesPath(size/layout.TileWidth, 0))
	for l, n := uint64(0), size; l < 7; l, n = l+1, n>>layout.TileHeight {
		edge(layout.TilePath(l, n>>layout.TileHeight, 0))
	}
	for _, d := range dirs {
		d = filepath.Join(dir, audit.LogDir, d)
		all, err := os.ReadDir(d)
		if err != nil {
			continue
		}
		for _, e := range all {
			if !e.IsDir() && (leftover.MatchString(e.Name()) || filepath.Ext(d) == ".p" && len(e.Name()) > 4) {
				os.Remove(filepath.Join(d, e.Name()))
			}
		}
	}
}

// grow has the tree follow the records.
func (l *Log) grow() {
	var t *tree
	defer func() {
		if t != nil {
			l.follow(t) // what was written last
			t.close()
		}
	}()
	lookAt := time.NewTicker(retryEvery)
	defer lookAt.Stop()
	for {
		if t == nil {
			t = l.plant()
		}
		if t != nil {
			if err := l.follow(t); err != nil {
				t.close()
				t = nil
				l.lag(err)
			} else {
				l.lag(l.watch(t))
			}
		}
		select {
		case <-l.ended:
			return
		case <-l.kick:
			if t == nil {
				time.Sleep(retryEvery / 10)
			}
		case <-lookAt.C:
		}
	}
}

// plant opens the tree once the records are open.
func (l *Log) plant() *tree {
	if _, err := l.opened(); err != nil {
		return nil
	}
	t, err := openTree(&l.cfg)
	if err != nil {
		l.lag(err)
		return nil
	}
	return t
}

// follow puts the records that the tree has not into it.
func (l *Log) follow(t *tree) error {
	f, err := l.opened()
	if err != nil {
		return nil
	}
	for {
		n := f.size()
		if l.behind.Store(n - min(n, t.size)); t.size >= n {
			break
		}
		i := t.size / audit.SegmentSize
		entries, err := f.segment(i)
		if err != nil {
			return err
		}
		k := int(t.size % audit.SegmentSize)
		end := min(len(entries), int(min(f.size()-i*audit.SegmentSize, audit.SegmentSize)))
		if k >= end {
			return damaged("segment %d has %d records, and more are due", i, len(entries))
		}
		var leaves [][]byte
		for _, e := range entries[k:end] {
			leaves = append(leaves, e.Leaf())
		}
		if err := t.add(context.Background(), leaves); err != nil {
			return err
		}
	}
	return nil
}

// lag notes why the tree does not follow, or that it does.
func (l *Log) lag(err error) {
	const what = "the audit log's tree does not follow its records, and changes are refused"
	l.mu.Lock()
	l.late = err
	l.mu.Unlock()
	if err != nil {
		l.cfg.Board.Trouble(what, err)
	} else {
		l.cfg.Board.Over(what)
	}
}
