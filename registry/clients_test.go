package registry_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/stream"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/registry/registrytest"
)

// TestGoContainerRegistry runs the client that Bulkhead's own CLI uses.
func TestGoContainerRegistry(t *testing.T) {
	s := registrytest.Serve(t)
	img, err := random.Image(1<<20, 3)
	check(t, err)
	s.Push(t, "app/web:v1", img)
	s.Push(t, "app/web:v1", img) // again: everything is there
	got, err := remote.Image(s.Ref(t, "app/web:v1"), s.Auth())
	check(t, err)
	check(t, validate.Image(got))
	same(t, img, got)
	s.Push(t, "app/copy:v1", got) // mounts from app/web

	idx, err := random.Index(1<<16, 2, 3)
	check(t, err)
	check(t, remote.WriteIndex(s.Ref(t, "app/multi:v1"), idx, s.Auth()))
	gotIndex, err := remote.Index(s.Ref(t, "app/multi:v1"), s.Auth())
	check(t, err)
	check(t, validate.Index(gotIndex))

	docker := mutate.MediaType(img, types.DockerManifestSchema2)
	s.Push(t, "app/docker:v1", docker)
	head, err := remote.Head(s.Ref(t, "app/docker:v1"), s.Auth())
	check(t, err)
	if head.MediaType != types.DockerManifestSchema2 {
		t.Errorf("media type %s of a Docker image", head.MediaType)
	}

	// A layer whose digest the client does not know before it has sent it.
	content, err := img.Layers()
	check(t, err)
	rc, err := content[0].Uncompressed()
	check(t, err)
	streamed, err := mutate.AppendLayers(img, stream.NewLayer(rc))
	check(t, err)
	s.Push(t, "app/streamed:v1", streamed)

	tags, err := remote.List(s.Ref(t, "app/web:v1").Context(), s.Auth())
	check(t, err)
	if !slices.Equal(tags, []string{"v1"}) {
		t.Errorf("tags %v", tags)
	}
	signature, err := random.Image(100, 1)
	check(t, err)
	desc, err := partial.Descriptor(img)
	check(t, err)
	attached := mutate.Subject(signature, *desc).(v1.Image)
	s.Push(t, "app/web:sig", attached)
	d, err := img.Digest()
	check(t, err)
	referrers, err := remote.Referrers(s.Ref(t, "app/web:v1").Context().Digest(d.String()), s.Auth())
	check(t, err)
	manifest, err := referrers.IndexManifest()
	check(t, err)
	if len(manifest.Manifests) != 1 {
		t.Errorf("%d referrers, want 1", len(manifest.Manifests))
	}
	check(t, remote.Delete(s.Ref(t, "app/web@"+d.String()), s.Auth()))
	if _, err := remote.Image(s.Ref(t, "app/web:v1"), s.Auth()); err == nil {
		t.Error("a deleted image can be pulled")
	}

	if _, err := remote.Image(s.Ref(t, "app/docker:v1")); err == nil {
		t.Error("an image can be pulled without a token")
	}
	bearer := remote.WithAuth(authn.FromConfig(authn.AuthConfig{RegistryToken: registrytest.Token}))
	_, err = remote.Image(s.Ref(t, "app/docker:v1"), bearer)
	check(t, err)
}

// TestSkopeo runs a client that nobody here wrote and that shares no code with the
// other one.
func TestSkopeo(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Fatal("skopeo is missing: apt-get install -y skopeo")
	}
	s := registrytest.Serve(t)
	dir := t.TempDir()
	img, err := random.Image(1<<18, 2)
	check(t, err)
	_, err = layout.Write(filepath.Join(dir, "in"), mustIndex(t, img))
	check(t, err)
	skopeo := func(args ...string) []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "skopeo", append([]string{"--insecure-policy"}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("skopeo %v: %v: %s", args, err, out)
		}
		return out
	}
	creds, remoteRef := "any:"+registrytest.Token, "docker://"+s.Addr+"/sk/opeo:v1"
	skopeo("copy", "--dest-tls-verify=false", "--dest-creds", creds, "oci:"+dir+"/in", remoteRef)
	skopeo("copy", "--dest-tls-verify=false", "--dest-creds", creds, "--format", "v2s2", "oci:"+dir+"/in", "docker://"+s.Addr+"/sk/docker:v1")
	skopeo("copy", "--src-tls-verify=false", "--src-creds", creds, "--dest-tls-verify=false", "--dest-creds", creds, remoteRef, "docker://"+s.Addr+"/sk/copy:v1")
	skopeo("copy", "--src-tls-verify=false", "--src-creds", creds, remoteRef, "dir:"+dir+"/out")
	var inspected struct{ Digest string }
	check(t, json.Unmarshal(skopeo("inspect", "--no-tags", "--tls-verify=false", "--creds", creds, remoteRef), &inspected))
	d, err := img.Digest()
	check(t, err)
	if inspected.Digest != d.String() {
		t.Errorf("skopeo sees digest %s, want %s", inspected.Digest, d)
	}
	got, err := remote.Image(s.Ref(t, "sk/copy:v1"), s.Auth())
	check(t, err)
	same(t, img, got)
	check(t, validate.Image(got))
	skopeo("delete", "--tls-verify=false", "--creds", creds, remoteRef)
	if _, err := remote.Head(s.Ref(t, "sk/opeo:v1"), s.Auth()); err == nil {
		t.Error("skopeo's delete deleted nothing")
	}
}

// mustIndex makes an index of one image.
func mustIndex(t *testing.T, img v1.Image) v1.ImageIndex {
	t.Helper()
	idx, err := random.Index(1, 0, 0)
	check(t, err)
	return mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img})
}

// same checks that two images are one.
func same(t *testing.T, a, b v1.Image) {
	t.Helper()
	da, err := a.Digest()
	check(t, err)
	db, err := b.Digest()
	check(t, err)
	if da != db {
		t.Errorf("digest %s, want %s", db, da)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
