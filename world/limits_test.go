package world_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"bulkhead/fixture"
	"bulkhead/machine"
	"bulkhead/world"
)

// greedy is a Machine of the program in fixture/greedy, alone in its app.
type greedy struct {
	*world.World
	app, id, ip string
}

// runGreedy makes the Machine. All of a test are in one network.
func runGreedy(w *world.World, app string, memory, cpus int, limits map[string]any) *greedy {
	w.T.Helper()
	w.CreateApp(app, "limits")
	config := world.Config{
		"image": w.Push(app, fixture.Greedy(w.T)), "services": world.HTTPService(fixture.StaticGoPort),
		"guest": map[string]any{"cpu_kind": "shared", "cpus": cpus, "memory_mb": memory}, "restart": map[string]any{"policy": "always"},
	}
	if limits != nil {
		config["bulkhead_limits"] = limits
	}
	m := w.Run(app, config)
	g := &greedy{w, app, m.ID, m.PrivateIP}
	w.Eventually(20*time.Second, func() string { return g.alive() })
	return g
}

// alive says why the Machine does not answer through the edge; "" when it does.
func (g *greedy) alive() string {
	status, body, err := g.Get(g.app, "/")
	if err != nil || status != 200 || body != "hello\n" {
		return fmt.Sprintf("%s answers %d %q, %v", g.app, status, body, err)
	}
	return ""
}

// take runs one verb and returns how much it got, and why no more.
func (g *greedy) take(verb ...string) (n int, word string) {
	g.T.Helper()
	r := g.Exec(g.app, g.id, append([]string{"/greedy"}, verb...)...)
	if _, err := fmt.Sscan(r.Stdout, &n, &word); err != nil {
		g.T.Fatalf("%s: %v: %d %q %q", g.app, verb, r.ExitCode, r.Stdout, r.Stderr)
	}
	return n, word
}

// told returns how many events there are of each limit.
func (g *greedy) told() map[string]int {
	g.T.Helper()
	n := map[string]int{}
	for _, e := range g.Machine(g.app, g.id).Events {
		if e.Type == "limit" && e.Request != nil && e.Request.LimitEvent != nil {
			n[e.Request.LimitEvent.Limit]++
		}
	}
	return n
}

