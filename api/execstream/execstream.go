// Package execstream is the wire format of a command whose bytes are carried while it runs:
// frames in both directions of one HTTP request, each a type, a length of four bytes
// (big-endian) and that many bytes. docs/api.md describes it; numbers are never reused.
package execstream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MediaType is the content type of both bodies.
const MediaType = "application/vnd.bulkhead.exec"

// Type is the type of a frame.
type Type byte

// Types of frames that a client sends. Resize and Signal are kept for terminals; a server
// refuses them today.
const (
	Begin    Type = 'B' // first: JSON, as the body of a unary exec without stdin
	Stdin    Type = 'I' // bytes for the command
	StdinEnd Type = 'E' // there are no more; empty
	Resize   Type = 'W' // columns and rows of the terminal, two bytes each
	Signal   Type = 'S' // a signal's number, one byte
)

// Types of frames that a server sends.
const (
	Stdout Type = '1' // bytes of the command
	Stderr Type = '2'
	Beat   Type = 'H' // nothing happened for a while; empty
	Exit   Type = 'X' // last: JSON with exit_code and exit_signal
	Failed Type = 'F' // last: JSON as of any refused call, with its code
)

const (
	// MaxData bounds the bytes of one frame but of Begin.
	MaxData = 64 << 10
	// MaxBegin bounds a Begin, whose command may be long.
	MaxBegin = 4 << 20
)

const headSize = 5

// Write writes one frame with a single Write.
func Write(w io.Writer, t Type, data []byte) error {
	b := make([]byte, headSize, headSize+len(data))
	b[0] = byte(t)
	binary.BigEndian.PutUint32(b[1:], uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

// Reader reads frames.
type Reader struct {
	r   io.Reader
	buf []byte
}

// NewReader returns a reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next returns the next frame; its bytes are good until the next call. At a clean end the
// error is io.EOF.
func (r *Reader) Next() (Type, []byte, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return 0, nil, err
	}
	t, n, limit := Type(head[0]), int(binary.BigEndian.Uint32(head[1:])), MaxData
	if t == Begin {
		limit = MaxBegin
	}
	if n < 0 || n > limit {
		return 0, nil, fmt.Errorf("a frame of type %q has %d bytes; at most %d are taken", byte(t), n, limit)
	}
	// The buffer grows with what arrives, not with what the length claims.
	const step = MaxData
	r.buf = r.buf[:0]
	for len(r.buf) < n {
		at := len(r.buf)
		k := min(step, n-at)
		if cap(r.buf) < at+k {
			r.buf = append(make([]byte, 0, max(2*cap(r.buf), at+k)), r.buf...)
		}
		r.buf = r.buf[:at+k]
		if _, err := io.ReadFull(r.r, r.buf[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
	}
	return t, r.buf, nil
}
