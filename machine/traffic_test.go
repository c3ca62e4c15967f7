package machine

import (
	"encoding/json"
	"testing"
)

// TestTraffic: what a config lets its traffic do.
func TestTraffic(t *testing.T) {
	for _, c := range []struct {
		config string
		want   Traffic
	}{
		{`{}`, Traffic{}},
		{`{"services":[{}]}`, Traffic{Group: "app"}},
		{`{"services":[{"autostart":true}]}`, Traffic{Autostart: true, Group: "app"}},
		{`{"services":[{"autostart":false,"autostop":true}]}`, Traffic{Autostop: true, Group: "app"}},
		{`{"services":[{"autostop":"suspend","min_machines_running":2}]}`, Traffic{Autostop: true, Min: 2, Group: "app"}},
		{`{"services":[{"autostop":"off"}]}`, Traffic{Group: "app"}},
		{`{"services":[{"autostop":"stop","autostart":true},{}]}`, Traffic{Autostart: true, Group: "app"}},
		{`{"services":[{"autostop":"stop","min_machines_running":1},{"autostop":true,"min_machines_running":3}]}`, Traffic{Autostop: true, Min: 3, Group: "app"}},
		{`{"services":[{"autostart":true}],"metadata":{"fly_process_group":"web"}}`, Traffic{Autostart: true, Group: "web"}},
		{`{"metadata":{"fly_process_group":"web"}}`, Traffic{}},
		{`{"services":[{"autostart":true,"autostop":"stop"}],"disable_machine_autostart":true}`, Traffic{Autostop: true, Group: "app"}},
	} {
		conf := new(Config)
		if err := json.Unmarshal([]byte(c.config), conf); err != nil {
			t.Fatal(err)
		}
		if got := conf.Traffic(); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.config, got, c.want)
		}
	}
}
