package logs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"time"
)

// A frame is a header and the line: length u32, CRC-32C of everything after it u32,
// time in Unix nanoseconds i64, stream u8, and the text. Numbers are little-endian.
const headerSize = 4 + 4 + 8 + 1

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	streamCode = map[string]byte{Stdout: 1, Stderr: 2, Platform: 3}
	streamName = map[byte]string{1: Stdout, 2: Stderr, 3: Platform}
)

// errTorn is a frame that was never finished, or is not one.
var errTorn = errors.New("torn frame")

// appendFrame appends the frame of l to b.
func appendFrame(b []byte, l Line) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Text)))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(l.Time.UnixNano()))
	b = append(b, streamCode[l.Stream])
	b = append(b, l.Text...)
	sum := crc32.Update(crc32.Checksum(b[at:at+4], castagnoli), castagnoli, b[at+8:])
	binary.LittleEndian.PutUint32(b[at+4:], sum)
	return b
}

// readFrame reads one frame and its size in bytes: io.EOF at the clean end,
// errTorn for anything that is not a whole frame.
func readFrame(r *bufio.Reader) (Line, int64, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return Line{}, 0, io.EOF
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return Line{}, 0, errTorn
		}
		return Line{}, 0, err
	}
	n := binary.LittleEndian.Uint32(h[:])
	stream, known := streamName[h[16]]
	if n > MaxLine || !known {
		return Line{}, 0, errTorn
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Line{}, 0, errTorn
		}
		return Line{}, 0, err
	}
	sum := crc32.Update(crc32.Checksum(h[:4], castagnoli), castagnoli, h[8:])
	if crc32.Update(sum, castagnoli, text) != binary.LittleEndian.Uint32(h[4:]) {
		return Line{}, 0, errTorn
	}
	return Line{Time: time.Unix(0, int64(binary.LittleEndian.Uint64(h[8:]))), Stream: stream, Text: text}, headerSize + int64(n), nil
}
