package registry

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// Paths below Config.Dir.
func blobPath(hex string) string              { return "blobs/sha256/" + hex[:2] + "/" + hex }
func blobLink(repo, hex string) string        { return "repos/" + repo + "/_blobs/" + hex }
func manifestLink(repo, hex string) string    { return "repos/" + repo + "/_manifests/" + hex }
func tagPath(repo, tag string) string         { return "repos/" + repo + "/_tags/" + tag }
func referrersDir(repo, hex string) string    { return "repos/" + repo + "/_referrers/" + hex }
func referrer(repo, hex, other string) string { return referrersDir(repo, hex) + "/" + other }

// OpenBlob opens the content of a blob of repo; read from its beginning, it ends with
// an Unprocessable error when the disk has damaged it. The caller closes it; it stays
// readable though the blob be removed meanwhile. size is in bytes. NotFound if repo
// does not have the blob.
func (r *Registry) OpenBlob(ctx context.Context, repo string, d key.Digest) (blob io.ReadSeekCloser, size int64, err error) {
	if err := checkRepo(repo); err != nil {
		return nil, 0, err
	}
	f, size, err := r.openBlob(repo, d)
	if err != nil {
		return nil, 0, err
	}
	return r.check(f, repo, d, size), size, nil
}

// openBlob is OpenBlob for a name that has been checked.
func (r *Registry) openBlob(repo string, d key.Digest) (*os.File, int64, error) {
	unknown := refuse(404, "BLOB_UNKNOWN", "repository %s has no blob %s", repo, d)
	linked, err := r.disk.exists(blobLink(repo, d.Hex()))
	if err != nil {
		return nil, 0, err
	}
	if !linked {
		return nil, 0, unknown
	}
	f, err := os.Open(r.disk.path(blobPath(d.Hex())))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, unknown
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	if info.Size() == 0 && d.Hex() != emptyHex {
		f.Close()
		return nil, 0, r.damaged(repo, d)
	}
	return f, info.Size(), nil
}

// emptyHex is the digest of no content.
const emptyHex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// getBlob answers GET and HEAD of a blob, whole or a range.
func (r *Registry) getBlob(w http.ResponseWriter, req *http.Request, t target) error {
	d, err := parseDigest(t.ref)
	if err != nil {
		return err
	}
	if req.Method == http.MethodHead {
		// A pushing client that is told "it is here" will not send it again: from here
		// on the blob counts as freshly pushed.
		if err := r.useBlob(t.repo, d); err != nil {
			return err
		}
	}
	f, size, err := r.openBlob(t.repo, d)
	if err != nil {
		return err
	}
	defer f.Close()
	h := w.Header()
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Etag", `"`+string(d)+`"`)
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	h.Set("Content-Type", "application/octet-stream")
	info, err := f.Stat()
	if err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	defer rc.SetWriteDeadline(time.Time{})
	http.ServeContent(&patientWriter{w, rc, r.cfg.IdleTimeout}, req, "", info.ModTime(), r.check(f, t.repo, d, size))
	return nil
}

// useBlob marks a blob that repo has as used now. NotFound if it has none.
func (r *Registry) useBlob(repo string, d key.Digest) error {
	r.reach.RLock()
	defer r.reach.RUnlock()
	for _, p := range []string{blobLink(repo, d.Hex()), blobPath(d.Hex())} {
		err := r.touch(p)
		if errors.Is(err, fs.ErrNotExist) {
			return refuse(404, "BLOB_UNKNOWN", "repository %s has no blob %s", repo, d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mountBlob gives repo a blob that from has.
func (r *Registry) mountBlob(req *http.Request, repo, from string, d key.Digest) error {
	r.reach.RLock()
	defer r.reach.RUnlock()
	if err := r.stillMay(req, repo); err != nil {
		return err
	}
	for _, p := range []string{blobLink(from, d.Hex()), blobPath(d.Hex())} {
		if err := r.touch(p); err != nil {
			return err
		}
	}
	return r.linkBlob(repo, d)
}

// linkBlob makes a blob whose content is durable visible in repo. The caller holds
// reach for reading.
func (r *Registry) linkBlob(repo string, d key.Digest) error {
	p := blobLink(repo, d.Hex())
	if err := r.disk.link(p); err != nil {
		return err
	}
	return r.touch(p)
}

// deleteBlob takes a blob out of a repository. The content stays until a collection
// finds that no repository has it.
func (r *Registry) deleteBlob(w http.ResponseWriter, req *http.Request, t target) error {
	d, err := parseDigest(t.ref)
	if err != nil {
		return err
	}
	// No manifest is pushed between the look at the manifests and the removal.
	defer r.lockRepo(t.repo)()
	r.reach.RLock()
	defer r.reach.RUnlock()
	there, err := r.disk.exists(blobLink(t.repo, d.Hex()))
	if err != nil {
		return err
	}
	if !there {
		return refuse(404, "BLOB_UNKNOWN", "repository %s has no blob %s", t.repo, d)
	}
	user, err := r.manifestUsing(req.Context(), t.repo, d.Hex())
	if err != nil {
		return err
	}
	if user != "" {
		return refuse(405, "UNSUPPORTED", "blob %s is part of manifest sha256:%s; delete that first", d, user)
	}
	if err := r.disk.remove(blobLink(t.repo, d.Hex())); err != nil {
		return err
	}
	if err := r.disk.syncDir("repos/" + t.repo + "/_blobs"); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// manifestUsing returns a manifest of repo that has the blob as a part, or "".
func (r *Registry) manifestUsing(ctx context.Context, repo, blob string) (string, error) {
	hexes, err := r.disk.names("repos/" + repo + "/_manifests")
	if err != nil {
		return "", err
	}
	for _, hex := range hexes {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		m, err := r.readManifest(repo, key.Digest("sha256:"+hex))
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return "", err
		}
		for _, part := range m.doc.blobs() {
			if part.Digest == "sha256:"+blob {
				return hex, nil
			}
		}
	}
	return "", nil
}
