package world_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestAttacks runs every attack of package fixture/attack inside Machines of several
// kinds, and compares how each went with the table: one that went otherwise, one that
// is not in the table, and one that did not run fail. Then it looks whether anything of
// the host has changed, and floods what can be flooded.
func TestAttacks(t *testing.T) {
	w := world.Shared(t)
	b := layBait(t)
	before := readHostState(t)
	for app, network := range map[string]string{"root": "red", "user": "red", "hostile": "red", "foreign": "blue"} {
		w.CreateApp(app, network)
	}
	foreign := w.Run("foreign", world.Config{"image": w.Push("foreign", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
	b.targets.Dial = b.addresses(w, foreign)
	machines := map[string]world.Machine{}
	for app, config := range b.configs(w) {
		machines[app] = w.Run(app, config)
	}
	total := 0
	for _, app := range []string{"root", "user", "hostile"} {
		results := attackResults(w, app)
		for _, r := range results {
			t.Logf("%-8s %-28s %-8s %s", app, r.Attack, r.Outcome, r.Detail)
		}
		for _, why := range judge(results, func(r attackRow) string { return r.in(app) }) {
			t.Errorf("%s: %s", app, why)
		}
		total += len(results)
	}
	b.untouched(before)
	t.Logf("%d attacks, %d of them different ones, in 3 kinds of Machines", total, len(attackTable))
	t.Run("TestFloodsTroubleNobodyElse", func(t *testing.T) { floods(t, w.In(t), machines["hostile"]) })
}

// configs are the Machines that attack: by app.
func (b *bait) configs(w *world.World) map[string]world.Config {
	b.t.Helper()
	args, err := json.Marshal(b.targets)
	if err != nil {
		b.t.Fatal(err)
	}
	up := strings.Repeat("/..", 12)
	hostile := fixture.Attack(b.t,
		fixture.File{Path: "/links/hosts", Link: "/etc/hosts"},
		fixture.File{Path: "/links/canary", Link: up + b.targets.Canary},
		fixture.File{Path: "/links/up", Link: up[1:]},
		fixture.File{Path: "/links/init", Link: "/proc/1/root"},
		fixture.File{Path: "/links/fd", Link: "/proc/self/fd/7/../../.."},
		fixture.File{Path: "/links/run", Link: "/run/../../../../run"},
		// Bulkhead itself writes these two when it starts the Machine.
		fixture.File{Path: "/etc/hosts", Link: up + b.targets.Canary},
		fixture.File{Path: "/etc/resolv.conf", Link: "/proc/1/root" + b.targets.Canary},
		fixture.File{Path: "/attack-as-root", Body: fixture.AttackProgram(b.t), Mode: 0o6755},
	)
	plain := fixture.Attack(b.t)
	serve := func(program string) []string { return []string{program, "serve", string(args)} }
	return map[string]world.Config{
		"root": {"image": w.Push("root", plain), "services": world.HTTPService(8080), "init": map[string]any{"exec": serve("/attack")}},
		"user": {"image": w.Push("user", plain), "services": world.HTTPService(8080),
			"processes": []any{map[string]any{"exec": serve("/attack"), "user": "65534"}}},
		"hostile": {"image": w.Push("hostile", hostile), "services": world.HTTPService(8080),
			"guest": map[string]any{"cpus": 2, "memory_mb": 512},
			"env":   map[string]any{"LD_PRELOAD": "/attack", "GODEBUG": "x", "PATH": "/proc/1/root/bin", "HOME": up, "TMPDIR": "/proc/1/root/tmp"},
			"init":  map[string]any{"exec": serve("/links/../links/up/attack-as-root")}},
	}
}

// attackResults waits for a Machine's attacks to be over.
func attackResults(w *world.World, app string) (out []attackResult) {
	w.T.Helper()
	w.Eventually(2*time.Minute, func() string {
		status, body, err := w.Get(app, "/results")
		if err != nil || status != 200 {
			return fmt.Sprintf("/results: %d %.200s %v", status, body, err)
		}
		if err := json.Unmarshal([]byte(body), &out); err != nil {
			w.T.Fatalf("/results: %v: %.500s", err, body)
		}
		return ""
	})
	return out
}

// judge compares results with what the table wants ("" for attacks that are not run) and
// returns what is wrong.
func judge(results []attackResult, want func(attackRow) string) (wrong []string) {
	seen := map[string]bool{}
	for _, r := range results {
		i := slices.IndexFunc(attackTable, func(row attackRow) bool { return row.name == r.Attack })
		switch {
		case i < 0:
			wrong = append(wrong, fmt.Sprintf("attack %s is not in the table", r.Attack))
		case seen[r.Attack]:
			wrong = append(wrong, fmt.Sprintf("attack %s ran twice", r.Attack))
		case r.Outcome != want(attackTable[i]) && want(attackTable[i]) != tried:
			wrong = append(wrong, fmt.Sprintf("%s was %s (%s), the table says %s", r.Attack, r.Outcome, r.Detail, want(attackTable[i])))
		}
		seen[r.Attack] = true
	}
	for _, row := range attackTable {
		if !seen[row.name] && want(row) != "" {
			wrong = append(wrong, fmt.Sprintf("attack %s did not run", row.name))
		}
	}
	return wrong
}

// TestAttacksSucceedUnconfined is the control of TestAttacks: the same program in a chroot,
// as root with all capabilities, on the host's network. What is refused in a Machine
// succeeds here, in every class.
func TestAttacksSucceedUnconfined(t *testing.T) {
	b := layBait(t)
	b.targets.Dial = map[string][]string{"dial-host-loopback": {"127.0.0.1:" + b.port}}
	root := filepath.Join(b.dir, "root")
	for _, d := range []string{"proc", "sys", "dev", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "attack"), fixture.AttackProgram(t), 0o755); err != nil {
		t.Fatal(err)
	}
	var results []attackResult
	host, link := b.targets, b.targets
	host.Dial, link.Dial = b.targets.Dial, nil
	for _, row := range attackTable {
		switch {
		case row.control == "":
		case row.ownLink:
			link.Only = append(link.Only, row.name)
		default:
			host.Only = append(host.Only, row.name)
		}
	}
	results = append(results, b.unconfined(root, link, syscall.CLONE_NEWNET)[1:]...) // the first is fd-leak again
	results = append(results, b.unconfined(root, host, 0)...)
	classes := map[string]int{}
	for _, r := range results {
		t.Logf("%-28s %-8s %s", r.Attack, r.Outcome, r.Detail)
	}
	for _, why := range judge(results, func(r attackRow) string { return r.control }) {
		t.Error(why)
	}
	for _, row := range attackTable {
		classes[row.class] += 0
		if row.control == reached || row.control == succeeds {
			classes[row.class]++
		}
	}
	for class, n := range classes {
		if n == 0 {
			t.Errorf("of class %q no attack succeeds anywhere: its refusals prove nothing", class)
		}
	}
	t.Logf("%d attacks; as many must succeed, by class: %v", len(results), classes)
}

// unconfined runs the attacks in a chroot with mounts of its own, the host's processes,
// and no limits.
func (b *bait) unconfined(root string, t targets, flags uintptr) (out []attackResult) {
	b.t.Helper()
	args, err := json.Marshal(t)
	if err != nil {
		b.t.Fatal(err)
	}
	const script = `set -e
mount --make-rprivate /
mount --bind "$1" "$1" # so that the list of mounts betrays where it is
for fs in proc sysfs devtmpfs; do
	case $fs in proc) at=proc;; sysfs) at=sys;; *) at=dev;; esac
	mount -t $fs $fs "$1/$at"
done
mkdir -p "$1/dev/shm"; mount --bind /dev/shm "$1/dev/shm"
if [ "$3" = link ]; then ip link add a0 type veth peer name a1; ip link set a0 up; fi
exec chroot "$1" /attack run "$2"`
	kind := "host"
	if flags != 0 {
		kind = "link"
	}
	cmd := exec.Command("/bin/sh", "-c", script, "sh", root, string(args), kind)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | flags, Pdeathsig: syscall.SIGKILL}
	leak, err := os.Open("/")
	if err != nil {
		b.t.Fatal(err)
	}
	defer leak.Close()
	cmd.ExtraFiles = []*os.File{leak} // the seeded fault that fd-leak finds
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("the control: %v: %s", err, stderr.String())
	}
	for s := bufio.NewScanner(bytes.NewReader(stdout)); s.Scan(); {
		var r attackResult
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			b.t.Fatalf("%v: %s", err, s.Text())
		}
		out = append(out, r)
	}
	return out
}

