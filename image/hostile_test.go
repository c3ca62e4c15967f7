//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"bulkhead/image/imagetest"
)

type files = []imagetest.File

var (
	dir  = imagetest.Dir
	text = imagetest.Text
	sym  = imagetest.Symlink
	hard = imagetest.Hard
)

// TestMergedTree shows what the layers of an image come to, entry by entry; the
// rules are those of package tree.
func TestMergedTree(t *testing.T) {
	tests := map[string]struct {
		layers []files
		want   map[string]string
	}{
		"whiteout removes a file, and a directory with all in it": {
			[]files{{text("a", "1"), text("d/x/y", "1"), text("keep", "1")}, {text(".wh.a", ""), text(".wh.d", ""), text(".wh.none", "")}},
			map[string]string{"keep": "1"},
		},
		"whiteout hides the layers below and not its own, in any order": {
			[]files{{text("d/old", "1"), text("f", "1")}, {text("d/new", "2"), text("f", "2"), text(".wh.d", ""), text(".wh.f", "")}},
			map[string]string{"d": "dir", "d/new": "2", "f": "2"},
		},
		"opaque directory keeps its own layer's files, before and after the mark": {
			[]files{{text("d/old", "1"), text("d/sub/old", "1")}, {text("d/sub/before", "2"), text("d/.wh..wh..opq", ""), text("d/after", "2")}},
			map[string]string{"d": "dir", "d/sub": "dir", "d/sub/before": "2", "d/after": "2"},
		},
		"whiteout below a symbolic link": {
			[]files{{text("usr/lib/a", "1"), sym("lib", "usr/lib")}, {text("lib/.wh.a", "")}},
			map[string]string{"usr": "dir", "usr/lib": "dir", "lib": "-> usr/lib"},
		},
		"whiteouts of one layer are not the next one's": {
			[]files{{text("a", "1")}, {text(".wh.a", "")}, {text("a", "3")}},
			map[string]string{"a": "3"},
		},
		"aufs bookkeeping is left out": {
			[]files{{text(".wh..wh.aufs", ""), text(".wh..wh.plnk/1.2", "x"), text("a", "1")}},
			map[string]string{"a": "1"},
		},
		"hard links to aufs bookkeeping get its files": {
			[]files{{text(".wh..wh.plnk/1.2", "x"), hard("a", ".wh..wh.plnk/1.2"), hard("b", "/.wh..wh.plnk/1.2")}},
			map[string]string{"a": "x", "b": "x"},
		},
		"hard links to devices are left out with them": {
			[]files{{{Name: "dev/null", Type: tar.TypeChar, Major: 1, Minor: 3}, hard("n", "dev/null"), hard("m", "/n"), text("a", "1")}, {hard("o", "n")}},
			map[string]string{"a": "1"},
		},
		"hard links, also across layers, and over what they replace": {
			[]files{{text("a", "1"), hard("b", "a"), sym("s", "a")}, {hard("c", "/a"), hard("t", "s"), text("a", "2"), hard("b", "b")}},
			map[string]string{"a": "2", "b": "1", "c": "1", "s": "-> a", "t": "-> a"},
		},
		"hard link takes the place of the directory that held its target": {
			[]files{{text("d/a", "1")}, {hard("d", "d/a")}},
			map[string]string{"d": "1"},
		},
		"hard link outlives its target": {
			[]files{{text("a", "1"), hard("b", "a")}, {text(".wh.a", "")}},
			map[string]string{"b": "1"},
		},
		"duplicates in one layer: the last one counts": {
			[]files{{text("a", "1"), text("a", "22"), dir("d/"), text("d/x", "1"), text("d", "file"), dir("e/"), text("e/x", "1"), dir("e/")}},
			map[string]string{"a": "22", "d": "file", "e": "dir", "e/x": "1"},
		},
		"names are cleaned": {
			[]files{{text("/abs", "1"), text("./dot", "2"), text("x/../up", "3"), text("//a//b", "4")}},
			map[string]string{"abs": "1", "dot": "2", "up": "3", "a": "dir", "a/b": "4"},
		},
		"parents that are symbolic links are followed inside the tree": {
			[]files{{dir("usr/lib/"), sym("lib", "usr/lib"), sym("abs", "/usr"), sym("out", "../../../..")}, {text("lib/x", "1"), text("abs/y", "2"), text("out/z", "3")}},
			map[string]string{"usr": "dir", "usr/lib": "dir", "usr/lib/x": "1", "usr/y": "2", "lib": "-> usr/lib", "abs": "-> /usr", "out": "-> ../../../..", "z": "3"},
		},
		"parent that is a dangling symbolic link": {
			[]files{{sym("l", "no/where"), text("l/x", "1")}},
			map[string]string{"l": "-> no/where", "no": "dir", "no/where": "dir", "no/where/x": "1"},
		},
		"directory replaces a symbolic link and does not go through it": {
			[]files{{text("target/a", "1"), sym("l", "target")}, {dir("l/"), text("l/b", "2")}},
			map[string]string{"target": "dir", "target/a": "1", "l": "dir", "l/b": "2"},
		},
		"file over symbolic link replaces the link": {
			[]files{{text("secret", "1"), sym("l", "secret")}, {text("l", "2")}},
			map[string]string{"secret": "1", "l": "2"},
		},
		"symbolic links that lead out stay as they are and lead nowhere": {
			[]files{{sym("a", "/etc/shadow"), sym("b", "../../etc/shadow")}},
			map[string]string{"a": "-> /etc/shadow", "b": "-> ../../etc/shadow"},
		},
		"device nodes are left out, 0/0 too, and FIFOs stay": {
			[]files{{text("a", "1")}, {
				{Name: "dev/null", Type: tar.TypeChar, Major: 1, Minor: 3}, {Name: "sda", Type: tar.TypeBlock, Major: 8},
				{Name: "a", Type: tar.TypeChar}, {Name: "pipe", Type: tar.TypeFifo}}},
			map[string]string{"a": "1", "pipe": "p---------"},
		},
		"an empty image": {[]files{}, map[string]string{}},
	}
	s := openStore(t)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			img := mustSeal(t, s, imagetest.Layers(t, v1.Config{}, tt.layers...))
			got := contents(t, img)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("want (-), got (+):\n%s", d)
			}
		})
	}
}

