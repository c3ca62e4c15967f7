package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/secret"
)

// secretsOf plays the controller's side of FetchSecrets.
type secretsOf struct {
	mu      sync.Mutex
	down    bool
	version uint64
	values  map[string]string
	asked   int
}

func (s *secretsOf) FetchSecrets(_ context.Context, in *internalpb.FetchSecretsRequest, _ ...grpc.CallOption) (*internalpb.FetchSecretsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.down {
		return nil, fault.New(fault.Unavailable, "the controller is away")
	}
	r := &internalpb.FetchSecretsResponse{Version: s.version}
	if len(s.values) == 0 {
		return r, nil
	}
	b, _ := json.Marshal(s.values)
	var err error
	r.Sealed, err = secret.SealTo(in.PublicKey, b, "machine secrets", "c-1", "n1", in.MachineId, in.InstanceId)
	return r, err
}

func (s *secretsOf) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// tmpfsDir is a directory in memory.
func tmpfsDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "bh-secrets-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Fatalf("/dev/shm is not in memory (%v, type %x): mount a tmpfs there", err, st.Type)
	}
	return dir
}

// secretive is a node whose Machines have secrets.
func secretive(t *testing.T) (*node, *secretsOf) {
	n, s := newNode(t), &secretsOf{version: 3, values: map[string]string{"TOKEN": "planted-value", "FROM_IMAGE": "2"}}
	n.opt.Secrets, n.opt.Cluster, n.opt.SecretDir = s, "c-1", tmpfsDir(t)
	n.boot()
	n.w.online.Store(true)
	return n, s
}

func (n *node) given(id string) []string {
	n.t.Helper()
	spec, ok := n.host.Spec(key.MachineID(id))
	if !ok {
		n.t.Fatalf("machine %s has no sandbox", id)
	}
	return spec.Secrets
}

const (
	secretID   = "01234567890abc"
	wakeConfig = `{"image":"web","services":[{"internal_port":80,"protocol":"tcp","autostart":true,"ports":[{"port":443}]}]}`
)

// TestSecretsReachTheSandbox: what the app has at the time of the start, or what the
// process names; a change comes with the next start.
func TestSecretsReachTheSandbox(t *testing.T) {
	n, s := secretive(t)
	a := n.assign(n.asg(secretID, `{"image":"web"}`, func(a *internalpb.Assignment) { a.SecretsVersion = 3 }))
	n.state(a, machine.Started)
	if got := n.given(secretID); len(got) != 2 || got[0] != "FROM_IMAGE=2" || got[1] != "TOKEN=planted-value" {
		t.Fatalf("given %q", got)
	}
	k, _ := n.w.get(secretID)
	if k.obs.SecretsVersion != 3 {
		t.Errorf("the controller hears of version %d", k.obs.SecretsVersion)
	}
	if x, err := n.w.execSpec(secretID, k); err != nil || len(x.Secrets) != 2 {
		t.Errorf("a command is given %d secrets, %v", len(x.Secrets), err)
	}
	s.set(func() { s.version, s.values = 4, map[string]string{"TOKEN": "other"} })
	b := n.assign(n.next(a, func(a *internalpb.Assignment) {
		a.RestartNonce = 1
		a.Config = []byte(`{"image":"web","processes":[{"secrets":[{"env_var":"RENAMED","name":"TOKEN"}]}]}`)
		a.InstanceId = string(key.NewInstanceID())
	}))
	n.until(secretID, "the new version", func(r *record) bool { return r.State == machine.Started && r.Secrets == 4 })
	if got := n.given(secretID); len(got) != 1 || got[0] != "RENAMED=other" {
		t.Errorf("given %q", got)
	}
	c := n.assign(n.next(b, desired(machine.WantStopped)))
	n.state(c, machine.Stopped)
	n.until(secretID, "the sandbox's removal", func(r *record) bool { return r.Sandbox == "" })
	if _, ok := n.w.vault.get(secretID); ok {
		t.Error("the secrets of a stopped machine, which nothing but a user's word starts, are kept")
	}
	for name, b := range filesBelow(t, n.dir) {
		if bytes.Contains(b, []byte("planted-value")) {
			t.Errorf("%s holds the value", name)
		}
	}
}

func filesBelow(t *testing.T, dir string) map[string][]byte {
	out := map[string][]byte{}
	filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			out[path] = b
		}
		return nil
	})
	return out
}

