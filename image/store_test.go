//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	erofsreader "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/fault"
	"bulkhead/image/imagetest"
	"bulkhead/key"
	"bulkhead/machine"
)

// unpackProgram is the real helper, built once for all tests.
var unpackProgram string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bulkhead-image-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if unpackProgram, err = imagetest.BuildUnpack(dir); err != nil {
		fmt.Fprintln(os.Stderr, "building bulkhead-unpack:", err)
		return 1
	}
	return m.Run()
}

// openStore returns an open Store in a directory of its own.
func openStore(t testing.TB) *Store {
	t.Helper()
	s := New(t.TempDir(), unpackProgram, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func ctxT(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// seal puts img into s.
func seal(t testing.TB, s *Store, img v1.Image) (*Image, error) {
	t.Helper()
	return s.Ensure(ctxT(t), FromImage(img), machine.ImageRef{Digest: imagetest.Digest(t, img)})
}

func mustSeal(t testing.TB, s *Store, img v1.Image) *Image {
	t.Helper()
	got, err := seal(t, s, img)
	if err != nil {
		t.Fatalf("sealing: %v", err)
	}
	return got
}

// refused wants an Unprocessable error that says all of want, and nothing left
// behind in the store.
func refused(t testing.TB, s *Store, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it was accepted")
	}
	if fault.KindOf(err) != fault.Unprocessable {
		t.Errorf("the error is of kind %q, want unprocessable: %v", fault.KindOf(err), err)
	}
	for _, w := range want {
		if !strings.Contains(fault.MessageOf(err), w) {
			t.Errorf("the message %q does not say %q", fault.MessageOf(err), w)
		}
	}
	nothingLeft(t, s)
}

// nothingLeft wants no file in the store but the lock.
func nothingLeft(t testing.TB, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != ".lock" {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

// contents reads the sealed image with an independent reader: what each name is.
func contents(t testing.TB, img *Image) map[string]string {
	t.Helper()
	f, err := os.Open(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofsreader.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		switch {
		case d.IsDir():
			got[p] = "dir"
		case d.Type()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, p)
			if err != nil {
				return err
			}
			got[p] = "-> " + target
		case d.Type().IsRegular():
			b, err := fs.ReadFile(fsys, p)
			if err != nil {
				return err
			}
			got[p] = string(b)
		default:
			got[p] = d.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var small = []imagetest.File{
	imagetest.Dir("etc/"),
	imagetest.Text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\n"),
	imagetest.Text("etc/group", "root:x:0:\nweb:x:102:\nlog:x:200:web,other\n"),
	imagetest.Text("hello", "hello"),
	imagetest.Symlink("link", "hello"),
	imagetest.Hard("hard", "hello"),
}

func TestEnsureSealsAndRemembers(t *testing.T) {
	s := openStore(t)
	img := imagetest.New(t, v1.Config{
		Env: []string{"PATH=/bin"}, Entrypoint: []string{"/hello"}, Cmd: []string{"-v"}, User: "web", WorkingDir: "/srv",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}, StopSignal: "SIGQUIT", Labels: map[string]string{"a": "b"},
	}, small...)
	got := mustSeal(t, s, img)
	check := func(got *Image) {
		t.Helper()
		if got.Digest != imagetest.Digest(t, img) || got.Config.User != "web" || got.Config.Architecture != runtime.GOARCH ||
			fmt.Sprint(got.Config.ExposedPorts) != "[443/tcp 80/tcp]" || got.Config.StopSignal != "SIGQUIT" || got.Config.Labels["a"] != "b" {
			t.Errorf("the image is %+v", got)
		}
		uid, gid, groups, home, err := got.ResolveUser(got.Config.User)
		if err != nil || uid != 101 || gid != 102 || fmt.Sprint(groups) != "[200]" || home != "/srv" {
			t.Errorf("the user is %d:%d %v %s, %v", uid, gid, groups, home, err)
		}
		if st, err := os.Stat(got.Path); err != nil || st.Mode().Perm() != 0o444 || st.Size() != got.Size {
			t.Errorf("the file is %v, %v", st, err)
		}
		if c := contents(t, got); c["hello"] != "hello" || c["hard"] != "hello" || c["link"] != "-> hello" || c["etc"] != "dir" {
			t.Errorf("it contains %v", c)
		}
	}
	check(got)

	// Asked for again it is there, without the source.
	again, err := s.Ensure(ctxT(t), noSource{t}, machine.ImageRef{Digest: got.Digest})
	if err != nil || again != got {
		t.Errorf("the second time it was %v, %v", again, err)
	}
	// And after a restart.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	got, ok := s.Lookup(got.Digest)
	if !ok {
		t.Fatal("the image is gone after a restart")
	}
	check(got)
	if l := s.List(); len(l) != 1 || l[0] != got {
		t.Errorf("the list is %v", l)
	}
	if err := s.Verify(ctxT(t), got.Digest); err != nil {
		t.Errorf("verifying: %v", err)
	}
}

// noSource fails the test when it is used.
type noSource struct{ t *testing.T }

func (n noSource) Manifest(context.Context, key.Digest) ([]byte, string, error) {
	n.t.Error("the source was asked for a manifest")
	return nil, "", fault.New(fault.NotFound, "nothing here")
}

func (n noSource) Blob(context.Context, key.Digest, int64) (io.ReadCloser, error) {
	n.t.Error("the source was asked for a blob")
	return nil, fault.New(fault.NotFound, "nothing here")
}

func TestSameImageGivesSameBytes(t *testing.T) {
	img := imagetest.Layers(t, v1.Config{}, small, []imagetest.File{imagetest.Text("etc/.wh.group", ""), imagetest.Text("b/c/d", "x"), imagetest.Text("b/a", "y")})
	a, b := mustSeal(t, openStore(t), img), mustSeal(t, openStore(t), img)
	if a.sum != b.sum || a.Size != b.Size {
		t.Errorf("the files differ: %s and %s", a.sum, b.sum)
	}
}

func TestEnsureIsSharedByCallers(t *testing.T) {
	s := openStore(t)
	img := imagetest.New(t, v1.Config{}, small...)
	src := &countingSource{Source: FromImage(img)}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.Ensure(ctxT(t), src, machine.ImageRef{Digest: imagetest.Digest(t, img)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// A caller may come when the sealing is over, but none starts a second one.
	if n := src.layers.Load(); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

// countingSource counts the layers that are fetched.
type countingSource struct {
	Source
	layers atomic.Int64
}

func (c *countingSource) Blob(ctx context.Context, d key.Digest, size int64) (io.ReadCloser, error) {
	r, err := c.Source.Blob(ctx, d, size)
	if img, ok := c.Source.(imageSource); ok {
		if name, _ := img.img.ConfigName(); name.String() != string(d) {
			c.layers.Add(1)
		}
	}
	return r, err
}

// stuckSource never ends a layer until its context is done.
type stuckSource struct {
	Source
	started chan struct{}
	once    sync.Once
}

func (s *stuckSource) Blob(ctx context.Context, d key.Digest, size int64) (io.ReadCloser, error) {
	r, err := s.Source.Blob(ctx, d, size)
	if img := s.Source.(imageSource); err == nil {
		if name, _ := img.img.ConfigName(); name.String() != string(d) {
			s.once.Do(func() { close(s.started) })
			return io.NopCloser(readerFunc(func([]byte) (int, error) { <-ctx.Done(); return 0, ctx.Err() })), nil
		}
	}
	return r, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestCancelledEnsureLeavesNothing(t *testing.T) {
	s := openStore(t)
	img := imagetest.New(t, v1.Config{}, small...)
	src := &stuckSource{Source: FromImage(img), started: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctxT(t))
	go func() { <-src.started; cancel() }()
	if _, err := s.Ensure(ctx, src, machine.ImageRef{Digest: imagetest.Digest(t, img)}); err == nil {
		t.Fatal("it was sealed")
	}
	// As the timer does, some time later.
	s.mu.Lock()
	left := s.flights[imagetest.Digest(t, img)]
	s.mu.Unlock()
	s.abandon(imagetest.Digest(t, img), left)
	// A new caller does not wait for the one that is being stopped.
	mustSeal(t, s, img)
	s.Close()
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(imagetest.Digest(t, img)); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s)
}

// TestASealingOutlivesItsWaiter: a caller that leaves, as a step does that a new assignment
// cuts off, loses no work when the next one asks for the same image.
func TestASealingOutlivesItsWaiter(t *testing.T) {
	s := openStore(t)
	img := imagetest.New(t, v1.Config{}, small...)
	src := &gatedSource{countingSource: countingSource{Source: FromImage(img)}, started: make(chan struct{}), open: make(chan struct{})}
	ref := machine.ImageRef{Digest: imagetest.Digest(t, img)}
	ctx, cancel := context.WithCancel(ctxT(t))
	go func() { <-src.started; cancel() }()
	if _, err := s.Ensure(ctx, src, ref); !errors.Is(err, context.Canceled) {
		t.Fatalf("the caller that left got %v", err)
	}
	close(src.open)
	if _, err := s.Ensure(ctxT(t), src, ref); err != nil {
		t.Fatal(err)
	}
	if n := src.layers.Load(); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

// gatedSource holds back its layers until open is closed.
type gatedSource struct {
	countingSource
	started, open chan struct{}
	once          sync.Once
}

func (g *gatedSource) Blob(ctx context.Context, d key.Digest, size int64) (io.ReadCloser, error) {
	r, err := g.countingSource.Blob(ctx, d, size)
	if g.layers.Load() > 0 {
		g.once.Do(func() { close(g.started) })
		select {
		case <-g.open:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return r, err
}

func TestCloseStopsSealing(t *testing.T) {
	s := openStore(t)
	img := imagetest.New(t, v1.Config{}, small...)
	src := &stuckSource{Source: FromImage(img), started: make(chan struct{})}
	go func() { <-src.started; s.Close() }()
	_, err := s.Ensure(ctxT(t), src, machine.ImageRef{Digest: imagetest.Digest(t, img)})
	if fault.KindOf(err) != fault.Unavailable {
		t.Errorf("the error is %v", err)
	}
	nothingLeft(t, s)
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	s := openStore(t)
	whole := mustSeal(t, s, imagetest.New(t, v1.Config{}, small...))
	s.Close()
	other := strings.Repeat("ab", 32)
	for name, body := range map[string]string{
		tempPrefix + "123.erofs": "half an image", // before the first rename
		tempPrefix + "123.json":  "{",
		other + ".json":          "{}", // between the two renames
	} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	if l := s.List(); len(l) != 1 || l[0].Digest != whole.Digest {
		t.Errorf("the list is %v", l)
	}
	if err := s.Remove(whole.Digest); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s)
}

func TestOpenRemovesDamagedImages(t *testing.T) {
	damage := map[string]func(img *Image) error{
		"metadata gone":      func(img *Image) error { return os.Remove(metaPath(img)) },
		"metadata malformed": func(img *Image) error { return os.WriteFile(metaPath(img), []byte("{"), 0o600) },
		"metadata of another": func(img *Image) error {
			return os.WriteFile(metaPath(img), []byte(`{"version":1,"digest":"sha256:00"}`), 0o600)
		},
		"cut off": func(img *Image) error { return os.Truncate(img.Path, 4096) },
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			src := imagetest.New(t, v1.Config{}, small...)
			img := mustSeal(t, s, src)
			s.Close()
			if err := f(img); err != nil {
				t.Fatal(err)
			}
			if err := s.Open(); err != nil {
				t.Fatal(err)
			}
			if _, ok := s.Lookup(img.Digest); ok {
				t.Error("the damaged image is still there")
			}
			nothingLeft(t, s)
			mustSeal(t, s, src)
		})
	}
}

func metaPath(img *Image) string { return strings.TrimSuffix(img.Path, imageExt) + metaExt }

func TestVerifyFindsAChangedByte(t *testing.T) {
	s := openStore(t)
	src := imagetest.New(t, v1.Config{}, small...)
	img := mustSeal(t, s, src)
	f, err := os.OpenFile(img.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 5000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := s.Verify(ctxT(t), img.Digest); err == nil {
		t.Fatal("the changed byte was not found")
	}
	nothingLeft(t, s)
	mustSeal(t, s, src)
}

func TestVanishedFileIsSealedAgain(t *testing.T) {
	s := openStore(t)
	src := imagetest.New(t, v1.Config{}, small...)
	img := mustSeal(t, s, src)
	if err := os.Remove(img.Path); err != nil {
		t.Fatal(err)
	}
	if again := mustSeal(t, s, src); contents(t, again)["hello"] != "hello" {
		t.Error("it was not sealed again")
	}
}

func TestGCKeepsWhatIsWanted(t *testing.T) {
	s := openStore(t)
	a := mustSeal(t, s, imagetest.New(t, v1.Config{}, imagetest.Text("a", "a")))
	b := mustSeal(t, s, imagetest.New(t, v1.Config{}, imagetest.Text("b", "b")))
	removed, err := s.GC(func(d key.Digest) bool { return d == a.Digest })
	if err != nil || len(removed) != 1 || removed[0] != b.Digest {
		t.Fatalf("it removed %v, %v", removed, err)
	}
	if _, ok := s.Lookup(a.Digest); !ok {
		t.Error("the wanted image is gone")
	}
	if err := s.Remove(a.Digest); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s)
}

func TestDirectoryHasOneStore(t *testing.T) {
	s := openStore(t)
	second := New(s.Dir, unpackProgram, nil)
	if err := second.Open(); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a second store got %v", err)
	}
}

func TestHelperThatCannotStart(t *testing.T) {
	s := openStore(t)
	s.Unpack = "/nonexistent/bulkhead-unpack"
	_, err := seal(t, s, imagetest.New(t, v1.Config{}, small...))
	if fault.KindOf(err) != fault.Internal {
		t.Errorf("the error is %v", err)
	}
	nothingLeft(t, s)
}