// TestLongNames and names that are not UTF-8: kept byte for byte.
func TestLongNames(t *testing.T) {
	deep := strings.Repeat("d/", 1000) + "f"
	names := []string{strings.Repeat("n", 255), deep, "latin-\xe9", "ctl-\n\x01", strings.Repeat("ü", 127), `back\slash`}
	var all files
	for _, n := range names {
		all = append(all, text(n, "contents of "+n))
	}
	s := openStore(t)
	top := mount(t, mustSeal(t, s, imagetest.New(t, v1.Config{}, all...)))
	for _, n := range names {
		if got, err := os.ReadFile(filepath.Join(top, n)); err != nil || string(got) != "contents of "+n {
			t.Errorf("%.40q: %v, %.40q", n, err, got)
		}
	}
}

// TestRefusedLayer holds the entries that make an image unusable, and what its
// owner is told.
func TestRefusedLayer(t *testing.T) {
	fill := func(n int) files {
		var all files
		for i := range n {
			all = append(all, text(fmt.Sprintf("f%d", i), ""))
		}
		return all
	}
	tests := map[string]struct {
		layers []files
		want   []string
	}{
		"path traversal":                        {[]files{{text("ok", ""), text("../../etc/cron.d/x", "1")}}, []string{"layer 1 of 1, sha256:", "entry 2", `"../../etc/cron.d/x"`, "leads out of the image"}},
		"path traversal inside a name":          {[]files{{text("a/../../x", "1")}}, []string{"leads out"}},
		"path traversal of a whiteout":          {[]files{{text("../.wh.x", "")}}, []string{"leads out"}},
		"whiteout of the directory itself":      {[]files{{text("a/.wh..", "")}}, []string{"whiteout of no file"}},
		"whiteout of the parent":                {[]files{{text("a/.wh...", "")}}, []string{"whiteout of no file"}},
		"whiteout without a name":               {[]files{{text("a/.wh.", "")}}, []string{"whiteout of no file"}},
		"file below a whiteout":                 {[]files{{text(".wh.d/x", "")}}, []string{"below a whiteout"}},
		"hard link to nothing":                  {[]files{{hard("a", "gone")}}, []string{`hard link to "gone"`, "does not exist"}},
		"hard link out of the image":            {[]files{{hard("a", "../../etc/shadow")}}, []string{"leads out"}},
		"hard link to the host's file":          {[]files{{hard("a", "/etc/shadow")}}, []string{"does not exist"}},
		"hard link through a symbolic link":     {[]files{{sym("l", "/etc"), hard("a", "l/shadow")}}, []string{"does not exist"}},
		"hard link to a directory":              {[]files{{dir("d/"), hard("a", "d")}}, []string{"is a directory"}},
		"hard link to what a lower layer hid":   {[]files{{text("a", "1")}, {text(".wh.a", "")}, {hard("b", "a")}}, []string{"layer 3 of 3", "does not exist"}},
		"parent is a file":                      {[]files{{text("a", "1"), text("a/b", "2")}}, []string{"entry 2", `parent "a" is not a directory`}},
		"symbolic links in a circle":            {[]files{{sym("a", "b"), sym("b", "a"), text("a/x", "1")}}, []string{"more than 40 symbolic links"}},
		"symbolic link without a target":        {[]files{{sym("a", "")}}, []string{"unusable target"}},
		"root replaced by a file":               {[]files{{text("x/..", "1")}}, []string{"replace the root"}},
		"name longer than a directory can hold": {[]files{{text(strings.Repeat("n", 256), "1")}}, []string{"256 bytes long; 255"}},
		"path longer than the system allows":    {[]files{{text(strings.Repeat("d/", 2048)+"f", "1")}}, []string{"4097 bytes long; 4095"}},
		"deeper than a path can reach":          {[]files{{text(strings.Repeat("d/", 1000)+"f", "1"), sym("l", strings.Repeat("d/", 1000)), text("l/"+strings.Repeat("d/", 100)+"f", "1")}}, []string{"below more than 1024 directories"}},
		"owner out of range":                    {[]files{{{Name: "a", UID: 1 << 33}}}, []string{"owner 8589934592:0"}},
		"negative owner":                        {[]files{{{Name: "a", GID: -1}}}, []string{"owner 0:-1"}},
		"unknown type of entry":                 {[]files{{{Name: "a", Type: 'Z'}}}, []string{"type 'Z' is not known"}},
		"more entries than allowed":             {[]files{fill(60), fill(60)}, []string{"more than 100 entries"}},
		"more directories than entries allowed": {[]files{{text(strings.Repeat("d/", 200)+"f", "")}}, []string{"more than 100 entries"}},
		"unpacked larger than allowed":          {[]files{{{Name: "a", Body: make([]byte, 2<<20)}}}, []string{"larger than 1048576 bytes when unpacked"}},
		"unpacked larger than allowed, in all":  {[]files{{{Name: "a", Body: make([]byte, 600<<10)}}, {{Name: "b", Body: make([]byte, 600<<10)}}}, []string{"layer 2 of 2", "larger than 1048576 bytes when unpacked"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			if strings.Contains(name, "allowed") && !strings.Contains(name, "system") {
				s.Limits.Unpacked, s.Limits.Entries = 1<<20, 100
			}
			_, err := seal(t, s, imagetest.Layers(t, v1.Config{}, tt.layers...))
			refused(t, s, err, tt.want...)
		})
	}
}

