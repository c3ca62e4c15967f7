package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"bulkhead/registry"
	"bulkhead/registry/registrytest"
)

// The media types used below.
const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	dockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	octets      = "application/octet-stream"
)

// client speaks the distribution API by hand.
type client struct {
	t     testing.TB
	base  string
	token string
}

// newClient starts a registry and returns a client of it.
func newClient(t testing.TB) (*client, *registrytest.Server) {
	s := registrytest.Serve(t)
	return &client{t: t, base: "http://" + s.Addr, token: registrytest.Token}, s
}

// reply is an answer, read to its end.
type reply struct {
	t      testing.TB
	status int
	header http.Header
	body   []byte
	what   string
}

// do sends a request; headers are name, value, name, value.
func (c *client) do(method, path string, body io.Reader, headers ...string) *reply {
	c.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = c.base + path
	}
	req, err := http.NewRequestWithContext(context.Background(), method, path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.token != "" {
		req.SetBasicAuth("any", c.token)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return &reply{c.t, resp.StatusCode, resp.Header, b, method + " " + path}
}

// want checks the status, and for an error its code.
func (r *reply) want(status int, code ...string) *reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("%s: status %d, want %d: %s", r.what, r.status, status, r.body)
	}
	if len(code) > 0 {
		var e struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(r.body, &e); err != nil || len(e.Errors) == 0 || e.Errors[0].Code != code[0] || e.Errors[0].Message == "" {
			r.t.Fatalf("%s: body %s, want error code %s and a message", r.what, r.body, code[0])
		}
	}
	return r
}

// head checks a header.
func (r *reply) head(name, value string) *reply {
	r.t.Helper()
	if got := r.header.Get(name); got != value {
		r.t.Fatalf("%s: header %s is %q, want %q", r.what, name, got, value)
	}
	return r
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// push uploads a blob in one request.
func (c *client) push(repo string, b []byte) string {
	c.t.Helper()
	d := digest(b)
	c.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, bytes.NewReader(b), "Content-Type", octets).want(201)
	return d
}

// manifestOf makes an image manifest with the given config and layers.
func manifestOf(config []byte, layers ...[]byte) map[string]any {
	desc := func(mediaType string, b []byte) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": digest(b), "size": len(b)}
	}
	list := []any{}
	for _, l := range layers {
		list = append(list, desc("application/vnd.oci.image.layer.v1.tar", l))
	}
	return map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
		"config": desc("application/vnd.oci.image.config.v1+json", config), "layers": list}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// pushImage pushes a small image and returns its manifest.
func (c *client) pushImage(repo, ref, config string, layers ...string) []byte {
	c.t.Helper()
	c.push(repo, []byte(config))
	var list [][]byte
	for _, l := range layers {
		c.push(repo, []byte(l))
		list = append(list, []byte(l))
	}
	m := encode(manifestOf([]byte(config), list...))
	if ref == "" {
		ref = digest(m)
	}
	c.do("PUT", "/v2/"+repo+"/manifests/"+ref, bytes.NewReader(m), "Content-Type", ociManifest).want(201)
	return m
}

// start begins an upload and returns its address.
func (c *client) start(repo string) string {
	c.t.Helper()
	return c.base + c.do("POST", "/v2/"+repo+"/blobs/uploads/", nil).want(202).header.Get("Location")
}

