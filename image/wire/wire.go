// Package wire is what the image store and its unpacking helper say to each
// other over the helper's standard input and output. Neither believes the other:
// every length is bounded before memory is set aside for it.
//
// The store sends one request frame, then for each layer data frames and an end
// frame. The helper answers with one result frame when it is done or gives up.
// A stream that ends in the middle means that the other side is gone.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Compression of a layer.
type Compression string

// The compressions there are.
const (
	Plain Compression = "plain"
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// Request is what the helper has to do.
type Request struct {
	Layers []Compression `json:"layers"`
	// Bytes, Entries and Path are the limits of package tree.
	Bytes   int64 `json:"bytes"`
	Entries int64 `json:"entries"`
	Path    int   `json:"path"`
	// Capture names files whose contents the result brings, each cut at
	// CaptureLimit bytes.
	Capture []string `json:"capture"`
}

// Bounds of the protocol, in bytes.
const (
	CaptureLimit = 1 << 20
	MaxRequest   = 1 << 20
	MaxData      = 256 << 10
	MaxResult    = 8 << 20
)

// Result is what the helper did. Exactly one of Failure and DiffIDs is set.
type Result struct {
	Failure *Failure `json:"failure,omitempty"`
	// DiffIDs are the digests of the uncompressed layers.
	DiffIDs  []string `json:"diff_ids,omitempty"`
	Captured [][]byte `json:"captured,omitempty"` // null for a file that does not exist
	Size     int64    `json:"size"`               // bytes of the image
	Inodes   int      `json:"inodes"`
	Entries  int64    `json:"entries"`
	Bytes    int64    `json:"bytes"`
	Devices  int64    `json:"devices"`
	Xattrs   int64    `json:"xattrs"`
	// PeakMemory is what the helper got from the system at most, in KiB.
	PeakMemory int64 `json:"peak_memory"`
}

// Failure says why the image cannot be made.
type Failure struct {
	Layer   int    `json:"layer"` // index; -1 when no layer is at fault
	Message string `json:"message"`
	// Output is set when writing failed: the image may be good.
	Output bool `json:"output,omitempty"`
}

// Types of frames.
const (
	frameRequest = 'R'
	frameData    = 'D'
	frameEnd     = 'E'
	frameResult  = 'A'
)

// ErrGone is returned when the stream ends before it should.
var ErrGone = errors.New("the other side is gone")

func writeFrame(w io.Writer, kind byte, p []byte) error {
	var h [5]byte
	h[0] = kind
	binary.BigEndian.PutUint32(h[1:], uint32(len(p)))
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(p)
	return err
}

func readHeader(r io.Reader) (kind byte, n uint32, err error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, ErrGone
	}
	return h[0], binary.BigEndian.Uint32(h[1:]), nil
}

func writeJSON(w io.Writer, kind byte, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, kind, p)
}

func readJSON(r io.Reader, kind byte, limit uint32, v any) error {
	got, n, err := readHeader(r)
	if err != nil {
		return err
	}
	if got != kind || n > limit {
		return fmt.Errorf("a frame %q of %d bytes came where %q of at most %d was due", got, n, kind, limit)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return ErrGone
	}
	return json.Unmarshal(p, v)
}

// WriteRequest sends the request.
func WriteRequest(w io.Writer, req Request) error { return writeJSON(w, frameRequest, req) }

// ReadRequest reads the request.
func ReadRequest(r io.Reader) (Request, error) {
	var req Request
	return req, readJSON(r, frameRequest, MaxRequest, &req)
}

// WriteResult sends the result.
func WriteResult(w io.Writer, res Result) error { return writeJSON(w, frameResult, res) }

// ReadResult reads the result.
func ReadResult(r io.Reader) (Result, error) {
	var res Result
	return res, readJSON(r, frameResult, MaxResult, &res)
}

// WriteData sends a piece of the current layer, of at most MaxData bytes.
func WriteData(w io.Writer, p []byte) error { return writeFrame(w, frameData, p) }

// WriteEnd ends the current layer.
func WriteEnd(w io.Writer) error { return writeFrame(w, frameEnd, nil) }

// Layer reads one layer from r; it ends with io.EOF at the layer's end frame.
type Layer struct {
	R    io.Reader
	left uint32
	done bool
}

// Read implements io.Reader.
func (l *Layer) Read(p []byte) (int, error) {
	for l.left == 0 {
		if l.done {
			return 0, io.EOF
		}
		kind, n, err := readHeader(l.R)
		switch {
		case err != nil:
			return 0, err
		case kind == frameEnd && n == 0:
			l.done = true
		case kind == frameData && n <= MaxData:
			l.left = n
		default:
			return 0, fmt.Errorf("a frame %q of %d bytes came inside a layer", kind, n)
		}
	}
	n, err := l.R.Read(p[:min(len(p), int(l.left))])
	l.left -= uint32(n)
	if err == io.EOF {
		err = nil
		if n == 0 {
			err = ErrGone
		}
	}
	return n, err
}