// rawLayer is a layer whose bytes are as given.
func rawLayer(contents []byte, mt types.MediaType) v1.Layer { return static.NewLayer(contents, mt) }

// rawImage is an image with one layer of the given bytes, whose configuration
// lists diffID.
func rawImage(t testing.TB, l v1.Layer, diffID v1.Hash) v1.Image {
	t.Helper()
	img := imagetest.Image(t, v1.Config{}, l)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs = []v1.Hash{diffID}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func hashOf(p []byte) v1.Hash {
	h, _ := v1.NewHash(string(digestOf(p)))
	return h
}

func gz(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

func TestLayerCompressions(t *testing.T) {
	plain := imagetest.Tar(t, text("a", "1"))
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zs := z.EncodeAll(plain, nil)
	good := map[types.MediaType][]byte{
		types.OCIUncompressedLayer: plain, types.DockerUncompressedLayer: plain,
		types.OCILayer: gz(plain), types.DockerLayer: append(gz(plain[:100]), gz(plain[100:])...),
		types.OCILayerZStd: zs, "application/vnd.docker.image.rootfs.diff.tar.zstd": zs,
	}
	for mt, body := range good {
		s := openStore(t)
		if got := contents(t, mustSeal(t, s, rawImage(t, rawLayer(body, mt), hashOf(plain)))); got["a"] != "1" {
			t.Errorf("%s: %v", mt, got)
		}
	}
	big := imagetest.Tar(t, imagetest.File{Name: "a", Body: bytes.Repeat([]byte("0123456789abcdef"), 1<<16)})
	zbig := z.EncodeAll(big, nil)
	badLayers := map[string]struct {
		mt   types.MediaType
		body []byte
		want string
	}{
		"truncated gzip":             {types.OCILayer, gz(big)[:1000], "cut off"},
		"truncated zstd":             {types.OCILayerZStd, zbig[:len(zbig)-20], "cut off"},
		"truncated tar":              {types.OCIUncompressedLayer, big[:5000], "cut off"},
		"gzip with a wrong checksum": {types.OCILayer, flip(gz(plain), -6), "gzip: invalid checksum"},
		"data after gzip":            {types.OCILayer, append(gz(plain), "garbage"...), "entry"},
		"gzip that is none":          {types.OCILayer, plain, "not gzip data"},
		"zstd that is none":          {types.OCILayerZStd, plain, "zstd"},
		"tar that is none":           {types.OCIUncompressedLayer, bytes.Repeat([]byte("x"), 2000), "not a valid tar header"},
		"foreign layer":              {types.DockerForeignLayer, gz(plain), "foreign layer"},
		"non-distributable layer":    {types.OCIRestrictedLayer, gz(plain), "foreign layer"},
		"unknown media type":         {"text/html", gz(plain), `"text/html" is not a layer's`},
	}
	for name, tt := range badLayers {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			_, err := seal(t, s, rawImage(t, rawLayer(tt.body, tt.mt), hashOf(plain)))
			want := tt.want
			if name == "data after gzip" {
				want = "layer 1 of 1"
			}
			refused(t, s, err, want)
		})
	}
}