// TestConformancePull has the cases of the distribution specification's suite, part
// Pull.
func TestConformancePull(t *testing.T) {
	c, _ := newClient(t)
	m := c.pushImage("a/b", "test", `{"a":1}`, "layer")
	dummy := digest([]byte("nothing has this"))
	for _, tc := range []struct {
		name, method, path string
		status             int
		code               string
	}{
		{"HEAD request to nonexistent blob should result in 404", "HEAD", "/blobs/" + dummy, 404, ""},
		{"HEAD request to existing blob should yield 200", "HEAD", "/blobs/" + digest([]byte("layer")), 200, ""},
		{"GET nonexistent blob should result in 404", "GET", "/blobs/" + dummy, 404, "BLOB_UNKNOWN"},
		{"GET request to existing blob URL should yield 200", "GET", "/blobs/" + digest([]byte("layer")), 200, ""},
		{"HEAD request to nonexistent manifest should return 404", "HEAD", "/manifests/no-such", 404, ""},
		{"GET nonexistent manifest should return 404", "GET", "/manifests/no-such", 404, "MANIFEST_UNKNOWN"},
		{"GET nonexistent manifest by digest should return 404", "GET", "/manifests/" + dummy, 404, "MANIFEST_UNKNOWN"},
		{"HEAD request to manifest path (digest) should yield 200", "HEAD", "/manifests/" + digest(m), 200, ""},
		{"HEAD request to manifest path (tag) should yield 200", "HEAD", "/manifests/test", 200, ""},
		{"GET request to manifest path (digest) should yield 200", "GET", "/manifests/" + digest(m), 200, ""},
		{"GET request to manifest path (tag) should yield 200", "GET", "/manifests/test", 200, ""},
		{"400 response body should contain OCI-conforming JSON message", "GET", "/manifests/sha256:totallywrong", 400, "DIGEST_INVALID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := *c
			c.t = t
			r := c.do(tc.method, "/v2/a/b"+tc.path, nil)
			if tc.code != "" {
				r.want(tc.status, tc.code)
			}
			r.want(tc.status)
		})
	}
	c.do("GET", "/v2/a/b/manifests/test", nil).want(200).head("Docker-Content-Digest", digest(m)).head("Content-Type", ociManifest)
	if r := c.do("HEAD", "/v2/a/b/manifests/test", nil); r.header.Get("Content-Length") != fmt.Sprint(len(m)) {
		t.Errorf("HEAD gives length %s, want %d", r.header.Get("Content-Length"), len(m))
	}
	if r := c.do("GET", "/v2/a/b/manifests/test", nil, "If-None-Match", `"`+digest(m)+`"`); r.status != 304 {
		t.Errorf("status %d for a manifest that the client has, want 304", r.status)
	}
}

// TestBlobRange covers what makes a pull resumable.
func TestBlobRange(t *testing.T) {
	c, _ := newClient(t)
	d := c.push("app", []byte("0123456789"))
	path := "/v2/app/blobs/" + d
	r := c.do("GET", path, nil).want(200).head("Etag", `"`+d+`"`).head("Docker-Content-Digest", d).head("Accept-Ranges", "bytes")
	if string(r.body) != "0123456789" {
		t.Errorf("body %q", r.body)
	}
	for _, tc := range []struct {
		rng    string
		status int
		body   string
	}{{"bytes=3-5", 206, "345"}, {"bytes=8-", 206, "89"}, {"bytes=-2", 206, "89"}, {"bytes=10-", 416, ""}} {
		r := c.do("GET", path, nil, "Range", tc.rng).want(tc.status)
		if tc.status == 206 && string(r.body) != tc.body {
			t.Errorf("range %s gives %q, want %q", tc.rng, r.body, tc.body)
		}
	}
	c.do("GET", path, nil, "If-None-Match", `"`+d+`"`).want(304)
	c.do("GET", path, nil, "Range", "bytes=3-5", "If-Range", `"other"`).want(200)
}

