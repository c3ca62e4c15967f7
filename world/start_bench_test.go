package world_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// idleMachines run beside a start in the second half of BenchmarkStart.
const idleMachines = 50

// BenchmarkStart measures the time from the call that creates a Machine to its first
// answer through the edge, with its image on the node already, and beside it, in
// turn, what runc and the bare sandbox take for the same program. Then the same with
// idle Machines beside it, and without them again. "make bench-start" runs it.
func BenchmarkStart(b *testing.B) {
	s := newStartBench(b, world.Start(b))
	var rounds int
	for b.Loop() {
		rounds++ // of each part
	}
	s.rounds(rounds / 2)
	s.fill()
	s.beside = true
	s.rounds(rounds)
	s.beside = false
	memory := s.idleMemory()
	s.empty()
	s.rounds(rounds - rounds/2)

	figure("start_count", float64(len(s.took["platform"])))
	for _, kind := range []string{"platform", "sandbox", "runc", "platform_beside_50", "sandbox_beside_50"} {
		figure("start_"+kind+"_min_ms", quantile(s.took[kind], 0))
		figure("start_"+kind+"_p50_ms", quantile(s.took[kind], 50))
		figure("start_"+kind+"_p95_ms", quantile(s.took[kind], 95))
	}
	p50 := func(kind string) float64 { return quantile(s.took[kind], 50) }
	figure("start_platform_to_sandbox_min_ratio", quantile(s.took["platform"], 0)/quantile(s.took["sandbox"], 0))
	figure("start_platform_to_sandbox_ratio", p50("platform")/p50("sandbox"))
	figure("start_platform_to_runc_ratio", p50("platform")/p50("runc"))
	figure("start_beside_50_to_alone_ratio", p50("platform_beside_50")/p50("platform"))
	figure("sandbox_beside_50_to_alone_ratio", p50("sandbox_beside_50")/p50("sandbox"))
	figure("machine_idle_pss_p50_mb", quantile(memory, 50))
	figure("machine_idle_pss_max_mb", quantile(memory, 100))
}

// startBench is what BenchmarkStart starts with.
type startBench struct {
	b      *testing.B
	w      *world.World
	image  string
	bare   *bare
	beside bool
	idle   []string
	trace  func(id string, begin, end time.Time)
	took   map[string][]time.Duration
}

func newStartBench(b *testing.B, w *world.World) *startBench {
	s := &startBench{b: b, w: w, took: map[string][]time.Duration{}}
	img := fixture.StaticGo(b)
	s.w.CreateApp("web", "")
	s.w.CreateApp("idle", "")
	s.image = s.w.Push("web", img)
	s.w.Push("idle", img)
	s.platform() // seals the image
	sealed, err := filepath.Glob(filepath.Join(s.w.DataDir, "images", "*.erofs"))
	if err != nil || len(sealed) != 1 {
		b.Fatalf("%d sealed images below %s (%v)", len(sealed), s.w.DataDir, err)
	}
	s.bare = newBare(b, img, sealed[0])
	s.round()
	clear(s.took) // the first start of each was for warming up
	return s
}

// rounds starts each kind n times, in turn.
func (s *startBench) rounds(n int) {
	for range n {
		s.round()
	}
}

func (s *startBench) round() {
	kinds := []struct {
		name  string
		start func() (time.Duration, error)
	}{
		{"platform", s.platform},
		{"sandbox", func() (time.Duration, error) { return s.bare.sandbox(filepath.Join(s.w.Bin, "bulkhead-sandbox")) }},
		{"runc", s.bare.runc},
	}
	for _, k := range kinds {
		if s.beside && k.name == "runc" {
			continue
		}
		d, err := k.start()
		if err != nil {
			s.b.Fatalf("%s: %v", k.name, err)
		}
		if s.beside {
			k.name += "_beside_50"
		}
		s.took[k.name] = append(s.took[k.name], d)
	}
}

// platform measures one start through the API and removes the Machine again.
func (s *startBench) platform() (time.Duration, error) {
	begin := time.Now()
	var m world.Machine
	s.w.Must("POST", "/apps/web/machines", map[string]any{"config": world.Config{"image": s.image, "services": world.HTTPService(8080)}}, &m)
	// Asking the app until then would be work for the two processors that start it.
	s.w.Wait("web", m.ID, "started", time.Minute)
	s.until(func(status int) bool { return status == http.StatusOK })
	end := time.Now()
	if s.trace != nil {
		s.trace(m.ID, begin, end)
	}
	s.w.Must("DELETE", "/apps/web/machines/"+m.ID+"?force=true", nil, nil)
	s.w.Wait("web", m.ID, "destroyed", 20*time.Second)
	s.until(func(status int) bool { return status != http.StatusOK })
	return end.Sub(begin), nil
}

// until asks the app until the answer is the one wanted.
func (s *startBench) until(enough func(status int) bool) {
	last := 0
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if status, _, err := s.w.Get("web", "/"); err == nil {
			if last = status; enough(status) {
				return
			}
		}
	}
	s.b.Fatalf("the app answers with %d, and that does not change", last)
}

// fill starts the idle Machines, a few at a time, and waits until they are idle.
func (s *startBench) fill() {
	image := strings.Replace(s.image, "/web@", "/idle@", 1)
	s.idle = make([]string, idleMachines)
	gate := make(chan struct{}, 4)
	var wg sync.WaitGroup
	for i := range s.idle {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			s.idle[i] = s.w.Run("idle", world.Config{"image": image, "guest": map[string]any{"cpus": 1, "memory_mb": 256, "cpu_kind": "shared"}}).ID
		})
	}
	wg.Wait()
	time.Sleep(2 * time.Second)
}

func (s *startBench) empty() {
	for _, id := range s.idle {
		s.w.Must("DELETE", "/apps/idle/machines/"+id+"?force=true", nil, nil)
	}
	for _, id := range s.idle {
		s.w.Wait("idle", id, "destroyed", time.Minute)
	}
}

// idleMemory returns, for each shim, what it and all its descendants take of the
// machine's memory, as durations so that quantile can sort them: pages that several share
// count in parts (PSS). A MB is a millisecond here.
func (s *startBench) idleMemory() []time.Duration {
	of, sums := map[int]int{}, map[int]time.Duration{}
	all := s.w.Processes()
	for _, p := range all {
		if p.Name == "bulkhead-shim" {
			of[p.PID] = p.PID
		}
	}
	for changed := true; changed; {
		changed = false
		for _, p := range all {
			if top := of[p.PPID]; top != 0 && of[p.PID] == 0 {
				of[p.PID], changed = top, true
			}
		}
	}
	for pid, top := range of {
		sums[top] += pss(pid)
	}
	var out []time.Duration
	for _, v := range sums {
		out = append(out, v)
	}
	return out
}

// pss reads a process's share; a KB is a microsecond.
func pss(pid int) time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kb, _ := strconv.Atoi(f[1])
			return time.Duration(kb) * time.Microsecond
		}
	}
	return 0
}

// quantile returns the q-th percentile of a sorted copy, in milliseconds.
func quantile(took []time.Duration, q int) float64 {
	if len(took) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(took))
	return float64(s[min(len(s)*q/100, len(s)-1)].Microseconds()) / 1000
}

// figure prints a line of the benchmark's result.
func figure(name string, value float64) { fmt.Printf("%s %.2f\n", name, value) }
