package world_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulkhead/failpoint"
	"bulkhead/fixture"
	"bulkhead/world"
	"bulkhead/world/history"
)

// soakClients is how many clients call at once.
const soakClients = 4

// TestSoak kills processes at random while several clients change things, and then
// asks: is every client's history one that a single register could have given, does
// everything come to rest as it was last asked for, and is nothing left behind?
// BULKHEAD_SOAK is how long it goes on ("make soak" sets it), BULKHEAD_SEED repeats
// the choices of an earlier run.
func TestSoak(t *testing.T) {
	length, seed := 15*time.Second, uint64(time.Now().UnixNano())
	if v := os.Getenv("BULKHEAD_SOAK"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("BULKHEAD_SOAK: %v", err)
		}
		length = d
	}
	if v := os.Getenv("BULKHEAD_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("BULKHEAD_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("BULKHEAD_SEED=%d BULKHEAD_SOAK=%v", seed, length)

	w := world.Start(t)
	// What is made once and kept (counters, the organization's network) is made before the census.
	w.CreateApp("first", "")
	w.Must("DELETE", "/apps/first", nil, nil)
	before, err := w.Census()
	if err != nil {
		t.Fatal(err)
	}
	before.Open["edge pipe"] += 4 * soakClients // what copies the API's connections in the kernel is pooled
	s := newSoak(t, w)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	all := make([]*soaker, soakClients)
	for i := range all {
		all[i] = &soaker{soak: s, id: i, rng: rand.New(rand.NewPCG(seed, uint64(i+1)))}
		clients.Go(func() { all[i].run(ctx) })
	}
	view := w.In(t) // shims are found by the runtime directory, whichever bulkheadd runs
	clients.Go(func() { s.countSandboxes(ctx, view) })
	faults := s.breakThings(t, rand.New(rand.NewPCG(seed, 0)), length)
	stop()
	clients.Wait()

	s.settle(t, all[0])
	if err := s.rec.Check(2 * time.Minute); err != nil {
		t.Error(err)
	}
	for _, p := range s.problems {
		t.Error(p)
	}
	n := s.rec.Count()
	t.Logf("soak: %d faults %v; %d operations acknowledged, %d refused, %d without an answer", total(faults), faults, n[history.Done], n[history.Refused], n[history.Unknown])
	if n[history.Done] < 20 {
		t.Errorf("only %d operations were acknowledged: that proves nothing", n[history.Done])
	}
	s.tearDown(t)
	if leaked := w.ReturnsTo(before, 30*time.Second); leaked != "" {
		t.Error(leaked)
	}
}

// newSoak makes the apps and Machines that the clients use.
func newSoak(t *testing.T, w *world.World) *soak {
	s := &soak{w: w, api: w.Ready.APIURL, token: w.Ready.Token, rec: history.NewRecorder(), apps: []string{"come-0", "come-1", "come-2"}, wanted: map[string]string{}}
	// The transport of now: a platform that comes back gets a new one.
	s.http = &http.Client{Transport: w.Client().Transport}
	for _, app := range []string{"reg", "churn", "web"} {
		w.CreateApp(app, "")
	}
	s.image = w.Push("reg", fixture.StaticGo(t))
	w.Run("web", world.Config{"image": s.image, "services": world.HTTPService(8080), "restart": map[string]any{"policy": "always"}})
	for i := range 4 {
		if i >= 2 { // an update writes all of the config, and metadata is part of it
			s.plain = append(s.plain, w.Run("reg", soakConfig(s.image, "")).ID)
			continue
		}
		v := fmt.Sprint("first-", i)
		m := w.Run("reg", soakConfig(s.image, v))
		s.machines = append(s.machines, m.ID)
		s.rec.Do(history.Op{Key: "config " + m.ID, Kind: history.Put, New: m.InstanceID + "|" + v}, func(o *history.Op) { o.Outcome = history.Done })
	}
	s.leased = w.Run("reg", soakConfig(s.image, "")).ID
	return s
}

// breakThings makes one fault after another for a time and says how many of which kind.
func (s *soak) breakThings(t *testing.T, rng *rand.Rand, length time.Duration) map[string]int {
	made := map[string]int{}
	roles := []string{"controller", "controller", "worker", "worker", "warden", "edge"}
	for end := time.Now().Add(length); time.Now().Before(end); {
		rest(t.Context(), 200+rng.IntN(1300))
		role := roles[rng.IntN(len(roles))]
		pid := s.w.Role(role)
		switch n := rng.IntN(20); {
		case n < 11:
			if pid != 0 { // it may be waiting to be started again
				syscall.Kill(pid, syscall.SIGKILL)
				made["kill "+role]++
			}
		case n < 14:
			if pid != 0 {
				syscall.Kill(pid, syscall.SIGSTOP)
				rest(t.Context(), 100+rng.IntN(1400))
				syscall.Kill(pid, syscall.SIGCONT)
				made["freeze "+role]++
			}
		case n < 17:
			if boxes := sandboxes(s.w); len(boxes) > 0 {
				syscall.Kill(boxes[rng.IntN(len(boxes))], syscall.SIGKILL)
				made["kill a sandbox"]++
			}
		case n < 19:
			s.w.Stop()
			s.w.Up()
			made["restart"]++
		default:
			s.w.PowerCut()
			s.w.Up()
			made["power cut"]++
		}
	}
	return made
}

