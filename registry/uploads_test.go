package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/registry"
	"bulkhead/registry/registrytest"
)

func keyDigest(content string) key.Digest { return key.Digest(digest([]byte(content))) }

// overwrite damages a blob on disk.
func overwrite(t *testing.T, dir, digest string, b []byte) {
	t.Helper()
	hex := strings.TrimPrefix(digest, "sha256:")
	check(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", hex[:2], hex), b, 0o600))
}

// files lists the files below dir that hold anything of uploads or blobs.
func files(t testing.TB, dir string, below ...string) []string {
	t.Helper()
	var list []string
	for _, b := range below {
		check(t, filepath.WalkDir(filepath.Join(dir, b), func(p string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				rel, _ := filepath.Rel(dir, p)
				list = append(list, rel)
			}
			return err
		}))
	}
	return list
}

// open starts a registry in dir and returns a client.
func open(t testing.TB, cfg registry.Config) (*client, *registrytest.Server) {
	s := registrytest.ServeConfig(t, cfg)
	return &client{t: t, base: "http://" + s.Addr, token: registrytest.Token}, s
}

// TestWrongDigest pushes content under a digest that is not its own, in each way.
func TestWrongDigest(t *testing.T) {
	dir := t.TempDir()
	c, _ := open(t, registry.Config{Dir: dir})
	wrong := digest([]byte("something else"))
	c.do("POST", "/v2/x/blobs/uploads/?digest="+wrong, strings.NewReader("content")).want(400, "DIGEST_INVALID")
	at := c.start("x")
	c.do("PUT", at+"?digest="+wrong, strings.NewReader("content")).want(400, "DIGEST_INVALID")
	c.do("GET", at, nil).want(404)
	at = c.start("x")
	c.do("PATCH", at, strings.NewReader("cont")).want(202)
	c.do("PUT", at+"?digest="+wrong, strings.NewReader("ent")).want(400, "DIGEST_INVALID")
	c.do("GET", at, nil).want(404)
	for _, bad := range []string{"", "sha256:", "sha256:zz", "md5:d41d8cd98f00b204e9800998ecf8427e", "../x"} {
		at := c.start("x")
		c.do("PUT", at+"?digest="+bad, strings.NewReader("content")).want(400, "DIGEST_INVALID")
		c.do("DELETE", at, nil).want(204)
	}
	c.do("GET", "/v2/x/blobs/"+wrong, nil).want(404)
	if left := files(t, dir, "uploads", "blobs", "tmp", "repos"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	// The control: with the right digest it is there.
	c.push("x", []byte("content"))
	if n := len(files(t, dir, "blobs")); n != 1 {
		t.Errorf("%d blobs, want 1", n)
	}
}

// cut sends a request that announces more of a body than it sends, and hangs up.
func (c *client) cut(method, at string, announced int, sent string) {
	c.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.base, "http://"))
	check(c.t, err)
	defer conn.Close()
	path := strings.TrimPrefix(at, c.base)
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", method, path, c.token, announced, sent)
	check(c.t, conn.(*net.TCPConn).CloseWrite())
	// The answer, if any, says that the request has been dealt with.
	check(c.t, conn.SetReadDeadline(time.Now().Add(40*time.Second)))
	io.Copy(io.Discard, conn)
}

