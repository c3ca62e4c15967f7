package sandboxtest

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"bulkhead/sandbox"
)

// testSecretFiles: each has its content where Upper has an empty file, with the mode that
// it has there; the files beside it are as Upper says.
func testSecretFiles(t *testing.T, s *suite) {
	var upper bytes.Buffer
	w := tar.NewWriter(&upper)
	for _, h := range []tar.Header{
		{Name: "./etc/empty", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "./etc/key", Typeflag: tar.TypeReg, Mode: 0o404},
		{Name: "./etc/plain", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5},
		{Name: "./etc/z=1", Typeflag: tar.TypeReg, Mode: 0o444},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, "plain")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	binary := append([]byte("\x00binary=\xff\n"), bytes.Repeat([]byte("k"), 100<<10)...)
	var names, want []string
	for _, f := range []struct {
		name string
		mode uint32
		is   []byte
	}{{"/etc/key", 0o404, binary}, {"/etc/z=1", 0o444, []byte("odd")}, {"/etc/plain", 0o644, []byte("plain")}, {"/etc/empty", 0o644, nil}} {
		names, want = append(names, f.name), append(want, DescribeFile(f.mode, 0, 0, f.is)+"\n")
	}
	spec := s.spec(append([]string{"file"}, names...)...)
	spec.Upper, spec.Secrets = upper.Bytes(), []string{"COLOUR=top secret"}
	spec.SecretFiles = []sandbox.SecretFile{{Path: "/etc/key", Content: binary}, {Path: "/etc/z=1", Content: []byte("odd")}}
	sb := s.start(spec)
	b, err := io.ReadAll(sb.Stdout())
	if err != nil {
		t.Fatal(err)
	}
	got := strings.SplitAfter(string(b), "\n")
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("%s is %.80q, want %.80q", names[i], got[min(i, len(got)-1)], want[i])
		}
	}
	s.wait(sb)
}
