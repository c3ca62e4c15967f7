package registry

import (
	"encoding/json"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"bulkhead/fault"
	"bulkhead/key"
)

// FuzzPath: a path names one target, whose repository stays inside the directory of
// repositories, and which written down again is the same path.
func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"/v2/", "/v2", "/v2/web/manifests/v1", "/v2/a/b/blobs/uploads/", "/v2/a/b/blobs/uploads/0123456789abcdef0123456789abcdef", "/v2/a/blobs/sha256:00",
		"/v2/a/tags/list", "/v2/a/referrers/sha256:00", "/v2/../../etc/manifests/v1", "/v2/a//b/manifests/v1", "/v2/blobs/uploads/blobs/uploads/", "/v2/a/manifests/../x",
		"/v2/_tags/manifests/x", "/v2/a/\x00/manifests/x", "/v1/x", "", "/v2//manifests/", "/v2/a%2f../manifests/x", "/v2/A/manifests/x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parsePath(s)
		if err != nil {
			if _, ok := fault.KindOf(err), true; !ok || len(err.Error()) > 400 {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if got.kind == "base" {
			if s != "/v2" && s != "/v2/" {
				t.Errorf("%q is the base", s)
			}
			return
		}
		if r := got.repo; r == "" || len(r) > 255 || path.Clean("/"+r) != "/"+r || strings.ContainsAny(r, "\\\x00%") || strings.HasPrefix(path.Base(r), "_") || strings.Contains(r, "/_") {
			t.Errorf("%q: repository %q", s, r)
		}
		words := map[string]string{"upload": "blobs/uploads/" + got.ref, "uploads": "blobs/uploads/", "blob": "blobs/" + got.ref,
			"manifest": "manifests/" + got.ref, "tags": "tags/list", "referrers": "referrers/" + got.ref}[got.kind]
		if again := "/v2/" + got.repo + "/" + words; again != s && again != s+"/" || strings.Contains(got.ref, "/") {
			t.Errorf("%q was read as %q", s, again)
		}
	})
}

// FuzzContentRange: a range has a start and a length, and neither overflows.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"0-1", "bytes 0-99/100", "bytes=5-5", "9-1", "999999999999999999-999999999999999999", "0-9999999999999999999", "-1-5", "0-1/*", "0 - 1", "0-1\n", "٣-٤"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, n, ok := parseContentRange(s)
		if ok && (start < 0 || n < 1 || start+n < start) {
			t.Errorf("%q: %d bytes from %d", s, n, start)
		}
	})
}

// FuzzManifest: what is taken as a manifest refers to parts by digest alone, is an
// image or an index and not both, and means the same when it is read again.
func FuzzManifest(f *testing.F) {
	d := `{"digest":"sha256:` + strings.Repeat("0", 64) + `","size":1}`
	for _, s := range []string{
		`{"schemaVersion":2,"config":` + d + `,"layers":[` + d + `]}`, `{"schemaVersion":2,"manifests":[` + d + `]}`, `{"schemaVersion":2,"config":` + d + `,"manifests":[]}`,
		`{"schemaVersion":1}`, `{}`, `[]`, `{"schemaVersion":2,"config":{"digest":"../../x"}}`, `{"schemaVersion":2,"config":` + d + `,"CONFIG":null}`,
		`{"schemaVersion":2,"config":` + d + `,"subject":` + d + `,"annotations":{"a":"b"}}`, strings.Repeat(`{"config":`, 40), `{"schemaVersion":2,"schemaVersion":1}`,
	} {
		f.Add([]byte(s), ociManifest)
		f.Add([]byte(s), ociIndex)
	}
	f.Add([]byte("{}"), "text/plain")
	f.Fuzz(func(t *testing.T, b []byte, mediaType string) {
		doc, err := parseManifest(b, mediaType)
		if err != nil {
			if fault.Is(err, fault.Internal) {
				t.Errorf("%q: %v", b, err)
			}
			return
		}
		if doc.isIndex != (doc.Config == nil) || doc.isIndex && doc.Layers != nil || !doc.isIndex && doc.Manifests != nil {
			t.Errorf("%q is an image and an index", b)
		}
		for _, p := range append(doc.blobs(), doc.Manifests...) {
			if _, err := key.ParseDigest(p.Digest); err != nil || p.Size < 0 {
				t.Errorf("%q refers to %q", b, p.Digest)
			}
		}
		again, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again, mediaType); err != nil {
			t.Errorf("%q was taken, and %q is not: %v", b, again, err)
		}
	})
}

// FuzzToken: whatever the Authorization header, what is asked for is what stands in
// it, and a refusal does not repeat it.
func FuzzToken(f *testing.F) {
	for _, s := range []string{"Bearer abc", "bearer  abc ", "Basic eDphYmM=", "Basic x", "Digest abc", "", "Bearer", "Bearer \x00", "Basic " + strings.Repeat("A", 9000), "FlyV1 fm2_x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := httptest.NewRequest("GET", "/v2/", nil)
		r.Header["Authorization"] = []string{s}
		if got := token(r); len(got) > len(s) || strings.HasPrefix(strings.ToLower(s), "digest") && got != "" {
			t.Errorf("%q holds the token %q", s, got)
		}
	})
}