// TestConformancePush has the cases of the suite's part Push.
func TestConformancePush(t *testing.T) {
	c, _ := newClient(t)
	blob := []byte("hello, blob of two chunks")
	d := digest(blob)
	one, two := blob[:11], blob[11:]
	rng := func(from, n int) string { return fmt.Sprintf("%d-%d", from, from+n-1) }

	t.Run("Blob Upload Streamed", func(t *testing.T) {
		at := c.start("streamed")
		c.do("PATCH", at, bytes.NewReader(blob), "Content-Type", octets).want(202).head("Range", rng(0, len(blob)))
		r := c.do("PUT", at+"?digest="+d, nil).want(201).head("Docker-Content-Digest", d)
		c.do("GET", r.header.Get("Location"), nil).want(200)
	})
	t.Run("Blob Upload Monolithic", func(t *testing.T) {
		c.do("GET", "/v2/mono/blobs/"+d, nil).want(404)
		c.do("POST", "/v2/mono/blobs/uploads/?digest="+d, bytes.NewReader(blob), "Content-Type", octets).want(201).head("Location", "/v2/mono/blobs/"+d)
		c.do("GET", "/v2/mono/blobs/"+d, nil).want(200)
		at := c.start("mono2")
		c.do("PUT", at+"?digest="+d, bytes.NewReader(blob), "Content-Type", octets).want(201)
		c.do("GET", "/v2/mono2/blobs/"+d, nil).want(200)
		c.do("GET", at, nil).want(404, "BLOB_UPLOAD_UNKNOWN")
	})
	t.Run("Out-of-order blob upload should return 416", func(t *testing.T) {
		at := c.start("chunked")
		c.do("PATCH", at, bytes.NewReader(two), "Content-Range", rng(len(one), len(two))).want(416, "RANGE_INVALID")
		c.do("GET", at, nil).want(204).head("Range", "0-0")
	})
	t.Run("Retry previous blob chunk should return 416", func(t *testing.T) {
		at := c.start("chunked")
		c.do("PATCH", at, bytes.NewReader(one), "Content-Range", rng(0, len(one))).want(202).head("Range", rng(0, len(one)))
		c.do("PATCH", at, bytes.NewReader(one), "Content-Range", rng(0, len(one))).want(416).head("Range", rng(0, len(one)))
		for _, bad := range []string{"x", "5-3", "bytes 11", "-1-5", "11-12"} { // the last has the wrong length
			c.do("PATCH", at, bytes.NewReader(two), "Content-Range", bad).want(416)
		}
		c.do("GET", at, nil).want(204).head("Range", rng(0, len(one)))
		c.do("PUT", at+"?digest="+d, bytes.NewReader(two), "Content-Range", rng(len(one), len(two))).want(201)
		if r := c.do("GET", "/v2/chunked/blobs/"+d, nil).want(200); !bytes.Equal(r.body, blob) {
			t.Errorf("the chunks became %q", r.body)
		}
	})
	t.Run("Cancel Upload", func(t *testing.T) {
		at := c.start("cancelled")
		c.do("DELETE", at, nil).want(204)
		c.do("GET", at, nil).want(404)
		c.do("PATCH", at, bytes.NewReader(one)).want(404)
	})
	t.Run("Cross-Repository Blob Mount", func(t *testing.T) {
		c.push("mount/source", blob)
		c.do("POST", "/v2/mount/target/blobs/uploads/?mount="+digest([]byte("no"))+"&from=mount/source", nil).want(202)
		c.do("POST", "/v2/mount/target/blobs/uploads/?mount="+d+"&from=mount/nowhere", nil).want(202)
		c.do("POST", "/v2/mount/target/blobs/uploads/?mount="+d, nil).want(202) // without from: never from just anywhere
		c.do("GET", "/v2/mount/target/blobs/"+d, nil).want(404)
		c.do("POST", "/v2/mount/target/blobs/uploads/?mount="+d+"&from=mount/source", nil).want(201).head("Location", "/v2/mount/target/blobs/"+d)
		c.do("GET", "/v2/mount/target/blobs/"+d, nil).want(200)
	})
	t.Run("Manifest Upload", func(t *testing.T) {
		for i := range 4 {
			c.pushImage("man", fmt.Sprintf("test%d", i), "{}", "l")
		}
		m := c.pushImage("man", "", "{}", "l", "m")
		c.do("GET", "/v2/man/manifests/"+digest(m), nil).want(200)
	})
	t.Run("Registry should accept a manifest upload with no layers", func(t *testing.T) {
		c.pushImage("man", "empty", "{}")
	})
}

