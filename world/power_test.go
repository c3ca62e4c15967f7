package world_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/fixture"
	"bulkhead/world"
)

// fleet is a platform with many Machines, as a power cut finds it.
type fleet struct {
	w       *world.World
	apps    []string
	started map[string][]string // app → Machines
	stopped map[string][]string
}

// newFleet starts n Machines in apps with a network each, and stops every tenth.
func newFleet(t testing.TB, w *world.World, n, apps int) *fleet {
	t.Helper()
	f := &fleet{w: w, started: map[string][]string{}, stopped: map[string][]string{}}
	image := fixture.StaticGo(t)
	refs := map[string]string{}
	for i := range apps {
		app := fmt.Sprintf("fleet%d", i)
		w.CreateApp(app, "")
		refs[app] = w.Push(app, image)
		f.apps = append(f.apps, app)
	}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			app := f.apps[i%apps]
			m := w.Run(app, world.Config{"image": refs[app], "services": world.HTTPService(8080)})
			stop := i%10 == 9
			if stop {
				w.Must("POST", "/apps/"+app+"/machines/"+m.ID+"/stop", map[string]any{}, nil)
				w.Wait(app, m.ID, "stopped", 60*time.Second)
			}
			mu.Lock()
			defer mu.Unlock()
			if stop {
				f.stopped[app] = append(f.stopped[app], m.ID)
			} else {
				f.started[app] = append(f.started[app], m.ID)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return f
}

// size is how many Machines are to run.
func (f *fleet) size() (n int) {
	for _, ids := range f.started {
		n += len(ids)
	}
	return n
}

// wrong says in what the platform differs from what was before the cut, or "".
func (f *fleet) wrong() string {
	for _, app := range f.apps {
		var ms []world.Machine
		if status, body := f.w.APIRaw("GET", "/apps/"+app+"/machines", nil); status != 200 {
			return fmt.Sprintf("the machines of %s: %d %s", app, status, body)
		}
		f.w.Must("GET", "/apps/"+app+"/machines", nil, &ms)
		for _, m := range ms {
			want := "started"
			if slices.Contains(f.stopped[app], m.ID) {
				want = "stopped"
			}
			if m.State != want {
				return fmt.Sprintf("machine %s of %s is %s and was %s", m.ID, app, m.State, want)
			}
		}
		if n := len(f.started[app]) + len(f.stopped[app]); len(ms) != n {
			return fmt.Sprintf("app %s has %d machines and had %d", app, len(ms), n)
		}
	}
	for _, app := range f.apps {
		if why := answers(f.w, app, "/", 200, ""); why != "" {
			return "app " + app + ": " + why
		}
	}
	if n := len(sandboxes(f.w)); n != f.size() {
		return fmt.Sprintf("%d sandboxes run, want %d", n, f.size())
	}
	return ""
}

// seed returns the seed of a test's random choices: BULKHEAD_SEED, or a new one.
func seed(t testing.TB) *rand.Rand {
	n := rand.Uint64()
	if s := os.Getenv("BULKHEAD_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("BULKHEAD_SEED: %v", err)
		}
	}
	t.Logf("seed: BULKHEAD_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// TestPowerCutOfFifty: fifty Machines, everything ends at once, what a reboot takes
// away is gone and what was being written is torn; all that ran runs again, in time.
func TestPowerCutOfFifty(t *testing.T) {
	w := world.Start(t)
	f := newFleet(t, w, 50, 5)
	w.Eventually(30*time.Second, f.wrong)
	r := seed(t)
	for range rounds(1) {
		w.PowerCut()
		litter(t, w.DataDir, r)
		others := busy(t)
		switch took := f.recover(); {
		case took <= recoveryLimit:
		case others > 0.3:
			t.Logf("NOT JUDGED: %v, while others had %.0f %% of this machine before it began", took, 100*others)
		default:
			t.Errorf("all was as before %v after bulkheadd was started, want %v", took, recoveryLimit)
		}
	}
	w.Stop()
	left := torn(t, w.DataDir)
	if len(left) > 0 {
		t.Errorf("what was torn still lies there: %v", left)
	}
}

// recoveryLimit is the promise for fifty Machines on two cores.
const recoveryLimit = 30 * time.Second

// busy is the part of the processors' time that is in use, by whatever runs now.
func busy(t testing.TB) float64 {
	t.Helper()
	read := func() (idle, all float64) {
		b, err := os.ReadFile("/proc/stat")
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(b), "\n")
		for i, f := range strings.Fields(line)[1:9] { // user nice system idle iowait irq softirq steal
			n, _ := strconv.ParseFloat(f, 64)
			if all += n; i == 3 || i == 4 {
				idle += n
			}
		}
		return idle, all
	}
	idle, all := read()
	time.Sleep(300 * time.Millisecond) // what is measured is a length of time
	idle2, all2 := read()
	return 1 - (idle2-idle)/(all2-all)
}

// recover starts the platform after a cut and returns how long it took until all was
// as before.
func (f *fleet) recover() time.Duration {
	f.w.T.Helper()
	start := time.Now()
	f.w.Up()
	ready := time.Since(start)
	f.w.Eventually(3*recoveryLimit, f.wrong)
	took := time.Since(start)
	f.w.T.Logf("the API answers after %v, %d machines run after %v", ready.Round(time.Millisecond), f.size(), took.Round(time.Millisecond))
	return took
}

// BenchmarkRecovery measures how long fifty Machines take to be as before a power
// cut, from the start of bulkheadd. "make bench-recovery" runs it.
func BenchmarkRecovery(b *testing.B) {
	w := world.Start(b)
	f := newFleet(b, w, 50, 5)
	w.Eventually(30*time.Second, f.wrong)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		w.PowerCut()
		b.StartTimer()
		took = append(took, f.recover())
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(took[len(took)-1].Milliseconds()), "max-ms")
}

