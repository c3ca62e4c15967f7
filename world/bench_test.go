package world_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// BenchmarkRoute measures how long a change takes from the API call to the edge:
// a Machine is taken out of service and put back, and the app is asked all the
// time what it answers. "make bench-routes" runs it.
func BenchmarkRoute(b *testing.B) {
	w := world.Start(b)
	w.CreateApp("web", "")
	m := w.Run("web", world.Config{"image": w.Push("web", fixture.StaticGo(b)), "services": world.HTTPService(8080)})
	until := func(status int) time.Time {
		for {
			resp, err := w.Client().Get(w.URL("web", "/"))
			if err != nil {
				b.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == status {
				return time.Now()
			}
			time.Sleep(time.Millisecond) // the question must not be what keeps the machine busy
		}
	}
	until(http.StatusOK)
	var took []time.Duration
	for b.Loop() {
		for _, c := range []struct {
			verb   string
			status int
		}{{"cordon", http.StatusServiceUnavailable}, {"uncordon", http.StatusOK}} {
			start := time.Now()
			seen := make(chan time.Time, 1)
			go func() { seen <- until(c.status) }()
			w.Must("POST", "/apps/web/machines/"+m.ID+"/"+c.verb, nil, nil)
			took = append(took, (<-seen).Sub(start))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}

// BenchmarkStart measures a Machine's way from the API call to its first answer
// through the edge, with its image already on the node. "make bench-start" runs it.
func BenchmarkStart(b *testing.B) {
	w := world.Start(b)
	w.CreateApp("web", "")
	image := w.Push("web", fixture.StaticGo(b))
	warm := w.Run("web", world.Config{"image": image})
	w.Must("DELETE", "/apps/web/machines/"+warm.ID+"?force=true", nil, nil)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		var m world.Machine
		w.Must("POST", "/apps/web/machines", map[string]any{"config": world.Config{"image": image, "services": world.HTTPService(8080)}}, &m)
		for {
			if status, _, err := w.Get("web", "/"); err == nil && status == http.StatusOK {
				break
			}
		}
		took = append(took, time.Since(start))
		b.StopTimer()
		w.Must("DELETE", "/apps/web/machines/"+m.ID+"?force=true", nil, nil)
		w.Wait("web", m.ID, "destroyed", 20*time.Second)
		for {
			if status, _, _ := w.Get("web", "/"); status != http.StatusOK {
				break
			}
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
}