// metrics returns the Machine's metrics, "name" or "name/limit" to value.
func (g *greedy) metrics() map[string]float64 {
	g.T.Helper()
	req, err := http.NewRequest("GET", g.Ready.APIURL+"/metrics?role=worker", nil)
	if err != nil {
		g.T.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+g.Ready.Token)
	resp, err := g.Client().Do(req)
	if err != nil {
		g.T.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		g.T.Fatalf("metrics: %s", resp.Status)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(resp.Body)
	if err != nil {
		g.T.Fatal(err)
	}
	out := map[string]float64{}
	for name, f := range families {
		name, ok := strings.CutPrefix(name, "bulkhead_machine_")
		if !ok {
			continue
		}
		for _, m := range f.Metric {
			key, mine := name, false
			for _, l := range m.Label {
				mine = mine || l.GetName() == "machine" && l.GetValue() == g.id
				if l.GetName() == "limit" {
					key += "/" + l.GetValue()
				}
			}
			if mine {
				out[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return out
}

// TestLimits: every limit of a Machine is set low and met by a program inside. It gets
// so much and no more, lives, its user reads one event of each, the metrics say how
// often; meanwhile a neighbour and the API answer. The neighbour is the control: with
// room enough the same program gets all it wants, and nothing is told.
func TestLimits(t *testing.T) {
	w := world.Shared(t)
	tight := runGreedy(w, "tight", 192, 1, map[string]any{
		"disk_mb": 16, "inodes": 1000, "processes": 32, "open_files": 256, "log_kb_per_second": 8, "log_lines_per_second": 40,
		"network_mbps": 2, "packets_per_second": 2000,
	})
	free := runGreedy(w, "free", 512, 4, nil)
	slow := runGreedy(w, "slow", 128, 1, map[string]any{"cpu_percent": 20})
	stop := watchNeighbour(free)

	cases := 0
	for _, c := range []struct {
		limit, word string
		verb        []string
		min, max    int // what tight gets
		all         int // what free gets: what was asked for
	}{
		{machine.LimitDisk, "ENOSPC", []string{"fill", "/full", "64"}, 14, 16, 64},
		{machine.LimitDisk, "ENOSPC", []string{"fill", "/tmp/full", "64"}, 14, 16, 64},
		{machine.LimitDisk, "ENOSPC", []string{"fill", "/dev/shm/full", "64"}, 14, 16, 64},
		{machine.LimitInodes, "ENOSPC", []string{"files", "/many", "2000"}, 900, 1000, 2000},
		{machine.LimitProcesses, "EAGAIN", []string{"fork", "60"}, 8, 31, 60},
		{machine.LimitOpenFiles, "EMFILE", []string{"open", "1000"}, 200, 256, 1000},
	} {
		for range 2 { // what was taken is given back, and met again it is no news
			if n, word := tight.take(c.verb...); word != c.word || n < c.min || n > c.max {
				t.Errorf("%v: tight got %d, then %s; want %d to %d, then %s", c.verb, n, word, c.min, c.max, c.word)
			}
		}
		if n, word := free.take(c.verb...); word != "ok" || n != c.all {
			t.Errorf("control: %v: free got %d, then %s; want all %d", c.verb, n, word, c.all)
		}
		cases++
	}

	t.Run("log", func(t *testing.T) { floodLog(t, w, tight, free) })
	t.Run("network", func(t *testing.T) { floodNetwork(t, w, tight, free) })
	cases += 3
	w.Eventually(90*time.Second, func() string { // when others leave it too little, again
		slow.take("spin", "16")
		if n := slow.told(); n[machine.LimitCPU] != 1 || len(n) != 1 {
			return fmt.Sprintf("events %v, want one of the processors; %v", n, slow.metrics())
		}
		return ""
	})
	cases++

	all := []string{machine.LimitDisk, machine.LimitInodes, machine.LimitProcesses, machine.LimitOpenFiles, machine.LimitLog,
		machine.LimitNetworkOut, machine.LimitNetworkIn}
	w.Eventually(30*time.Second, func() string {
		for _, limit := range all {
			if n := tight.told()[limit]; n != 1 {
				return fmt.Sprintf("%d events of limit %s: %v", n, limit, tight.told())
			}
		}
		return ""
	})
	if m := slow.metrics(); m["cpu_limit"] != 0.2 || m["cpu_throttled_seconds_total"] <= 0 {
		t.Errorf("slow: %v", m)
	}
	if n := free.told(); len(n) != 0 {
		t.Errorf("control: free is told of %v", n)
	}
	lookAtMetrics(t, tight, free, all)
	if why := tight.alive(); why != "" {
		t.Errorf("after all of it %s", why)
	}
	out := w.MustCLI("machine", "status", tight.id, "--app", tight.app)
	for _, want := range []string{"limit", "raise bulkhead_limits.disk_mb", "raise bulkhead_limits.processes"} {
		if !strings.Contains(out, want) {
			t.Errorf("machine status does not say %q:\n%s", want, out)
		}
	}
	t.Run("memory", func(t *testing.T) { floodMemory(t, w, tight, free) })
	stop()
	t.Logf("%d limits met", cases+1)
}

// watchNeighbour asks the Machine and the API all the time; the function that it
// returns ends that and fails the test for what did not answer.
func watchNeighbour(g *greedy) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	asked, failed, last := 0, 0, ""
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(250 * time.Millisecond):
			}
			asked++
			if why := g.alive(); why != "" {
				failed++
				last = why
			}
		}
	})
	return func() {
		g.T.Helper()
		close(done)
		wg.Wait()
		if failed > 0 || asked < 10 {
			g.T.Errorf("the neighbour did not answer %d of %d times: %s", failed, asked, last)
		}
		g.T.Logf("the neighbour answered %d of %d times", asked-failed, asked)
	}
}

