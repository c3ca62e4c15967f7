package controller

import (
	"encoding/json"
	"strings"
	"testing"

	"bulkhead/machine"
)

// TestUnknownFieldsAreNamed: every object of a body is compared with what the API knows, also
// those inside lists, maps and embedded objects. A control: what is known passes.
func TestUnknownFieldsAreNamed(t *testing.T) {
	type embedded struct{ machineInput }
	for _, c := range []struct {
		at, body string
		into     any
		path     string
	}{
		{"config", `{"image":"x","wat":1}`, new(machine.Config), "config.wat"},
		{"config", `{"services":[{"internal_port":1},{"internal_port":2,"ports":[{"port":80,"wat":1}]}]}`, new(machine.Config), "config.services[1].ports[0].wat"},
		{"config", `{"guest":{"memory_mb":256,"memroy":1}}`, new(machine.Config), "config.guest.memroy"},
		{"config", `{"bulkhead_limits":{"disk":1}}`, new(machine.Config), "config.bulkhead_limits.disk"},
		{"config", `{"checks":{"alive":{"type":"http","intervall":"5s"}}}`, new(machine.Config), "config.checks.alive.intervall"},
		{"config", `{"cache_drive":{"size_mb":1}}`, new(machine.Config), "config.cache_drive"},
		{"config", `{"cache_drive":null,"spot":null}`, new(machine.Config), ""},
		{"config", `{"env":{"anything":"goes"},"metadata":{"any":"thing"}}`, new(machine.Config), ""},
		{"config", `{"services":[{"autostop":"stop","checks":[{"interval":"15s"}]}],"stop_config":{"timeout":5}}`, new(machine.Config), ""},
		{"config", `{"IMAGE":"x","Guest":{"CPUs":1}}`, new(machine.Config), ""},
		{"", `{"name":"a","skip_lunch":true}`, new(machineInput), "skip_lunch"},
		{"", `{"config":{"left":"to its own check"},"skip_launch":true}`, new(machineInput), ""},
		{"", `{"name":"a","wat":{}}`, new(embedded), "wat"},
		{"", `[{"a":1}]`, new([]struct{ B int }), "[0].a"},
	} {
		if err := json.Unmarshal([]byte(c.body), c.into); err != nil {
			t.Fatalf("%s: %v", c.body, err)
		}
		if got := pathOf(checkFields(c.at, []byte(c.body), c.into)); got != c.path {
			t.Errorf("%s: %q is refused, want %q", c.body, got, c.path)
		}
	}
}

// pathOf is the path that an error of checkFields begins with.
func pathOf(err error) string {
	if err == nil {
		return ""
	}
	path, _, _ := strings.Cut(err.Error(), " ")
	return path
}
