package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"bulkhead/fault"
	"bulkhead/registry"
	"bulkhead/registry/registrytest"
)

// TestAccess asks with good, bad and narrow tokens.
func TestAccess(t *testing.T) {
	authorize := func(ctx context.Context, token, repo string, push bool) error {
		switch {
		case token == "broken":
			return errors.New("secret detail")
		case token == "down":
			return fault.New(fault.Unavailable, "the controller starts")
		case token == "reader" && push:
			return fault.New(fault.Denied, "the token may not push to %s", repo)
		case token == "all" || token == "reader" || token == "mine" && (repo == "" || strings.HasPrefix(repo, "mine/")):
			return nil
		case token == "mine":
			return fault.New(fault.Denied, "the token may not use %s", repo)
		}
		return fault.New(fault.Unauthenticated, "the token is not valid")
	}
	s := registrytest.ServeConfig(t, registry.Config{Dir: t.TempDir(), Authorize: authorize})
	as := func(token string) *client { return &client{t: t, base: "http://" + s.Addr, token: token} }
	all := as("all")
	d := all.push("secret", []byte("content"))
	all.push("mine/b", []byte("content of b"))

	for _, path := range []string{"/v2/", "/v2/secret/tags/list", "/v2/secret/blobs/" + d, "/v2/no/such/endpoint", "/v2/A/tags/list"} {
		for _, token := range []string{"", "wrong"} {
			as(token).do("GET", path, nil).want(401, "UNAUTHORIZED").head("WWW-Authenticate", `Basic realm="bulkhead"`)
		}
	}
	as("all").do("GET", "/v2/", nil).want(200).head("Docker-Distribution-API-Version", "registry/2.0")
	as("mine").do("GET", "/v2/", nil).want(200)
	anon := as("")
	anon.do("GET", "/v2/", nil, "Authorization", "Bearer all").want(200)
	anon.do("GET", "/v2/", nil, "Authorization", "bearer  all ").want(200)
	anon.do("GET", "/v2/", nil, "Authorization", "Bearer wrong").want(401)
	anon.do("GET", "/v2/", nil, "Authorization", "Digest all").want(401)
	anon.do("GET", "/v2/?token=all", nil).want(401)

	reader := as("reader")
	reader.do("GET", "/v2/secret/blobs/"+d, nil).want(200)
	reader.do("POST", "/v2/secret/blobs/uploads/", nil).want(403, "DENIED")
	reader.do("PUT", "/v2/secret/manifests/x", strings.NewReader("{}")).want(403, "DENIED")
	reader.do("DELETE", "/v2/secret/blobs/"+d, nil).want(403, "DENIED")
	reader.do("GET", "/v2/secret/blobs/uploads/00", nil).want(403, "DENIED")

	mine := as("mine")
	mine.do("GET", "/v2/secret/blobs/"+d, nil).want(403, "DENIED")
	// To know the digest of a blob is not enough, and a mount from a repository that
	// the token may not read is an upload.
	mine.do("GET", "/v2/mine/a/blobs/"+d, nil).want(404, "BLOB_UNKNOWN")
	mine.do("POST", "/v2/mine/a/blobs/uploads/?mount="+d+"&from=secret", nil).want(202)
	mine.do("GET", "/v2/mine/a/blobs/"+d, nil).want(404)
	m := encode(manifestOf([]byte("content")))
	mine.do("PUT", "/v2/mine/a/manifests/t", bytes.NewReader(m), "Content-Type", ociManifest).want(400, "MANIFEST_BLOB_UNKNOWN")
	own := digest([]byte("content of b"))
	mine.do("POST", "/v2/mine/a/blobs/uploads/?mount="+own+"&from=mine/b", nil).want(201)
	// The address of another's upload does not help either.
	at := all.start("secret")
	mine.do("PATCH", at, strings.NewReader("x")).want(403)
	mine.do("PATCH", strings.Replace(at, "/v2/secret/", "/v2/mine/a/", 1), strings.NewReader("x")).want(404, "BLOB_UPLOAD_UNKNOWN")

	if r := as("broken").do("GET", "/v2/", nil).want(500, "UNKNOWN"); strings.Contains(string(r.body), "secret detail") {
		t.Errorf("an internal error shows: %s", r.body)
	}
	as("down").do("GET", "/v2/", nil).want(503)
}

// TestBrowsersGetNothing checks that pushed content is never anything to a browser.
func TestBrowsersGetNothing(t *testing.T) {
	c, _ := newClient(t)
	d := c.push("x", []byte("<script>alert(1)</script>"))
	c.do("GET", "/v2/x/blobs/"+d, nil).want(200).head("X-Content-Type-Options", "nosniff").
		head("Content-Security-Policy", "default-src 'none'; sandbox").head("Content-Type", octets)
}

