//go:build linux

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bulkhead/fault"
	"bulkhead/image/imagetest"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
)

// platformIndex is an index of img for this platform, one of another, and an
// attestation.
func platformIndex(t testing.TB, img v1.Image) v1.ImageIndex {
	t.Helper()
	other := imagetest.New(t, v1.Config{}, imagetest.Text("other", ""))
	add := func(img v1.Image, os, arch, variant string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch, Variant: variant}}}
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		add(other, "unknown", "unknown", ""), add(other, "linux", "s390x", ""),
		add(other, "linux", runtime.GOARCH, "v9"), add(img, "linux", runtime.GOARCH, ""), add(other, "windows", runtime.GOARCH, ""))
}

// sealsFrom wants the image in src under digest to be img.
func sealsFrom(t *testing.T, src Source, digest key.Digest, img v1.Image) {
	t.Helper()
	s := openStore(t)
	got, err := s.Ensure(ctxT(t), src, machine.ImageRef{Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != imagetest.Digest(t, img) || contents(t, got)["hello"] != "hello" {
		t.Errorf("it sealed %s", got.Digest)
	}
}

func TestLocalImages(t *testing.T) {
	img := imagetest.New(t, v1.Config{User: "web"}, small...)
	idx := platformIndex(t, img)
	idxDir := t.TempDir()
	p, err := layout.Write(idxDir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendIndex(idx); err != nil {
		t.Fatal(err)
	}
	docker := filepath.Join(t.TempDir(), "docker.tar")
	tag, _ := name.NewTag("example.com/app:1")
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	open := map[string]func() (*Local, error){
		"layout":       func() (*Local, error) { return OpenLayout(imagetest.WriteLayout(t, img)) },
		"OCI archive":  func() (*Local, error) { return OpenArchive(imagetest.WriteArchive(t, img)) },
		"docker save":  func() (*Local, error) { return OpenArchive(docker) },
		"layout index": func() (*Local, error) { return OpenLayout(idxDir) },
	}
	for name, f := range open {
		t.Run(name, func(t *testing.T) {
			l, err := f()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			want := img
			switch {
			case name == "layout index":
				if l.Image != nil || l.Index == nil {
					t.Fatal("it is not an index")
				}
			case name == "docker save":
				want = l.Image // its manifest is made anew
			case l.Index != nil || l.Image == nil:
				t.Fatal("it is not an image")
			}
			sealsFrom(t, l, l.Digest, want)
			pushes(t, l)
		})
	}
}

// pushes wants what l gives to arrive at a registry, whence it is sealed again.
func pushes(t *testing.T, l *Local) {
	t.Helper()
	srv := httptest.NewServer(registry.New())
	defer srv.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/some/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if l.Index != nil {
		err = remote.WriteIndex(ref, l.Index)
	} else {
		err = remote.Write(ref, l.Image)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := NewRemote(privnet.Guard{AnyAddr: true})
	got, manifest, err := r.Resolve(ctxT(t), ref.String())
	if err != nil {
		t.Fatal(err)
	}
	if got.Tag != "v1" || got.Repository != "some/app" || digestOf(manifest) != got.Digest {
		t.Errorf("it resolved to %+v", got)
	}
	src, err := r.Source(got)
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	if img, err := s.Ensure(ctxT(t), src, got); err != nil || contents(t, img)["hello"] != "hello" {
		t.Errorf("sealing from the registry: %v", err)
	}
}

func TestLocalImagesThatAreNone(t *testing.T) {
	write := func(name, body string) string {
		p := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(p, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	broken := imagetest.WriteLayout(t, imagetest.New(t, v1.Config{}, small...))
	blobs, _ := filepath.Glob(filepath.Join(broken, "blobs/sha256/*"))
	for _, b := range blobs {
		os.WriteFile(b, []byte("{}"), 0o600)
	}
	tests := map[string]struct {
		err  func() (*Local, error)
		want string
	}{
		"empty folder":       {func() (*Local, error) { return OpenLayout(t.TempDir()) }, "no index.json"},
		"malformed index":    {func() (*Local, error) { return OpenLayout(filepath.Dir(write("index.json", "{"))) }, "malformed"},
		"index of nothing":   {func() (*Local, error) { return OpenLayout(filepath.Dir(write("index.json", "{}"))) }, "names no image"},
		"changed blobs":      {func() (*Local, error) { return OpenLayout(broken) }, "has the digest"},
		"no archive":         {func() (*Local, error) { return OpenArchive("/nonexistent") }, "cannot be opened"},
		"not tar":            {func() (*Local, error) { return OpenArchive(write("x.tar", strings.Repeat("x", 2000))) }, "not a tar archive"},
		"compressed archive": {func() (*Local, error) { return OpenArchive(write("x.tar.gz", string(gz([]byte("x"))))) }, "gunzip"},
		"tar of other files": {func() (*Local, error) {
			return OpenArchive(write("x.tar", string(imagetest.Tar(t, imagetest.Text("a", "1")))))
		}, "neither index.json"},
	}
	for name, tt := range tests {
		_, err := tt.err()
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRemoteRefusals(t *testing.T) {
	srv := httptest.NewServer(registry.New())
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	tests := []struct {
		private bool
		ref     string
		kind    fault.Kind
	}{
		{true, host + "/none:1", fault.NotFound},
		{true, "Not A Reference", fault.Invalid},
		{true, host + "/none@sha512:" + strings.Repeat("0", 128), fault.Invalid},
		{false, host + "/none:1", fault.Denied},           // loopback
		{false, "169.254.169.254/latest:1", fault.Denied}, // cloud metadata
		{false, "10.0.0.1:5000/x:1", fault.Denied},        // private
		{false, "[fdaa::3]:5000/x:1", fault.Denied},       // private networks' resolver
		{true, "127.0.0.1:1/none:1", fault.Unavailable},   // nothing listens
	}
	for _, tt := range tests {
		_, _, err := NewRemote(privnet.Guard{AnyAddr: tt.private}).Resolve(ctxT(t), tt.ref)
		if fault.KindOf(err) != tt.kind {
			t.Errorf("%s: %v", tt.ref, err)
		}
	}
	// Plain HTTP goes to loopback alone, whatever go-containerregistry would do.
	req := httptest.NewRequest("GET", "http://10.0.0.1:5000/v2/", nil)
	if _, err := NewRemote(privnet.Guard{AnyAddr: true}).transport.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("plain HTTP to a private address: %v", err)
	}
}

// TestMalformedDocuments: manifests, indexes and configurations that are no good.
func TestMalformedDocuments(t *testing.T) {
	h := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	config := `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + h("a") + `","size":2}`
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	tests := map[string]struct{ manifest, mediaType, want string }{
		"not JSON":          {"hello", "", "manifest is malformed"},
		"cut JSON":          {`{"schemaVersion":2,"config":`, "", "manifest is malformed"},
		"wrong types":       {`{"schemaVersion":2,"layers":"none"}`, "", "manifest is malformed"},
		"trailing data":     {`{"schemaVersion":2,"config":` + config + `}{}`, "", "manifest is malformed"},
		"nothing":           {`{"schemaVersion":2}`, "", "either config and layers or manifests"},
		"image and index":   {`{"schemaVersion":2,"config":` + config + `,"manifests":[]}`, "", "either config and layers or manifests"},
		"schema 1":          {`{"schemaVersion":1,"fsLayers":[]}`, "", "old schema 1"},
		"no schema":         {`{"config":` + config + `}`, "", "schemaVersion 0"},
		"no config":         {`{"schemaVersion":2,"layers":[]}`, "", "no config"},
		"index by name":     {`{"schemaVersion":2,"mediaType":"` + ociIndex + `","config":` + config + `}`, "", "is an image's, but has the media type"},
		"image by header":   {`{"schemaVersion":2,"manifests":[]}`, ociManifest, "is an index, but has the media type"},
		"not a manifest":    {`{"schemaVersion":2,"config":` + config + `}`, "text/html", "not an image's"},
		"too large":         {`{"schemaVersion":2,"config":` + config + `}` + strings.Repeat(" ", 4<<20), "", "4194304 are allowed"},
		"empty index":       {`{"schemaVersion":2,"manifests":[]}`, "", "index without an image"},
		"other platform":    {`{"schemaVersion":2,"manifests":[{"digest":"` + h("a") + `","platform":{"os":"linux","architecture":"` + other + `"}}]}`, "", "is for linux/" + other + "; this node runs linux/" + runtime.GOARCH},
		"negative size":     {`{"schemaVersion":2,"config":` + config + `,"layers":[{"digest":"` + h("b") + `","size":-1}]}`, "", "layer 1: its size is -1"},
		"sha512 layer":      {`{"schemaVersion":2,"config":` + config + `,"layers":[{"digest":"sha512:` + strings.Repeat("a", 128) + `","size":1}]}`, "", "only sha256"},
		"path in digest":    {`{"schemaVersion":2,"config":` + config + `,"layers":[{"digest":"sha256:../../../../etc/passwd","size":1}]}`, "", "malformed"},
		"huge layer":        {`{"schemaVersion":2,"config":` + config + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + h("b") + `","size":9007199254740991}]}`, "", "larger than 17179869184 bytes"},
		"too many layers":   {`{"schemaVersion":2,"config":` + config + `,"layers":[` + strings.TrimSuffix(strings.Repeat(`{"size":1},`, 257), ",") + `]}`, "", "257 layers; 256"},
		"huge config":       {`{"schemaVersion":2,"config":` + strings.Replace(config, `"size":2`, `"size":2000000`, 1) + `}`, "", "1048576 are allowed"},
		"config of a chart": {`{"schemaVersion":2,"config":` + strings.Replace(config, "oci.image.config", "cncf.helm.config", 1) + `}`, "", "not a container image"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			d := digestOf([]byte(tt.manifest))
			_, err := s.Ensure(ctxT(t), fixed{tt.manifest, tt.mediaType}, machine.ImageRef{Digest: d})
			refused(t, s, err, tt.want)
		})
	}
	configs := map[string]struct{ config, want string }{
		"not JSON":     {`hello`, "config is malformed"},
		"no platform":  {`{}`, "is for /; this node runs"},
		"windows":      {`{"os":"windows","architecture":"` + runtime.GOARCH + `"}`, "is for windows/"},
		"other layers": {`{"os":"linux","architecture":"` + runtime.GOARCH + `","rootfs":{"type":"layers","diff_ids":["` + h("a") + `"]}}`, "config lists 1 layers"},
		"NUL":          {`{"os":"linux","architecture":"` + runtime.GOARCH + `","rootfs":{"type":"layers"},"config":{"Cmd":["a\u0000b"]}}`, "NUL character"},
		"wrong types":  {`{"os":"linux","architecture":"` + runtime.GOARCH + `","rootfs":{"type":"layers"},"config":{"Cmd":"sh"}}`, "config is malformed"},
	}
	for name, tt := range configs {
		t.Run("config: "+name, func(t *testing.T) {
			ins := &Inspection{Digest: key.Digest(h("c"))}
			err := ins.parseConfig([]byte(tt.config))
			if fault.KindOf(err) != fault.Unprocessable || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	// The six characters that JSON writes for NUL are not NUL.
	ins := &Inspection{Digest: key.Digest(h("c"))}
	ok, _ := json.Marshal(map[string]any{"os": "linux", "architecture": runtime.GOARCH, "rootfs": map[string]any{"type": "layers"},
		"config": map[string]any{"Cmd": []string{`printf '\u0000'`}}})
	if err := ins.parseConfig(ok); err != nil {
		t.Error(err)
	}
}

// fixed is a source of one manifest.
type fixed struct{ manifest, mediaType string }

func (f fixed) Manifest(context.Context, key.Digest) ([]byte, string, error) {
	return []byte(f.manifest), f.mediaType, nil
}

func (f fixed) Blob(context.Context, key.Digest, int64) (r io.ReadCloser, err error) {
	return nil, fault.New(fault.NotFound, "no blobs here")
}

// TestSourceErrorsPassThrough: what a source says reaches the caller.
func TestSourceErrorsPassThrough(t *testing.T) {
	s := openStore(t)
	img := imagetest.New(t, v1.Config{}, small...)
	raw, _ := img.RawManifest()
	_, err := s.Ensure(ctxT(t), fixed{string(raw), ""}, machine.ImageRef{Digest: imagetest.Digest(t, img)})
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("the error is %v", err)
	}
	broken := &failingSource{Source: FromImage(img)}
	_, err = s.Ensure(ctxT(t), broken, machine.ImageRef{Digest: imagetest.Digest(t, img)})
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("the error is %v", err)
	}
	if _, err := s.Ensure(ctxT(t), broken, machine.ImageRef{Digest: "sha256:../../x"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("the error is %v", err)
	}
	nothingLeft(t, s)
}

// failingSource breaks off in the middle of a layer.
type failingSource struct{ Source }

func (f *failingSource) Blob(ctx context.Context, d key.Digest, size int64) (r io.ReadCloser, err error) {
	r, err = f.Source.Blob(ctx, d, size)
	if img := f.Source.(imageSource); err == nil {
		if name, _ := img.img.ConfigName(); name.String() != string(d) {
			once := bytes.NewReader(make([]byte, 10))
			return closer{readerFunc(func(p []byte) (int, error) {
				if n, _ := once.Read(p); n > 0 {
					return n, nil
				}
				return 0, errors.New("connection reset by peer")
			})}, nil
		}
	}
	return r, err
}

type closer struct{ readerFunc }

func (c closer) Read(p []byte) (int, error) { return c.readerFunc(p) }
func (closer) Close() error                 { return nil }

func TestResolveUser(t *testing.T) {
	img := &Image{
		passwd: []byte("# comment\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/false\nbroken:x:abc:1:::\n123:x:5:6::/digits:\n"),
		group:  []byte("root:x:0:\nweb:x:34:\nadm:x:4:web,x\nlog:x:5:x,web\nagain:x:4:web\n"),
	}
	tests := []struct {
		user, want string
	}{
		{"", "0:0 [] /root"}, {"root", "0:0 [] /root"}, {"web", "33:34 [4 5] /var/www"}, {"33", "33:34 [4 5] /var/www"},
		{"web:adm", "33:4 [] /var/www"}, {"web:77", "33:77 [] /var/www"}, {"1000", "1000:0 [] /"}, {"1000:1000", "1000:1000 [] /"},
		{"123", "5:6 [] /digits"}, {"web:", "33:34 [4 5] /var/www"}, {":adm", "0:4 [] /root"},
		{"nobody", "error"}, {"broken", "error"}, {"web:none", "error"}, {"-1", "error"}, {"4294967296", "error"}, {"2147483647", "error"},
	}
	for _, tt := range tests {
		uid, gid, groups, home, err := img.ResolveUser(tt.user)
		got := fmt.Sprintf("%d:%d %v %s", uid, gid, groups, home)
		if err != nil {
			got = "error"
			if fault.KindOf(err) != fault.Unprocessable {
				t.Errorf("%q: %v", tt.user, err)
			}
		}
		if got != tt.want {
			t.Errorf("%q is %s, want %s", tt.user, got, tt.want)
		}
	}
}
