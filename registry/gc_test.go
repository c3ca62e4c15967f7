package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/key"
	"bulkhead/registry"
)

// age makes everything in dir an hour old.
func age(t testing.TB, dir string) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	for _, f := range files(t, dir, "blobs", "repos") {
		check(t, os.Chtimes(filepath.Join(dir, f), old, old))
	}
}

// TestGC collects, with grace and without.
func TestGC(t *testing.T) {
	dir := t.TempDir()
	c, s := open(t, registry.Config{Dir: dir})
	gc := func(grace time.Duration) registry.GCResult {
		t.Helper()
		res, err := s.GC(context.Background(), grace)
		check(t, err)
		return res
	}
	c.pushImage("a/b", "v1", "{}", "layer")
	c.push("a/b", []byte("never used"))
	c.push("only/garbage", []byte("never used either"))
	if res := gc(time.Hour); res != (registry.GCResult{}) {
		t.Errorf("with everything fresh, GC removed %+v", res)
	}
	age(t, dir)
	// A client that asks whether a blob is there counts on it from then on.
	c.do("HEAD", "/v2/a/b/blobs/"+digest([]byte("never used")), nil).want(200)
	if res, want := gc(time.Minute), (registry.GCResult{Links: 1, Blobs: 1, Bytes: 17}); res != want {
		t.Errorf("GC removed %+v, want %+v", res, want)
	}
	c.do("GET", "/v2/only/garbage/tags/list", nil).want(404)
	if exists(filepath.Join(dir, "repos/only")) {
		t.Error("the directory of an empty repository stays")
	}
	c.do("GET", "/v2/a/b/blobs/"+digest([]byte("never used")), nil).want(200)
	if res, want := gc(0), (registry.GCResult{Links: 1, Blobs: 1, Bytes: 10}); res != want {
		t.Errorf("GC removed %+v, want %+v", res, want)
	}
	c.do("GET", "/v2/a/b/manifests/v1", nil).want(200)
	c.do("GET", "/v2/a/b/blobs/"+digest([]byte("layer")), nil).want(200)
	// The repository that vanished can be pushed to again.
	c.pushImage("only/garbage", "v1", "{}")
	// A manifest that nobody can read stops the collection: what it needs is unknown.
	overwrite(t, dir, digest(c.pushImage("a/b", "v2", `{"x":1}`)), []byte("damaged"))
	if _, err := s.GC(context.Background(), 0); err == nil {
		t.Error("GC goes on without a manifest that it cannot read")
	}
}

// TestGCUntagged collects manifests that have no tag.
func TestGCUntagged(t *testing.T) {
	dir := t.TempDir()
	var running key.Digest
	inUse := func(ctx context.Context) (func(repo string, d key.Digest) bool, error) {
		return func(repo string, d key.Digest) bool { return repo == "app" && d == running }, nil
	}
	c, s := open(t, registry.Config{Dir: dir, InUse: inUse})
	image := func(n int) []byte {
		return c.pushImage("app", "latest", fmt.Sprintf(`{"n":%d}`, n), fmt.Sprintf("layer %d", n))
	}
	one, two, three := image(1), image(2), image(3)
	running = key.Digest(digest(two))
	part := c.pushImage("app", "", `{"part":1}`)
	index := encode(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{
		map[string]any{"mediaType": ociManifest, "digest": digest(part), "size": len(part)}}})
	c.do("PUT", "/v2/app/manifests/multi", bytes.NewReader(index), "Content-Type", ociIndex).want(201)
	put := func(of []byte) []byte {
		m := encode(withSubject(manifestOf([]byte(`{"part":1}`)), of))
		c.do("PUT", "/v2/app/manifests/"+digest(m), bytes.NewReader(m), "Content-Type", ociManifest).want(201)
		return m
	}
	ofThree, ofOne := put(three), put(one)
	there := func(want bool, manifests ...[]byte) {
		t.Helper()
		for _, m := range manifests {
			if got := exists(filepath.Join(dir, "repos/app/_manifests", strings.TrimPrefix(digest(m), "sha256:"))); got != want {
				t.Errorf("manifest %s there: %v, want %v", m, got, want)
			}
		}
	}
	_, err := s.GC(context.Background(), time.Minute)
	check(t, err)
	there(true, one, two, three, part, index, ofThree, ofOne)
	age(t, dir)
	res, err := s.GC(context.Background(), time.Minute)
	check(t, err)
	there(true, two, three, part, index, ofThree)
	there(false, one, ofOne)
	if res.Manifests != 2 {
		t.Errorf("GC removed %d manifests, want the first image and its referrer", res.Manifests)
	}
	c.do("GET", "/v2/app/blobs/"+digest([]byte("layer 1")), nil).want(404)
	c.do("GET", "/v2/app/blobs/"+digest([]byte("layer 2")), nil).want(200)
	// A deploy that has just asked for the image by its digest may start it.
	running = ""
	age(t, dir)
	_, _, _, err = s.Manifest(context.Background(), "app", digest(two))
	check(t, err)
	_, err = s.GC(context.Background(), time.Minute)
	check(t, err)
	there(true, two)
}