// floodLog prints 3,000 lines at once.
func floodLog(t *testing.T, w *world.World, tight, free *greedy) {
	lines := func(g *greedy) (kept int, notes string) {
		_, body := w.APIRaw("GET", "/apps/"+g.app+"/machines/"+g.id+"/logs?tail=0", nil)
		for line := range strings.Lines(string(body)) {
			if strings.Contains(line, "yyyy") {
				kept++
			}
			if strings.Contains(line, "dropped") {
				notes += line
			}
		}
		return kept, notes
	}
	for _, g := range []*greedy{tight, free} {
		if status, body, err := g.Get(g.app, "/print/3000/50"); err != nil || status != 200 || body != "3000 ok\n" {
			t.Fatalf("%s prints: %d %q %v", g.app, status, body, err)
		}
	}
	// At once it may print 8 s' worth: 320 lines.
	w.Eventually(20*time.Second, func() string {
		if n, notes := lines(tight); n < 300 || n > 1500 || !strings.Contains(notes, "lines were dropped") {
			return fmt.Sprintf("tight has %d lines, notes %q", n, notes)
		}
		if n, notes := lines(free); n != 3000 || notes != "" {
			return fmt.Sprintf("control: free has %d lines, notes %q", n, notes)
		}
		return ""
	})
}

// floodNetwork sends 6 MB and 6,000 packets in each direction between the two.
func floodNetwork(t *testing.T, w *world.World, tight, free *greedy) {
	for _, d := range []struct {
		from, to *greedy
		metric   string
	}{{tight, free, "network_sent_dropped_packets_total"}, {free, tight, "network_received_dropped_packets_total"}} {
		if n, word := d.from.take("send", "["+d.to.ip+"]:9", "6000"); word != "ok" || n < 4000 {
			t.Fatalf("%s sent %d, then %s", d.from.app, n, word)
		}
		got, other := tight.metrics()[d.metric], free.metrics()[d.metric]
		if got < 500 || other != 0 {
			t.Errorf("%s: %v for tight, %v for free (control)", d.metric, got, other)
		}
	}
	w.Eventually(10*time.Second, tight.alive)
}

// lookAtMetrics holds the metrics of both against what was set and done.
func lookAtMetrics(t *testing.T, tight, free *greedy, all []string) {
	got, other := tight.metrics(), free.metrics()
	for name, want := range map[string]float64{
		"memory_limit_bytes": (192 + 48) << 20, "cpu_limit": 1, "processes_limit": 32, "disk_limit_bytes": 16 << 20, "inodes_limit": 1000,
		"open_files_limit": 256, "network_limit_bits": 2e6, "log_limit_bytes": 8 << 10,
	} {
		if got[name] != want {
			t.Errorf("tight: %s is %v, want %v", name, got[name], want)
		}
	}
	for _, name := range []string{"memory_bytes", "cpu_seconds_total", "processes", "host_tasks", "host_tasks_limit", "disk_bytes", "inodes",
		"network_sent_bytes_total", "network_received_bytes_total", "log_lines_dropped_total"} {
		if got[name] <= 0 {
			t.Errorf("tight: %s is %v", name, got[name])
		}
	}
	for _, limit := range all {
		if got["limit_hits_total/"+limit] <= 0 {
			t.Errorf("tight: limit %s has no hits", limit)
		}
		if n := other["limit_hits_total/"+limit]; n != 0 {
			t.Errorf("control: free has %v hits of limit %s", n, limit)
		}
	}
}

// floodMemory takes more than there is, last: the Machine is killed and starts again.
func floodMemory(t *testing.T, w *world.World, tight, free *greedy) {
	if n, word := free.take("alloc", "64"); n != 64 || word != "ok" {
		t.Errorf("control: free got %d MiB, then %s", n, word)
	}
	w.APIRaw("POST", "/apps/"+tight.app+"/machines/"+tight.id+"/exec", map[string]any{"command": []string{"/greedy", "alloc", "400"}}) // its answer is lost with the Machine
	w.Eventually(30*time.Second, func() string {
		for _, e := range w.Machine(tight.app, tight.id).Events {
			if e.Type == "exit" && e.Request != nil && e.Request.ExitEvent != nil && e.Request.ExitEvent.OOMKilled {
				if !strings.Contains(e.Request.Error, "used its 192 MiB") {
					t.Errorf("the event says %q", e.Request.Error)
				}
				return ""
			}
		}
		return "no event of an end for want of memory"
	})
	w.Eventually(30*time.Second, tight.alive)
}
