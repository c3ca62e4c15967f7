package machine

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bulkhead/fault"
)

// whole is a config that uses everything Bulkhead acts on.
const whole = `{
 "image": "registry.example.com/app:v1",
 "env": {"A": "1", "FLY_PROCESS_GROUP": "app"},
 "init": {"exec": ["/bin/app"], "tty": true},
 "guest": {"cpu_kind": "performance", "cpus": 2, "memory_mb": 4096},
 "metadata": {"fly_platform_version": "v2"},
 "services": [{"protocol": "tcp", "internal_port": 8080, "autostop": false, "autostart": true, "min_machines_running": 1,
   "ports": [{"port": 80, "handlers": ["http"], "force_https": true}, {"port": 443, "handlers": ["tls", "http"], "http_options": {"h2_backend": true, "compress": false}}],
   "concurrency": {"type": "requests", "soft_limit": 20, "hard_limit": 25}}],
 "files": [{"guest_path": "/etc/app/x.conf", "raw_value": "aGVsbG8=", "mode": 420}],
 "auto_destroy": true,
 "restart": {"policy": "on-failure", "max_retries": 3},
 "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
 "dns": {"nameservers": ["9.9.9.9", "2620:fe::fe"], "searches": ["example.com"], "options": [{"name": "ndots", "value": "2"}], "hostname": "web-1"},
 "processes": [{"cmd": ["serve"], "user": "nobody", "env": {"B": "2"}}],
 "bulkhead_limits": {"cpu_percent": 150, "processes": 100, "open_files": 1024, "disk_mb": 64, "inodes": 5000, "log_kb_per_second": 64, "log_lines_per_second": 100,
   "network_mbps": 10, "packets_per_second": 1000},
 "disable_machine_autostart": true
}`