// torn lists files in the places of work in progress.
func torn(t testing.TB, dir string) (out []string) {
	t.Helper()
	for _, pattern := range []string{"controller/registry/tmp/*", "controller/registry/uploads/*", "images/.tmp-*", "edge/certs/.new-*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	return out
}

// litter leaves, under the names of work in progress, what processes that were cut
// off in the middle of a write leave: files torn at random. Everywhere a role writes.
func litter(t testing.TB, dir string, r *rand.Rand) {
	t.Helper()
	bytes := func() []byte {
		b := make([]byte, r.IntN(64<<10))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for _, f := range []string{
		".cluster.json.tmp", ".up.json.tmp", ".ca.crt.tmp",
		"controller/api.key.tmp", "controller/ca/root.key.tmp",
		"controller/registry/tmp/123456", "controller/registry/uploads/0123456789abcdef0123456789abcdef.data",
		"controller/registry/uploads/0123456789abcdef0123456789abcdef.json",
		"images/.tmp-1.erofs", "images/.tmp-2.json", "edge/certs/.new-1", "edge/routes.log.new",
	} {
		write(t, filepath.Join(dir, f), bytes())
	}
	// Appended to without a promise: output of Machines, and the edge's cache of routes.
	logs, err := filepath.Glob(filepath.Join(dir, "worker/logs/*/current"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no logs of machines: %v", err)
	}
	for _, p := range append(logs, filepath.Join(dir, "edge/routes.log")) {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		write(t, p, append(b[:r.IntN(len(b)+1)], byte(r.IntN(256))))
	}
	// The edge can do without anything of its own but its key.
	certs, _ := filepath.Glob(filepath.Join(dir, "edge/certs/*.pem"))
	for i, p := range certs {
		if b, err := os.ReadFile(p); err == nil && i%2 == 0 {
			write(t, p, b[:r.IntN(len(b))])
		}
	}
}

// write replaces a file's content and leaves its owner; a new one gets its directory's.
func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := os.Chown(path, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
}

// TestPowerCutLosesNothingAcknowledged takes the power from the disk while clients
// write, several times: what was acknowledged before is there after it, Machines
// that ran run, with the addresses that they had.
func TestPowerCutLosesNothingAcknowledged(t *testing.T) {
	r := seed(t)
	d := world.NewDisk(t, 768)
	w := world.StartAt(t, d.Dir, filepath.Join(world.Root(), "build", "bin"), nil)
	image := fixture.StaticGo(t)
	f := newFleet(t, w, 2, 1)
	l := writing(w, image)
	var before []world.Machine
	w.Must("GET", "/apps/fleet0/machines", nil, &before)
	for cut := range rounds(2) {
		cutUnderLoad(t, d, w, l, r)
		if lost := l.lost(); len(lost) > 0 {
			t.Fatalf("after cut %d, of %d acknowledged writes %d are lost:\n%s", cut+1, l.count, len(lost), strings.Join(lost, "\n"))
		}
		w.Eventually(30*time.Second, f.wrong)
		for _, m := range before {
			if now := w.Machine("fleet0", m.ID); now.PrivateIP != m.PrivateIP || now.InstanceID != m.InstanceID {
				t.Errorf("machine %s was %s at %s and is %s at %s", m.ID, m.InstanceID, m.PrivateIP, now.InstanceID, now.PrivateIP)
			}
		}
		t.Logf("cut %d: %d acknowledged writes, %d images among them, are all there", cut+1, l.count, len(l.pushed))
	}
	// Control: what is not there is missed.
	l.apps, l.pushed[strings.Replace(l.image, "@sha256:", "@sha256:0", 1)[:len(l.image)]] = append(l.apps, "never-made"), "sha256:"
	if lost := l.lost(); len(lost) != 2 {
		t.Errorf("of two writes that never were, these were missed: %v", lost)
	}
	if l.count < 20 || len(l.pushed) == 0 {
		t.Errorf("only %d writes and %d pushes were acknowledged: nothing was tried", l.count, len(l.pushed))
	}
}

// rounds is n, or BULKHEAD_ROUNDS: "make soak-power" sets it.
func rounds(n int) int {
	if s, err := strconv.Atoi(os.Getenv("BULKHEAD_ROUNDS")); err == nil && s > 0 {
		return s
	}
	return n
}

// TestDiskLosesWhatWasNotSynced is the control of the cut: a write that was not synced
// is lost, one that was is there. And the writers' own: a write that never happened is
// missed.
func TestDiskLosesWhatWasNotSynced(t *testing.T) {
	d := world.NewDisk(t, 32)
	for name, sync := range map[string]bool{"synced": true, "unsynced": false} {
		f, err := os.Create(filepath.Join(d.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString("acknowledged")
		if sync {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	d.Cut()
	if err := os.WriteFile(filepath.Join(d.Dir, "later"), []byte("x"), 0o600); err == nil {
		t.Error("a write after the cut succeeded")
	}
	d.Reboot()
	if b, err := os.ReadFile(filepath.Join(d.Dir, "synced")); err != nil || string(b) != "acknowledged" {
		t.Errorf("what was synced is %q: %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(d.Dir, "unsynced")); err == nil && len(b) > 0 {
		t.Errorf("what was not synced is there: %q", b)
	}
}