// TestResume cuts uploads short, restarts the registry, and goes on.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	c, s := open(t, registry.Config{Dir: dir})
	content := strings.Repeat("0123456789", 1000)
	d := digest([]byte(content))
	at := c.start("x")
	c.do("PATCH", at, strings.NewReader(content[:1000])).want(202).head("Range", "0-999")
	c.cut("PATCH", at, 5000, content[1000:3000])
	c.do("GET", at, nil).want(204).head("Range", "0-2999")
	// A finish that is cut short does not finish.
	c.cut("PUT", at+"?digest="+d, 7000, content[3000:4000])
	c.do("GET", at, nil).want(204).head("Range", "0-3999")
	c.do("GET", "/v2/x/blobs/"+d, nil).want(404)
	// Nor does a whole blob in one request, of which nothing is left.
	c.cut("POST", c.base+"/v2/x/blobs/uploads/?digest="+d, 10000, content[:4000])

	s.Stop()
	if n := len(files(t, dir, "uploads")); n != 2 {
		t.Errorf("%d files of uploads, want those of the one: %v", n, files(t, dir, "uploads"))
	}
	c, _ = open(t, registry.Config{Dir: dir})
	at = c.base + at[strings.Index(at, "/v2/"):]
	c.do("GET", at, nil).want(204).head("Range", "0-3999")
	c.do("PATCH", at, strings.NewReader(content[4000:8000]), "Content-Range", "4000-7999").want(202)
	c.do("PUT", at+"?digest="+d, strings.NewReader(content[8000:]), "Content-Range", "8000-9999").want(201)
	if r := c.do("GET", "/v2/x/blobs/"+d, nil).want(200); string(r.body) != content {
		t.Error("the resumed upload has another content")
	}
	if left := files(t, dir, "uploads", "tmp"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBusyUpload writes to one upload from two requests.
func TestBusyUpload(t *testing.T) {
	c, _ := newClient(t)
	at := c.start("x")
	pr, pw := io.Pipe()
	first := make(chan *reply, 1)
	go func() { first <- c.do("PATCH", at, pr) }()
	if _, err := pw.Write([]byte("first")); err != nil {
		t.Fatal(err)
	}
	// The pipe's write returned when the client had taken it; the server has it when
	// the status says so, without waiting for the writer.
	for c.do("GET", at, nil).want(204).header.Get("Range") != "0-4" {
		runtime.Gosched()
	}
	c.do("PATCH", at, strings.NewReader("second")).want(409, "BLOB_UPLOAD_INVALID")
	c.do("DELETE", at, nil).want(409)
	pw.Close()
	(<-first).want(202)
	c.do("PUT", at+"?digest="+digest([]byte("first")), nil).want(201)
}

// TestLimits goes over each limit.
func TestLimits(t *testing.T) {
	dir := t.TempDir()
	c, s := open(t, registry.Config{Dir: dir, MaxBlob: 100, MaxUploads: 2, UploadExpiry: time.Hour})
	big := strings.Repeat("x", 101)
	c.do("POST", "/v2/x/blobs/uploads/?digest="+digest([]byte(big)), strings.NewReader(big)).want(413, "SIZE_INVALID")
	at := c.start("x")
	c.do("PATCH", at, strings.NewReader(big[:60])).want(202)
	// Without a length that could be looked at first.
	c.do("PATCH", at, struct{ io.Reader }{strings.NewReader(big[:60])}).want(413, "SIZE_INVALID")
	c.do("GET", at, nil).want(404)
	c.push("x", []byte(big[:100]))
	if left := files(t, dir, "uploads", "tmp"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	one := c.start("x")
	c.start("x")
	c.do("POST", "/v2/x/blobs/uploads/", nil).want(429, "TOOMANYREQUESTS")
	// One that nobody has added to for the expiry time makes room.
	long := time.Now().Add(-2 * time.Hour)
	check(t, os.Chtimes(filepath.Join(dir, "uploads", one[strings.LastIndex(one, "/")+1:]+".data"), long, long))
	two := c.start("x")
	c.do("GET", one, nil).want(404)
	check(t, os.Chtimes(filepath.Join(dir, "uploads", two[strings.LastIndex(two, "/")+1:]+".data"), long, long))
	res, err := s.GC(context.Background(), time.Hour)
	check(t, err)
	if res.Uploads != 1 {
		t.Errorf("GC removed %d uploads, want the expired one", res.Uploads)
	}
}

// TestIdleUpload hangs in the middle of a body.
func TestIdleUpload(t *testing.T) {
	c, _ := open(t, registry.Config{Dir: t.TempDir(), IdleTimeout: 50 * time.Millisecond})
	at := c.start("x")
	pr, pw := io.Pipe()
	defer pw.Close()
	go pw.Write([]byte("abc"))
	req, err := http.NewRequest("PATCH", at, pr)
	check(t, err)
	req.SetBasicAuth("x", c.token)
	resp, err := http.DefaultClient.Do(req)
	if err == nil { // or the connection was cut
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("status %d for a client that sends nothing, want 400", resp.StatusCode)
		}
	}
	// The upload is free again, and has what came.
	c.do("PATCH", at, strings.NewReader("def"), "Content-Range", "3-5").want(202)
	c.do("PUT", at+"?digest="+digest([]byte("abcdef")), nil).want(201)
}

// TestDiskFull pushes to a file system that has no room, and to one that must keep
// some.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("mount a tmpfs (run the tests as root): %v", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	c, s := open(t, registry.Config{Dir: dir})
	big := bytes.Repeat([]byte("x"), 6<<20)
	r := c.do("POST", "/v2/x/blobs/uploads/?digest="+digest(big), bytes.NewReader(big)).want(507)
	if !strings.Contains(string(r.body), "disk is full") {
		t.Errorf("the error does not say why: %s", r.body)
	}
	if left := files(t, dir, "uploads", "tmp", "blobs"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	c.push("x", big[:1<<20]) // the room is there again
	s.Stop()
	c, _ = open(t, registry.Config{Dir: dir, MinFree: 16 << 20})
	c.do("POST", "/v2/x/blobs/uploads/", nil).want(507)
	c.do("GET", "/v2/x/blobs/"+digest(big[:1<<20]), nil).want(200)
}

// TestTwoProcesses opens one directory twice.
func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	_, s := open(t, registry.Config{Dir: dir})
	cfg := registry.Config{Dir: dir, Authorize: registrytest.Authorize, Log: slog.New(slog.DiscardHandler)}
	if _, err := registry.New(cfg); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second New gives %v, want Conflict", err)
	}
	s.Stop()
	r, err := registry.New(cfg)
	check(t, err)
	check(t, r.Close())
	check(t, r.Close())
}

