// Package sni reads the server name out of a TLS ClientHello before anything is
// answered, so that a connection can be given to whoever ends its TLS.
//
// The parser takes hostile input: it reads at most MaxHello bytes and MaxRecords
// records, allocates nothing that the input sizes beyond that, and never panics.
package sni

import (
	"errors"
	"io"
	"strings"
)

// MaxHello bounds the bytes read for one ClientHello, record headers included. A
// browser's with a post-quantum key share takes about 2 kB.
const MaxHello = 16 << 10

// MaxRecords bounds the TLS records that one ClientHello may be cut into.
const MaxRecords = 16

var (
	// ErrNotTLS says that the bytes do not begin a TLS handshake.
	ErrNotTLS = errors.New("not a TLS ClientHello")
	// ErrMalformed says that the bytes begin as a ClientHello but are not one.
	ErrMalformed = errors.New("malformed TLS ClientHello")
	// ErrTooLarge says that the ClientHello passes MaxHello or MaxRecords.
	ErrTooLarge = errors.New("TLS ClientHello is too large")

	errMore = errors.New("need more bytes")
)

// Read reads a ClientHello from r into buf[:0] and returns all bytes read (they
// may reach past the hello) and the server name as typed, "" when the hello
// has none. The caller bounds the time by a deadline on r. The raw bytes are
// returned with an error too.
func Read(r io.Reader, buf []byte) (raw []byte, name string, err error) {
	if cap(buf) < MaxHello {
		buf = make([]byte, 0, MaxHello)
	}
	raw = buf[:0]
	for {
		n, rerr := r.Read(raw[len(raw):MaxHello])
		raw = raw[:len(raw)+n]
		if n > 0 {
			name, err = Parse(raw)
			if !errors.Is(err, errMore) {
				return raw, name, err
			}
		}
		switch {
		case len(raw) == MaxHello:
			return raw, "", ErrTooLarge
		case rerr == io.EOF && len(raw) > 0:
			return raw, "", io.ErrUnexpectedEOF
		case rerr != nil:
			return raw, "", rerr
		}
	}
}

// Incomplete reports whether err, from Parse, means that the bytes may become a
// ClientHello when more of them arrive.
func Incomplete(err error) bool { return errors.Is(err, errMore) }

// Parse returns the server name of the ClientHello that raw begins with. Bytes
// past the hello are ignored.
func Parse(raw []byte) (string, error) {
	hs, err := handshake(raw)
	if err != nil {
		return "", err
	}
	return serverName(hs)
}

// handshake returns the body of the first handshake message of raw, which must be
// a ClientHello, put together from its records.
func handshake(raw []byte) ([]byte, error) {
	var joined []byte
	for records := 0; ; records++ {
		if records == MaxRecords {
			return nil, ErrTooLarge
		}
		if len(raw) > 0 && raw[0] != 22 || len(raw) > 1 && raw[1] != 3 {
			return nil, ErrNotTLS
		}
		if len(raw) < 5 {
			return nil, errMore
		}
		n := int(raw[3])<<8 | int(raw[4])
		if n == 0 || n > 1<<14 {
			return nil, ErrMalformed
		}
		part := raw[5:min(len(raw), 5+n)]
		if joined == nil {
			joined = part[:len(part):len(part)] // no copy for a hello in one record
		} else {
			joined = append(joined, part...)
		}
		body, err := clientHello(joined)
		if !errors.Is(err, errMore) {
			return body, err
		}
		if len(raw) < 5+n {
			return nil, errMore
		}
		raw = raw[5+n:]
	}
}

// clientHello takes the header off a handshake message.
func clientHello(b []byte) ([]byte, error) {
	if len(b) > 0 && b[0] != 1 {
		return nil, ErrNotTLS
	}
	if len(b) < 4 {
		return nil, errMore
	}
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	if n > MaxHello {
		return nil, ErrTooLarge
	}
	if len(b) < 4+n {
		return nil, errMore
	}
	return b[4 : 4+n], nil
}

// cursor walks over length-prefixed fields. After a field that is cut short, bad
// is set and every later field is empty.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	f := c.b[:n]
	c.b = c.b[n:]
	return f
}

func (c *cursor) uint(bytes int) int {
	v := 0
	for _, x := range c.take(bytes) {
		v = v<<8 | int(x)
	}
	return v
}

// vector takes a field whose length stands before it in lenBytes bytes.
func (c *cursor) vector(lenBytes int) cursor {
	n := c.uint(lenBytes)
	return cursor{b: c.take(n), bad: c.bad}
}

// serverName finds the server_name extension in a ClientHello's body.
func serverName(body []byte) (string, error) {
	c := cursor{b: body}
	c.take(2 + 32) // version, random
	c.vector(1)    // session id
	c.vector(2)    // cipher suites
	c.vector(1)    // compression methods
	if c.bad {
		return "", ErrMalformed
	}
	if len(c.b) == 0 {
		return "", nil // no extensions
	}
	exts := c.vector(2)
	if c.bad || len(c.b) != 0 {
		return "", ErrMalformed
	}
	name, seen := "", false
	for len(exts.b) > 0 {
		kind := exts.uint(2)
		ext := exts.vector(2)
		if exts.bad {
			return "", ErrMalformed
		}
		if kind != 0 {
			continue
		}
		if seen { // two would let two readers see two names
			return "", ErrMalformed
		}
		seen = true
		var err error
		if name, err = hostName(ext); err != nil {
			return "", err
		}
	}
	return name, nil
}

// hostName reads the one host_name of a server_name extension.
func hostName(ext cursor) (string, error) {
	list := ext.vector(2)
	if ext.bad || len(ext.b) != 0 || len(list.b) == 0 {
		return "", ErrMalformed
	}
	name := ""
	for len(list.b) > 0 {
		kind := list.uint(1)
		v := list.vector(2)
		if list.bad || len(v.b) == 0 {
			return "", ErrMalformed
		}
		if kind != 0 {
			continue
		}
		if name != "" || len(v.b) > 253 || !printable(v.b) {
			return "", ErrMalformed
		}
		name = string(v.b)
	}
	if strings.HasSuffix(name, ".") {
		return "", ErrMalformed // RFC 6066 forbids the trailing dot
	}
	return name, nil
}

// printable reports whether b may stand in a host name or a log line as it is.
func printable(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
