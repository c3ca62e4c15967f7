package route_test

import (
	"context"
	"net"
	"reflect"
	"syscall"
	"testing"

	"bulkhead/api/internalpb"
	"bulkhead/edge/route"
)

// TestTry tries each port of a Machine once, by the address that answers, whether or not an
// edge listens for it. Machines that no route names, and those of other apps, are not tried.
func TestTry(t *testing.T) {
	open := map[string]bool{"[fdaa::1]:8080": true, "10.0.0.1:9000": true, "[fdaa::2]:8080": true}
	table := route.NewTable(func(_ context.Context, addr string) (net.Conn, error) {
		if !open[addr] {
			return nil, syscall.ECONNREFUSED
		}
		c, _ := net.Pipe()
		return c, nil
	})
	at := func(id, addr, addr4 string) *internalpb.Backend {
		return &internalpb.Backend{MachineId: id, Address: addr, Address4: addr4}
	}
	table.Set(&internalpb.Route{App: "web", Services: []*internalpb.ServiceRoute{
		{Port: 80, Backends: []*internalpb.Backend{at("a", "[fdaa::1]:8080", "10.0.0.1:8080"), at("b", "[fdaa::3]:8080", "")}},
		{Port: 443, Backends: []*internalpb.Backend{at("a", "[fdaa::1]:8080", "10.0.0.1:8080")}},
		{Port: 9000, Backends: []*internalpb.Backend{at("a", "[fdaa::1]:9000", "10.0.0.1:9000")}},
		{Port: 9001, Backends: []*internalpb.Backend{at("a", "[fdaa::1]:9001", "10.0.0.1:9001")}},
	}})
	table.Set(&internalpb.Route{App: "other", Services: []*internalpb.ServiceRoute{
		{Port: 80, Backends: []*internalpb.Backend{at("c", "[fdaa::2]:8080", "")}},
	}})
	for _, c := range []struct {
		app, machine string
		want         []route.Tried
	}{
		{"web", "a", []route.Tried{{Port: 8080, Answers: true}, {Port: 9000, Answers: true}, {Port: 9001}}},
		{"web", "b", []route.Tried{{Port: 8080}}},
		{"web", "c", []route.Tried{}},
		{"nobody", "a", nil},
	} {
		if got := table.Try(t.Context(), c.app, c.machine); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s of %s: %v, want %v", c.machine, c.app, got, c.want)
		}
	}
}