// TestSecretsWithoutTheController: a Machine restarts and wakes with the secrets of its
// last start, also after the worker was killed; after a power cut it waits and says so;
// a Machine without secrets never waits.
func TestSecretsWithoutTheController(t *testing.T) {
	n, s := secretive(t)
	a := n.assign(n.asg(secretID, wakeConfig, func(a *internalpb.Assignment) { a.SecretsVersion = 3 }))
	n.state(a, machine.Started)
	a = n.assign(n.next(a, desired(machine.WantStopped), func(a *internalpb.Assignment) { a.Wish++ }))
	n.state(a, machine.Stopped)
	n.until(secretID, "the sandbox's removal", func(r *record) bool { return r.Sandbox == "" })
	for path, b := range filesBelow(t, n.opt.SecretDir) {
		if bytes.Contains(b, []byte("planted-value")) {
			t.Errorf("%s holds the value as it is", path)
		}
	}
	s.set(func() { s.down = true })
	n.down()
	n.boot() // offline: no Sync
	a = n.assign(n.next(a, desired(machine.WantStarted), func(a *internalpb.Assignment) { a.Wish++ }))
	n.state(a, machine.Started)
	if got := n.given(secretID); len(got) != 2 {
		t.Errorf("woken with %q", got)
	}

	// The power goes: memory is gone, and the disk holds nothing that opens.
	n.down()
	n.host.PowerCut()
	for _, f := range mustGlob(t, filepath.Join(n.opt.SecretDir, "*")) {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	n.boot()
	r := n.until(secretID, "the complaint", func(r *record) bool { return strings.Contains(r.Error, "waits for its secrets") })
	if r.State == machine.Started || len(r.Events) == 0 || !strings.Contains(r.Events[0].Request.Error, "the controller is away") {
		t.Errorf("it is %s, its newest event %+v", r.State, r.Events[0])
	}
	const other = "0123456789abcd"
	b := n.assign(n.asg(other, `{"image":"web"}`))
	n.state(b, machine.Started)
	s.set(func() { s.down = false })
	n.until(secretID, "state started", func(r *record) bool { return r.State == machine.Started })
	if got := n.given(secretID); len(got) != 2 {
		t.Errorf("started with %q", got)
	}
}

func mustGlob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	return files
}

// TestSecretsOfARebuiltJournal: a Machine that runs on while the journal is lost is known to
// have its secrets, and commands in it are given them.
func TestSecretsOfARebuiltJournal(t *testing.T) {
	n, _ := secretive(t)
	a := n.assign(n.asg(secretID, `{"image":"web"}`, func(a *internalpb.Assignment) { a.SecretsVersion = 3 }))
	n.state(a, machine.Started)
	n.down()
	if err := os.Remove(filepath.Join(n.dir, "journal.db")); err != nil {
		t.Fatal(err)
	}
	n.w = n.make(n.host, n.images)
	if err := n.w.Open(); err != nil {
		t.Fatal(err)
	}
	if err := n.w.rebuildOnce(t.Context(), &internalpb.Snapshot{Assignments: []*internalpb.Assignment{a}}); err != nil {
		t.Fatal(err)
	}
	n.state(a, machine.Started)
	k, err := n.w.get(secretID)
	if err != nil || k.obs.SecretsVersion != 3 {
		t.Fatalf("the controller hears of version %d, %v", k.obs.SecretsVersion, err)
	}
	if x, err := n.w.execSpec(secretID, k); err != nil || len(x.Secrets) != 2 {
		t.Errorf("a command is given %d secrets, %v", len(x.Secrets), err)
	}
}

