//go:build linux

package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/image/wire"
)

// captured are the files that the store wants to know of an image.
var captured = []string{"/etc/passwd", "/etc/group"}

// helper runs bulkhead-unpack for one image.
type helper struct {
	store *Store
	src   Source
	ins   *Inspection
	out   *os.File
	cpu   time.Duration // that the process used
}

// run feeds the helper process and takes its answer. The process is gone when it
// returns.
func (h *helper) run(ctx context.Context) (*wire.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.store.Unpack)
	// Nothing of the worker's environment is the helper's business. Two threads run
	// Go code at a time: one decompresses, one writes.
	cmd.Env = []string{"GOMAXPROCS=2", "GOTRACEBACK=single"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{h.out}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is the worker's to handle
	var stdout, stderr tail
	stdout.max, stderr.max = wire.MaxResult+5, 4<<10
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the image unpacker cannot be started")
	}
	if err := cmd.Start(); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the image unpacker %s cannot be started", h.store.Unpack)
	}
	feedErr := h.feed(ctx, stdin)
	if feedErr != nil && !errors.Is(feedErr, errHelperGone) {
		cancel() // the image is bad or cannot be fetched: what the helper made of it does not matter
	}
	stdin.Close()
	waitErr := cmd.Wait()
	h.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if stderr.Len() > 0 {
		h.store.Log.Warn("the image unpacker said something", "image", h.ins.Digest, "stderr", stderr.String())
	}
	if feedErr != nil && !errors.Is(feedErr, errHelperGone) {
		return nil, feedErr
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return h.judge(waitErr, &stdout)
}

// errHelperGone says that the helper stopped reading: it has given up, and its
// answer or exit status says why.
var errHelperGone = errors.New("the unpacker stopped reading")

// pipe writes to the helper.
type pipe struct{ w io.Writer }

func (p pipe) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err != nil {
		err = fmt.Errorf("%w: %w", errHelperGone, err)
	}
	return n, err
}

// feed sends the request and the layers, verifying them on the way. The helper
// sees bytes before their digest is known; the store does not keep what it makes
// of them when the digest turns out wrong.
func (h *helper) feed(ctx context.Context, stdin io.Writer) error {
	l := h.store.Limits
	req := wire.Request{Bytes: l.Unpacked, Entries: l.Entries, Path: l.Path, Capture: captured}
	for _, layer := range h.ins.layers {
		req.Layers = append(req.Layers, layer.compression)
	}
	if f, ok := stdin.(*os.File); ok {
		unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, 1<<20) // fewer wake-ups; the default works too
	}
	w := pipe{stdin}
	if err := wire.WriteRequest(w, req); err != nil {
		return err
	}
	buf := make([]byte, wire.MaxData)
	for i, layer := range h.ins.layers {
		if err := h.feedLayer(ctx, w, i, layer, buf); err != nil {
			return err
		}
	}
	return nil
}