// flip changes the byte at i, from the end when negative.
func flip(p []byte, i int) []byte {
	if i < 0 {
		i += len(p)
	}
	p = bytes.Clone(p)
	p[i] ^= 0xff
	return p
}

// TestZipBomb: a bomb ends at the limit, not when it is unpacked.
func TestZipBomb(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	tw := tar.NewWriter(w)
	tw.WriteHeader(&tar.Header{Name: "bomb", Typeflag: tar.TypeReg, Size: 40 << 20})
	io.CopyN(tw, zeros{}, 400<<20)
	w.Close()
	s := openStore(t)
	s.Limits.Unpacked = 10 << 20
	_, err := seal(t, s, rawImage(t, rawLayer(b.Bytes(), types.OCILayer), hashOf(nil)))
	refused(t, s, err, `larger than 10485760 bytes when unpacked`)

	// Not in a file but after the archive's end.
	b.Reset()
	w = gzip.NewWriter(&b)
	w.Write(imagetest.Tar(t, text("a", "1")))
	io.CopyN(w, zeros{}, 20<<20)
	w.Close()
	_, err = seal(t, s, rawImage(t, rawLayer(b.Bytes(), types.OCILayer), hashOf(nil)))
	refused(t, s, err, `larger than 10485760 bytes when unpacked`)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHugeEntry: a size in a header is no reason to set anything aside.
func TestHugeEntry(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	tw.WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Size: 1 << 60})
	tw.Write([]byte("not that much"))
	s := openStore(t)
	_, err := seal(t, s, rawImage(t, rawLayer(b.Bytes(), types.OCIUncompressedLayer), hashOf(b.Bytes())))
	refused(t, s, err, "larger than 17179869184 bytes when unpacked")

	b.Reset()
	tw = tar.NewWriter(&b)
	tw.WriteHeader(&tar.Header{Name: "lies", Typeflag: tar.TypeReg, Size: 1 << 30})
	tw.Write([]byte("not that much"))
	_, err = seal(t, s, rawImage(t, rawLayer(b.Bytes(), types.OCIUncompressedLayer), hashOf(b.Bytes())))
	refused(t, s, err, `"lies"`, "cut off")
}

