package main

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
)

// TestParseSecrets: variables and files come apart whatever is in them, and an error says
// nothing of a content.
func TestParseSecrets(t *testing.T) {
	s, err := parseSecrets([]byte("A=1\x00/etc/a=b\x00AP8=\x00B=/x\x00/empty\x00\x00"))
	if err != nil || len(s.variables) != 2 || s.variables[1] != "B=/x" || len(s.files) != 2 || string(s.files["/etc/a=b"]) != "\x00\xff" || len(s.files["/empty"]) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := parseSecrets(nil); err != nil || len(s.variables)+len(s.files) != 0 {
		t.Errorf("nothing: %+v, %v", s, err)
	}
	if _, err := parseSecrets([]byte("/etc/a\x00planted!\x00")); err == nil || strings.Contains(err.Error(), "planted") {
		t.Errorf("no base64: %v", err)
	}
}

// TestFill: contents go into empty files that are there, and nowhere else.
func TestFill(t *testing.T) {
	archive := func(contents map[string]string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755})
		for _, name := range []string{"./a", "./b"} {
			w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(contents[name]))})
			io.WriteString(w, contents[name])
		}
		w.Close()
		return b.Bytes()
	}
	in := archive(map[string]string{"./b": "there"})
	out, err := fill(in, map[string][]byte{"/a": []byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	if want := archive(map[string]string{"./a": "secret", "./b": "there"}); !bytes.Equal(out, want) {
		t.Errorf("an archive of %d bytes is another than the wanted one of %d", len(out), len(want))
	}
	for name, contents := range map[string]map[string][]byte{
		"absent": {"/c": nil}, "full": {"/b": nil}, "a directory": {"/": nil},
	} {
		if _, err := fill(in, contents); err == nil {
			t.Errorf("%s: filled", name)
		}
	}
	if _, err := fill(in[:700], map[string][]byte{"/a": nil}); err == nil {
		t.Error("half an archive was filled")
	}
}
