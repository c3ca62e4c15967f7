package schedule_test

import (
	"testing"

	"pgregory.net/rapid"

	"bulkhead/controller/schedule"
	"bulkhead/fault"
	"bulkhead/key"
)

func TestPlace(t *testing.T) {
	two := []schedule.Node{
		{Name: "b", Region: "local", Connected: true, MemoryMB: 1000, UsedMemoryMB: 500},
		{Name: "a", Region: "local", Connected: true, MemoryMB: 1000, UsedMemoryMB: 500},
		{Name: "c", Region: "far", Connected: true, MemoryMB: 4000},
		{Name: "d", Region: "off", MemoryMB: 9000},
	}
	for name, tc := range map[string]struct {
		req   schedule.Request
		nodes []schedule.Node
		want  key.Node
		kind  fault.Kind
	}{
		"most free":                       {schedule.Request{MemoryMB: 256, Starts: true}, two, "c", ""},
		"equals by name":                  {schedule.Request{Region: "local", MemoryMB: 256, Starts: true}, two, "a", ""},
		"one of several regions":          {schedule.Request{Region: "off,local", MemoryMB: 256, Starts: true}, two, "a", ""},
		"full":                            {schedule.Request{Region: "local", MemoryMB: 501, Starts: true}, two, "", fault.Precondition},
		"full, but not to be started":     {schedule.Request{Region: "local", MemoryMB: 501}, two, "a", ""},
		"too large to be started ever":    {schedule.Request{Region: "local", MemoryMB: 1001}, two, "", fault.Precondition},
		"no such region":                  {schedule.Request{Region: "moon"}, two, "", fault.Invalid},
		"the region's worker is away":     {schedule.Request{Region: "off"}, two, "", fault.Unavailable},
		"no worker at all":                {schedule.Request{}, nil, "", fault.Unavailable},
		"a node of unknown size takes it": {schedule.Request{MemoryMB: 99, Starts: true}, []schedule.Node{{Name: "x", Connected: true}}, "x", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := schedule.Place(tc.req, tc.nodes)
			if got != tc.want || fault.KindOf(err) != tc.kind {
				t.Fatalf("%q, %v; want %q, %q", got, err, tc.want, tc.kind)
			}
		})
	}
}

// TestPlaceNeverOverfills places Machines until nothing fits, and compares each
// answer with what a plain look at the nodes says.
func TestPlaceNeverOverfills(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) schedule.Node {
			return schedule.Node{
				Name: key.Node(rapid.StringMatching(`[a-e]`).Draw(t, "name")), Region: "r",
				Connected: rapid.Bool().Draw(t, "connected"), MemoryMB: rapid.Int64Range(1, 4096).Draw(t, "memory"),
			}
		}), 1, 5).Draw(t, "nodes")
		for range 20 {
			req := schedule.Request{MemoryMB: rapid.IntRange(1, 2048).Draw(t, "want"), Starts: true}
			got, err := schedule.Place(req, nodes)
			could := false
			for _, n := range nodes {
				could = could || n.Connected && n.UsedMemoryMB+int64(req.MemoryMB) <= n.MemoryMB
			}
			if could != (err == nil) {
				t.Fatalf("could place is %v: %v", could, err)
			}
			if err != nil {
				continue
			}
			for i := range nodes {
				if nodes[i].Name == got && nodes[i].Connected && nodes[i].UsedMemoryMB+int64(req.MemoryMB) <= nodes[i].MemoryMB {
					nodes[i].UsedMemoryMB += int64(req.MemoryMB)
					break
				}
			}
		}
	})
}
