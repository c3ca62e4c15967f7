package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"bulkhead/key"
)

// roomCheck is how many bytes of an upload are written between two looks at how
// full the disk is.
const roomCheck = 16 << 20

// upload is a blob on its way in. On disk it is the file uploads/<id>.data, whose
// size is the offset at which it goes on, and uploads/<id>.json, without which the
// data counts for nothing.
type upload struct {
	id   string
	repo string

	mu sync.Mutex // held by the one request that adds to it, ends or removes it

	// sum is the hash of the first summed bytes of the data. After a restart it is
	// behind, and the data is read again. Guarded by mu.
	sum    hash.Hash
	summed int64
	gone   bool // removed or finished; guarded by mu
}

// uploadMeta is uploads/<id>.json.
type uploadMeta struct {
	Repo string `json:"repo"`
}

func dataPath(id string) string { return "uploads/" + id + ".data" }
func metaPath(id string) string { return "uploads/" + id + ".json" }

// recoverUploads finds the uploads of earlier processes, at open. Data without its
// .json was never announced to anybody or was being removed; a .json without data
// belongs to an upload whose data had become a blob.
func (r *Registry) recoverUploads() error {
	names, err := r.disk.names("uploads")
	if err != nil {
		return err
	}
	for _, name := range names {
		id, isMeta := strings.CutSuffix(name, ".json")
		if !isMeta || !idRE.MatchString(id) {
			continue
		}
		var meta uploadMeta
		b, err := r.disk.readFile(metaPath(id), 4096)
		if err == nil {
			err = json.Unmarshal(b, &meta)
		}
		info, serr := os.Stat(r.disk.path(dataPath(id)))
		if err == nil && serr == nil && checkRepo(meta.Repo) == nil && time.Since(info.ModTime()) < r.cfg.UploadExpiry {
			r.uploads[id] = &upload{id: id, repo: meta.Repo, sum: sha256.New()}
		}
	}
	for _, name := range names {
		id, _, _ := strings.Cut(name, ".")
		if r.uploads[id] == nil {
			if err := r.disk.remove("uploads/" + name); err != nil {
				return err
			}
		}
	}
	return r.disk.syncDir("uploads")
}

// startUpload makes a new upload. If nobody will be told its address, it need not
// outlive this process.
func (r *Registry) startUpload(repo string, told bool) (*upload, error) {
	if err := r.disk.room(0, r.cfg.MinFree); err != nil {
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:])
	u := &upload{id: hex.EncodeToString(id[:]), repo: repo, sum: sha256.New()}
	if err := r.reserveUpload(u); err != nil {
		return nil, err
	}
	if err := r.createUpload(u, told); err != nil {
		u.mu.Lock()
		defer u.mu.Unlock()
		return nil, errors.Join(err, r.dropUpload(u))
	}
	return u, nil
}

// reserveUpload counts u among the uploads under way, if there is room for one more.
func (r *Registry) reserveUpload(u *upload) error {
	full := func() bool { return len(r.uploads) >= r.cfg.MaxUploads }
	r.uploadsMu.Lock()
	defer r.uploadsMu.Unlock()
	if full() {
		r.uploadsMu.Unlock()
		_, err := r.expireUploads(context.Background())
		r.uploadsMu.Lock()
		if err != nil {
			return err
		}
	}
	if r.closed {
		return refuse(503, "UNAVAILABLE", "the registry is shutting down")
	}
	if full() {
		return refuse(429, "TOOMANYREQUESTS", "%d uploads are under way, which is the limit; try again later", r.cfg.MaxUploads)
	}
	r.uploads[u.id] = u
	return nil
}

// createUpload makes u's files. The .json comes last: it is what makes the upload
// exist for the next process.
func (r *Registry) createUpload(u *upload, told bool) error {
	p := dataPath(u.id)
	if err := r.disk.do("create", p, func() error { return r.disk.empty(p, os.O_CREATE|os.O_EXCL) }); err != nil {
		return diskError(err)
	}
	if !told {
		return nil
	}
	meta, err := json.Marshal(uploadMeta{Repo: u.repo})
	if err != nil {
		return err
	}
	return r.disk.writeFile(metaPath(u.id), meta)
}