// TestConformanceDiscovery has the cases of the suite's part Content Discovery: tags
// and referrers.
func TestConformanceDiscovery(t *testing.T) {
	c, _ := newClient(t)
	subject := c.pushImage("d", "test0", `{"n":0}`)
	for _, tag := range []string{"test1", "test2", "test3"} {
		c.pushImage("d", tag, `{"n":0}`)
	}
	tags := func(query string) ([]string, string) {
		r := c.do("GET", "/v2/d/tags/list"+query, nil).want(200)
		var v struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(r.body, &v); err != nil || v.Name != "d" || v.Tags == nil {
			t.Fatalf("tags list %s: %v", r.body, err)
		}
		return v.Tags, r.header.Get("Link")
	}
	for _, tc := range []struct{ query, want, link string }{
		{"", "[test0 test1 test2 test3]", ""},
		{"?n=0", "[]", ""},
		{"?n=2", "[test0 test1]", `</v2/d/tags/list?last=test1&n=2>; rel="next"`},
		{"?n=2&last=test1", "[test2 test3]", ""},
		{"?last=test2", "[test3]", ""},
		{"?last=zzz", "[]", ""},
	} {
		if got, link := tags(tc.query); fmt.Sprint(got) != tc.want || link != tc.link {
			t.Errorf("tags %s: %v, link %q; want %s, %q", tc.query, got, link, tc.want, tc.link)
		}
	}
	c.do("GET", "/v2/d/tags/list?n=-1", nil).want(400, "PAGINATION_NUMBER_INVALID")
	c.do("GET", "/v2/nowhere/tags/list", nil).want(404, "NAME_UNKNOWN")

	referrer := func(artifactType, note string, of []byte) {
		m := manifestOf([]byte("{}"), []byte("sig"))
		m["subject"] = map[string]any{"mediaType": ociManifest, "digest": digest(of), "size": len(of)}
		m["annotations"] = map[string]string{"note": note}
		if artifactType != "" {
			m["artifactType"] = artifactType
		}
		b := encode(m)
		c.do("PUT", "/v2/d/manifests/"+digest(b), bytes.NewReader(b), "Content-Type", ociManifest).want(201).head("OCI-Subject", digest(of))
	}
	c.push("d", []byte("{}"))
	c.push("d", []byte("sig"))
	referrer("application/x.sbom", "one", subject)
	referrer("application/x.signature", "two", subject)
	referrer("", "three", subject)
	missing := []byte("a subject that comes later")
	referrer("application/x.sbom", "four", missing)
	list := func(of []byte, query string) []map[string]any {
		r := c.do("GET", "/v2/d/referrers/"+digest(of)+query, nil).want(200).head("Content-Type", ociIndex)
		if query != "" {
			r.head("OCI-Filters-Applied", "artifactType")
		}
		var v struct {
			MediaType string
			Manifests []map[string]any
		}
		if err := json.Unmarshal(r.body, &v); err != nil || v.Manifests == nil || v.MediaType != ociIndex {
			t.Fatalf("referrers %s: %v", r.body, err)
		}
		return v.Manifests
	}
	if n := len(list([]byte("nobody"), "")); n != 0 {
		t.Errorf("%d referrers of an unknown digest, want an empty list", n)
	}
	if n := len(list(missing, "")); n != 1 {
		t.Errorf("%d referrers of a missing manifest, want 1", n)
	}
	all := list(subject, "")
	if len(all) != 3 {
		t.Fatalf("%d referrers, want 3", len(all))
	}
	types := map[any]any{}
	for _, d := range all {
		types[d["artifactType"]] = d["annotations"].(map[string]any)["note"]
	}
	want := map[any]any{"application/x.sbom": "one", "application/x.signature": "two", "application/vnd.oci.image.config.v1+json": "three"}
	if fmt.Sprint(types) != fmt.Sprint(want) {
		t.Errorf("referrers are %v, want %v", types, want)
	}
	if some := list(subject, "?artifactType=application/x.sbom"); len(some) != 1 || some[0]["artifactType"] != "application/x.sbom" {
		t.Errorf("filtered referrers are %v", some)
	}
}

