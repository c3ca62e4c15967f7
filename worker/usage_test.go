package worker

import (
	"fmt"
	"testing"
	"time"

	"bulkhead/machine"
	"bulkhead/warden/client"
)

// TestLimitNews: what is met is told once, again after peace, and not again by a
// worker that finds the event of the one before it.
func TestLimitNews(t *testing.T) {
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	look := func(g *gauge, s int, count uint64, told ...machine.Event) int {
		return len(g.news([]machine.LimitEvent{{Limit: machine.LimitDisk, Count: count}}, told, at(s)))
	}
	g := &gauge{started: start, hits: map[string]*hits{}}
	for _, c := range []struct {
		at    int
		count uint64
		want  int
	}{{0, 0, 0}, {5, 3, 1}, {10, 9, 0}, {15, 9, 0}, {69, 10, 0}, {128, 11, 0}, {200, 11, 0}, {205, 12, 1}, {210, 1, 0}} {
		if got := look(g, c.at, c.count); got != c.want {
			t.Errorf("at %d s with %d hits: %d news, want %d", c.at, c.count, got, c.want)
		}
	}
	event := machine.Event{Timestamp: at(7).UnixMilli(), Request: &machine.EventRequest{LimitEvent: &machine.LimitEvent{Limit: machine.LimitDisk}}}
	if n := look(&gauge{started: start, hits: map[string]*hits{}}, 20, 9, event); n != 0 {
		t.Errorf("a new worker tells again what its journal holds")
	}
	if n := look(&gauge{started: at(10), hits: map[string]*hits{}}, 20, 9, event); n != 1 {
		t.Errorf("an event of the process before silences this one's")
	}
}

// TestBusy: a Machine's processors are a limit that is met when they are in use for
// longer than one look.
func TestBusy(t *testing.T) {
	start := time.Now()
	for _, c := range []struct {
		name    string
		cpu     time.Duration // per look of 5 s
		periods int64
		held    int64
		percent int
		want    string
	}{
		{"idle", 100 * time.Millisecond, 3, 0, 100, "[false false false false]"},
		{"all of one", 5 * time.Second, 50, 0, 100, "[false false true true]"},
		{"half of two", 5 * time.Second, 50, 1, 200, "[false false false false]"},
		{"held back", time.Second, 50, 40, 100, "[false false true true]"},
		{"held back now and then", time.Second, 4, 4, 100, "[false false false false]"},
	} {
		g := &gauge{}
		var got []bool
		for i := range 4 {
			n := time.Duration(i)
			u := client.Usage{CPU: n * c.cpu, Periods: int64(i) * c.periods, ThrottledPeriods: int64(i) * c.held}
			got = append(got, g.busy(u, c.percent, start.Add(n*5*time.Second)))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}