// TestGoMethods reads through the methods that the controller's other parts use.
func TestGoMethods(t *testing.T) {
	c, s := newClient(t)
	m := c.pushImage("app", "v1", "{}", "layer")
	ctx := context.Background()
	for _, ref := range []string{"v1", digest(m)} {
		b, mediaType, d, err := s.Manifest(ctx, "app", ref)
		if err != nil || !bytes.Equal(b, m) || mediaType != ociManifest || string(d) != digest(m) {
			t.Errorf("Manifest(app, %s) = %q, %s, %s, %v", ref, b, mediaType, d, err)
		}
	}
	for _, ref := range []string{"v2", digest([]byte("x"))} {
		if _, _, _, err := s.Manifest(ctx, "app", ref); !fault.Is(err, fault.NotFound) || !strings.Contains(fault.MessageOf(err), "push it first") {
			t.Errorf("Manifest(app, %s): %v, want NotFound that says what to do", ref, err)
		}
	}
	for _, bad := range [][2]string{{"../x", "v1"}, {"app", "../x"}, {"app", "sha256:x"}} {
		if _, _, _, err := s.Manifest(ctx, bad[0], bad[1]); !fault.Is(err, fault.Invalid) {
			t.Errorf("Manifest(%s, %s): %v, want Invalid", bad[0], bad[1], err)
		}
	}
	f, size, err := s.OpenBlob(ctx, "app", keyDigest("layer"))
	if err != nil || size != 5 {
		t.Fatalf("OpenBlob: size %d, %v", size, err)
	}
	f.Close()
	if _, _, err := s.OpenBlob(ctx, "other", keyDigest("layer")); !fault.Is(err, fault.NotFound) {
		t.Errorf("OpenBlob in a repository that has not got it: %v, want NotFound", err)
	}
}

// TestDamagedManifest checks that content which the disk has damaged is not served.
func TestDamagedManifest(t *testing.T) {
	dir := t.TempDir()
	s := registrytest.ServeConfig(t, registry.Config{Dir: dir})
	c := &client{t: t, base: "http://" + s.Addr, token: registrytest.Token}
	m := c.pushImage("app", "v1", "{}", "layer")
	overwrite(t, dir, digest(m), bytes.Replace(m, []byte("layers"), []byte("leyars"), 1))
	c.do("GET", "/v2/app/manifests/v1", nil).want(500)
	c.pushImage("app", "v1", "{}", "layer")
	c.do("GET", "/v2/app/manifests/v1", nil).want(http.StatusOK)
}

// TestDamagedBlob: a blob that the disk has damaged is not handed out whole, the
// answer names it, and a push like the first mends it, though the client asks before
// it sends a blob whether it is there.
func TestDamagedBlob(t *testing.T) {
	dir := t.TempDir()
	s := registrytest.ServeConfig(t, registry.Config{Dir: dir})
	c := &client{t: t, base: "http://" + s.Addr, token: registrytest.Token}
	for _, body := range []string{"laxer", "lay", ""} { // a flipped bit, cut short, empty
		c.pushImage("app", "v1", "{}", "layer")
		d := keyDigest("layer")
		overwrite(t, dir, string(d), []byte(body))
		got := ""
		f, _, err := s.OpenBlob(t.Context(), "app", d)
		if err == nil {
			var b []byte
			b, err = io.ReadAll(f)
			got = string(b)
			f.Close()
		}
		if !fault.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), string(d)) || got != "" {
			t.Errorf("%q was read as %q, %v", body, got, err)
		}
		c.do("HEAD", "/v2/app/blobs/"+string(d), nil).want(http.StatusNotFound)
		c.do("HEAD", "/v2/app/manifests/v1", nil).want(http.StatusNotFound)
		c.pushImage("app", "v1", "{}", "layer")
		if f, _, err = s.OpenBlob(t.Context(), "app", d); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != "layer" {
			t.Errorf("after another push: %q, %v", got, err)
		}
		f.Close()
	}
}

// TestADamagedBlobPushedAgainStays: who has begun to read it before does not take away
// what was pushed since.
func TestADamagedBlobPushedAgainStays(t *testing.T) {
	dir := t.TempDir()
	s := registrytest.ServeConfig(t, registry.Config{Dir: dir})
	c := &client{t: t, base: "http://" + s.Addr, token: registrytest.Token}
	c.pushImage("app", "v1", "{}", "layer")
	d := keyDigest("layer")
	overwrite(t, dir, string(d), []byte("laxer"))
	var readers [2]io.ReadSeekCloser
	for i := range readers {
		f, _, err := s.OpenBlob(t.Context(), "app", d)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		readers[i] = f
	}
	for i, f := range readers {
		if b, err := io.ReadAll(f); err == nil {
			t.Errorf("reader %d got %q", i, b)
		}
		if i == 0 {
			c.pushImage("app", "v1", "{}", "layer")
		}
		c.do("HEAD", "/v2/app/blobs/"+string(d), nil).want(http.StatusOK)
	}
}
