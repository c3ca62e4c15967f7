//go:build linux

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/key"
)

// Store keeps sealed images in one directory, each as two files named after the
// digest of its manifest: <hex>.erofs and <hex>.json. Make it with New, set the
// fields, Open it. All methods may be called at the same time.
//
// An image is there when its .erofs file is: it gets its name last, after its
// contents and the .json file are on disk. So a power cut leaves an image or
// nothing, and files that an interrupted sealing left are removed by Open.
type Store struct {
	// Dir is the directory; Open makes it (mode 0755: sandboxes under other users
	// read images in it). It belongs to one Store at a time.
	Dir string
	// Unpack is the path of the bulkhead-unpack program.
	Unpack string
	Limits Limits
	Log    *slog.Logger // nil logs nothing

	// trustLayers is a seeded fault for the tests: a layer's digest does not count.
	trustLayers bool

	lock   *os.File // held as long as the Store is open
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	images  map[key.Digest]*Image
	flights map[key.Digest]*flight
}

// New returns a Store that is not open yet.
func New(dir, unpack string, log *slog.Logger) *Store {
	return &Store{Dir: dir, Unpack: unpack, Log: log}
}

const (
	tempPrefix = ".tmp-"
	imageExt   = ".erofs"
	metaExt    = ".json"
)

// metadata is the contents of a .json file.
type metadata struct {
	Version int        `json:"version"` // 1
	Digest  key.Digest `json:"digest"`
	Size    int64      `json:"size"`   // of the .erofs file
	SHA256  string     `json:"sha256"` // of the .erofs file
	Config  Config     `json:"config"`
	Passwd  []byte     `json:"passwd"`
	Group   []byte     `json:"group"`
}

// Open takes the directory into use: it removes what interrupted work left, and
// reads what there is. Image files are compared by size, not read: see Verify. An
// image with damaged metadata is removed, and sealed again when it is asked for.
// The error is Conflict when another Store has the directory.
func (s *Store) Open() error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.Limits = s.Limits.withDefaults()
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return fault.Wrap(fault.Internal, err, "the image directory %s cannot be made", s.Dir)
	}
	lock, err := os.OpenFile(filepath.Join(s.Dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the image directory %s cannot be used", s.Dir)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return fault.Wrap(fault.Conflict, err, "the image directory %s is in use by another process", s.Dir)
	}
	s.lock = lock
	s.images, s.flights = make(map[key.Digest]*Image), make(map[key.Digest]*flight)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.recover(); err != nil {
		s.Close()
		return fault.Wrap(fault.Internal, err, "the image directory %s cannot be read", s.Dir)
	}
	return nil
}

// recover loads the images that are whole and removes everything else that a Store
// writes. Files that a Store would not write are left alone.
func (s *Store) recover() error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		base, ext := strings.TrimSuffix(name, filepath.Ext(name)), filepath.Ext(name)
		digest, err := key.ParseDigest("sha256:" + base)
		switch {
		case strings.HasPrefix(name, tempPrefix):
			s.Log.Info("removing what an interrupted sealing left", "file", name)
			err = failpoint.Write("image/clear", func() error { return os.Remove(s.path(name)) })
		case err != nil || (ext != imageExt && ext != metaExt):
			continue
		case ext == metaExt:
			// A crash between the two names leaves this one alone.
			if _, err = os.Stat(s.path(base + imageExt)); errors.Is(err, fs.ErrNotExist) {
				err = failpoint.Write("image/clear-half", func() error { return os.Remove(s.path(name)) })
			}
			if errors.Is(err, fs.ErrNotExist) { // went with its damaged image just before
				err = nil
			}
		default:
			err = s.load(digest)
		}
		if err != nil {
			return err
		}
	}
	return s.syncDir()
}

// load reads one image's metadata, and removes the image when that is damaged.
func (s *Store) load(digest key.Digest) error {
	img, err := s.readMetadata(digest)
	if err == nil {
		s.images[digest] = img
		return nil
	}
	s.Log.Warn("removing a damaged image", "image", digest, "err", err)
	return s.removeFiles(digest)
}

