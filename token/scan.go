package token

import (
	"encoding/binary"
)

// scan walks one MessagePack value and checks, before anything decodes it, what a
// decoder would believe: that every length fits what is there, that nesting is
// bounded, that keys of maps are texts or numbers (a decoder that puts another into a Go
// map panics), and that there are no extensions. It returns what follows the value, and
// a refusal.
func scan(b []byte, depth int) ([]byte, *Refusal) {
	if len(b) == 0 {
		return nil, refuse(Malformed, "the token is cut off")
	}
	if depth > maxNesting {
		return nil, refuse(TooLong, "the token nests more than %d deep", maxNesting)
	}
	c := b[0]
	switch {
	case c <= 0x7f, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3: // small numbers, nil, booleans
		return b[1:], nil
	case c <= 0x8f:
		return scanMap(b[1:], int(c&0x0f), depth)
	case c <= 0x9f:
		return scanMany(b[1:], int(c&0x0f), depth)
	case c <= 0xbf:
		return skip(b[1:], uint64(c&0x1f))
	}
	if n, ok := fixed[c]; ok {
		return skip(b[1:], uint64(n))
	}
	width, what := sized(c)
	if width == 0 || len(b) < 1+width {
		return nil, refuse(Malformed, "the token is not one, or is cut off")
	}
	var buf [8]byte
	copy(buf[8-width:], b[1:1+width])
	n, rest := binary.BigEndian.Uint64(buf[:]), b[1+width:]
	if n > uint64(len(rest)) { // every element takes at least a byte
		return nil, refuse(Malformed, "the token is cut off")
	}
	switch what {
	case 'a':
		return scanMany(rest, int(n), depth)
	case 'm':
		return scanMap(rest, int(n), depth)
	}
	return skip(rest, n)
}

// fixed are the sizes of what follows a code of fixed size: floats and whole numbers.
var fixed = map[byte]int{0xca: 4, 0xcb: 8, 0xcc: 1, 0xcd: 2, 0xce: 4, 0xcf: 8, 0xd0: 1, 0xd1: 2, 0xd2: 4, 0xd3: 8}

// sized gives how many bytes the length after a code takes, and what it is the length
// of: bytes or text ('b'), an array or a map. 0 is a code that tokens do not use.
func sized(c byte) (width int, what byte) {
	switch c {
	case 0xc4, 0xd9:
		return 1, 'b'
	case 0xc5, 0xda:
		return 2, 'b'
	case 0xc6, 0xdb:
		return 4, 'b'
	case 0xdc:
		return 2, 'a'
	case 0xdd:
		return 4, 'a'
	case 0xde:
		return 2, 'm'
	case 0xdf:
		return 4, 'm'
	}
	return 0, 0
}

func skip(b []byte, n uint64) ([]byte, *Refusal) {
	if n > uint64(len(b)) {
		return nil, refuse(Malformed, "the token is cut off")
	}
	return b[n:], nil
}

func scanMany(b []byte, n, depth int) (_ []byte, err *Refusal) {
	for range n {
		if b, err = scan(b, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func scanMap(b []byte, n, depth int) (_ []byte, err *Refusal) {
	for range n {
		if len(b) > 0 && !mapKey(b[0]) {
			return nil, refuse(Malformed, "a map in the token has a key that is neither a text nor a number")
		}
		if b, err = scan(b, depth+1); err != nil {
			return nil, err
		}
		if b, err = scan(b, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// mapKey reports whether the value that starts with c may be a map's key.
func mapKey(c byte) bool {
	switch {
	case c <= 0x7f, c >= 0xe0, c >= 0xa0 && c <= 0xbf, c >= 0xcc && c <= 0xd3, c >= 0xd9 && c <= 0xdb:
		return true
	}
	return false
}