func TestSparseEntry(t *testing.T) {
	s := openStore(t)
	// GNU tar makes the real thing.
	work := t.TempDir()
	f, err := os.Create(filepath.Join(work, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("end"), 16<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, format := range []string{"gnu", "posix"} {
		raw := command(t, "tar", "--sparse", "--format="+format, "-C", work, "-cf", "-", "sparse")
		if len(raw) > 1<<20 {
			t.Fatalf("tar did not make a sparse archive: %d bytes", len(raw))
		}
		img := mustSeal(t, s, rawImage(t, rawLayer(raw, types.OCIUncompressedLayer), hashOf(raw)))
		got := contents(t, img)["sparse"]
		if len(got) != 16<<20+3 || strings.Trim(got, "\x00") != "end" {
			t.Errorf("%s: the file is %d bytes long", format, len(got))
		}
		if n := allocated(t, img.Path); n > 2<<20 {
			t.Errorf("%s: the holes take %d bytes on disk", format, n)
		}
	}
	// The same far larger than any limit, in a kilobyte.
	if err := os.Truncate(filepath.Join(work, "sparse"), 1<<42); err != nil {
		t.Fatal(err)
	}
	raw := command(t, "tar", "--sparse", "--format=posix", "-C", work, "-cf", "-", "sparse")
	s2 := openStore(t)
	_, err = seal(t, s2, rawImage(t, rawLayer(raw, types.OCIUncompressedLayer), hashOf(raw)))
	refused(t, s2, err, "larger than 17179869184 bytes when unpacked")
}

// TestDeletedContentsAreNotInTheImage: what a later layer deletes cannot be read
// from the sealed file.
func TestDeletedContentsAreNotInTheImage(t *testing.T) {
	secret := strings.Repeat("do-not-ship-this ", 1000)
	s := openStore(t)
	img := mustSeal(t, s, imagetest.Layers(t, v1.Config{}, files{text("key", secret), text("a", "1")}, files{text(".wh.key", "")}))
	raw, err := os.ReadFile(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("do-not-ship-this")) {
		t.Error("the deleted file's contents are in the image")
	}
	if got := contents(t, img); got["a"] != "1" {
		t.Errorf("it contains %v", got)
	}
}

// TestNULInName: names with NUL bytes end a name early for some readers.
func TestNULInName(t *testing.T) {
	raw := imagetest.Tar(t, imagetest.File{Name: strings.Repeat("é", 100), Body: []byte("1")})
	raw = bytes.Replace(raw, []byte("path="+strings.Repeat("é", 10)), append([]byte("path=a\x00"), strings.Repeat("é", 9)...), 1)
	s := openStore(t)
	_, err := seal(t, s, rawImage(t, rawLayer(raw, types.OCIUncompressedLayer), hashOf(raw)))
	refused(t, s, err, "entry 1", "not a valid tar header")
}

func TestWrongDiffID(t *testing.T) {
	s := openStore(t)
	plain := imagetest.Tar(t, text("a", "1"))
	_, err := seal(t, s, rawImage(t, rawLayer(gz(plain), types.OCILayer), hashOf([]byte("another"))))
	refused(t, s, err, "layer 1 of 1", "unpacked it has the digest "+string(digestOf(plain)), "configuration says "+hashOf([]byte("another")).String())
}

func TestOtherArchitecture(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	img := imagetest.New(t, v1.Config{}, small...)
	cf, _ := img.ConfigFile()
	cf = cf.DeepCopy()
	cf.Architecture = other
	img, err := mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	_, err = seal(t, s, img)
	refused(t, s, err, "is for linux/"+other+"; this node runs linux/"+runtime.GOARCH)
}

func allocated(t testing.TB, path string) int64 {
	t.Helper()
	out := command(t, "stat", "-c", "%b", path)
	var n int64
	fmt.Sscan(string(out), &n)
	return n * 512
}
