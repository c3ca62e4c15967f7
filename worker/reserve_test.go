package worker

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/role"
)

func TestReserve(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w := c.as(role.Controller)
	id := string(key.NewMachineID())
	reserve := func(config string, change func(*internalpb.ReserveRequest)) (machine.ImageRef, error) {
		req := &internalpb.ReserveRequest{MachineId: id, App: "web", Config: []byte(config)}
		if change != nil {
			change(req)
		}
		r, err := w.Reserve(ctx, req)
		var ref machine.ImageRef
		if err == nil {
			json.Unmarshal(r.ImageRef, &ref)
		}
		return ref, err
	}
	if ref, err := reserve(`{"image":"nginx"}`, nil); err != nil || ref.Registry != "registry.example.com" || ref.Digest != digestA {
		t.Errorf("remote: %+v, %v", ref, err)
	}
	own := func(r *internalpb.ReserveRequest) { r.Digest, r.Repository = string(digestB), "web" }
	if ref, err := reserve(`{"image":"registry/web"}`, own); err != nil || ref.Registry != "" || ref.Repository != "web" || ref.Digest != digestB {
		t.Errorf("own: %+v, %v", ref, err)
	}
	for _, bad := range []struct {
		config string
		change func(*internalpb.ReserveRequest)
		kind   fault.Kind
		say    string
	}{
		{`{`, nil, fault.Invalid, "cannot be read"},
		{`{"image":"a","schedule":"daily"}`, nil, fault.Invalid, "config.schedule"},
		{`{"image":"missing"}`, nil, fault.NotFound, "there is no image"},
		{`{"image":"a","guest":{"memory_mb":8192}}`, nil, fault.Precondition, noMemory},
		{`{"image":"a"}`, func(r *internalpb.ReserveRequest) { own(r); r.Manifest = []byte("s390x") }, fault.Unprocessable, "linux/s390x"},
		{`{"image":"a"}`, func(r *internalpb.ReserveRequest) { r.Digest = "sha1:x" }, fault.Invalid, "digest"},
		{`{"image":"a"}`, func(r *internalpb.ReserveRequest) { r.MachineId = "x" }, fault.Invalid, "machine id"},
	} {
		if _, err := reserve(bad.config, bad.change); !fault.Is(err, bad.kind) || !strings.Contains(err.Error(), bad.say) {
			t.Errorf("%s: %v", bad.config, err)
		}
	}
	// What others take counts; the Machine itself does not count twice.
	a := c.node.assign(c.node.asg(key.NewMachineID(), `{"image":"a","guest":{"memory_mb":3000}}`))
	c.node.state(a, machine.Started)
	if _, err := reserve(`{"image":"a","guest":{"memory_mb":1200}}`, nil); !fault.Is(err, fault.Precondition) {
		t.Errorf("%v", err)
	}
	if _, err := reserve(`{"image":"a","guest":{"memory_mb":4000}}`, func(r *internalpb.ReserveRequest) { r.MachineId = a.MachineId }); err != nil {
		t.Errorf("%v", err)
	}
	if _, err := reserve(`{"image":"a","guest":{"memory_mb":5000}}`, func(r *internalpb.ReserveRequest) { r.MachineId = a.MachineId }); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
	a = c.node.assign(c.node.next(a, desired(machine.WantStopped)))
	c.node.until(a.MachineId, "no sandbox", func(r *record) bool { return r.State == machine.Stopped && r.Sandbox == "" })
	if _, err := reserve(`{"image":"a","guest":{"memory_mb":1200}}`, nil); err != nil {
		t.Errorf("%v", err)
	}
}

// TestBlobsAreTakenUpAgain: a controller that restarts in the middle of a blob costs
// no byte twice and none is missing.
func TestBlobsAreTakenUpAgain(t *testing.T) {
	c := newCluster(t)
	c.startController()
	data := make([]byte, 50_123)
	for i := range data {
		data[i] = byte(i * 7)
	}
	c.brain.blobs[string(digestA)] = data
	c.brain.cut = 3
	src := &clusterSource{internalpb.NewControllerClient(c.dial(c.id, c.socket("internal"), role.Controller)), "0123456789abcd", "web"}
	r, err := src.Blob(t.Context(), digestA, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != string(data) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(data), err)
	}
	r.Close()
	r, err = src.Blob(t.Context(), digestB, 1)
	if err == nil {
		_, err = r.Read(make([]byte, 1))
	}
	if !fault.Is(err, fault.NotFound) {
		t.Fatalf("a missing blob: %v", err)
	}
	m, mt, err := src.Manifest(t.Context(), digestA)
	if err != nil || mt != "t" || string(m) != "web"+string(digestA)+"0123456789abcd" {
		t.Fatalf("%s, %s, %v", m, mt, err)
	}
}
