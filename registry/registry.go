// Package registry is an OCI registry: the push and pull API of the OCI
// distribution specification 1.1 as an http.Handler, with blobs on disk.
//
// # On disk
//
// Everything lives below one directory that one process holds at a time:
//
//	blobs/sha256/ab/<hex>              content of blobs and manifests, named by its digest
//	repos/<name>/_blobs/<hex>          the repository has the blob (an empty file)
//	repos/<name>/_manifests/<hex>      the repository has the manifest (its media type, as JSON)
//	repos/<name>/_tags/<tag>           the digest that the tag means
//	repos/<name>/_referrers/<hex>/<m>  manifest m names the manifest <hex> as its subject
//	uploads/<id>.data, <id>.json       an upload that is under way
//	tmp/                               files that have no name yet
//
// A component of a repository's name never starts with an underscore, so the two
// kinds of directories below repos cannot meet.
//
// Content is written under a name that means nothing, synced, and then renamed to
// its place; the directory is synced before anybody is told. So a file below blobs
// is always whole. What a file refers to is durable before the file is: content
// before the link to it, parts before the manifest, the manifest before its tag,
// and removal goes the other way round. A crash between two steps therefore leaves
// at most something that nothing refers to, which GC removes.
//
// # Access
//
// A request carries a token, as the password of HTTP Basic (any user name) or as a
// Bearer token; Config.Authorize decides about each repository. A blob is visible
// only in the repositories that it was pushed to or mounted into: to know a digest
// is not enough to read it.
package registry

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/room"
)

// Defaults of the limits in Config.
const (
	DefaultMaxManifest  = 4 << 20  // bytes
	DefaultMaxBlob      = 16 << 30 // bytes
	DefaultMaxUploads   = 1024
	DefaultUploadExpiry = 24 * time.Hour
	DefaultMinFree      = 512 << 20 // bytes, or a tenth of a small disk
	DefaultIdleTimeout  = time.Minute
)

// Config is what a Registry is made from. Zero limits mean the defaults.
type Config struct {
	// Dir is the registry's own directory; it is made with mode 0700 if it is missing.
	Dir string

	// Authorize says whether the bearer of token may pull from repo or, with push,
	// push to it and delete from it. An empty repo asks only whether the token is
	// good. It returns nil or a *fault.Error: Unauthenticated for a token that is no
	// good, Denied or NotFound for one that may not. It must not keep the token.
	Authorize func(ctx context.Context, token, repo string, push bool) error

	// InUse, if set, lets GC remove manifests that have no tag. GC calls it once, at
	// its start; the function that it returns says whether a manifest without a tag
	// must stay (because a Machine or a release runs it). If it is nil, a manifest
	// stays until somebody deletes it.
	InUse func(ctx context.Context) (func(repo string, d key.Digest) bool, error)

	Log *slog.Logger // slog.Default() if nil

	MaxManifest  int64         // bytes of one manifest
	MaxBlob      int64         // bytes of one blob
	MaxUploads   int           // uploads under way at the same time
	UploadExpiry time.Duration // an upload to which nothing was added for so long is removed
	MinFree      int64         // bytes of the file system that uploads leave free; negative for none
	IdleTimeout  time.Duration // longest wait for the next bytes of a request or for room for those of an answer

	// step, in tests, is called before each operation on disk with its name and the
	// path below Dir.
	step func(op, path string)
}

// Registry is an open registry. All methods may be called at the same time.
type Registry struct {
	cfg    Config
	log    *slog.Logger
	disk   *disk
	routes map[string]map[string]handler // by kind of target and method
	lock   *os.File                      // flock: one process per directory

	// reach is held for reading by whatever makes something reachable (a blob, a
	// link, a manifest, a tag), from its check that the parts exist to its last
	// write, and for writing by the collector around each removal.
	reach sync.RWMutex
	// fresh holds, while a collection runs, the paths below Dir that were made or
	// used since it began. The collector does not remove them.
	freshMu sync.Mutex
	fresh   map[string]bool // nil when no collection runs

	gcMu sync.Mutex // one collection at a time

	// repoMu serialises changes to the manifests and tags of one repository
	// (repositories share a lock by hash).
	repoMu [64]sync.Mutex
	seed   maphash.Seed

	uploadsMu sync.Mutex
	uploads   map[string]*upload // by id
	closed    bool
}

// New opens the registry in cfg.Dir, makes it if there is none, and removes what an
// earlier process left half-made. Uploads that have not expired can be resumed. It
// fails with Conflict if another process has the directory open.
func New(cfg Config) (*Registry, error) {
	if cfg.Dir == "" || cfg.Authorize == nil {
		return nil, fault.New(fault.Invalid, "registry: Dir and Authorize must be set")
	}
	defaults(&cfg)
	r := &Registry{
		cfg:     cfg,
		log:     cfg.Log,
		disk:    &disk{root: cfg.Dir, step: cfg.step},
		seed:    maphash.MakeSeed(),
		uploads: map[string]*upload{},
	}
	r.routes = r.table()
	if err := r.open(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// defaults fills the limits that are zero.
func defaults(c *Config) {
	set := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.MaxManifest, DefaultMaxManifest)
	set(&c.MaxBlob, DefaultMaxBlob)
	if c.MinFree == 0 {
		c.MinFree = DefaultMinFree
		if s, err := room.Of(filepath.Dir(c.Dir)); err == nil {
			c.MinFree = s.Keep(room.Images)
		}
	}
	set((*int64)(&c.UploadExpiry), int64(DefaultUploadExpiry))
	set((*int64)(&c.IdleTimeout), int64(DefaultIdleTimeout))
	if c.MaxUploads == 0 {
		c.MaxUploads = DefaultMaxUploads
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// open makes and locks the directory and recovers.
func (r *Registry) open() error {
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("registry: make the directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(r.cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("registry: open the lock: %w", err)
	}
	r.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fault.Wrap(fault.Conflict, err, "registry directory %s is in use by another process", r.cfg.Dir)
	}
	// Nothing in tmp has a name yet, so nobody can miss it.
	if err := os.RemoveAll(filepath.Join(r.cfg.Dir, "tmp")); err != nil {
		return fmt.Errorf("registry: clear tmp: %w", err)
	}
	for _, dir := range []string{"tmp", "blobs/sha256", "repos", "uploads"} {
		if err := r.disk.mkdirAll(dir); err != nil {
			return fmt.Errorf("registry: make %s: %w", dir, err)
		}
	}
	return r.recoverUploads()
}

// Close releases the directory. Requests under way fail; uploads can be resumed
// after the next New.
func (r *Registry) Close() error {
	r.uploadsMu.Lock()
	r.closed = true
	r.uploadsMu.Unlock()
	if r.lock == nil {
		return nil
	}
	err := r.lock.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// lockRepo serialises changes to one repository's manifests and tags.
func (r *Registry) lockRepo(repo string) (unlock func()) {
	m := &r.repoMu[maphash.String(r.seed, repo)%uint64(len(r.repoMu))]
	m.Lock()
	return m.Unlock
}

// touch marks path as used now, so that a collection with a grace period, or one
// that is under way, leaves it alone. The caller holds reach for reading.
func (r *Registry) touch(path string) error {
	r.freshMu.Lock()
	if r.fresh != nil {
		r.fresh[path] = true
	}
	r.freshMu.Unlock()
	return r.disk.touch(path)
}