// TestPushDuringGC pushes images whose blobs come and go as garbage, while
// collections with no grace at all run without a pause. A blob that a push was told
// is there, or that it has just sent, may be gone when its manifest comes (there is
// no grace), and then the manifest must be refused; but a manifest that was taken is
// whole.
func TestPushDuringGC(t *testing.T) {
	dir := t.TempDir()
	c, s := open(t, registry.Config{Dir: dir})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	collections := make(chan int, 1)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				collections <- n
				return
			default:
			}
			if _, err := s.GC(ctx, 0); err != nil {
				t.Errorf("GC: %v", err)
			}
			n++
		}
	}()
	var wg sync.WaitGroup
	var order sync.RWMutex
	var mu sync.Mutex
	taken, refused := map[string][]byte{}, 0
	for w := range 4 {
		wg.Go(func() {
			for i := range 40 {
				// Few contents and few repositories, so that pushes meet.
				repo := fmt.Sprintf("r%d", (w+i)%2)
				config, layer := []byte(fmt.Sprintf(`{"c":%d}`, i%3)), []byte(fmt.Sprintf("layer %d", (i+w)%5))
				for _, b := range [][]byte{config, layer} {
					if c.do("HEAD", "/v2/"+repo+"/blobs/"+digest(b), nil).status != 200 {
						c.push(repo, b)
					}
				}
				m := encode(manifestOf(config, layer))
				// A deletion by another must not fall between a push and the note of it.
				order.RLock()
				r := c.do("PUT", "/v2/"+repo+"/manifests/"+fmt.Sprintf("t%d-%d", w, i%4), bytes.NewReader(m), "Content-Type", ociManifest)
				mu.Lock()
				if r.status == 201 {
					taken[repo+" "+digest(m)] = m
				} else {
					r.want(400, "MANIFEST_BLOB_UNKNOWN")
					refused++
				}
				mu.Unlock()
				order.RUnlock()
				if i%7 == 6 {
					order.Lock()
					delete(taken, repo+" "+digest(m))
					c.do("DELETE", "/v2/"+repo+"/manifests/"+digest(m), nil)
					order.Unlock()
				}
			}
		})
	}
	wg.Wait()
	close(done)
	n := <-collections
	t.Logf("%d collections, %d manifests taken, %d refused", n, len(taken), refused)
	if n < 5 || len(taken) == 0 {
		t.Fatalf("nothing ran side by side: %d collections, %d manifests", n, len(taken))
	}
	for name, m := range taken {
		repo, d, _ := strings.Cut(name, " ")
		c.do("GET", "/v2/"+repo+"/manifests/"+d, nil).want(200)
		for _, part := range partsOf(t, m) {
			c.do("GET", "/v2/"+repo+"/blobs/"+part, nil).want(200)
		}
	}
}

// TestGCSparesWhatIsUsedMeanwhile stops a collection between its look and its
// removal, and pushes what it is about to remove.
func TestGCSparesWhatIsUsedMeanwhile(t *testing.T) {
	for _, tc := range []struct {
		name  string
		push  func(c *client) // while the collection stands still
		spare bool
	}{
		{"control: nobody uses it", func(c *client) {}, false},
		{"asked for", func(c *client) { c.do("HEAD", "/v2/app/blobs/"+digest([]byte("blob")), nil).want(200) }, true},
		{"pushed again", func(c *client) { c.push("app", []byte("blob")) }, true},
		{"mounted", func(c *client) {
			c.do("POST", "/v2/other/blobs/uploads/?from=app&mount="+digest([]byte("blob")), nil).want(201)
		}, true},
		{"part of a manifest", func(c *client) {
			m := encode(manifestOf([]byte("blob")))
			c.do("PUT", "/v2/app/manifests/t", bytes.NewReader(m), "Content-Type", ociManifest).want(201)
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			stopped, goOn := make(chan bool), make(chan bool)
			inUse := func(ctx context.Context) (func(repo string, d key.Digest) bool, error) {
				stopped <- true
				<-goOn
				return func(string, key.Digest) bool { return true }, nil
			}
			c, s := open(t, registry.Config{Dir: dir, InUse: inUse})
			c.push("app", []byte("blob"))
			age(t, dir)
			errc := make(chan error, 1)
			go func() {
				_, err := s.GC(context.Background(), time.Minute)
				errc <- err
			}()
			<-stopped
			tc.push(c)
			// Even if the clock stood still, what was used meanwhile would stay.
			age(t, dir)
			goOn <- true
			check(t, <-errc)
			hex := strings.TrimPrefix(digest([]byte("blob")), "sha256:")
			if got := exists(filepath.Join(dir, "blobs/sha256", hex[:2], hex)); got != tc.spare {
				t.Errorf("the blob is there: %v, want %v", got, tc.spare)
			}
		})
	}
}