func parse(t testing.TB, s string) *Config {
	t.Helper()
	c := new(Config)
	if err := json.Unmarshal([]byte(s), c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestValidateAccepts(t *testing.T) {
	for _, s := range []string{whole, `{"image":"x"}`, `{"image":"x","size":"shared-cpu-8x"}`, `{"image":"x","guest":{"memory_mb":300,"persist_rootfs":"never"}}`} {
		if err := parse(t, s).Validate(); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	big := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for _, c := range []struct{ config, path string }{
		{`{}`, "config.image"},
		{`{"image":"a b"}`, "config.image"},
		{`{"image":"x","env":{"1A":"x"}}`, "config.env"},
		{`{"image":"x","env":{"A=B":"x"}}`, "config.env"},
		{`{"image":"x","env":{"A":"x\u0000"}}`, "config.env.A"},
		{`{"image":"x","env":{"A":"` + strings.Repeat("x", MaxEnvBytes) + `"}}`, "config.env"},
		{`{"image":"x","init":{"exec":["a\u0000"]}}`, "config.init.exec[0]"},
		{`{"image":"x","init":{"cmd":["` + strings.Repeat("x", MaxArgBytes) + `"]}}`, "config.init.cmd"},
		{`{"image":"x","init":{"swap_size_mb":512}}`, "config.init.swap_size_mb"},
		{`{"image":"x","init":{"kernel_args":["x"]}}`, "config.init.kernel_args"},
		{`{"image":"x","guest":{"cpu_kind":"turbo"}}`, "config.guest.cpu_kind"},
		{`{"image":"x","guest":{"cpus":-1}}`, "config.guest.cpus"},
		{`{"image":"x","guest":{"cpus":65}}`, "config.guest.cpus"},
		{`{"image":"x","guest":{"memory_mb":127}}`, "config.guest.memory_mb"},
		{`{"image":"x","guest":{"memory_mb":9999999}}`, "config.guest.memory_mb"},
		{`{"image":"x","guest":{"memory_mb":256,"max_memory_mb":512}}`, "config.guest.max_memory_mb"},
		{`{"image":"x","guest":{"gpus":1}}`, "config.guest.gpus"},
		{`{"image":"x","guest":{"gpu_kind":"a10"}}`, "config.guest.gpu_kind"},
		{`{"image":"x","guest":{"host_dedication_id":"h"}}`, "config.guest.host_dedication_id"},
		{`{"image":"x","guest":{"kernel_args":["q"]}}`, "config.guest.kernel_args"},
		{`{"image":"x","guest":{"persist_rootfs":"always"}}`, "config.guest.persist_rootfs"},
		{`{"image":"x","bulkhead_limits":{"cpu_percent":101}}`, "config.bulkhead_limits.cpu_percent"},
		{`{"image":"x","bulkhead_limits":{"processes":3}}`, "config.bulkhead_limits.processes"},
		{`{"image":"x","bulkhead_limits":{"open_files":-1}}`, "config.bulkhead_limits.open_files"},
		{`{"image":"x","guest":{"memory_mb":512},"bulkhead_limits":{"disk_mb":513}}`, "config.bulkhead_limits.disk_mb"},
		{`{"image":"x","bulkhead_limits":{"inodes":100000000}}`, "config.bulkhead_limits.inodes"},
		{`{"image":"x","bulkhead_limits":{"log_kb_per_second":70000}}`, "config.bulkhead_limits.log_kb_per_second"},
		{`{"image":"x","bulkhead_limits":{"log_lines_per_second":-5}}`, "config.bulkhead_limits.log_lines_per_second"},
		{`{"image":"x","bulkhead_limits":{"network_mbps":1000000}}`, "config.bulkhead_limits.network_mbps"},
		{`{"image":"x","bulkhead_limits":{"packets_per_second":1}}`, "config.bulkhead_limits.packets_per_second"},
		{`{"image":"x","size":"huge"}`, "config.size"},
		{`{"image":"x","size":"shared-cpu-3x"}`, "config.size"},
		{`{"image":"x","size":"shared-1x"}`, "config.size"},
		{`{"image":"x","size":"shared-cpu-1x","guest":{}}`, "config.size"},
		{`{"image":"x","rootfs":{"persist":"always"}}`, "config.rootfs.persist"},
		{`{"image":"x","rootfs":{"size_gb":3}}`, "config.rootfs.size_gb"},
		{`{"image":"x","metadata":{"":"v"}}`, "config.metadata"},
		{`{"image":"x","metadata":{"k":"` + strings.Repeat("v", 5000) + `"}}`, "config.metadata.k"},
		{`{"image":"x","mounts":[{"volume":"vol_1","path":"/data"}]}`, "config.mounts"},
		{`{"image":"x","volumes":[{}]}`, "config.volumes"},
		{`{"image":"x","containers":[{}]}`, "config.containers"},
		{`{"image":"x","schedule":"daily"}`, "config.schedule"},
		{`{"image":"x","standbys":["a"]}`, "config.standbys"},
		{`{"image":"x","statics":[{"guest_path":"/a","url_prefix":"/b"}]}`, "config.statics"},
		{`{"image":"x","checks":{"a":{"type":"tcp"}}}`, "config.checks"},
		{`{"image":"x","metrics":{"port":9}}`, "config.metrics"},
		{`{"image":"x","services":[{"protocol":"udp","internal_port":53}]}`, "config.services[0].protocol"},
		{`{"image":"x","services":[{"protocol":"tcp"}]}`, "config.services[0].internal_port"},
		{`{"image":"x","services":[{"internal_port":80,"ports":[{"handlers":["http"]}]}]}`, "config.services[0].ports[0].port"},
		{`{"image":"x","services":[{"internal_port":80,"ports":[{"port":5432}]}]}`, "config.services[0].ports[0].port"},
		{`{"image":"x","services":[{"internal_port":80,"ports":[{"port":443,"handlers":["tls"]}]}]}`, "config.services[0].ports[0].handlers"},
		{`{"image":"x","services":[{"internal_port":80,"ports":[{"port":443,"handlers":["pg_tls","http"]}]}]}`, "config.services[0].ports[0].handlers[0]"},
		{`{"image":"x","services":[{"internal_port":80,"ports":[{"start_port":1,"end_port":9}]}]}`, "config.services[0].ports[0].start_port"},
		{`{"image":"x","services":[{"internal_port":80,"ports":[{"port":443,"handlers":["http"],"http_options":{"idle_timeout":3}}]}]}`, "config.services[0].ports[0].http_options.idle_timeout"},
		{`{"image":"x","services":[{"internal_port":80,"ports":[{"port":80,"handlers":["http"]}]},{"internal_port":81,"ports":[{"port":80,"handlers":["http"]}]}]}`, "config.services[1].ports[0].port"},
		{`{"image":"x","services":[{"internal_port":80,"concurrency":{"type":"bytes"}}]}`, "config.services[0].concurrency.type"},
		{`{"image":"x","services":[{"internal_port":80,"concurrency":{"soft_limit":9,"hard_limit":3}}]}`, "config.services[0].concurrency.soft_limit"},
		{`{"image":"x","services":[{"internal_port":80,"checks":[{"type":"tcp"}]}]}`, "config.services[0].checks"},
		{`{"image":"x","files":[{"guest_path":"etc/x","raw_value":""}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a/../b","raw_value":""}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/","raw_value":""}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a"}]}`, "config.files[0].raw_value"},
		{`{"image":"x","files":[{"guest_path":"/a","raw_value":"%%"}]}`, "config.files[0].raw_value"},
		{`{"image":"x","files":[{"guest_path":"/a","secret_name":"S-1"}]}`, "config.files[0].secret_name"},
		{`{"image":"x","files":[{"guest_path":"/a","secret_name":""}]}`, "config.files[0].secret_name"},
		{`{"image":"x","files":[{"guest_path":"/a","secret_name":"S","raw_value":""}]}`, "config.files[0].secret_name"},
		{`{"image":"x","files":[{"guest_path":"/a","secret_name":"S","image_config":"y"}]}`, "config.files[0].image_config"},
		{`{"image":"x","files":[{"guest_path":"a","secret_name":"S"}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a/../b","secret_name":"S"}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/proc/1/environ","secret_name":"S"}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/.fly/api","secret_name":"S"}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/dev","raw_value":""}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/sys/x","raw_value":""}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a","raw_value":""},{"guest_path":"/b","raw_value":""},{"guest_path":"/a/b","secret_name":"S"}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a","raw_value":""},{"guest_path":"/a","secret_name":"S"}]}`, "config.files[1].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a","secret_name":"S","mode":4096}]}`, "config.files[0].mode"},
		{`{"image":"x","files":[{"guest_path":"/a","raw_value":"","mode":4096}]}`, "config.files[0].mode"},
		{`{"image":"x","files":[{"guest_path":"/a","raw_value":""},{"guest_path":"/a","raw_value":""}]}`, "config.files[1].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a","raw_value":""},{"guest_path":"/a/b","raw_value":""}]}`, "config.files[0].guest_path"},
		{`{"image":"x","files":[{"guest_path":"/a","raw_value":"` + big(MaxFilesBytes+1) + `"}]}`, "config.files"},
		{`{"image":"x","restart":{"policy":"spot-price"}}`, "config.restart.policy"},
		{`{"image":"x","restart":{"max_retries":-1}}`, "config.restart.max_retries"},
		{`{"image":"x","stop_config":{"signal":"SIGFOO"}}`, "config.stop_config.signal"},
		{`{"image":"x","stop_config":{"timeout":"6m"}}`, "config.stop_config.timeout"},
		{`{"image":"x","stop_config":{"timeout":"-1s"}}`, "config.stop_config.timeout"},
		{`{"image":"x","dns":{"nameservers":["dns.example.com"]}}`, "config.dns.nameservers[0]"},
		{`{"image":"x","dns":{"nameservers":["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4"]}}`, "config.dns.nameservers"},
		{`{"image":"x","dns":{"searches":["a b"]}}`, "config.dns.searches[0]"},
		{`{"image":"x","dns":{"options":[{"name":"ndots\nnameserver"}]}}`, "config.dns.options[0]"},
		{`{"image":"x","dns":{"dns_forward_rules":[{}]}}`, "config.dns.dns_forward_rules"},
		{`{"image":"x","dns":{"hostname":"a.b"}}`, "config.dns.hostname"},
		{`{"image":"x","processes":[{},{}]}`, "config.processes"},
		{`{"image":"x","processes":[{"secrets":[{}]}]}`, "config.processes[0].secrets[0].env_var"},
		{`{"image":"x","processes":[{"secrets":[{"env_var":"A","name":"1-"}]}]}`, "config.processes[0].secrets[0].name"},
		{`{"image":"x","processes":[{"env_from":[{}]}]}`, "config.processes[0].env_from"},
	} {
		err := parse(t, c.config).Validate()
		if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), c.path+" ") {
			t.Errorf("%.120s: got %v, want an Invalid that begins with %q", c.config, err, c.path)
		}
	}
}

