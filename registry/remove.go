package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"strings"
)

// Remove removes a repository, and all whose names go on after it with a slash:
// their manifests, tags and blobs, and their uploads. When it returns nil that is
// durable; content that no other repository has goes with the next GC. One that is
// not there is no error, so that a removal that was cut off can be done again.
//
// Whoever removes a repository for good makes Config.Authorize refuse to push to it
// first: a push is asked about again at the moment it becomes visible, so what was
// allowed earlier and is still under way can then not bring anything back.
func (r *Registry) Remove(ctx context.Context, repo string) error {
	if err := checkRepo(repo); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var id [16]byte
	rand.Read(id[:])
	gone := "tmp/" + hex.EncodeToString(id[:])
	if err := r.hide(repo, gone); err != nil {
		return err
	}
	if err := r.dropUploads(repo); err != nil {
		return err
	}
	// It has no name any more; after a crash here the next New clears it away.
	return r.disk.do("removeall", gone, func() error { return os.RemoveAll(r.disk.path(gone)) })
}

// hide takes repo's directory away, in one step: after a crash either everything of
// it is there or nothing.
func (r *Registry) hide(repo, gone string) error {
	dir := "repos/" + repo
	parent := dir[:strings.LastIndexByte(dir, '/')]
	// For writing: nobody is between the check that he may push and his last write.
	r.reach.Lock()
	defer r.reach.Unlock()
	r.disk.durable.Range(func(k, _ any) bool {
		if p := k.(string); p == dir || strings.HasPrefix(p, dir+"/") {
			r.disk.durable.Delete(p)
		}
		return true
	})
	if err := r.disk.rename(dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Also when it was not there: a removal before this one may have died unsynced.
	if err := r.disk.syncDir(parent); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dropUploads removes the uploads to repo that no request is writing to. One that is
// being written to is refused when it ends.
func (r *Registry) dropUploads(repo string) error {
	r.uploadsMu.Lock()
	var all []*upload
	for _, u := range r.uploads {
		if u.repo == repo || strings.HasPrefix(u.repo, repo+"/") {
			all = append(all, u)
		}
	}
	r.uploadsMu.Unlock()
	for _, u := range all {
		if !u.mu.TryLock() {
			continue
		}
		err := r.dropUpload(u)
		u.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// stillMay asks again whether a request may push to repo, just before what it brings
// becomes visible. The caller holds reach for reading; see Remove.
func (r *Registry) stillMay(req *http.Request, repo string) error {
	return r.authorize(req.Context(), token(req), repo, true)
}