// findUpload returns the upload of that id in that repository.
func (r *Registry) findUpload(repo, id string) (*upload, error) {
	r.uploadsMu.Lock()
	u := r.uploads[id]
	r.uploadsMu.Unlock()
	if u == nil || u.repo != repo {
		return nil, refuse(404, "BLOB_UPLOAD_UNKNOWN", "no such upload; it was finished, cancelled, or expired: start again")
	}
	return u, nil
}

// claimUpload finds an upload and takes its lock.
func (r *Registry) claimUpload(repo, id string) (*upload, error) {
	u, err := r.findUpload(repo, id)
	if err != nil {
		return nil, err
	}
	if !u.mu.TryLock() {
		return nil, refuse(409, "BLOB_UPLOAD_INVALID", "another request is writing to this upload; wait until it has ended")
	}
	if u.gone {
		u.mu.Unlock()
		return r.findUpload(repo, id) // says that it is unknown
	}
	return u, nil
}

// offset is the number of bytes that the upload has.
func (r *Registry) offset(u *upload) (int64, error) {
	info, err := os.Stat(r.disk.path(dataPath(u.id)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, refuse(404, "BLOB_UPLOAD_UNKNOWN", "no such upload; it was finished, cancelled, or expired: start again")
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// appendUpload adds what body holds, and makes it durable. When it fails for want of
// the rest of the body, what has come stays, and the upload can go on from there.
// When it fails for a limit or for the disk, the upload is removed. The caller holds
// u.mu.
func (r *Registry) appendUpload(u *upload, body io.Reader) error {
	f, err := os.OpenFile(r.disk.path(dataPath(u.id)), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w := &uploadWriter{r: r, u: u, f: f, size: info.Size()}
	buf := make([]byte, 128<<10)
	err = r.disk.do("append", dataPath(u.id), func() error {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{body}, buf)
		return err
	})
	if w.failed != nil {
		return errors.Join(w.failed, r.dropUpload(u))
	}
	if err != nil {
		return refuse(400, "BLOB_UPLOAD_INVALID", "the connection ended before the whole body had come; ask for the status of the upload and go on from there: %w", err)
	}
	if err := r.disk.sync(f, dataPath(u.id)); err != nil {
		return errors.Join(err, r.dropUpload(u))
	}
	return nil
}

// uploadWriter writes to an upload's data within the limits and keeps its hash.
type uploadWriter struct {
	r       *Registry
	u       *upload
	f       *os.File
	size    int64
	checked int64 // bytes that may still be written before the next look at the disk
	failed  error // the error was the registry's, not the client's
}

func (w *uploadWriter) Write(b []byte) (int, error) {
	if w.size+int64(len(b)) > w.r.cfg.MaxBlob {
		w.failed = refuse(413, "SIZE_INVALID", "the blob is larger than %d bytes, the limit of this registry", w.r.cfg.MaxBlob)
		return 0, w.failed
	}
	if w.checked -= int64(len(b)); w.checked < 0 {
		if err := w.r.disk.room(int64(len(b)), w.r.cfg.MinFree); err != nil {
			w.failed = err
			return 0, err
		}
		w.checked = roomCheck
	}
	n, err := w.f.Write(b)
	if w.u.summed == w.size {
		w.u.sum.Write(b[:n])
		w.u.summed += int64(n)
	}
	w.size += int64(n)
	if err != nil {
		w.failed = diskError(err)
	}
	return n, err
}

// finishUpload turns the upload into a blob of its repository, if its digest is d.
// If it is not, the upload is removed. The caller holds u.mu.
func (r *Registry) finishUpload(req *http.Request, u *upload, d key.Digest) error {
	got, err := r.digestUpload(u)
	if err != nil {
		return err
	}
	if got != d {
		return errors.Join(
			refuse(400, "DIGEST_INVALID", "the content has digest %s, not %s as the request says; it was thrown away", got, d),
			r.dropUpload(u))
	}
	err = r.publishUpload(req, u, d)
	if derr := r.dropUpload(u); derr != nil {
		// What is left of the upload is removed at the next open.
		r.log.Warn("registry: a finished upload was not cleared away", "upload", u.id, "err", derr)
	}
	return err
}

// digestUpload returns the digest of the upload's data, from memory if everything
// came to this process, else by reading it. The data is durable afterwards.
func (r *Registry) digestUpload(u *upload) (key.Digest, error) {
	f, err := os.Open(r.disk.path(dataPath(u.id)))
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if u.summed != info.Size() {
		u.sum.Reset()
		u.summed = 0
		n, err := io.Copy(u.sum, f)
		if err != nil {
			return "", fmt.Errorf("read back an upload: %w", err)
		}
		u.summed = n
	}
	// An earlier process may have died before it synced what it had written.
	if err := r.disk.sync(f, dataPath(u.id)); err != nil {
		return "", err
	}
	return key.Digest("sha256:" + hex.EncodeToString(u.sum.Sum(nil))), nil
}

// publishUpload makes the data, which is durable and has digest d, a blob. If we
// die after the rename, the blob is there and no repository has it: garbage. If we
// die after the link, everything is done but the answer; the client pushes again and
// is told that the blob is there.
func (r *Registry) publishUpload(req *http.Request, u *upload, d key.Digest) error {
	p := blobPath(d.Hex())
	if err := r.disk.mkdirAll(p[:strings.LastIndexByte(p, '/')]); err != nil {
		return err
	}
	r.reach.RLock()
	defer r.reach.RUnlock()
	if err := r.stillMay(req, u.repo); err != nil {
		return err
	}
	// The blob may be there already. Then the rename replaces it with the same
	// content, and mends it if the disk had damaged it.
	if err := r.disk.rename(dataPath(u.id), p); err != nil {
		return err
	}
	if err := r.touch(p); err != nil {
		return err
	}
	return r.linkBlob(u.repo, d)
}

// dropUpload forgets the upload and removes its files. What the disk refuses to remove, twice,
// stays until the next collection (sweepUploads). The caller holds u.mu.
func (r *Registry) dropUpload(u *upload) error {
	u.gone = true
	// The .json first: data alone is removed at the next open.
	remove := func() error {
		return errors.Join(r.disk.remove(metaPath(u.id)), r.disk.remove(dataPath(u.id)), r.disk.syncDir("uploads"))
	}
	err := remove()
	if err != nil {
		err = remove()
	}
	r.uploadsMu.Lock()
	delete(r.uploads, u.id)
	r.uploadsMu.Unlock()
	return err
}

// expireUploads removes the uploads to which nothing was added for the expiry time.
func (r *Registry) expireUploads(ctx context.Context) (int, error) {
	r.uploadsMu.Lock()
	all := make([]*upload, 0, len(r.uploads))
	for _, u := range r.uploads {
		all = append(all, u)
	}
	r.uploadsMu.Unlock()
	n := 0
	for _, u := range all {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		info, err := os.Stat(r.disk.path(dataPath(u.id)))
		if err != nil || time.Since(info.ModTime()) < r.cfg.UploadExpiry || !u.mu.TryLock() {
			continue // just made, just finished, fresh, or being written to
		}
		err = r.dropUpload(u)
		u.mu.Unlock()
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// sweepUploads removes the files of uploads that there are not any more, which could not be
// removed when they ended. An upload is counted before it has files.
func (r *Registry) sweepUploads() error {
	names, err := r.disk.names("uploads")
	if err != nil {
		return err
	}
	removed := false
	var failed []error
	for _, name := range names {
		id, _, _ := strings.Cut(name, ".")
		r.uploadsMu.Lock()
		known := r.uploads[id] != nil
		r.uploadsMu.Unlock()
		if known {
			continue
		}
		if err := r.disk.remove("uploads/" + name); err != nil {
			failed = append(failed, err) // and the others go all the same
			continue
		}
		removed = true
	}
	if removed {
		failed = append(failed, r.disk.syncDir("uploads"))
	}
	return errors.Join(failed...)
}