// floods lets one Machine use up what it can, while its neighbours and the API are
// asked: all answer.
func floods(t *testing.T, w *world.World, m world.Machine) {
	stop, done := make(chan struct{}), make(chan []time.Duration, 1)
	go func() {
		var took []time.Duration
		defer func() { done <- took }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			began := time.Now()
			resp, err := w.Client().Get(w.URL("foreign", "/"))
			if err != nil {
				t.Errorf("the neighbour: %v", err)
				continue
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("the neighbour answers %d", resp.StatusCode)
			}
			took = append(took, time.Since(began))
		}
	}()
	end := sync.OnceFunc(func() { close(stop) })
	defer end()
	for _, f := range floodTable {
		if f.ends {
			continue
		}
		status, body, err := w.Get("hostile", "/flood?kind="+f.kind)
		var r attackResult
		if json.Unmarshal([]byte(body), &r); r.Outcome != f.want {
			t.Errorf("flood of %s: %d %.300s %v; the table says %s", f.kind, status, body, err, f.want)
		}
		began := time.Now()
		w.Machine("hostile", m.ID)
		t.Logf("flood of %s: %s %s; the API then answers in %s", f.kind, r.Outcome, r.Detail, time.Since(began).Round(time.Millisecond))
	}
	// The last one ends the Machine, and with it the answer.
	go w.Client().Get(w.URL("hostile", "/flood?kind=memory"))
	w.Eventually(time.Minute, func() string {
		for _, e := range w.Machine("hostile", m.ID).Events {
			if e.Request != nil && e.Request.ExitEvent != nil && e.Request.ExitEvent.OOMKilled {
				return ""
			}
		}
		return "no event says that the Machine ran out of memory"
	})
	end()
	took := <-done
	slices.Sort(took)
	if len(took) == 0 {
		t.Fatal("the neighbour was never asked")
	}
	t.Logf("the neighbour answered %d times meanwhile: median %s, p99 %s, most %s", len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
}