// TestValidateSeesEveryField is the control of "refused, never ignored": a field
// that somebody adds to Config must be looked at here or be in this list.
func TestValidateSeesEveryField(t *testing.T) {
	known := strings.Fields("Image Env Init Guest Size Rootfs Limits Metadata Mounts Services Checks Metrics Statics Files Schedule AutoDestroy Restart StopConfig DNS Processes Standbys Containers Volumes DisableMachineAutostart")
	typ := reflect.TypeFor[Config]()
	for i := range typ.NumField() {
		found := false
		for _, k := range known {
			found = found || k == typ.Field(i).Name
		}
		if !found {
			t.Errorf("Config.%s is new: make Validate check or refuse it, and name it here", typ.Field(i).Name)
		}
	}
}

// FuzzValidate feeds it configs made of arbitrary JSON. One that is valid is kept and
// sent as JSON: it must mean the same when it is read again.
func FuzzValidate(f *testing.F) {
	f.Add(whole)
	f.Add(`{"image":"x","services":[{"ports":[{"port":0}]}]}`)
	f.Fuzz(func(t *testing.T, s string) {
		c := new(Config)
		if json.Unmarshal([]byte(s), c) != nil {
			return
		}
		if err := c.Validate(); err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("kind %s", fault.KindOf(err))
			}
			return
		}
		if err := c.Clone().Validate(); err != nil {
			t.Fatalf("the clone is not valid: %v", err)
		}
		kept, again := mustJSON(t, c), new(Config)
		if err := json.Unmarshal([]byte(kept), again); err != nil {
			t.Fatalf("%s is valid, and kept as %s cannot be read: %v", s, kept, err)
		}
		if back := mustJSON(t, again); back != kept {
			t.Fatalf("%s is kept as %s, and read as %s", s, kept, back)
		}
		c.EffectiveGuest()
	})
}

