package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"bulkhead/fault"
	"bulkhead/key"
)

// checked is a blob that is compared with its digest while it is read from its
// beginning: its last bytes are handed out only when they all are what was pushed. A
// reader that skips parts gets what the disk has.
type checked struct {
	*os.File
	r      *Registry
	repo   string
	digest key.Digest
	size   int64

	sum hash.Hash
	at  int64 // where the next Read begins
	up  int64 // how much of the beginning is in sum
}

func (r *Registry) check(f *os.File, repo string, d key.Digest, size int64) *checked {
	return &checked{File: f, r: r, repo: repo, digest: d, size: size, sum: sha256.New()}
}

// Read implements io.Reader.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	if c.at == c.up {
		c.sum.Write(p[:n])
		c.up += int64(n)
		if c.up == c.size && n > 0 && hex.EncodeToString(c.sum.Sum(nil)) != c.digest.Hex() {
			return 0, c.r.damaged(c.repo, c.digest)
		}
	}
	c.at += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (c *checked) Seek(offset int64, whence int) (int64, error) {
	at, err := c.File.Seek(offset, whence)
	if err == nil {
		c.at = at
		if at == 0 {
			c.sum.Reset()
			c.up = 0
		}
	}
	return at, err
}

// WriteTo hides the file's own, which would read past Read.
func (c *checked) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

// damaged takes the content of a blob away that is not what its digest says, so that
// a client which pushes the image again is not told that it is here. What lies there
// now is read once more: it may have been pushed since the damage was seen.
func (r *Registry) damaged(repo string, d key.Digest) error {
	p := blobPath(d.Hex())
	if good, err := r.sound(p, d); err != nil {
		return err
	} else if good {
		return fault.New(fault.Unavailable, "blob %s of repository %s was damaged and has been pushed again; try again", d, repo)
	}
	err := r.disk.remove(p)
	if err == nil {
		err = r.disk.syncDir(filepath.Dir(p))
	}
	r.log.Error("a blob is damaged on the registry's disk and was removed; push the image again", "repository", repo, "blob", d, "err", err)
	return fault.New(fault.Unprocessable, "blob %s of repository %s is damaged on the registry's disk; push the image again, and deploy it", d, repo)
}

// sound reads a blob's file whole and says whether it is what its digest says.
func (r *Registry) sound(path string, d key.Digest) (bool, error) {
	f, err := os.Open(r.disk.path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return false, diskError(err)
	}
	return hex.EncodeToString(sum.Sum(nil)) == d.Hex(), nil
}

// whole says whether the blobs of a manifest that was taken are there in their sizes.
// A client asks by HEAD whether it must push: it must, when a part was damaged.
func (r *Registry) whole(repo string, d key.Digest) (bool, error) {
	m, err := r.readManifest(repo, d)
	if err != nil {
		return false, err
	}
	all := true
	for _, p := range m.doc.blobs() {
		if len(p.URLs) > 0 {
			continue
		}
		f, size, err := r.openBlob(repo, key.Digest(p.Digest))
		if err == nil {
			f.Close()
			if size != p.Size { // it was right when the manifest was taken
				err = r.damaged(repo, key.Digest(p.Digest))
			}
		}
		switch fault.KindOf(err) {
		case "":
		case fault.NotFound, fault.Unprocessable, fault.Unavailable: // the last: it is the manifest's size that is wrong
			all = false
		default:
			return false, err
		}
	}
	return all, nil
}
