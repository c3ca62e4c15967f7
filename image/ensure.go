//go:build linux

package image

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/image/wire"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/room"
)

// sealTimeout bounds one sealing, so that a source that trickles ends.
const sealTimeout = 2 * time.Hour

// linger is how long a sealing goes on without a caller that waits for it. A Machine's new
// assignment cuts off the step that waits, and the next step asks for the same image.
const linger = 30 * time.Second

// flight is one sealing in progress, and everyone who waits for it.
type flight struct {
	done    chan struct{} // closed when img or err is set
	cancel  context.CancelFunc
	waiters int         // guarded by Store.mu, as is linger
	linger  *time.Timer // stops the sealing; runs while nobody waits
	img     *Image
	err     error
}

// Ensure returns the sealed image that ref.Digest names, fetching and sealing it
// first when it is not there. The digest may be an index's; the image's own is in
// the result. Callers who ask for the same image at the same time share one
// sealing, which takes from the first one's Source and goes on while one of them waits,
// and for linger after the last has left: a Source must work until then. Nothing is left
// behind by one that fails. Errors: Unprocessable for an image that cannot be used here, with
// the reason for the user; the Source's own; Unavailable when this node is short of
// disk or memory.
func (s *Store) Ensure(ctx context.Context, src Source, ref machine.ImageRef) (*Image, error) {
	digest, err := key.ParseDigest(string(ref.Digest))
	if err != nil {
		return nil, err
	}
	if img, ok := s.present(digest); ok {
		return img, nil
	}
	// Two callers may name one image by its own digest and by an index's: only the
	// former is a name for the work to be shared.
	ins, err := Inspect(ctx, src, digest, s.Limits)
	if err != nil {
		return nil, err
	}
	if img, ok := s.present(ins.Digest); ok {
		return img, nil
	}
	f, err := s.join(src, ins)
	if err != nil {
		return nil, err
	}
	defer s.leave(ins.Digest, f)
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// present looks an image up and makes sure, by its size alone, that its file is
// still there.
func (s *Store) present(digest key.Digest) (*Image, bool) {
	img, ok := s.find(digest)
	if !ok {
		return nil, false
	}
	if st, err := os.Stat(img.Path); err == nil && st.Size() == img.Size {
		return img, true
	}
	s.Log.Error("a sealed image has gone or changed its size; sealing it again", "image", digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[digest] == img {
		delete(s.images, digest)
	}
	return nil, false
}

// join takes part in the sealing of an image, starting it when nobody has.
func (s *Store) join(src Source, ins *Inspection) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, fault.New(fault.Unavailable, "the image store is closed")
	}
	if f := s.flights[ins.Digest]; f != nil {
		f.waiters++
		if f.linger != nil {
			f.linger.Stop()
		}
		return f, nil
	}
	ctx, cancel := context.WithTimeoutCause(s.ctx, sealTimeout,
		fault.New(fault.Unavailable, "image %s was not fetched and sealed within %v", ins.Digest, sealTimeout))
	f := &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	s.flights[ins.Digest] = f
	s.wg.Go(func() {
		defer cancel()
		img, err := s.seal(ctx, src, ins)
		if err != nil && s.ctx.Err() != nil {
			err = fault.Wrap(fault.Unavailable, err, "the image store was closed while image %s was being sealed", ins.Digest)
		} else if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.img, f.err = img, err; err == nil {
			s.images[ins.Digest] = img
		}
		if s.flights[ins.Digest] == f {
			delete(s.flights, ins.Digest)
		}
		if f.linger != nil {
			f.linger.Stop()
		}
		close(f.done)
	})
	return f, nil
}

// leave ends the caller's part in a sealing, which stops when nobody joins it for a while.
func (s *Store) leave(digest key.Digest, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters--; f.waiters > 0 || s.flights[digest] != f {
		return
	}
	f.linger = time.AfterFunc(linger, func() { s.abandon(digest, f) })
}

// abandon stops a sealing that nobody waits for.
func (s *Store) abandon(digest key.Digest, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters > 0 {
		return // it was joined while the timer fired
	}
	f.cancel()
	// A caller that comes now starts another one instead of waiting for this one to stop.
	if s.flights[digest] == f {
		delete(s.flights, digest)
	}
}

// seal fetches, verifies and unpacks the layers and gives the image its name.
func (s *Store) seal(ctx context.Context, src Source, ins *Inspection) (_ *Image, err error) {
	start := time.Now()
	if err := room.Check(s.Dir, ins.Compressed, room.Images); err != nil {
		return nil, err
	}
	if err := failpoint.Step("image/create"); err != nil {
		return nil, outputError(ins.Digest, err)
	}
	out, err := os.CreateTemp(s.Dir, tempPrefix+"*"+imageExt)
	if err != nil {
		return nil, outputError(ins.Digest, err)
	}
	defer func() {
		out.Close()
		if err != nil {
			os.Remove(out.Name())
		}
	}()
	h := &helper{store: s, src: src, ins: ins, out: out}
	var res *wire.Result
	err = failpoint.Write("image/unpack", func() (err error) { res, err = h.run(ctx); return err })
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(out.Name(), 0o444); err != nil {
		return nil, outputError(ins.Digest, err)
	}
	if err := failpoint.Write("image/sync", out.Sync); err != nil {
		return nil, outputError(ins.Digest, err)
	}
	// The helper is believed in nothing that the store can find out itself.
	sum, size, err := hashFile(ctx, out.Name())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, outputError(ins.Digest, err)
	}
	m := metadata{
		Version: 1, Digest: ins.Digest, Size: size, SHA256: sum,
		Config: ins.Config, Passwd: res.Captured[0], Group: res.Captured[1],
	}
	if err := s.commit(m, out.Name()); err != nil {
		return nil, outputError(ins.Digest, err)
	}
	s.Log.Info("sealed an image", "image", ins.Digest, "layers", len(ins.layers), "compressed", ins.Compressed,
		"bytes", size, "entries", res.Entries, "inodes", res.Inodes, "devices_left_out", res.Devices,
		"xattrs_left_out", res.Xattrs, "helper_peak_kib", res.PeakMemory,
		"helper_cpu", h.cpu.Round(time.Millisecond), "took", time.Since(start).Round(time.Millisecond))
	return s.image(m), nil
}

// commit names the two files. A crash before the last rename is durable leaves a
// .json file without an image, which Open removes.
func (s *Store) commit(m metadata, temp string) error {
	// Two flights of one image may overlap when the first is being stopped; both
	// would write the same bytes.
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.Dir, tempPrefix+"*"+metaExt)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename
	err = failpoint.Write("image/metadata", func() error {
		_, err := f.Write(raw)
		return errors.Join(err, f.Sync())
	})
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := rename("image/name-metadata", f.Name(), s.path(m.Digest.Hex()+metaExt)); err != nil {
		return err
	}
	if err := s.syncDir(); err != nil {
		return err
	}
	if err := rename("image/name", temp, s.path(m.Digest.Hex()+imageExt)); err != nil {
		return err
	}
	return s.syncDir()
}

// rename is os.Rename with a place for tests.
func rename(place, from, to string) error {
	return failpoint.Write(place, func() error { return os.Rename(from, to) })
}

// outputError words a failure of this node's disk.
func outputError(digest key.Digest, err error) error {
	return fault.System(err, "image %s cannot be written", digest)
}
