package sni_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/iotest"
	"time"

	"bulkhead/edge/sni"
)

// hello returns a real ClientHello of crypto/tls for name.
func hello(t testing.TB, name string, max uint16) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		c := tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true, MaxVersion: max})
		_ = c.Handshake() // fails: nobody answers
		a.Close()
	}()
	buf := make([]byte, sni.MaxHello)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// split cuts a hello of one record into records of n payload bytes.
func split(raw []byte, n int) []byte {
	var out []byte
	for body := raw[5:]; len(body) > 0; {
		k := min(n, len(body))
		out = append(out, 22, 3, 1, byte(k>>8), byte(k))
		out = append(out, body[:k]...)
		body = body[k:]
	}
	return out
}

func TestRead(t *testing.T) {
	h13, h12 := hello(t, "Web.Example.test", tls.VersionTLS13), hello(t, "web.example.test", tls.VersionTLS12)
	none := hello(t, "", tls.VersionTLS13)
	broken := bytes.Clone(h13)
	broken[43] = 0xff // session id longer than the hello
	for _, c := range []struct {
		name string
		in   []byte
		want string
		err  error
	}{
		{"tls 1.3", h13, "Web.Example.test", nil},
		{"tls 1.2", h12, "web.example.test", nil},
		{"no name", none, "", nil},
		{"bytes after the hello", append(bytes.Clone(h12), "early data"...), "web.example.test", nil},
		{"in two records", split(h12, len(h12)/2), "web.example.test", nil},
		{"in too many records", split(h12, 3), "", sni.ErrTooLarge},
		{"plain HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), "", sni.ErrNotTLS},
		{"an alert", []byte{21, 3, 3, 0, 2, 2, 112}, "", sni.ErrNotTLS},
		{"a server hello", []byte{22, 3, 3, 0, 4, 2, 0, 0, 0}, "", sni.ErrNotTLS},
		{"an empty record", []byte{22, 3, 3, 0, 0}, "", sni.ErrMalformed},
		{"a huge hello", []byte{22, 3, 3, 0, 4, 1, 0xff, 0xff, 0xff}, "", sni.ErrTooLarge},
		{"a broken hello", broken, "", sni.ErrMalformed},
		{"cut short", h12[:len(h12)-1], "", io.ErrUnexpectedEOF},
		{"nothing", nil, "", io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, r := range []io.Reader{bytes.NewReader(c.in), iotest.OneByteReader(bytes.NewReader(c.in))} {
				raw, got, err := sni.Read(r, nil)
				if !errors.Is(err, c.err) || got != c.want {
					t.Fatalf("got %q, %v; want %q, %v", got, err, c.want, c.err)
				}
				if !bytes.HasPrefix(c.in, raw) {
					t.Fatal("the raw bytes are not what was sent")
				}
			}
		})
	}
}

// TestTwoNames is the control of the parser's strictness: a hello that two readers
// could understand differently is refused.
func TestTwoNames(t *testing.T) {
	raw := hello(t, "aaaa.test", tls.VersionTLS13)
	ext := []byte("\x00\x00\x00\x0e\x00\x0c\x00\x00\x09aaaa.test")
	at := bytes.Index(raw, ext)
	if at < 0 {
		t.Fatal("the hello does not hold the extension as this test expects it")
	}
	twice := append(bytes.Clone(raw[:at]), append([]byte("\x00\x00\x00\x0e\x00\x0c\x00\x00\x09bbbb.test"), raw[at:]...)...)
	grow := func(i, bytes int) { // adds the inserted length to a length field
		v := 0
		for k := range bytes {
			v = v<<8 | int(twice[i+k])
		}
		v += len(ext)
		for k := range bytes {
			twice[i+k] = byte(v >> (8 * (bytes - 1 - k)))
		}
	}
	grow(3, 2)
	grow(6, 3)
	sid := int(twice[43])
	suites := 44 + sid
	exts := suites + 2 + (int(twice[suites])<<8 | int(twice[suites+1]))
	grow(exts+1+int(twice[exts]), 2)
	if _, err := sni.Parse(twice); !errors.Is(err, sni.ErrMalformed) {
		t.Fatalf("two server names: %v", err)
	}
	if name, err := sni.Parse(raw); err != nil || name != "aaaa.test" {
		t.Fatalf("control: %q, %v", name, err)
	}
}

var errStop = errors.New("stop")

// reference asks crypto/tls for the name of the hello in raw.
func reference(raw []byte) (name string, ok bool) {
	srv := tls.Server(readOnly{bytes.NewReader(raw)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, ok = h.ServerName, true
			return nil, errStop
		},
	})
	_ = srv.Handshake()
	return name, ok
}

// readOnly is a net.Conn that gives some bytes and takes any.
type readOnly struct{ io.Reader }

func (readOnly) Write(b []byte) (int, error)      { return len(b), nil }
func (readOnly) Close() error                     { return nil }
func (readOnly) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (readOnly) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (readOnly) SetDeadline(time.Time) error      { return nil }
func (readOnly) SetReadDeadline(time.Time) error  { return nil }
func (readOnly) SetWriteDeadline(time.Time) error { return nil }

// FuzzParse checks that the parser never panics, is bounded, and never names
// another server than crypto/tls does for the same bytes.
func FuzzParse(f *testing.F) {
	h := hello(f, "web.example.test", tls.VersionTLS13)
	f.Add(h)
	f.Add(hello(f, "web.example.test", tls.VersionTLS12))
	f.Add(hello(f, "", tls.VersionTLS13))
	f.Add(split(h, len(h)/3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		name, err := sni.Parse(raw)
		if len(name) > 253 {
			t.Fatalf("a name of %d bytes", len(name))
		}
		if _, rname, rerr := sni.Read(bytes.NewReader(raw), nil); len(raw) <= sni.MaxHello && err == nil && (rname != name || rerr != nil) {
			t.Fatalf("Read gives %q, %v where Parse gives %q", rname, rerr, name)
		}
		if err != nil {
			return
		}
		if want, ok := reference(raw); ok && want != name {
			t.Fatalf("we read %q, crypto/tls reads %q", name, want)
		}
	})
}
