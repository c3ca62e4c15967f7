package world_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"bulkhead/client"
	"bulkhead/fixture"
	"bulkhead/key"
	"bulkhead/world"
)

// slowFetch is how long the image of TestUpdateUnderARefreshedLease takes to fetch.
const slowFetch = 10 * time.Second

// TestUpdateUnderARefreshedLease: an update whose image takes ten seconds to fetch ends, while
// its client refreshes the lease every second. The fetch is done once, and the Machine is
// started once. What takes the time is the unpacker, which the test freezes.
func TestUpdateUnderARefreshedLease(t *testing.T) {
	w := world.Shared(t)
	const app = "refreshed"
	w.CreateApp(app, "")
	m := w.Run(app, sleepy(w.Push(app, fixture.StaticGo(t)), 1))
	large := make([]byte, 24<<20) // long enough under way to be met
	rand.Read(large)
	img, err := mutate.AppendLayers(fixture.StaticGo(t), fixture.FileLayer(t, []fixture.File{{Path: "/large", Body: large}}))
	if err != nil {
		t.Fatal(err)
	}
	next := w.Push(app, img)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := client.New(client.Config{URL: w.Ready.APIURL, Token: w.Ready.Token, Pin: w.Ready.Pin})
	if err != nil {
		t.Fatal(err)
	}
	id := key.MachineID(m.ID)
	const ttl = 13 * time.Second // as bulkhead deploy has it
	lease, err := c.AcquireLease(ctx, app, id, ttl, "an update", "")
	if err != nil {
		t.Fatal(err)
	}
	var in client.LaunchInput
	config := sleepy(next, 1)
	config["env"] = map[string]string{"V": "2"}
	b, err := json.Marshal(map[string]any{"config": config})
	if err := errors.Join(err, json.Unmarshal(b, &in)); err != nil {
		t.Fatal(err)
	}
	met := make(chan int, 1)
	go freezeUnpacker(ctx, w.Role("worker"), met)
	if _, err := c.UpdateMachine(ctx, app, id, in, lease.Nonce); err != nil {
		t.Fatal(err)
	}
	refreshed := time.Now()
	refresh := func() { // each second, as a client does
		if time.Since(refreshed) < time.Second {
			return
		}
		if lease, err = c.AcquireLease(ctx, app, id, ttl, "an update", lease.Nonce); err != nil {
			t.Fatal(err)
		}
		refreshed = time.Now()
	}
	var frozen int
	w.Eventually(patience, func() string {
		refresh()
		select {
		case frozen = <-met:
			return ""
		default:
			return "no image is unpacked"
		}
	})
	defer syscall.Kill(frozen, syscall.SIGCONT)
	for began := time.Now(); time.Since(began) < slowFetch; time.Sleep(200 * time.Millisecond) {
		refresh()
		if err := syscall.Kill(frozen, 0); err != nil {
			t.Fatalf("the unpacker that was frozen is gone: %v", err)
		}
	}
	if err := syscall.Kill(frozen, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.Eventually(30*time.Second, func() string { return answers(w, app, "/env", 200, `"V":"2"`) })
	starts := 0
	for _, e := range w.Machine(app, m.ID).Events {
		if e.Type == "start" {
			starts++
		}
	}
	if starts != 2 {
		t.Errorf("the machine was started %d times", starts)
	}
	if err := c.ReleaseLease(ctx, app, id, lease.Nonce); err != nil {
		t.Error(err)
	}
}

// freezeUnpacker stops the first process that unpacks an image for a worker, and says which
// one. It looks without a pause: unpacking takes a moment.
func freezeUnpacker(ctx context.Context, worker int, met chan<- int) {
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if pid := world.ChildNamed(worker, "bulkhead-unpack"); pid != 0 && syscall.Kill(pid, syscall.SIGSTOP) == nil {
			met <- pid
			return
		}
	}
}
