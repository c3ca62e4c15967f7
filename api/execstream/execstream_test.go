package execstream

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	data := bytes.Repeat([]byte{0, 0xff, '\n'}, 20000)
	for _, f := range []struct {
		t Type
		p []byte
	}{{Begin, bytes.Repeat([]byte("x"), MaxBegin)}, {Stdin, data}, {StdinEnd, nil}} {
		if err := Write(&b, f.t, f.p); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&b)
	for _, want := range []struct {
		t    Type
		size int
	}{{Begin, MaxBegin}, {Stdin, len(data)}, {StdinEnd, 0}} {
		typ, p, err := r.Next()
		if err != nil || typ != want.t || len(p) != want.size {
			t.Fatalf("%q of %d bytes, %v", typ, len(p), err)
		}
		if typ == Stdin && !bytes.Equal(p, data) {
			t.Error("the bytes changed")
		}
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
	for _, bad := range []string{"I", "I\x00\x00\x00\x05abc", "I\x00\x01\x00\x01", "B\xff\xff\xff\xff"} {
		if _, _, err := NewReader(bytes.NewReader([]byte(bad))).Next(); err == nil || errors.Is(err, io.EOF) && err != io.ErrUnexpectedEOF {
			t.Errorf("%q gives %v", bad, err)
		}
	}
}

// FuzzNext reads what anybody sends.
func FuzzNext(f *testing.F) {
	f.Add([]byte("I\x00\x00\x00\x01x"))
	f.Add([]byte("B\x00\x40\x00\x00{"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := NewReader(bytes.NewReader(raw))
		for total := 0; ; {
			_, p, err := r.Next()
			if err != nil {
				return
			}
			if total += headSize + len(p); total > len(raw) {
				t.Fatalf("%d bytes of %d", total, len(raw))
			}
		}
	})
}
