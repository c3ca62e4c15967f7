package worker

import (
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/image"
	"bulkhead/image/imagetest"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
	"bulkhead/role"
)

// TestRealImages runs a Machine from an image that a real store fetches from the
// cluster's registry over the wire, verifies and seals.
func TestRealImages(t *testing.T) {
	program, err := imagetest.BuildUnpack(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	store := image.New(t.TempDir(), program, nil)
	if err := store.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	c := newCluster(t)
	c.startController()
	imgs := NewImages(store, image.NewRemote(privnet.Guard{}), internalpb.NewControllerClient(c.dial(c.id, c.socket("internal"), role.Controller)))

	img := imagetest.New(t, v1.Config{Cmd: []string{"sleep"}, User: "app", StopSignal: "SIGQUIT"},
		imagetest.Dir("etc/"), imagetest.Text("etc/passwd", "app:x:7:8::/home/app:/bin/sh\n"))
	digest := c.brain.hold(t, img)
	ref := machine.ImageRef{Repository: "web", Digest: digest}
	manifest, _ := img.RawManifest()
	id := key.NewMachineID()
	if err := imgs.Check(t.Context(), id, ref, manifest); err != nil {
		t.Fatalf("a good image is refused: %v", err)
	}
	if err := imgs.Check(t.Context(), id, ref, []byte("{}")); !fault.Is(err, fault.Unprocessable) {
		t.Fatalf("a manifest with another digest: %v", err)
	}

	c.node.down()
	c.node.w = c.node.make(c.node.host, imgs)
	if err := c.node.w.Open(); err != nil {
		t.Fatal(err)
	}
	settle(t, c.node.w)
	a := c.node.asg(id, plain)
	a.ImageRef, _ = json.Marshal(ref)
	c.node.assign(a)
	r := c.node.state(a, machine.Started)
	if r.Image != digest {
		t.Fatalf("runs from %s", r.Image)
	}
	// The image's user and stop signal count.
	act := &actor{w: c.node.w, id: id, rec: r, asg: a}
	sealed, _ := imgs.Lookup(digest)
	s, err := act.spec(sealed)
	if err != nil || s.UID != 7 || s.GID != 8 || !strings.Contains(strings.Join(s.Env, "\n"), "HOME=/home/app") {
		t.Fatalf("%+v, %v", s, err)
	}
	if sig, _ := act.stopWith(); sig != 3 {
		t.Fatalf("stop signal %d", sig)
	}

	// A blob that is not what its digest says ends the first start, with the reason.
	bad := imagetest.New(t, v1.Config{Cmd: []string{"sleep"}}, imagetest.Text("x", "y"))
	digest = c.brain.hold(t, bad)
	layers, _ := bad.Layers()
	d, _ := layers[0].Digest()
	c.brain.mu.Lock()
	c.brain.blobs[d.String()][0] ^= 1
	c.brain.mu.Unlock()
	b := c.node.asg(key.NewMachineID(), plain)
	b.ImageRef, _ = json.Marshal(machine.ImageRef{Repository: "web", Digest: digest})
	c.node.assign(b)
	if r := c.node.state(b, machine.Destroyed); !strings.Contains(r.Error, "digest") {
		t.Fatalf("error %q", r.Error)
	}
}
