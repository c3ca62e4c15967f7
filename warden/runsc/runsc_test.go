package runsc

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/sandbox"
)

func TestBundle(t *testing.T) {
	s := sandbox.Spec{Args: []string{"/a", "\"quoted\""}, Env: []string{"A=b\nc"}, Cwd: "/w", UID: 5, GID: 6, Groups: []uint32{7}, Hostname: "h"}
	b, err := Bundle(s, grant.Grant{MemoryMB: 256, CPUs: 2, DiskMB: 100}, Files{Image: "/i.erofs", Upper: "/u.tar"})
	if err != nil {
		t.Fatal(err)
	}
	var got specs.Spec
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	p := got.Process
	if strings.Join(p.Args, "|") != `bulkhead-init|run|/w|/a|"quoted"` || p.Env[0] != s.Env[0] || p.Cwd != "/" || p.User.UID != 5 || p.User.GID != 6 || p.User.AdditionalGids[0] != 7 {
		t.Errorf("process is %+v", p)
	}
	if len(p.Capabilities.Effective) != 0 || len(p.Capabilities.Bounding) == 0 {
		t.Errorf("user 5 has capabilities %+v", p.Capabilities)
	}
	for _, c := range p.Capabilities.Bounding {
		if c == "CAP_NET_RAW" || c == "CAP_SYS_ADMIN" {
			t.Errorf("a Machine may gain %s", c)
		}
	}
	for name, want := range map[string]string{
		"dev.gvisor.spec.rootfs.source": "/i.erofs", "dev.gvisor.tar.rootfs.upper": "/u.tar",
		"dev.gvisor.spec.rootfs.options": "size=100m", annotationMemory: "268435456", annotationCPUs: "2",
	} {
		if got.Annotations[name] != want {
			t.Errorf("annotation %s is %q, want %q", name, got.Annotations[name], want)
		}
	}
	for _, m := range got.Mounts {
		if strings.HasPrefix(m.Source, "/") || m.Type == "bind" {
			t.Errorf("the bundle mounts %s of the host", m.Source)
		}
	}
}

func TestParseProcesses(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	got, err := ParseProcesses([]byte(`[{"uid":0,"pid":1,"ppid":0,"stime":"11:30","time":"1.5s","cmd":"nginx"},{"pid":9,"stime":"Nov02","time":"?","cmd":"x"},{"pid":10,"stime":"2024"}]`), now)
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if want := (sandbox.Process{PID: 1, Command: "nginx", CPU: 1500 * time.Millisecond, Started: now.Add(-30 * time.Minute)}); got[0] != want {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
	if got[1].Started.Day() != 2 || got[1].Started.Year() != 2026 || got[2].Started.Year() != 2024 {
		t.Errorf("start times are %s and %s", got[1].Started, got[2].Started)
	}
	if _, err := ParseProcesses([]byte("nonsense"), now); !fault.Is(err, fault.Internal) {
		t.Errorf("nonsense gives %v", err)
	}
}
