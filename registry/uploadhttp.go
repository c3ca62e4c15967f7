package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"

	"bulkhead/key"
)

// contentRangeRE is the specification's "start-end", and RFC 9110's form too.
var contentRangeRE = regexp.MustCompile(`^(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:[0-9]+|\*))?$`)

// postUpload starts an upload, takes a whole blob at once (?digest=), or mounts a
// blob that another repository has (?mount=&from=).
func (r *Registry) postUpload(w http.ResponseWriter, req *http.Request, t target) error {
	q := req.URL.Query()
	if mount := q.Get("mount"); mount != "" {
		if d, ok := r.tryMount(req, t.repo, q.Get("from"), mount); ok {
			return created(w, t.repo, d)
		}
		// As the specification has it, a mount that cannot be is an upload.
	}
	var want key.Digest
	if s := q.Get("digest"); s != "" {
		d, err := parseDigest(s)
		if err != nil {
			return err
		}
		want = d
	}
	u, err := r.startUpload(t.repo, want == "")
	if err != nil {
		return err
	}
	if want == "" {
		return r.progress(w, u, http.StatusAccepted)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := r.receive(w, req, u); err != nil {
		// Nobody knows this upload's address, so nobody could go on with it.
		if !u.gone {
			err = errors.Join(err, r.dropUpload(u))
		}
		return err
	}
	if err := r.finishUpload(req, u, want); err != nil {
		return err
	}
	return created(w, t.repo, want)
}

// tryMount mounts a blob, if the token may read it where it is.
func (r *Registry) tryMount(req *http.Request, repo, from, mount string) (key.Digest, bool) {
	d, err := key.ParseDigest(mount)
	if err != nil || checkRepo(from) != nil {
		return "", false
	}
	if r.authorize(req.Context(), token(req), from, false) != nil {
		return "", false
	}
	return d, r.mountBlob(req, repo, from, d) == nil
}

// getUpload says how far an upload has come. It does not wait for a request that is
// writing to it: that may be one whose connection is dead.
func (r *Registry) getUpload(w http.ResponseWriter, req *http.Request, t target) error {
	u, err := r.findUpload(t.repo, t.ref)
	if err != nil {
		return err
	}
	return r.progress(w, u, http.StatusNoContent)
}

// patchUpload adds a chunk, or all there is if no Content-Range is given.
func (r *Registry) patchUpload(w http.ResponseWriter, req *http.Request, t target) error {
	u, err := r.claimUpload(t.repo, t.ref)
	if err != nil {
		return err
	}
	defer u.mu.Unlock()
	if err := r.receive(w, req, u); err != nil {
		return err
	}
	return r.progress(w, u, http.StatusAccepted)
}

// putUpload adds the last chunk, if there is one, and finishes.
func (r *Registry) putUpload(w http.ResponseWriter, req *http.Request, t target) error {
	d, err := parseDigest(req.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	u, err := r.claimUpload(t.repo, t.ref)
	if err != nil {
		return err
	}
	defer u.mu.Unlock()
	if req.ContentLength != 0 {
		if err := r.receive(w, req, u); err != nil {
			return err
		}
	}
	if err := r.finishUpload(req, u, d); err != nil {
		return err
	}
	return created(w, t.repo, d)
}

// deleteUpload cancels an upload.
func (r *Registry) deleteUpload(w http.ResponseWriter, req *http.Request, t target) error {
	u, err := r.claimUpload(t.repo, t.ref)
	if err != nil {
		return err
	}
	defer u.mu.Unlock()
	if err := r.dropUpload(u); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// receive adds the request's body to u, after a look at its Content-Range. The
// caller holds u.mu.
func (r *Registry) receive(w http.ResponseWriter, req *http.Request, u *upload) error {
	offset, err := r.offset(u)
	if err != nil {
		return err
	}
	body, done := r.body(w, req)
	defer done()
	length := req.ContentLength // -1 if unknown
	if s := req.Header.Get("Content-Range"); s != "" {
		start, n, ok := parseContentRange(s)
		if !ok || start != offset || length >= 0 && length != n {
			r.setProgress(w, u, offset)
			return refuse(416, "RANGE_INVALID", "the upload has %d bytes; send the chunk that starts there, with a Content-Range of its length", offset)
		}
		length = n
	}
	if length >= 0 && offset+length > r.cfg.MaxBlob {
		return errors.Join(refuse(413, "SIZE_INVALID", "the blob is larger than %d bytes, the limit of this registry", r.cfg.MaxBlob), r.dropUpload(u))
	}
	if length < 0 {
		return r.appendUpload(u, body)
	}
	return r.appendUpload(u, &exactReader{body, length})
}

// exactReader reads n bytes and no more; fewer are io.ErrUnexpectedEOF.
type exactReader struct {
	r io.Reader
	n int64
}

func (e *exactReader) Read(b []byte) (int, error) {
	if e.n == 0 {
		return 0, io.EOF
	}
	if int64(len(b)) > e.n {
		b = b[:e.n]
	}
	n, err := e.r.Read(b)
	e.n -= int64(n)
	if err == io.EOF && e.n > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// parseContentRange returns the start and the length that a Content-Range gives.
func parseContentRange(s string) (start, n int64, ok bool) {
	m := contentRangeRE.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, false
	}
	start, _ = strconv.ParseInt(m[1], 10, 64)
	end, _ := strconv.ParseInt(m[2], 10, 64)
	return start, end - start + 1, end >= start
}

// progress answers with the state of an upload.
func (r *Registry) progress(w http.ResponseWriter, u *upload, status int) error {
	offset, err := r.offset(u)
	if err != nil {
		return err
	}
	r.setProgress(w, u, offset)
	w.WriteHeader(status)
	return nil
}

// setProgress sets the headers that tell the state of an upload.
func (r *Registry) setProgress(w http.ResponseWriter, u *upload, offset int64) {
	h := w.Header()
	h.Set("Location", "/v2/"+u.repo+"/blobs/uploads/"+u.id)
	h.Set("Range", fmt.Sprintf("0-%d", max(offset-1, 0)))
	h.Set("Docker-Upload-UUID", u.id)
	h.Set("Cache-Control", "no-store")
}

// created answers that the blob is there.
func created(w http.ResponseWriter, repo string, d key.Digest) error {
	h := w.Header()
	h.Set("Location", "/v2/"+repo+"/blobs/"+string(d))
	h.Set("Docker-Content-Digest", string(d))
	w.WriteHeader(http.StatusCreated)
	return nil
}
