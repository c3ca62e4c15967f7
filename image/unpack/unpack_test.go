package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	erofsreader "github.com/erofs/go-erofs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"bulkhead/image/erofs"
	"bulkhead/image/imagetest"
	"bulkhead/image/wire"
)

// memory is an erofs.File in memory.
type memory struct{ p []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m.p)) {
		return 0, io.EOF
	}
	n := copy(p, m.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if grow := off + int64(len(p)) - int64(len(m.p)); grow > 0 {
		m.p = append(m.p, make([]byte, grow)...)
	}
	return copy(m.p[off:], p), nil
}

func (m *memory) Punch(off, n int64) error {
	clear(m.p[off : off+n])
	return nil
}

// feed is what the store would send for the layers, as they are.
func feed(layers ...[]byte) *bytes.Buffer {
	var b bytes.Buffer
	for _, l := range layers {
		for len(l) > 0 {
			n := min(len(l), wire.MaxData)
			wire.WriteData(&b, l[:n])
			l = l[n:]
		}
		wire.WriteEnd(&b)
	}
	return &b
}

func request(c ...wire.Compression) wire.Request {
	return wire.Request{Layers: c, Bytes: 64 << 20, Entries: 10000, Path: 4095, Capture: []string{"/etc/passwd", "/etc/group"}}
}

// FuzzLayers feeds two layers of anything: the outcome is a refusal, or an image
// that an independent reader can walk.
func FuzzLayers(f *testing.F) {
	lower := imagetest.Tar(f, imagetest.Text("a/b/c", "lower"), imagetest.Symlink("l", "a"), imagetest.Hard("h", "a/b/c"), imagetest.Text("etc/passwd", "root"))
	upper := imagetest.Tar(f, imagetest.Text("a/.wh..wh..opq", ""), imagetest.Text("l/d", "upper"), imagetest.Text(".wh.h", ""), imagetest.File{Name: "p", Type: tar.TypeFifo})
	f.Add(lower, upper, uint8(0))
	f.Add(lower, lower, uint8(0))
	f.Add(imagetest.Tar(f, imagetest.Symlink("x", "y"), imagetest.Symlink("y", "x")), imagetest.Tar(f, imagetest.Text("x/z", "")), uint8(0))
	f.Add(imagetest.Tar(f, imagetest.Text("../../x", "")), []byte{}, uint8(0))
	f.Add(compressed(f, wire.Gzip, lower), compressed(f, wire.Gzip, upper), uint8(1))
	f.Add(compressed(f, wire.Zstd, lower), compressed(f, wire.Zstd, upper), uint8(2))
	f.Fuzz(func(t *testing.T, a, b []byte, how uint8) {
		c := []wire.Compression{wire.Plain, wire.Gzip, wire.Zstd}[how%3]
		req := request(c, c)
		req.Bytes, req.Entries = 1<<20, 1000
		out := new(memory)
		res := Run(req, feed(a, b), out)
		if (res.Failure == nil) != (len(res.DiffIDs) == 2) {
			t.Fatalf("the result is %+v", res)
		}
		if res.Failure != nil {
			return
		}
		if res.Size != int64(len(out.p)) || res.Size%erofs.BlockSize != 0 {
			t.Fatalf("%d bytes were announced and %d written", res.Size, len(out.p))
		}
		walk(t, out.p)
		if len(a)%4 != 0 { // most mutations: a second run halves what is tried
			return
		}
		// The same input gives the same bytes.
		again := new(memory)
		if Run(req, feed(a, b), again); !bytes.Equal(again.p, out.p) {
			t.Fatal("a second run gave other bytes")
		}
	})
}

// walk reads everything in an image whose names the reader accepts.
func walk(t *testing.T, img []byte) {
	t.Helper()
	fsys, err := erofsreader.Open(bytes.NewReader(img))
	if err != nil {
		t.Fatalf("the image cannot be opened: %v", err)
	}
	var visit func(dir string, depth int)
	visit = func(dir string, depth int) {
		d, err := fsys.Open(dir)
		if err != nil {
			return // a name that io/fs does not take
		}
		defer d.Close()
		rd, ok := d.(interface {
			ReadDir(int) ([]os.DirEntry, error)
		})
		if !ok {
			t.Fatalf("%q is no directory", dir)
		}
		entries, err := rd.ReadDir(-1)
		if err != nil {
			t.Fatalf("reading %q: %v", dir, err)
		}
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			switch {
			case e.IsDir() && depth < 50:
				visit(p, depth+1)
			case e.Type().IsRegular():
				f, err := fsys.Open(p)
				if err != nil {
					continue
				}
				if _, err := io.Copy(io.Discard, f); err != nil {
					t.Fatalf("reading %q: %v", p, err)
				}
				f.Close()
			}
		}
	}
	visit(".", 0)
}

