package world_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/failpoint"
	"bulkhead/fixture"
	"bulkhead/world"
)

// Limits of one trial.
const (
	patience   = 30 * time.Second // for a client that repeats, and for the platform to settle
	reachLimit = 3 * time.Second  // for a place that was armed to be reached
)

// TestCrashAtEveryPlace kills a role at every place at which the platform writes
// anything (package failpoint), before and after the write, and has the write
// reported as failed, made or not. Each trial is one operation by a client that takes
// an error for "unknown" and repeats it. Then everything must be as it was
// acknowledged, no Machine may have run twice at a time, and once all is destroyed
// nothing may be left.
//
// As part of make test each operation is tried once with up to four places, in modes
// and at places that the seed chooses (BULKHEAD_SEED repeats a run), first those that no
// other operation has tried; "make soak-crash" tries every place of every operation in
// every mode by itself.
func TestCrashAtEveryPlace(t *testing.T) {
	start := time.Now()
	seed, r := crashSeed()
	d := startDying(t)
	passed := map[string][]string{} // operation → places
	var all []crash
	for _, op := range operations() {
		places, why := d.try(op)
		if why != nil {
			t.Fatalf("%s without a fault: %v", op.name, why)
		}
		passed[op.name] = places
		for _, p := range places {
			for _, m := range failpoint.Modes() {
				all = append(all, crash{op, p, m})
			}
		}
	}
	learned := time.Since(start)
	var trials [][]crash
	if wholeMatrix() {
		for _, c := range all {
			trials = append(trials, []crash{c})
		}
	} else {
		trials = sample(all, 4, r)
	}
	cases, missed, tried := 0, 0, map[string]bool{}
	for i, cs := range trials {
		if only := os.Getenv("BULKHEAD_CRASH_ONLY"); only != "" && !strings.Contains(fmt.Sprint(cs), only) {
			continue
		}
		began := time.Now()
		_, why := d.try(cs[0].op, cs...)
		cases += len(cs)
		for _, c := range cs {
			tried[c.place] = true
		}
		if errors.Is(why, errMissed) {
			missed++
		} else if why != nil {
			t.Errorf("%v (seed %d): %v", cs, seed, why)
		}
		t.Logf("%d of %d, %v: %v %v", i+1, len(trials), cs, time.Since(began).Round(time.Millisecond), why)
	}
	places := d.everSeen()
	t.Logf("crash: %d operations, %d of %d places, %d cases of %d in %d trials (%d did not reach all their places), seed %d, learned in %v, all in %v",
		len(passed), len(tried), len(places), cases, len(all), len(trials), missed, seed, learned.Round(time.Second), time.Since(start).Round(time.Second))
	if missed > len(trials)/4 {
		t.Errorf("%d of %d trials never reached their places", missed, len(trials))
	}
	for place, where := range placesInSource(t) {
		if why := neverPassed[place]; why == "" && !slices.ContainsFunc(places, place.is) {
			t.Errorf("place %s (%s) was passed by no operation", place, where)
		}
	}
}