// feedLayer sends one layer.
func (h *helper) feedLayer(ctx context.Context, w pipe, i int, l layer, buf []byte) error {
	r, err := h.src.Blob(ctx, l.digest, l.size)
	if err != nil {
		return asFault(err, "layer %s of image %s cannot be fetched", l.digest, h.ins.Digest)
	}
	defer r.Close()
	sum := sha256.New()
	n, err := copyLayer(w, &stopping{ctx, r}, l.size, sum, buf)
	switch {
	case errors.Is(err, errHelperGone):
		return h.blame(&stopping{ctx, r}, i, l, n, sum, err)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return asFault(err, "layer %s of image %s cannot be fetched: it broke off after %d of %d bytes", l.digest, h.ins.Digest, n, l.size)
	case n < l.size:
		return h.badLayer(i, "it ends after %d bytes; the manifest says %d", n, l.size)
	case n > l.size:
		return h.badLayer(i, "it is longer than the %d bytes that the manifest says", l.size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != l.digest.Hex() && !h.store.trustLayers {
		return h.badLayer(i, "its contents have the digest sha256:%s", got)
	}
	return wire.WriteEnd(w)
}

// maxBlame is how much of a layer is read to find out whether the helper gave up because the
// layer is not what the manifest names.
const maxBlame = 256 << 20

// blame reads the rest of a layer whose beginning made the helper give up. Bytes that were
// damaged on the way look like a broken archive to the helper; the digest, or the source's own
// error, tells the cause. gone is the error of a layer that is as its author made it.
func (h *helper) blame(r io.Reader, i int, l layer, n int64, sum hash.Hash, gone error) error {
	if l.size-n > maxBlame {
		return gone
	}
	if _, err := io.Copy(sum, io.LimitReader(r, l.size-n)); err != nil {
		return asFault(err, "layer %s of image %s cannot be fetched", l.digest, h.ins.Digest)
	}
	// A source that checks what it sends says so at the end.
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil && err != io.EOF {
		return asFault(err, "layer %s of image %s cannot be fetched", l.digest, h.ins.Digest)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != l.digest.Hex() && !h.store.trustLayers {
		return h.badLayer(i, "its contents have the digest sha256:%s", got)
	}
	return gone
}

// copyLayer copies r to the helper in frames, and stops when there is more than
// size. It returns how many bytes r had, at most size+1.
func copyLayer(w io.Writer, r io.Reader, size int64, sum hash.Hash, buf []byte) (n int64, err error) {
	for {
		k, err := r.Read(buf)
		if n += int64(k); n > size {
			return n, nil
		}
		sum.Write(buf[:k])
		if k > 0 {
			if err := wire.WriteData(w, buf[:k]); err != nil {
				return n, err
			}
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// badLayer is the error for a layer that cannot be used.
func (h *helper) badLayer(i int, format string, args ...any) error {
	return bad(h.ins.Digest, "layer %d of %d, %s: %s", i+1, len(h.ins.layers), h.ins.layers[i].digest, fmt.Sprintf(format, args...))
}

// judge turns the helper's end into a result or an error.
func (h *helper) judge(waitErr error, stdout *tail) (*wire.Result, error) {
	if waitErr != nil {
		return nil, h.died(waitErr)
	}
	res, err := wire.ReadResult(&stdout.Buffer)
	if err != nil || stdout.cut {
		return nil, fault.Wrap(fault.Internal, err, "the image unpacker gave no sensible answer for image %s", h.ins.Digest)
	}
	if f := res.Failure; f != nil {
		msg := strings.ToValidUTF8(fault.Clip(f.Message), "?")
		if len(f.Message) <= 1000 {
			msg = strings.ToValidUTF8(f.Message, "?")
		}
		switch {
		case f.Output:
			if err := outputError(h.ins.Digest, errors.New(msg)); fault.KindOf(err) != fault.Internal {
				return nil, err
			}
			return nil, fault.Wrap(fault.Unavailable, errors.New(msg), "this node cannot write image %s", h.ins.Digest)
		case f.Layer >= 0 && f.Layer < len(h.ins.layers):
			return nil, h.badLayer(f.Layer, "%s", msg)
		}
		return nil, bad(h.ins.Digest, "%s", msg)
	}
	if len(res.DiffIDs) != len(h.ins.layers) || len(res.Captured) != len(captured) {
		return nil, fault.New(fault.Internal, "the image unpacker gave no sensible answer for image %s", h.ins.Digest)
	}
	for i, id := range res.DiffIDs {
		if want := h.ins.diffIDs[i]; id != want {
			return nil, h.badLayer(i, "unpacked it has the digest %s; the image's configuration says %s", fault.Clip(id), want)
		}
	}
	return &res, nil
}

// died words the end of a helper that gave no answer.
func (h *helper) died(waitErr error) error {
	var exit *exec.ExitError
	if !errors.As(waitErr, &exit) {
		return fault.Wrap(fault.Internal, waitErr, "the image unpacker failed on image %s", h.ins.Digest)
	}
	ws, _ := exit.Sys().(syscall.WaitStatus)
	switch {
	case ws.Signaled() && ws.Signal() == unix.SIGSYS:
		// Either a gap in the list of calls or an attack: both are worth an operator's look.
		h.store.Log.Error("the image unpacker made a forbidden system call and was killed", "image", h.ins.Digest)
		return fault.Wrap(fault.Internal, waitErr, "the image unpacker was stopped by its own confinement on image %s", h.ins.Digest)
	case ws.Signaled() && (ws.Signal() == unix.SIGXCPU || ws.Signal() == unix.SIGKILL):
		return fault.Wrap(fault.Unprocessable, waitErr, "image %s takes more CPU time or memory to unpack than is allowed", h.ins.Digest)
	case ws.Exited() && ws.ExitStatus() == 2:
		return fault.Wrap(fault.Unprocessable, waitErr, "image %s cannot be unpacked: the unpacker crashed or ran out of its memory", h.ins.Digest)
	}
	return fault.Wrap(fault.Internal, waitErr, "the image unpacker failed on image %s", h.ins.Digest)
}

// tail keeps the first max bytes of what is written to it.
type tail struct {
	bytes.Buffer
	max int
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	if room := t.max - t.Len(); len(p) > room {
		t.cut = true
		t.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return t.Buffer.Write(p)
}