// TestSecretsAreNotKept: what was kept for a Machine that might be woken goes when a newer
// version may not be, when it gets none any more, and when its start failed for good.
func TestSecretsAreNotKept(t *testing.T) {
	n, _ := secretive(t)
	kept := func(when string, want bool) {
		t.Helper()
		if _, ok := n.w.vault.get(secretID); ok != want {
			t.Errorf("%s: kept is %v", when, ok)
		}
	}
	taken := func(a *internalpb.Assignment, s machine.State) {
		t.Helper()
		n.until(secretID, "the newer version", func(r *record) bool { return r.State == s && r.Instance == instanceOf(a) })
	}
	newer := func(config string) func(*internalpb.Assignment) {
		return func(a *internalpb.Assignment) {
			a.Config, a.InstanceId = []byte(config), string(key.NewInstanceID())
		}
	}
	a := n.assign(n.asg(secretID, wakeConfig, func(a *internalpb.Assignment) { a.SecretsVersion = 3 }))
	n.state(a, machine.Started)
	a = n.assign(n.next(a, desired(machine.WantStopped), func(a *internalpb.Assignment) { a.Wish++ }))
	n.state(a, machine.Stopped)
	kept("stopped, to be woken", true)
	a = n.assign(n.next(a, newer(`{"image":"web"}`)))
	taken(a, machine.Stopped)
	kept("stopped, not to be woken any more", false)

	a = n.assign(n.next(a, desired(machine.WantStarted), func(a *internalpb.Assignment) { a.Wish++; a.StartNonce++ }))
	n.state(a, machine.Started)
	kept("started", true)
	a = n.assign(n.next(a, newer(`{"image":"web"}`), func(a *internalpb.Assignment) { a.SkipSecrets = true }))
	taken(a, machine.Started)
	kept("started without", false)

	a = n.assign(n.next(a, newer(`{"image":"web","guest":{"memory_mb":1048576}}`), func(a *internalpb.Assignment) { a.SkipSecrets = false }))
	n.until(secretID, "a start that fails", func(r *record) bool { return strings.Contains(r.Error, "memory") })
	a = n.assign(n.next(a, desired(machine.WantStopped), func(a *internalpb.Assignment) { a.Wish++ }))
	n.state(a, machine.Stopped)
	kept("stopped after a start that failed", false)
}

// TestSecretsOfAProcessAreBounded: a config that names one large secret many times costs
// this worker no memory, however many Machines start with it at once.
func TestSecretsOfAProcessAreBounded(t *testing.T) {
	values, _ := json.Marshal(map[string]string{"BIG": strings.Repeat("x", secret.MaxValue)})
	give := func(n int) ([]string, error) {
		cfg := &machine.Config{Processes: []machine.Process{{}}}
		for i := range n {
			cfg.Processes[0].Secrets = append(cfg.Processes[0].Secrets, machine.Secret{EnvVar: fmt.Sprint("V", i), Name: "BIG"})
		}
		return opened{values: values}.environment(cfg)
	}
	if env, err := give(15); err != nil || len(env) != 15 {
		t.Fatalf("%d, %v", len(env), err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := give(500)
	runtime.ReadMemStats(&after)
	if !fault.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), "config.processes[0].secrets") {
		t.Errorf("500 copies: %v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("500 copies took %d bytes", took)
	}
}

// TestVault: another node key, another Machine's file, a flipped bit: nothing opens, and
// a directory on a disk is not used.
func TestVault(t *testing.T) {
	dir, log := tmpfsDir(t), slog.New(slog.DiscardHandler)
	v, err := openVault(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	v.put("a", opened{Version: 2, values: []byte(`{"A":"v"}`)})
	half := filepath.Join(dir, ".b"+vaultEnd+".tmp") // as a worker leaves it that dies in a write
	if err := os.WriteFile(half, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err = openVault(dir, log); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); err == nil {
		t.Error("what a worker that died was writing is kept")
	}
	if h, ok := v.get("a"); !ok || h.Version != 2 || string(h.values) != `{"A":"v"}` {
		t.Fatalf("%+v, %v", h, ok)
	}
	b, err := os.ReadFile(filepath.Join(dir, "a"+vaultEnd))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b"+vaultEnd), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := v.get("b"); ok {
		t.Error("another machine's file opened")
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(filepath.Join(dir, "a"+vaultEnd), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := v.get("a"); ok {
		t.Error("a flipped bit went unseen")
	}
	v.put("a", opened{Version: 2, values: []byte(`{"A":"v"}`)})
	v.keepOnly(func(id key.MachineID) bool { return id == "a" })
	if n := len(mustGlob(t, filepath.Join(dir, "*"+vaultEnd))); n != 1 {
		t.Errorf("%d files are kept", n)
	}
	if err := os.WriteFile(filepath.Join(dir, vaultKey), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err = openVault(dir, log); err != nil {
		t.Fatal(err)
	}
	if _, ok := v.get("a"); ok {
		t.Error("it opened without its key")
	}
	var st unix.Statfs_t
	disk := t.TempDir()
	if err := unix.Statfs(disk, &st); err == nil && st.Type != unix.TMPFS_MAGIC {
		if v, err = openVault(disk, log); err != nil || v.dir != "" {
			t.Errorf("a directory on a disk is used: %q, %v", v.dir, err)
		}
	}
}