// TestConformanceManagement has the cases of the suite's part Content Management.
func TestConformanceManagement(t *testing.T) {
	c, _ := newClient(t)
	m := c.pushImage("x", "one", "{}", "layer")
	c.pushImage("x", "two", "{}", "layer")
	layer := "/v2/x/blobs/" + digest([]byte("layer"))
	c.do("DELETE", "/v2/x/manifests/one", nil).want(202)
	c.do("GET", "/v2/x/manifests/one", nil).want(404)
	c.do("GET", "/v2/x/manifests/two", nil).want(200)
	c.do("DELETE", layer, nil).want(405, "UNSUPPORTED") // it is part of an image
	c.do("DELETE", "/v2/x/manifests/"+digest(m), nil).want(202)
	c.do("GET", "/v2/x/manifests/"+digest(m), nil).want(404)
	c.do("GET", "/v2/x/manifests/two", nil).want(404)
	c.do("DELETE", "/v2/x/manifests/"+digest(m), nil).want(404)
	if r := c.do("GET", "/v2/x/tags/list", nil).want(200); !strings.Contains(string(r.body), `"tags":[]`) {
		t.Errorf("tags outlive their manifest: %s", r.body)
	}
	c.do("GET", layer, nil).want(200)
	c.do("DELETE", layer, nil).want(202)
	c.do("GET", layer, nil).want(404)
	c.do("DELETE", layer, nil).want(404)
}

// TestBadManifests pushes manifests that must not be stored.
func TestBadManifests(t *testing.T) {
	c, s := newClient(t)
	c.push("m", []byte("{}"))
	c.push("m", []byte("layer"))
	good := func() map[string]any { return manifestOf([]byte("{}"), []byte("layer")) }
	with := func(key string, v any) []byte {
		m := good()
		m[key] = v
		return encode(m)
	}
	desc := func(d string, size int) map[string]any {
		return map[string]any{"mediaType": ociManifest, "digest": d, "size": size}
	}
	absent := digest([]byte("absent"))
	for name, tc := range map[string]struct {
		body              []byte
		contentType, code string
		ref               string
		status            int
	}{
		"not JSON":               {[]byte("hello"), ociManifest, "MANIFEST_INVALID", "t", 400},
		"unknown type":           {encode(good()), "text/html", "MANIFEST_INVALID", "t", 400},
		"no type":                {encode(good()), "", "MANIFEST_INVALID", "t", 400},
		"schema 1":               {with("schemaVersion", 1), ociManifest, "MANIFEST_INVALID", "t", 400},
		"another type inside":    {encode(good()), dockerImage, "MANIFEST_INVALID", "t", 400},
		"image and index":        {with("manifests", []any{}), ociManifest, "MANIFEST_INVALID", "t", 400},
		"index and image":        {encode(map[string]any{"schemaVersion": 2, "manifests": []any{}, "layers": []any{}}), ociIndex, "MANIFEST_INVALID", "t", 400},
		"no config":              {encode(map[string]any{"schemaVersion": 2, "layers": []any{}}), ociManifest, "MANIFEST_INVALID", "t", 400},
		"missing layer":          {with("layers", []any{desc(absent, 6)}), ociManifest, "MANIFEST_BLOB_UNKNOWN", "t", 400},
		"missing config":         {with("config", desc(absent, 6)), ociManifest, "MANIFEST_BLOB_UNKNOWN", "t", 400},
		"missing part of index":  {encode(map[string]any{"schemaVersion": 2, "manifests": []any{desc(absent, 6)}}), ociIndex, "MANIFEST_BLOB_UNKNOWN", "t", 400},
		"layer of another size":  {with("layers", []any{desc(digest([]byte("layer")), 6)}), ociManifest, "SIZE_INVALID", "t", 400},
		"path for a digest":      {with("layers", []any{desc("../../../../etc/passwd", 6)}), ociManifest, "MANIFEST_INVALID", "t", 400},
		"sha512":                 {with("layers", []any{desc("sha512:"+strings.Repeat("0", 128), 6)}), ociManifest, "MANIFEST_INVALID", "t", 400},
		"negative size":          {with("subject", desc(absent, -1)), ociManifest, "MANIFEST_INVALID", "t", 400},
		"digest of another":      {encode(good()), ociManifest, "DIGEST_INVALID", absent, 400},
		"tag starts with a dot":  {encode(good()), ociManifest, "TAG_INVALID", ".x", 400},
		"tag too long":           {encode(good()), ociManifest, "TAG_INVALID", strings.Repeat("a", 129), 400},
		"larger than the limit":  {with("annotations", map[string]string{"x": strings.Repeat("y", registry.DefaultMaxManifest)}), ociManifest, "MANIFEST_INVALID", "t", 413},
		"too many parts":         {with("layers", make([]map[string]any, 5000)), ociManifest, "MANIFEST_INVALID", "t", 400},
		"layers of a wrong form": {with("layers", "x"), ociManifest, "MANIFEST_INVALID", "t", 400},
	} {
		t.Run(name, func(t *testing.T) {
			c := *c
			c.t = t
			c.do("PUT", "/v2/m/manifests/"+tc.ref, bytes.NewReader(tc.body), "Content-Type", tc.contentType).want(tc.status, tc.code)
			c.do("GET", "/v2/m/manifests/"+digest(tc.body), nil).want(404)
		})
	}
	c.do("GET", "/v2/m/manifests/t", nil).want(404)
	// The control: the same manifest without a fault is taken.
	c.do("PUT", "/v2/m/manifests/t", bytes.NewReader(encode(good())), "Content-Type", ociManifest).want(201)
	// A layer that is to be fetched from elsewhere need not be here.
	foreign := desc(absent, 6)
	foreign["urls"] = []string{"https://example.com/layer"}
	c.do("PUT", "/v2/m/manifests/f", bytes.NewReader(with("layers", []any{foreign})), "Content-Type", ociManifest).want(201)
	if _, _, _, err := s.Manifest(context.Background(), "m", "f"); err != nil {
		t.Error(err)
	}
}

