package world_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestLostJournal damages the worker's journal beyond what a power cut does: while it
// is down and Machines run, and at a power cut. The worker makes it anew: what runs
// runs on untouched, or again, with its address; a job does not run twice; what is
// stopped stays so; and it is said once.
func TestLostJournal(t *testing.T) {
	w := world.StartOwn(t)
	w.CreateApp("lost", "")
	image := w.Push("lost", fixture.StaticGo(t))
	small := map[string]any{"cpu_kind": "shared", "cpus": 1, "memory_mb": 128}
	config := func(more world.Config) world.Config {
		c := world.Config{"image": image, "guest": small}
		for k, v := range more {
			c[k] = v
		}
		return c
	}
	web := w.Run("lost", config(world.Config{"services": world.HTTPService(8080)}))
	job := w.Run("lost", config(world.Config{"restart": map[string]any{"policy": "no"}}))
	stopped := w.Run("lost", config(nil))
	w.Must("POST", "/apps/lost/machines/"+stopped.ID+"/stop", nil, nil)
	w.Wait("lost", stopped.ID, "stopped", 30*time.Second)
	w.Eventually(20*time.Second, func() string { return answers(w, "lost", "/", 200, "") })
	addresses := map[string]string{}
	for _, m := range []world.Machine{web, job, stopped} {
		addresses[m.ID] = w.Machine("lost", m.ID).PrivateIP
	}
	journal := filepath.Join(w.DataDir, "worker", "journal.db")
	const said = "the worker's journal is damaged"

	before := sandboxes(w)
	load := w.Load("lost", "/")
	w.Down("worker")
	flip(t, journal)
	w.Back("worker")
	rebuilt(w, web.ID, job.ID, stopped.ID)
	w.Wait("lost", web.ID, "started", 30*time.Second)
	w.Wait("lost", job.ID, "started", 30*time.Second)
	if now := sandboxes(w); !slices.Equal(before, now) {
		t.Errorf("sandboxes %v were %v", now, before)
	}
	if sum := load.Stop(); sum.Lost > 0 {
		t.Errorf("requests were lost meanwhile: %+v", sum)
	}

	w.PowerCut()
	flip(t, journal)
	w.Up()
	rebuilt(w, web.ID, job.ID, stopped.ID)
	w.Wait("lost", web.ID, "started", 60*time.Second)
	w.Wait("lost", job.ID, "stopped", 30*time.Second)
	w.Wait("lost", stopped.ID, "stopped", 30*time.Second)
	w.Eventually(20*time.Second, func() string { return answers(w, "lost", "/", 200, "") })
	if n := len(sandboxes(w)); n != 1 {
		t.Errorf("%d sandboxes run, want 1", n)
	}
	if n := strings.Count(w.Log(), said); n != 2 {
		t.Errorf("%q is said %d times, want twice", said, n)
	}
	for id, was := range addresses {
		if now := w.Machine("lost", id).PrivateIP; now != was {
			t.Errorf("machine %s has %s and had %s", id, now, was)
		}
	}
	// The job runs when it is asked for, and the journal takes new Machines.
	w.Must("POST", "/apps/lost/machines/"+job.ID+"/start", nil, nil)
	w.Wait("lost", job.ID, "started", 60*time.Second)
	w.Run("lost", config(nil))
}

// flip changes a bit in the head of every page but the metas.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	for at := 2 * page; at < info.Size(); at += page {
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(b[4:], func(c byte) bool { return c != 0 }) { // a page's number, and no value's middle
			b[0] ^= 0x40
		}
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}

// rebuilt waits until each Machine's events say, once, that the journal was made anew.
// (What they said before a power cut is lost with the journal.)
func rebuilt(w *world.World, ids ...string) {
	w.T.Helper()
	for _, id := range ids {
		w.Eventually(60*time.Second, func() string {
			status, body := w.APIRaw("GET", "/apps/lost/machines/"+id, nil)
			if got := strings.Count(string(body), `"type":"rebuild"`); status != 200 || got != 1 {
				return string(body)
			}
			return ""
		})
	}
}
