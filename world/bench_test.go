package world_test

import (
	"net/http"
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
	figure("route_p50_ms", quantile(took, 50))
	figure("route_p99_ms", quantile(took, 99))
	figure("route_max_ms", quantile(took, 100))
}