// TestConstantMemory pushes and pulls a blob much larger than what the registry may
// allocate for it.
func TestConstantMemory(t *testing.T) {
	c, s := newClient(t)
	const size = 64 << 20
	d := digestOfReader(t, &zeros{n: size})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c.do("POST", "/v2/x/blobs/uploads/?digest="+d, &zeros{n: size}).want(201)
	f, n, err := s.OpenBlob(context.Background(), "x", key.Digest(d))
	check(t, err)
	f.Close()
	runtime.ReadMemStats(&after)
	if n != size {
		t.Errorf("size %d, want %d", n, size)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
		t.Errorf("a push of %d bytes allocated %d", size, grown)
	}
}

// TestParallelPush pushes the same content from many clients.
func TestParallelPush(t *testing.T) {
	c, _ := newClient(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { c.pushImage(fmt.Sprintf("r%d", i%3), "latest", "{}", "layer", fmt.Sprint(i%4)) })
	}
	wg.Wait()
	for i := range 3 {
		c.do("GET", fmt.Sprintf("/v2/r%d/manifests/latest", i), nil).want(200)
	}
}

// TestUploadThatCouldNotBeRemoved: what the disk refuses to remove when an upload ends is
// removed by the next collection, beside an upload that is under way and stays; what it still
// refuses keeps nothing else from being collected.
func TestUploadThatCouldNotBeRemoved(t *testing.T) {
	dir := t.TempDir()
	c, s := open(t, registry.Config{Dir: dir})
	at, other := c.start("x"), c.start("x")
	meta := filepath.Join(dir, "uploads", at[strings.LastIndex(at, "/")+1:]+".json")
	check(t, os.Remove(meta)) // a directory with something in it cannot be removed
	check(t, os.MkdirAll(filepath.Join(meta, "in the way"), 0o700))
	c.do("DELETE", at, nil).want(500)
	c.do("GET", at, nil).want(404)
	if _, err := os.Stat(meta); err != nil {
		t.Fatalf("it was removed after all: %v", err)
	}
	check(t, os.Remove(filepath.Join(meta, "in the way")))
	worse := filepath.Join(dir, "uploads", "0.json") // the first that the collection meets
	check(t, os.MkdirAll(filepath.Join(worse, "in the way"), 0o700))
	c.push("y", []byte("never used"))
	if res, err := s.GC(context.Background(), 0); err == nil || res.Blobs != 1 {
		t.Errorf("a collection that could not remove all: %+v, %v", res, err)
	}
	if _, err := os.Stat(meta); err == nil {
		t.Error("one that cannot be removed keeps another from it")
	}
	check(t, os.RemoveAll(worse))
	_, err := s.GC(context.Background(), time.Hour)
	check(t, err)
	if left := files(t, dir, "uploads"); len(left) != 2 || !strings.Contains(left[0], other[strings.LastIndex(other, "/")+1:]) {
		t.Errorf("left are %v, want the two of %s", left, other)
	}
	if _, err := os.Stat(meta); err == nil {
		t.Error("it is still there after a collection")
	}
	c.do("GET", other, nil).want(204)
}