func (s *Store) readMetadata(digest key.Digest) (*Image, error) {
	raw, err := os.ReadFile(s.path(digest.Hex() + metaExt))
	if err != nil {
		return nil, err
	}
	var m metadata
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	if m.Version != 1 || m.Digest != digest {
		return nil, fault.New(fault.Internal, "the metadata is of version %d and image %s", m.Version, m.Digest)
	}
	img := s.image(m)
	st, err := os.Stat(img.Path)
	if err != nil {
		return nil, err
	}
	if st.Size() != m.Size {
		return nil, fault.New(fault.Internal, "the file is %d bytes long; %d were sealed", st.Size(), m.Size)
	}
	return img, nil
}

// image gives the Image that m describes.
func (s *Store) image(m metadata) *Image {
	return &Image{
		Digest: m.Digest, Path: s.path(m.Digest.Hex() + imageExt), Size: m.Size, Config: m.Config,
		sum: m.SHA256, passwd: m.Passwd, group: m.Group,
	}
}

// Close ends the sealings in progress, waits for their helpers to be gone, and
// gives the directory up. Images that were handed out stay on disk.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	return s.lock.Close()
}

// Lookup returns the sealed image with that manifest digest, if its file is still
// there in its size. Its contents are not read: see Verify.
func (s *Store) Lookup(digest key.Digest) (*Image, bool) { return s.present(digest) }

// find returns the image that is said to be there.
func (s *Store) find(digest key.Digest) (*Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, ok := s.images[digest]
	return img, ok
}

// List returns all sealed images in the order of their digests.
func (s *Store) List() []*Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Image, 0, len(s.images))
	for _, d := range slices.Sorted(maps.Keys(s.images)) {
		all = append(all, s.images[d])
	}
	return all
}

// Verify reads an image's whole file and compares it with what was sealed. An
// image that differs, or is gone, is removed, and the error says so: Ensure seals it
// again. NotFound when there is no such image.
func (s *Store) Verify(ctx context.Context, digest key.Digest) error {
	img, ok := s.find(digest)
	if !ok {
		return fault.New(fault.NotFound, "image %s is not on this node", digest)
	}
	sum, size, err := hashFile(ctx, img.Path)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && sum == img.sum && size == img.Size {
		return nil
	}
	s.Log.Error("a sealed image is damaged; removing it", "image", digest, "sha256", sum, "sealed", img.sum, "err", err)
	if err := s.Remove(digest); err != nil {
		return err
	}
	return fault.Wrap(fault.Internal, err, "image %s was damaged on disk and has been removed", digest)
}

// Remove deletes an image. Sandboxes that have it open keep it. Removing what is
// not there succeeds.
func (s *Store) Remove(digest key.Digest) error {
	if _, err := key.ParseDigest(string(digest)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, digest)
	if err := s.removeFiles(digest); err != nil {
		return fault.Wrap(fault.Internal, err, "image %s cannot be removed", digest)
	}
	return nil
}

// removeFiles deletes an image's files, the one that says that it is there first.
func (s *Store) removeFiles(digest key.Digest) error {
	for _, ext := range []string{imageExt, metaExt} {
		err := failpoint.Write("image/remove"+ext, func() error { return os.Remove(s.path(digest.Hex() + ext)) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := s.syncDir(); err != nil {
			return err
		}
	}
	return nil
}

// GC removes every image that keep does not want and returns their digests. keep is
// called without a lock held, but an image may be sealed between its answer and the
// removal: whoever calls Ensure makes keep want the digest before, not after.
func (s *Store) GC(keep func(key.Digest) bool) (removed []key.Digest, err error) {
	for _, img := range s.List() {
		if keep(img.Digest) {
			continue
		}
		if e := s.Remove(img.Digest); e != nil {
			err = errors.Join(err, e)
			continue
		}
		s.Log.Info("removed an image that nothing uses", "image", img.Digest, "bytes", img.Size)
		removed = append(removed, img.Digest)
	}
	return removed, err
}

func (s *Store) path(name string) string { return filepath.Join(s.Dir, name) }

// syncDir makes names in the directory durable.
func (s *Store) syncDir() error {
	d, err := os.Open(s.Dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// hashFile returns the SHA-256 and the size of a file.
func hashFile(ctx context.Context, path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(onlyWriter{h}, &stopping{ctx, f}, make([]byte, 1<<20))
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// onlyWriter keeps io.CopyBuffer at its buffer.
type onlyWriter struct{ io.Writer }

// stopping is a reader that ends with its context.
type stopping struct {
	ctx context.Context
	r   io.Reader
}

func (s *stopping) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}