func compressed(t testing.TB, c wire.Compression, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if c == wire.Zstd {
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	}
	w.Write(p)
	w.Close()
	return b.Bytes()
}

// TestBrokenProtocol: a store that goes away or talks nonsense ends the work.
func TestBrokenProtocol(t *testing.T) {
	layer := imagetest.Tar(t, imagetest.Text("a", "1"))
	whole := feed(layer).Bytes()
	for n := range len(whole) {
		if res := Run(request(wire.Plain), bytes.NewReader(whole[:n]), new(memory)); res.Failure == nil {
			t.Fatalf("an input that ends after %d of %d bytes was accepted", n, len(whole))
		}
	}
	for name, in := range map[string][]byte{
		"unknown frame":   []byte("X\x00\x00\x00\x00"),
		"oversized frame": []byte("D\xff\xff\xff\xff"),
		"end with data":   []byte("E\x00\x00\x00\x01x"),
	} {
		if res := Run(request(wire.Plain), bytes.NewReader(in), new(memory)); res.Failure == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// full is an output without room.
type full struct{ memory }

func (*full) WriteAt([]byte, int64) (int, error) { return 0, fmt.Errorf("no space left on device") }

// TestFullDisk: a failure of the output is not laid at the image's door.
func TestFullDisk(t *testing.T) {
	layer := imagetest.Tar(t, imagetest.File{Name: "a", Body: bytes.Repeat([]byte("x"), 3<<20)})
	for _, l := range [][]byte{layer, imagetest.Tar(t)} {
		res := Run(request(wire.Plain), feed(l), &full{})
		if res.Failure == nil || !res.Failure.Output {
			t.Errorf("the result is %+v", res)
		}
	}
}

// TestCapture: files are found through links inside the tree, and cut at a line.
func TestCapture(t *testing.T) {
	long := bytes.Repeat([]byte("user:x:1:1::/:/bin/sh\n"), wire.CaptureLimit/22+10)
	tests := map[string]struct {
		files []imagetest.File
		want  string
	}{
		"plain":         {[]imagetest.File{imagetest.Text("etc/passwd", "root")}, "root"},
		"linked":        {[]imagetest.File{imagetest.Symlink("etc/passwd", "../usr/lib/passwd"), imagetest.Text("usr/lib/passwd", "linked")}, "linked"},
		"linked folder": {[]imagetest.File{imagetest.Symlink("etc", "/usr/etc"), imagetest.Text("usr/etc/passwd", "there")}, "there"},
		"circle":        {[]imagetest.File{imagetest.Symlink("etc/passwd", "passwd")}, ""},
		"leads out":     {[]imagetest.File{imagetest.Symlink("etc/passwd", "../../../../etc/passwd")}, ""},
		"a folder":      {[]imagetest.File{imagetest.Dir("etc/passwd/")}, ""},
		"none":          {nil, ""},
		"long":          {[]imagetest.File{{Name: "etc/passwd", Body: long}}, string(long[:wire.CaptureLimit/22*22])},
	}
	for name, tt := range tests {
		res := Run(request(wire.Plain), feed(imagetest.Tar(t, tt.files...)), new(memory))
		if res.Failure != nil || string(res.Captured[0]) != tt.want {
			t.Errorf("%s: %v, %.100q of %d bytes", name, res.Failure, res.Captured, len(res.Captured[0]))
		}
	}
}

// BenchmarkRun seals a tree of 20,000 small and some large files, in process.
func BenchmarkRun(b *testing.B) {
	var files []imagetest.File
	body := make([]byte, 16<<20)
	for i := range body {
		body[i] = byte(i*i>>7) ^ byte(i>>11)
	}
	for i := range 20000 {
		files = append(files, imagetest.File{Name: fmt.Sprintf("usr/share/doc/%d/%d", i/50, i), Body: body[i : i+2000]})
	}
	for i := range 6 {
		files = append(files, imagetest.File{Name: fmt.Sprintf("usr/lib/%d", i), Body: body})
	}
	plain := imagetest.Tar(b, files...)
	for _, c := range []wire.Compression{wire.Plain, wire.Gzip, wire.Zstd} {
		layer := plain
		if c != wire.Plain {
			layer = compressed(b, c, plain)
		}
		b.Run(string(c), func(b *testing.B) {
			in := feed(layer).Bytes()
			req := request(c)
			req.Bytes, req.Entries = 1<<40, 1<<40
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				f, err := os.CreateTemp(b.TempDir(), "")
				if err != nil {
					b.Fatal(err)
				}
				if res := Run(req, bytes.NewReader(in), file{f}); res.Failure != nil {
					b.Fatal(res.Failure)
				}
				f.Close()
				os.Remove(f.Name())
			}
		})
	}
}