func TestClone(t *testing.T) {
	a := parse(t, whole)
	b := a.Clone()
	if x, y := mustJSON(t, a), mustJSON(t, b); x != y {
		t.Fatalf("the clone differs:\n%s\n%s", x, y)
	}
	before := mustJSON(t, a)
	b.Env["A"] = "changed"
	b.Services[0].Ports[0].Handlers[0] = "changed"
	*b.Services[0].Ports[0].Port = 1
	b.Guest.CPUs = 9
	b.Init.Exec[0] = "changed"
	if mustJSON(t, a) != before {
		t.Fatal("a change of the clone reached the original")
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEffectiveGuest(t *testing.T) {
	for s, want := range map[string]Guest{
		`{}`:                                   {CPUKind: "shared", CPUs: 1, MemoryMB: 256},
		`{"size":"shared-cpu-4x"}`:             {CPUKind: "shared", CPUs: 4, MemoryMB: 1024},
		`{"size":"performance-2x"}`:            {CPUKind: "performance", CPUs: 2, MemoryMB: 4096},
		`{"guest":{"cpu_kind":"performance"}}`: {CPUKind: "performance", CPUs: 1, MemoryMB: 2048},
		`{"guest":{"cpus":2,"memory_mb":300}}`: {CPUKind: "shared", CPUs: 2, MemoryMB: 300},
		`{"guest":{"memory_mb":512,"cpus":0}}`: {CPUKind: "shared", CPUs: 1, MemoryMB: 512},
	} {
		if got := parse(t, s).EffectiveGuest(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", s, got, want)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]int{"SIGTERM": 15, "TERM": 15, "term": 15, "15": 15, "SIGKILL": 9, "9": 9, "HUP": 1, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "USR2": 12} {
		if got, err := ParseSignal(s); err != nil || got != want {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "65", "-1", "SIGSIG", "SIGRTMIN-1", "SIGRTMIN+31", "RTMIN3", "TERM ", "SIG"} {
		if got, err := ParseSignal(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseSignal(%q) = %d, %v; want Invalid", s, got, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		if n, err := ParseSignal(rapid.String().Draw(t, "s")); err == nil && (n < 1 || n > 64) {
			t.Fatalf("signal %d", n)
		}
	})
}

func TestStop(t *testing.T) {
	ten := Duration(10 * time.Second)
	long := Duration(time.Hour)
	for _, c := range []struct {
		cfg     Config
		image   string
		signal  int
		timeout time.Duration
	}{
		{Config{}, "", 2, 5 * time.Second},
		{Config{}, "SIGQUIT", 3, 5 * time.Second},
		{Config{}, "nonsense", 2, 5 * time.Second},
		{Config{StopConfig: &StopConfig{Signal: "TERM"}}, "SIGQUIT", 15, 5 * time.Second},
		{Config{StopConfig: &StopConfig{Timeout: &ten}}, "", 2, 10 * time.Second},
		{Config{StopConfig: &StopConfig{Timeout: &long}}, "", 2, MaxStopTimeout},
	} {
		if s, d := c.cfg.Stop(c.image); s != c.signal || d != c.timeout {
			t.Errorf("%+v with %q: %d, %v", c.cfg, c.image, s, d)
		}
	}
}
