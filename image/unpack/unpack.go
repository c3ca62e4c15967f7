// Package unpack is the body of the helper process that turns the layers of one
// image into one EROFS file. See package image for who starts it, package wire for
// what it is told, package confine for what it cannot do, and package tree for
// what it makes of a layer.
package unpack

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"bulkhead/image/confine"
	"bulkhead/image/erofs"
	"bulkhead/image/tree"
	"bulkhead/image/wire"
)

// OutputFD is the descriptor of the output file, an empty regular file that is
// open for reading and writing.
const OutputFD = 3

// MemoryLimit is how much writable memory the helper may use, in bytes: a million
// entries take about a third of it.
const MemoryLimit = 2 << 30

// CPULimit is how much CPU time the helper may use.
const CPULimit = 30 * time.Minute

// maxWindow bounds the memory that a zstd layer can ask for.
const maxWindow = 128 << 20

// Main reads a request from standard input, confines the process, makes the image
// and answers on standard output. It returns the exit status: 0 whenever it gave
// an answer, be it that the image is refused, and 3 when it could not start or
// answer. (Go's own, when a program crashes or is out of memory, is 2.)
func Main() int {
	// The request comes from the store, not from a tenant, and holds the limits.
	req, err := wire.ReadRequest(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "reading the request:", err)
		return 3
	}
	// Every entry takes at most a block of padding, an inode and a name or target.
	output := uint64(req.Bytes) + uint64(req.Entries)*3*erofs.BlockSize + 64<<20
	rep, err := confine.Enter(confine.Limits{Memory: MemoryLimit, Output: output, CPU: CPULimit})
	if err != nil {
		fmt.Fprintln(os.Stderr, "refusing to run unconfined:", err)
		return 3
	}
	if rep.Landlock == 0 {
		fmt.Fprintln(os.Stderr, "this kernel has no landlock; seccomp alone confines the unpacking")
	}
	res := Run(req, os.Stdin, file{os.NewFile(OutputFD, "output")})
	// Not getrusage: what it gives includes the process that started this one.
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	res.PeakMemory = int64(mem.Sys >> 10)
	if err := wire.WriteResult(os.Stdout, res); err != nil {
		return 3
	}
	return 0
}

// file is an erofs.File on a real file.
type file struct{ *os.File }

// Punch implements erofs.File.
func (f file) Punch(off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Run makes the image from the layers that in brings. It touches nothing but in
// and out, and confines nothing.
func Run(req wire.Request, in io.Reader, out erofs.File) wire.Result {
	w := erofs.NewWriter(out)
	t := tree.New(w, tree.Limits{Bytes: req.Bytes, Entries: req.Entries, Path: req.Path})
	var res wire.Result
	for i, c := range req.Layers {
		id, err := layer(t, c, &wire.Layer{R: in})
		if err != nil {
			return failed(i, err)
		}
		res.DiffIDs = append(res.DiffIDs, id)
	}
	for _, name := range req.Capture {
		p, err := t.ReadFile(name, wire.CaptureLimit)
		if err != nil {
			return failed(-1, &erofs.WriteError{Err: err})
		}
		res.Captured = append(res.Captured, p)
	}
	var err error
	if res.Size, res.Inodes, err = w.Finish(t.Root()); err != nil {
		return failed(-1, err)
	}
	res.Entries, res.Bytes, res.Devices, res.Xattrs = t.Counts.Entries, t.Counts.Bytes, t.Counts.Devices, t.Counts.Xattrs
	return res
}

func failed(layer int, err error) wire.Result {
	f := &wire.Failure{Layer: layer, Message: err.Error()}
	var w *erofs.WriteError
	if errors.As(err, &w) {
		f.Output = true
	}
	return wire.Result{Failure: f}
}

// layer applies one layer and returns the digest of its uncompressed bytes.
func layer(t *tree.Tree, c wire.Compression, in *wire.Layer) (string, error) {
	r, err := decompress(c, in)
	if err != nil {
		return "", err
	}
	defer r.Close()
	ahead := readAhead(r)
	defer ahead.Close()
	h := sha256.New()
	if err := t.Apply(&hashing{ahead, h}); err != nil {
		return "", err
	}
	// A decompressor may stop before its input does.
	if n, err := io.Copy(io.Discard, in); err != nil {
		return "", err
	} else if n > 0 {
		return "", fmt.Errorf("%d bytes follow the end of the compressed data", n)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// decompress undoes the compression that the manifest names.
func decompress(c wire.Compression, in io.Reader) (io.ReadCloser, error) {
	switch c {
	case wire.Plain:
		return io.NopCloser(in), nil
	case wire.Gzip:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("it is not gzip data: %w", err)
		}
		return z, nil
	case wire.Zstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("it is not zstd data: %w", err)
		}
		return named{"zstd", z.IOReadCloser()}, nil
	}
	return nil, fmt.Errorf("its compression %q is not known", c)
}

// named says whose errors its reader's are; gzip's say so themselves.
type named struct {
	name string
	io.ReadCloser
}

func (n named) Read(p []byte) (int, error) {
	k, err := n.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", n.name, err)
	}
	return k, err
}

// hashing hashes what passes through.
type hashing struct {
	r io.Reader
	h hash.Hash
}

func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	return n, err
}

// ahead decompresses on a goroutine of its own, a few buffers ahead of its reader.
type ahead struct {
	full chan piece
	free chan []byte
	stop chan struct{}
	gone chan struct{}
	cur  []byte
	buf  []byte
	err  error
}

type piece struct {
	p   []byte
	err error
}

const aheadBuffers, aheadSize = 3, 128 << 10

func readAhead(r io.Reader) *ahead {
	a := &ahead{
		full: make(chan piece, aheadBuffers),
		free: make(chan []byte, aheadBuffers),
		stop: make(chan struct{}),
		gone: make(chan struct{}),
	}
	for range aheadBuffers {
		a.free <- make([]byte, aheadSize)
	}
	go a.fill(r)
	return a
}

func (a *ahead) fill(r io.Reader) {
	defer close(a.gone)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		n, err := 0, error(nil)
		for n < len(buf) && err == nil {
			var k int
			k, err = r.Read(buf[n:])
			n += k
		}
		a.full <- piece{buf[:n], err} // never blocks: there are as many places as buffers
		if err != nil {
			return
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.buf != nil {
			a.free <- a.buf[:cap(a.buf)]
			a.buf = nil
		}
		x := <-a.full
		a.buf, a.cur, a.err = x.p, x.p, x.err
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// Close ends the goroutine. It waits for a read in progress, so that nobody else
// reads the input meanwhile.
func (a *ahead) Close() {
	close(a.stop)
	<-a.gone
}