// crashSeed is the seed of this run's choices.
func crashSeed() (uint64, *rand.Rand) {
	seed, err := strconv.ParseUint(os.Getenv("BULKHEAD_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	return seed, rand.New(rand.NewPCG(seed, 1))
}

// wholeMatrix says that all cases are wanted, not a sample.
func wholeMatrix() bool { return os.Getenv("BULKHEAD_CRASH") == "all" }

// TestCrashCheckerSeesALostWrite is the control: a write to the journal that is not
// made and reported as made is seen by the checker of TestCrashAtEveryPlace.
func TestCrashCheckerSeesALostWrite(t *testing.T) {
	d := startDying(t)
	for _, op := range operations() {
		if op.name != "destroy" {
			continue
		}
		if _, why := d.try(op); why != nil {
			t.Fatalf("without a fault: %v", why)
		}
		d.limit = 5 * time.Second // for what will not come
		_, why := d.try(op, crash{op, "worker/journal/gone", failpoint.Skip})
		if why == nil || !strings.Contains(why.Error(), "journal: slot") {
			t.Errorf("the slot that was not given back was not seen: %v", why)
		}
	}
	if twice([]world.Process{{PID: 2, Name: "runsc-sandbox", Args: []string{"0123456789abcd"}}, {PID: 3, Name: "runsc-sandbox", Args: []string{"0123456789abcd"}}}) == nil {
		t.Error("two sandboxes of one machine were not seen")
	}
}

// TestCrashFirstStart kills the roles while an installation is made: keys,
// authority, store, registry, router. The seed chooses places and modes, three in one
// start; "make soak-crash" tries all, one by one.
func TestCrashFirstStart(t *testing.T) {
	start := time.Now()
	seed, r := crashSeed()
	var places []string
	missed := 0
	first := func(t *testing.T, armed map[string]failpoint.Mode) {
		d := &dying{points: pointsDir(t), seen: map[string]bool{}}
		for p, m := range armed {
			if err := errors.Join(os.WriteFile(d.file("armed", p), []byte(m), 0o666), os.Chmod(d.file("armed", p), 0o666)); err != nil {
				t.Fatal(err)
			}
		}
		d.w = world.StartFrom(t, filepath.Join(world.Root(), "build", "failpoints"), []string{failpoint.Env + "=" + d.points})
		// What is done in the background may come when everything is ready, or not at all.
		within(10*time.Second, func() bool { return len(d.names("armed")) == 0 })
		if left := d.names("armed"); len(left) > 0 && !slices.ContainsFunc(left, func(p string) bool { return !inBackground(p) }) {
			t.Logf("not reached: %v", left)
			missed++
		} else if len(left) > 0 {
			t.Errorf("not reached: %v", left)
		}
		d.w.Eventually(time.Minute, func() string { // a role may just be on its way back
			resp, err := d.w.Client().Get(d.w.Ready.APIURL + "/v1/platform/regions")
			if err != nil {
				return err.Error()
			}
			resp.Body.Close()
			return ""
		})
		d.w.CreateApp("first", "")
		d.w.Eventually(time.Minute, func() string { // one may just be written
			for _, line := range census(t, d.w).Held {
				if strings.HasPrefix(line, "temporary file") {
					return "left behind: " + line
				}
			}
			return ""
		})
		if places == nil {
			places = d.everSeen()
		}
	}
	t.Run("without a fault", func(t *testing.T) { first(t, nil) })
	// bulkheadd itself asks for the first token, and tries what the host can do, and ends
	// without it: it is started again.
	places = slices.DeleteFunc(places, func(p string) bool {
		return p == "store/txn/audit" || strings.HasPrefix(p, "audit/") || strings.HasPrefix(p, "cgroup/") || strings.Contains(p, "claim") || p == "store/txn/token" || strings.HasPrefix(p, "store/txn/app")
	})
	cases, modes := 0, failpoint.Modes()
	var starts []map[string]failpoint.Mode
	if wholeMatrix() {
		for _, p := range places {
			for _, m := range modes {
				starts = append(starts, map[string]failpoint.Mode{p: m})
			}
		}
	} else {
		// What a later start passes too is tried there.
		once := slices.DeleteFunc(slices.Clone(places), func(p string) bool { return !strings.HasPrefix(p, "pki/") && !slices.Contains(onlyFirst, p) })
		r.Shuffle(len(once), func(i, j int) { once[i], once[j] = once[j], once[i] })
		for ps := range slices.Chunk(once, 3) {
			m := map[string]failpoint.Mode{}
			for _, p := range ps {
				m[p] = modes[r.IntN(len(modes))]
			}
			starts = append(starts, m)
		}
		starts = starts[:min(len(starts), 2)]
	}
	for i, armed := range starts {
		cases += len(armed)
		// A short name: the store's sockets lie below a directory that is named after it.
		t.Run(strconv.Itoa(i+1), func(t *testing.T) { t.Log(armed); first(t, armed) })
	}
	t.Logf("crash: a first start, %d places, %d cases of %d (%d did not reach theirs), seed %d, in %v", len(places), cases, len(places)*len(modes), missed, seed, time.Since(start).Round(time.Second))
}

// inBackground reports whether a place is passed by what nobody waits for.
func inBackground(p string) bool { return p == "store/txn/-audit" || p == "store/txn/issuer" }

// onlyFirst are places that only a first start passes.
var onlyFirst = []string{"worker/journal/rebuild", "router/namespace", "router/uplink-link", "store/txn/org", "warden/started/create"}

// crash is one case: a place in an operation and what happens there.
type crash struct {
	op    operation
	place string
	mode  failpoint.Mode
}

func (c crash) String() string { return fmt.Sprintf("%s, %s %s", c.op.name, c.mode, c.place) }

// sample chooses one trial for each operation: at most n of its places, each in one
// mode. Places that no trial has yet come first, the rarest of them before the others.
func sample(all []crash, n int, r *rand.Rand) (trials [][]crash) {
	cases := map[string]map[string][]crash{} // operation → place → modes
	passing := map[string]int{}              // place → operations
	for _, c := range all {
		if cases[c.op.name] == nil {
			cases[c.op.name] = map[string][]crash{}
		}
		if cases[c.op.name][c.place] == nil {
			passing[c.place]++
		}
		cases[c.op.name][c.place] = append(cases[c.op.name][c.place], c)
	}
	chosen := map[string]int{}
	ops := slices.Sorted(maps.Keys(cases))
	r.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	for _, op := range ops {
		places := slices.Sorted(maps.Keys(cases[op]))
		r.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
		slices.SortStableFunc(places, func(a, b string) int {
			return cmp.Or(cmp.Compare(chosen[a], chosen[b]), cmp.Compare(passing[a], passing[b]))
		})
		var trial []crash
		for _, p := range places[:min(n, len(places))] {
			chosen[p]++
			modes := cases[op][p]
			trial = append(trial, modes[r.IntN(len(modes))])
		}
		trials = append(trials, trial)
	}
	return trials
}

// dying is a platform whose roles die at places.
type dying struct {
	w      *world.World
	points string // the directory of package failpoint
	image  string
	before world.Census
	limit  time.Duration // for the census to be as before
	seen   map[string]bool
	n      int
}

// startDying starts a platform built with failpoints that has an image, and has had
// its first app and Machine.
func startDying(t testing.TB) *dying {
	d := &dying{points: pointsDir(t), seen: map[string]bool{}, limit: patience}
	d.w = world.StartFrom(t, filepath.Join(world.Root(), "build", "failpoints"), []string{failpoint.Env + "=" + d.points})
	d.w.CreateApp("images", "")
	d.image = d.w.Push("images", fixture.StaticGo(t))
	d.w.Run("images", world.Config{"image": d.image})
	first := d.machines("images")[0].ID
	d.w.Must("DELETE", "/apps/images/machines/"+first+"?force=true", nil, nil)
	d.w.Eventually(patience, func() string { return d.holds(first) })
	d.rebase()
	return d
}

// holds says what the node, or the list of what runs on it, still has of a Machine, or "".
// The API's answer to a destruction comes before anything is taken down, and for a moment
// two censuses agree on all of it.
func (d *dying) holds(id string) string {
	now, err := d.w.Census()
	if err != nil {
		return err.Error()
	}
	for _, line := range now.Held {
		if strings.Contains(line, id) && (!strings.HasPrefix(line, "store: ") || strings.HasPrefix(line, "store: /node/")) {
			return line
		}
	}
	return ""
}

// pointsDir makes a directory for package failpoint that every role may use.
func pointsDir(t testing.TB) string {
	dir := t.TempDir()
	for p := dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		os.Chmod(p, 0o755)
	}
	for _, sub := range []string{"armed", "seen"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, sub), 0o777), os.Chmod(filepath.Join(dir, sub), 0o777)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// rebase takes what there is now for what has to be there after a trial.
func (d *dying) rebase() {
	d.before = d.w.Settled(patience)
}

// names lists the places that have a file in a directory.
func (d *dying) names(dir string) (out []string) {
	entries, _ := os.ReadDir(filepath.Join(d.points, dir))
	for _, e := range entries {
		out = append(out, strings.ReplaceAll(e.Name(), "+", "/"))
	}
	return out
}

// clear forgets what was seen and armed.
func (d *dying) clear() {
	d.everSeen()
	for _, dir := range []string{"armed", "seen"} {
		for _, n := range d.names(dir) {
			os.Remove(d.file(dir, n))
		}
	}
}

func (d *dying) file(dir, place string) string {
	return filepath.Join(d.points, dir, strings.ReplaceAll(place, "/", "+"))
}

// everSeen lists every place that any process has passed so far.
func (d *dying) everSeen() []string {
	for _, n := range d.names("seen") {
		d.seen[n] = true
	}
	return slices.Sorted(maps.Keys(d.seen))
}

// errMissed says that a place was armed and not reached.
var errMissed = errors.New("the place was not reached")

// try runs an operation with crashes armed, and says what was wrong: nil, or
// errMissed, or a problem. It returns the places that the operation passed.
func (d *dying) try(op operation, crashes ...crash) (places []string, problem error) {
	d.n++
	t := &trial{dying: d, app: "c" + strconv.Itoa(d.n), version: 1}
	defer func() {
		d.clear()
		if err := t.cleanUp(); err != nil {
			problem = errors.Join(problem, err)
			d.rebase()
		}
	}()
	if err := op.prepare(t); err != nil {
		return nil, fmt.Errorf("before the operation: %w", err)
	}
	d.clear()
	for _, c := range crashes {
		if err := errors.Join(os.WriteFile(d.file("armed", c.place), []byte(c.mode), 0o666), os.Chmod(d.file("armed", c.place), 0o666)); err != nil {
			return nil, err
		}
	}
	twice := t.watch()
	defer func() { problem = errors.Join(problem, twice()) }()
	if err := op.act(t); err != nil {
		return nil, fmt.Errorf("the client: %w", err)
	}
	if err := t.settles(op); err != nil {
		return nil, err
	}
	if len(crashes) > 0 {
		if !within(reachLimit, func() bool { return len(d.names("armed")) == 0 }) {
			return nil, errMissed
		}
		if err := t.settles(op); err != nil {
			return nil, fmt.Errorf("after the crash: %w", err)
		}
	}
	return d.names("seen"), nil
}

// within waits for something.
func within(limit time.Duration, f func() bool) bool {
	return world.Until(limit, func() string {
		if f() {
			return ""
		}
		return "not yet"
	}) == ""
}
