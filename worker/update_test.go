package worker

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/key"
	"bulkhead/machine"
)

// TestAnUpdateServesWhileItFetches: until the new version's image is ready the old
// version runs and counts as started, so that it is routed to.
func TestAnUpdateServesWhileItFetches(t *testing.T) {
	n := newNode(t)
	n.boot()
	a := n.assign(n.asg(key.NewMachineID(), plain))
	n.state(a, machine.Started)
	old := a.InstanceId

	asked, release := make(chan struct{}), make(chan struct{})
	n.images.mu.Lock()
	n.images.ensure = func(ctx context.Context, ref machine.ImageRef) error {
		if ref.Digest != digestB {
			return nil
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	n.images.mu.Unlock()
	ref, err := json.Marshal(machine.ImageRef{Repository: "app", Digest: digestB})
	if err != nil {
		t.Fatal(err)
	}
	a = n.assign(n.next(a, func(a *internalpb.Assignment) {
		a.InstanceId = string(key.NewInstanceID())
		a.ImageRef = ref
	}))
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Fatal("the new version's image is not fetched")
	}
	n.until(a.MachineId, "the old version is started", func(r *record) bool {
		return r.State == machine.Started && string(r.Instance) == old && string(r.Sandbox) == old
	})
	close(release)
	n.until(a.MachineId, "the new version is started", func(r *record) bool {
		return r.State == machine.Started && string(r.Instance) == a.InstanceId && string(r.Sandbox) == a.InstanceId
	})
}