// TestBadPaths asks for names and paths that must not reach the disk.
func TestBadPaths(t *testing.T) {
	c, _ := newClient(t)
	for _, p := range []string{
		"/v2/../x/tags/list", "/v2/%2e%2e/x/tags/list", "/v2/a%2f..%2fb/tags/list", "/v2/A/tags/list", "/v2/_blobs/tags/list",
		"/v2/a//b/tags/list", "/v2/a/_tags/tags/list", "/v2/" + strings.Repeat("a", 256) + "/tags/list", "/v2/a%00b/tags/list",
		"/v2/a/manifests/..", "/v2/a/manifests/%2e%2e%2f%2e%2e%2flock", "/v2/a/blobs/../lock", "/v2/a/blobs/sha256:../../x", "/v2/tags/list",
		"/v2/a/referrers/x", "/v2/a/blobs/uploads/../../x",
	} {
		req, err := http.NewRequest("GET", c.base, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = p // as it stands, uncleaned
		req.SetBasicAuth("x", c.token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 && resp.StatusCode != 404 {
			t.Errorf("GET %s: status %d, want 400 or 404", p, resp.StatusCode)
		}
	}
	c.do("GET", "/v3/", nil).want(404, "UNSUPPORTED")
	c.do("GET", "/v2/a/what", nil).want(404, "UNSUPPORTED")
	c.do("POST", "/v2/a/tags/list", nil).want(405, "UNSUPPORTED")
	// The longest name, and one that is made of the API's own words, work.
	for _, repo := range []string{strings.Repeat("a", 250), "blobs/uploads", "manifests/tags/list", "a/blobs/uploads/blobs"} {
		m := c.pushImage(repo, "t", "{}", "l")
		c.do("GET", "/v2/"+repo+"/manifests/"+digest(m), nil).want(200)
		c.do("GET", "/v2/"+repo+"/tags/list", nil).want(200)
	}
}