// rest lets milliseconds pass between two faults or calls, less if the run ends.
func rest(ctx context.Context, ms int) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(ms) * time.Millisecond):
	}
}

// countSandboxes looks for two sandboxes of one Machine all the time.
func (s *soak) countSandboxes(ctx context.Context, w *world.World) {
	for ctx.Err() == nil {
		shims, seen := map[int]bool{}, map[string]bool{}
		for _, p := range w.Processes() {
			// A child of a shim is a shim too, between its fork and its exec.
			if p.Name != "bulkhead-shim" || len(p.Args) < 3 || shims[p.PPID] {
				continue
			}
			shims[p.PID] = true
			if id := p.Args[2]; seen[id] {
				s.problem("machine %s runs twice", id)
			} else {
				seen[id] = true
			}
		}
		rest(ctx, 200)
	}
}

// settle waits until everything rests as it was last asked for, and reads all of it.
func (s *soak) settle(t *testing.T, c *soaker) {
	w := s.w
	w.Eventually(60*time.Second, func() string {
		if status := s.call(t.Context(), "GET", "/apps/reg/machines", nil, nil); status != 200 {
			return fmt.Sprintf("the API answers with %d", status)
		}
		return ""
	})
	c.readAll(t.Context())
	for _, id := range slices.Concat(s.machines, s.plain) {
		w.Wait("reg", id, "started", 60*time.Second)
	}
	for id, state := range s.wanted {
		switch state {
		case "":
		case "started", "stopped":
			w.Wait("churn", id, state, 60*time.Second)
		}
	}
	w.Eventually(60*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	// What runs has the version that was last written.
	for _, id := range s.machines {
		_, v := c.readConfig(t.Context(), id)
		w.Eventually(30*time.Second, func() string {
			status, b := w.APIRaw("POST", "/apps/reg/machines/"+id+"/exec", map[string]any{"command": []string{"/staticgo", "env", "V"}, "timeout": 10})
			if status == 200 && strings.Contains(string(b), v.Config.Env["V"]) {
				return ""
			}
			return fmt.Sprintf("machine %s runs something else than version %q: %d %s", id, v.Config.Env["V"], status, b)
		})
	}
}

// tearDown destroys everything through the API.
func (s *soak) tearDown(t *testing.T) {
	w := s.w
	for _, app := range append([]string{"reg", "churn", "web"}, s.apps...) {
		if status, b := w.APIRaw("DELETE", "/apps/"+app+"?force=true", nil); status >= 300 && status != 404 {
			t.Errorf("deleting app %s: %d %s", app, status, b)
		}
	}
	w.Eventually(60*time.Second, func() string {
		_, b := w.APIRaw("GET", "/apps?org_slug=personal", nil)
		if strings.Contains(string(b), `"name"`) {
			return string(b)
		}
		return ""
	})
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// TestSoakSeesALostWrite is the control: a change that is acknowledged and not written
// makes the history of its client impossible.
func TestSoakSeesALostWrite(t *testing.T) {
	d := startDying(t)
	w := d.w
	w.CreateApp("reg", "")
	s := &soak{w: w, api: w.Ready.APIURL, token: w.Ready.Token, rec: history.NewRecorder(), http: w.Client()}
	var m world.Machine
	w.Must("POST", "/apps/reg/machines", map[string]any{"skip_launch": true, "config": soakConfig(w.Push("reg", fixture.StaticGo(t)), "")}, &m)
	c := &soaker{soak: s}
	path := "/apps/reg/machines/" + m.ID + "/metadata/a"
	put := func(value string) {
		c.do(history.Op{Key: "a", Kind: history.Put, New: value}, func(o *history.Op) {
			o.Outcome = s.outcome("put", s.call(t.Context(), "POST", path, map[string]string{"value": value}, nil))
		})
	}
	d.clear()
	put("1")
	c.readMetadata(t.Context(), history.Op{Key: "a"}, path)
	if err := s.rec.Check(time.Minute); err != nil || s.rec.Count()[history.Done] != 2 {
		t.Fatalf("without a fault: %v, %v", err, s.rec.Count())
	}
	i := slices.IndexFunc(d.names("seen"), func(p string) bool { return strings.HasPrefix(p, "store/txn/") && !inBackground(p) })
	if i < 0 {
		t.Fatalf("a change passes no place of the store: %v", d.names("seen"))
	}
	armed := d.file("armed", d.names("seen")[i])
	if err := errors.Join(os.WriteFile(armed, []byte(failpoint.Skip), 0o666), os.Chmod(armed, 0o666)); err != nil {
		t.Fatal(err)
	}
	put("2")
	c.readMetadata(t.Context(), history.Op{Key: "a"}, path)
	if n := s.rec.Count(); n[history.Done] != 4 {
		t.Fatalf("the write that is not made was not acknowledged: %v %v", n, s.problems)
	}
	if err := s.rec.Check(time.Minute); err == nil {
		t.Error("a write was lost, and the history passes")
	}
}
