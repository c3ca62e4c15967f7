package world_test

import (
	"slices"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// BenchmarkWake measures how long a request to a sleeping app waits for its answer: the
// edge asks the worker, the Machine starts, the app listens. "make bench-wake" runs it.
func BenchmarkWake(b *testing.B) {
	w := world.Start(b, "--idle-after", "10m")
	w.CreateApp("web", "")
	m := w.Run("web", sleepy(w.Push("web", fixture.StaticGo(b)), 0))
	w.Eventually(20*time.Second, func() string { return answers(w, "web", "/", 200, "") })
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		stopped(w, "web", m.ID)
		w.Client().CloseIdleConnections() // a handshake is part of the wait
		b.StartTimer()
		began := time.Now()
		if got := answers(w, "web", "/", 200, ""); got != "" {
			b.Fatal(got)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	ms := func(q int) float64 { return float64(took[len(took)*q/100].Microseconds()) / 1000 }
	b.ReportMetric(ms(50), "p50-ms")
	b.ReportMetric(ms(95), "p95-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}
