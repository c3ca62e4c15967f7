package registry

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// GCResult says what a collection removed.
type GCResult struct {
	Manifests int   // manifests without a tag that were not in use
	Links     int   // blobs of a repository that no manifest of it needed
	Blobs     int   // contents that no repository had
	Bytes     int64 // their size
	Uploads   int   // expired uploads
}

// GC removes what nothing refers to: expired uploads, and files of those that have ended; manifests without a tag, as
// far as Config.InUse allows; blobs of a repository that none of its manifests
// refers to; and content that no repository has. What was pushed, mounted or asked
// for by HEAD less than grace ago stays, so that a client has that long from its
// first blob to its manifest; and so does, whatever grace is, what is used while the
// collection runs. Pushes and pulls go on meanwhile. It fails with Conflict if a
// collection is running. It holds the digests of all content in memory.
func (r *Registry) GC(ctx context.Context, grace time.Duration) (GCResult, error) {
	if !r.gcMu.TryLock() {
		return GCResult{}, fault.New(fault.Conflict, "the registry is being collected already")
	}
	defer r.gcMu.Unlock()
	r.freshMu.Lock()
	r.fresh = map[string]bool{}
	r.freshMu.Unlock()
	// Whoever marked something before fresh was there has written what refers to it
	// when this lock is got: the collector will see it.
	r.reach.Lock()
	//lint:ignore SA2001 this is a barrier
	r.reach.Unlock()
	defer func() {
		r.freshMu.Lock()
		r.fresh = nil
		r.freshMu.Unlock()
	}()
	c := &collection{r: r, before: time.Now().Add(-grace), live: map[string]bool{}}
	err := c.run(ctx)
	r.log.Info("registry collected", "manifests", c.res.Manifests, "links", c.res.Links,
		"blobs", c.res.Blobs, "bytes", c.res.Bytes, "uploads", c.res.Uploads, "err", err)
	return c.res, err
}

// collection is one run of GC.
type collection struct {
	r      *Registry
	before time.Time // what was used after it stays
	inUse  func(repo string, d key.Digest) bool
	live   map[string]bool // hex digests that some repository has
	res    GCResult
}

func (c *collection) run(ctx context.Context) (err error) {
	if c.res.Uploads, err = c.r.expireUploads(ctx); err != nil {
		return err
	}
	if swept := c.r.sweepUploads(); swept != nil { // keeps nothing else from being collected
		defer func() { err = errors.Join(err, swept) }()
	}
	if c.r.cfg.InUse != nil {
		if c.inUse, err = c.r.cfg.InUse(ctx); err != nil {
			return err
		}
	}
	repos, err := c.r.repositories(ctx)
	if err != nil {
		return err
	}
	for _, repo := range repos {
		if err := c.repo(ctx, repo); err != nil {
			return err
		}
	}
	if err := c.blobs(ctx); err != nil {
		return err
	}
	return c.emptyDirs(repos)
}

// repositories lists the names of all repositories.
func (r *Registry) repositories(ctx context.Context) ([]string, error) {
	var repos []string
	root := r.disk.path("repos")
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed since its parent was read
			}
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.IsDir() || p == root {
			return nil
		}
		if strings.HasPrefix(e.Name(), "_") {
			return fs.SkipDir
		}
		rel, err := filepath.Rel(root, p)
		repos = append(repos, rel)
		return err
	})
	return repos, err
}

// removable removes p, if it was last used before the grace period and not during
// this collection. It reports whether it did, and the size. The caller makes the
// removal durable.
func (c *collection) removable(p string, remove func() error) (bool, int64, error) {
	// For writing: nobody is between the check that p is there and the last write of
	// what refers to it, so whoever needs p has either marked it or will find it gone.
	c.r.reach.Lock()
	defer c.r.reach.Unlock()
	c.r.freshMu.Lock()
	fresh := c.r.fresh[p]
	c.r.freshMu.Unlock()
	if fresh {
		return false, 0, nil
	}
	info, err := os.Stat(c.r.disk.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		return false, 0, nil
	}
	if err != nil || !info.ModTime().Before(c.before) {
		return false, 0, err
	}
	return true, info.Size(), remove()
}

// repo collects in one repository and marks what is left as live.
func (c *collection) repo(ctx context.Context, repo string) error {
	if c.inUse != nil {
		if err := c.manifests(ctx, repo); err != nil {
			return err
		}
	}
	// Links are listed before manifests are read: a link that is made afterwards is
	// not a candidate.
	links, err := c.r.disk.names("repos/" + repo + "/_blobs")
	if err != nil {
		return err
	}
	needed, err := c.mark(ctx, repo)
	if err != nil {
		return err
	}
	removed := false
	for _, hex := range links {
		if err := ctx.Err(); err != nil {
			return err
		}
		if needed[hex] {
			c.live[hex] = true
			continue
		}
		p := blobLink(repo, hex)
		gone, _, err := c.removable(p, func() error { return c.r.disk.remove(p) })
		if err != nil {
			return err
		}
		if gone {
			c.res.Links++
			removed = true
		} else {
			c.live[hex] = true
		}
	}
	if removed {
		// Before any content goes: a link must not come back after a power cut to find
		// its content gone.
		if err := c.r.disk.syncDir("repos/" + repo + "/_blobs"); !errors.Is(err, fs.ErrNotExist) {
			return err
		} // else the whole repository was removed meanwhile
	}
	return nil
}

// mark reads the manifests of a repository, marks them as live, and returns the
// blobs that they need.
func (c *collection) mark(ctx context.Context, repo string) (needed map[string]bool, err error) {
	needed = map[string]bool{}
	hexes, err := c.r.disk.names("repos/" + repo + "/_manifests")
	if err != nil {
		return nil, err
	}
	for _, hex := range hexes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m, err := c.r.readManifest(repo, key.Digest("sha256:"+hex))
		if fault.Is(err, fault.NotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			// Whoever cannot read a manifest does not know what it needs: better no
			// collection than one too many.
			return nil, err
		}
		c.live[hex] = true
		for _, p := range m.doc.blobs() {
			needed[key.Digest(p.Digest).Hex()] = true
		}
	}
	return needed, nil
}

// manifests removes the manifests of a repository that have no tag, are not in use,
// are part of no index that stays, and refer to no subject that stays.
func (c *collection) manifests(ctx context.Context, repo string) error {
	hexes, err := c.r.disk.names("repos/" + repo + "/_manifests")
	if err != nil {
		return err
	}
	docs := map[string]*document{}
	for _, hex := range hexes {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := c.r.readManifest(repo, key.Digest("sha256:"+hex))
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		docs[hex] = m.doc
	}
	keep, err := c.keep(repo, docs)
	if err != nil {
		return err
	}
	for hex := range docs {
		if keep[hex] {
			continue
		}
		d := key.Digest("sha256:" + hex)
		// The repository's lock comes before reach, as in a push.
		unlock := c.r.lockRepo(repo)
		_, _, err := c.removable(manifestLink(repo, hex), func() error {
			if tags, err := c.r.tagsOf(repo, d); err != nil || len(tags) > 0 {
				return err
			}
			c.res.Manifests++
			return c.r.removeManifest(repo, d)
		})
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// keep computes which manifests stay: the roots, and what they reach.
func (c *collection) keep(repo string, docs map[string]*document) (map[string]bool, error) {
	keep := map[string]bool{}
	var visit func(hex string)
	referrers := map[string][]string{}
	for hex, doc := range docs {
		if doc.Subject != nil {
			s := key.Digest(doc.Subject.Digest).Hex()
			referrers[s] = append(referrers[s], hex)
		}
	}
	visit = func(hex string) {
		if keep[hex] || docs[hex] == nil {
			return
		}
		keep[hex] = true
		for _, p := range docs[hex].Manifests {
			visit(key.Digest(p.Digest).Hex())
		}
		for _, other := range referrers[hex] {
			visit(other)
		}
	}
	tags, err := c.r.disk.names("repos/" + repo + "/_tags")
	if err != nil {
		return nil, err
	}
	for _, tag := range tags {
		d, err := c.r.resolve(repo, tag)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			visit(d.Hex())
		}
	}
	for hex := range docs {
		fresh := false
		if info, err := os.Stat(c.r.disk.path(manifestLink(repo, hex))); err == nil {
			// A fresh index keeps its parts too, though they be old.
			fresh = !info.ModTime().Before(c.before)
		}
		if fresh || c.inUse(repo, key.Digest("sha256:"+hex)) {
			visit(hex)
		}
	}
	return keep, nil
}

// blobs removes the content that is not live.
func (c *collection) blobs(ctx context.Context) error {
	shards, err := c.r.disk.names("blobs/sha256")
	if err != nil {
		return err
	}
	for _, shard := range shards {
		hexes, err := c.r.disk.names("blobs/sha256/" + shard)
		if err != nil {
			return err
		}
		for _, hex := range hexes {
			if err := ctx.Err(); err != nil {
				return err
			}
			if c.live[hex] {
				continue
			}
			p := "blobs/sha256/" + shard + "/" + hex
			gone, size, err := c.removable(p, func() error { return c.r.disk.remove(p) })
			if err != nil {
				return err
			}
			if gone {
				c.res.Blobs++
				c.res.Bytes += size
			}
		}
	}
	return nil
}

// emptyDirs removes the directories of repositories that have nothing any more, and
// the entries of referrers whose manifest is not there.
func (c *collection) emptyDirs(repos []string) error {
	for i := len(repos) - 1; i >= 0; i-- { // children come after their parents
		dir := "repos/" + repos[i]
		subjects, err := c.r.disk.names(dir + "/_referrers")
		if err != nil {
			return err
		}
		for _, s := range subjects {
			if err := c.referrers(repos[i], s); err != nil {
				return err
			}
		}
		// For writing: a push that has made a directory must find it when it writes.
		c.r.reach.Lock()
		for _, sub := range []string{"/_referrers", "/_blobs", "/_manifests", "/_tags", ""} {
			c.r.disk.removeDir(dir + sub)
		}
		c.r.reach.Unlock()
	}
	return nil
}

// referrers removes the entries under a subject that lead nowhere.
func (c *collection) referrers(repo, subject string) error {
	dir := referrersDir(repo, subject)
	hexes, err := c.r.disk.names(dir)
	if err != nil {
		return err
	}
	for _, hex := range hexes {
		there, err := c.r.disk.exists(manifestLink(repo, hex))
		if err != nil {
			return err
		}
		if there {
			continue
		}
		p := dir + "/" + hex
		if _, _, err := c.removable(p, func() error { return c.r.disk.remove(p) }); err != nil {
			return err
		}
	}
	c.r.reach.Lock()
	defer c.r.reach.Unlock()
	c.r.disk.removeDir(dir)
	return nil
}
