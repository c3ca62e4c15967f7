package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"bulkhead/api/internalpb"
	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/sandbox"
	"bulkhead/sandbox/fake"
)

// errDead is what a killed worker gets from everything outside it.
var errDead = errors.New("the worker is dead")

// mortal kills a worker in process: at its nth crash point everything that the
// worker could change of the world (journal, sandboxes, images) stops obeying it.
type mortal struct {
	mu    sync.Mutex
	at    int // die at this point; 0 never
	n     int
	dead  bool
	where string
}

func (m *mortal) point(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errDead
	}
	m.n++
	if m.n == m.at {
		m.dead, m.where = true, name
		return errDead
	}
	return nil
}

func (m *mortal) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// mortalRuntime is a runtime as a mortal worker reaches it: it can die before an
// operation, and after it, when the effect is there and nobody heard of it.
type mortalRuntime struct {
	sandbox.Runtime
	m *mortal
}

func (r mortalRuntime) around(op string, do func() error) error {
	if err := r.m.point("before " + op); err != nil {
		return err
	}
	err := do()
	if derr := r.m.point("after " + op); derr != nil {
		return derr
	}
	return err
}

func (r mortalRuntime) Start(ctx context.Context, s sandbox.Spec) (box sandbox.Sandbox, err error) {
	err = r.around("runtime start", func() error { box, err = r.Runtime.Start(context.WithoutCancel(ctx), s); return err })
	if err != nil && box != nil {
		box.Close()
	}
	return box, err
}

func (r mortalRuntime) Attach(ctx context.Context, id key.MachineID) (box sandbox.Sandbox, err error) {
	err = r.around("runtime attach", func() error { box, err = r.Runtime.Attach(ctx, id); return err })
	if err != nil && box != nil {
		box.Close()
	}
	return box, err
}

func (r mortalRuntime) Signal(ctx context.Context, id key.MachineID, n int) error {
	return r.around("runtime signal", func() error { return r.Runtime.Signal(ctx, id, n) })
}

func (r mortalRuntime) Remove(ctx context.Context, id key.MachineID) error {
	return r.around("runtime remove", func() error { return r.Runtime.Remove(ctx, id) })
}

// mortalImages is the same for images.
type mortalImages struct {
	Images
	m *mortal
}

func (i mortalImages) Ensure(ctx context.Context, id key.MachineID, ref machine.ImageRef) (*image.Image, error) {
	if err := i.m.point("before ensure"); err != nil {
		return nil, err
	}
	img, err := i.Images.Ensure(ctx, id, ref)
	if derr := i.m.point("after ensure"); derr != nil {
		return nil, derr
	}
	return img, err
}

// driver plays the controller for one Machine, on a node whose worker dies once.
type driver struct {
	n     *node
	m     *mortal
	id    key.MachineID
	asg   *internalpb.Assignment
	power bool                 // the node loses its power together with the worker
	snap  *internalpb.Snapshot // what a worker with a new journal is told; nil is nothing
	skip  func(string) bool
	died  bool
	where string
}

// boot starts a worker that dies at point at.
func (d *driver) boot(at int) error {
	d.m = &mortal{at: at}
	w := d.n.make(mortalRuntime{d.n.host, d.m}, mortalImages{d.n.images, d.m})
	w.point, w.skip = d.m.point, d.skip
	d.n.w = w
	if err := w.Open(); err != nil {
		return err
	}
	if w.notWhole() != nil {
		if err := w.rebuildOnce(context.Background(), d.snap); err != nil && !d.m.isDead() {
			return err
		}
	}
	d.offer()
	return nil
}

// offer sends the present assignment, as a snapshot does after a reconnect.
func (d *driver) offer() {
	for _, a := range d.snap.GetAssignments() {
		d.n.w.Assign(a)
	}
	if d.asg != nil {
		d.n.w.Assign(d.asg) // a dead worker refuses; its successor gets it
	}
}

// want gives the Machine a new assignment.
func (d *driver) want(a *internalpb.Assignment) { d.asg = a; d.offer() }

// until waits for what the controller can see; when the worker dies meanwhile, the
// next one is started, which lives.
func (d *driver) until(what string, ok func(r *record) bool) error {
	state := "unknown"
	var failed error
	came := watch(func() *Worker { return d.n.w }, d.id, 15*time.Second, func() bool {
		if d.m.isDead() {
			if failed = d.revive(); failed != nil {
				return true
			}
		}
		s, err := d.n.w.get(d.id)
		if err != nil {
			return false
		}
		state = fmt.Sprintf("%s, sandbox %q, error %q, events %s", s.rec.State, s.rec.Sandbox, s.rec.Error, types(s.rec))
		return ok(s.rec)
	})
	if !came {
		return fmt.Errorf("%s never came; it is %s", what, state)
	}
	return failed
}

func (d *driver) revive() error {
	d.died = true
	d.where = d.m.where
	if err := d.n.w.Close(); err != nil {
		return err
	}
	if d.power {
		d.n.host.PowerCut()
	}
	if err := d.boot(0); err != nil {
		return fmt.Errorf("after %q: %w", d.where, err)
	}
	return nil
}

// steady says that a Machine is in a state by the newest assignment.
func (d *driver) steady(s machine.State) func(r *record) bool {
	return func(r *record) bool {
		k, _ := d.n.w.get(d.id)
		return r.State == s && k != nil && k.asg.GetGeneration() == d.asg.GetGeneration() && string(r.Instance) == d.asg.InstanceId &&
			r.StartNonce == d.asg.StartNonce && r.RestartNonce == d.asg.RestartNonce && string(r.Wanted) == d.asg.Desired
	}
}

// life leads a Machine through everything that can happen to it, with a worker
// that dies at point at. It returns how many points there were.
func (d *driver) life(at int) (exitsSeen int, err error) {
	if err := d.boot(at); err != nil {
		return 0, err
	}
	d.want(d.n.asg(d.id, `{"image":"a","restart":{"policy":"always"}}`))
	if err := d.until("launch", d.steady(machine.Started)); err != nil {
		return 0, err
	}
	d.want(d.n.next(d.asg, func(a *internalpb.Assignment) { a.RestartNonce++ }))
	if err := d.until("restart", d.steady(machine.Started)); err != nil {
		return 0, err
	}
	d.want(d.n.next(d.asg, func(a *internalpb.Assignment) { a.InstanceId = string(key.NewInstanceID()) }))
	if err := d.until("update", d.steady(machine.Started)); err != nil {
		return 0, err
	}
	// It crashes by itself, once.
	before := d.n.host.Starts(d.id)
	if err := d.n.host.Signal(context.Background(), d.id, 11); err != nil && !d.power {
		return 0, err
	}
	if err := d.until("restart after a crash", func(r *record) bool {
		return d.steady(machine.Started)(r) && d.n.host.Starts(d.id) > before
	}); err != nil {
		return 0, err
	}
	d.want(d.n.next(d.asg, desired(machine.WantStopped)))
	if err := d.until("stop", func(r *record) bool { return d.steady(machine.Stopped)(r) && r.Sandbox == "" }); err != nil {
		return 0, err
	}
	d.want(d.n.next(d.asg, started(7)))
	if err := d.until("start", d.steady(machine.Started)); err != nil {
		return 0, err
	}
	d.want(d.n.next(d.asg, desired(machine.WantDestroyed)))
	if err := d.until("destruction", func(r *record) bool { exitsSeen = len(exits(r)); return r.State == machine.Destroyed }); err != nil {
		return 0, err
	}
	return exitsSeen, d.forget()
}

// forget ends the Machine's story and checks that nothing of it is left.
func (d *driver) forget() error {
	var failed error
	gone := watch(func() *Worker { return d.n.w }, d.id, 40*time.Second, func() bool {
		if d.m.isDead() {
			if failed = d.reviveQuietly(); failed != nil {
				return true
			}
		}
		d.n.w.Forget(d.id)
		_, err := d.n.w.get(d.id)
		return err != nil && !d.m.isDead()
	})
	if !gone {
		return errors.New("it is never forgotten")
	}
	return errors.Join(failed, d.leftovers())
}

// reviveQuietly starts the next worker without a snapshot: the controller has noted
// the destruction and assigns nothing.
func (d *driver) reviveQuietly() error { d.asg = nil; return d.revive() }

// leftovers reports what is left on the node.
func (d *driver) leftovers() error {
	if err := d.n.w.Close(); err != nil {
		return err
	}
	d.n.w = nil
	if list, _ := d.n.host.List(context.Background()); len(list) > 0 {
		return fmt.Errorf("sandboxes are left: %v", list)
	}
	if f := d.n.host.Faults(); len(f) > 0 {
		return fmt.Errorf("the worker did what it must not: %v", f)
	}
	left, _ := os.ReadDir(filepath.Join(d.n.dir, "logs"))
	for _, e := range left { // its users may read them for a day
		if _, err := os.Stat(filepath.Join(d.n.dir, "logs", e.Name(), "retired")); err != nil {
			return fmt.Errorf("logs are left and not retired: %v", e)
		}
	}
	j, err := openJournal(d.n.dir)
	if err != nil {
		return err
	}
	defer j.close()
	return j.db.View(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketMachines, bucketAssignments, bucketSlots} {
			if k, _ := tx.Bucket(b).Cursor().First(); k != nil {
				return fmt.Errorf("bucket %s still holds %q", b, k)
			}
		}
		return nil
	})
}

// everyPoint runs story once with a worker that lives, which counts the crash
// points, and then with a worker that dies at the first, at the second, and so on.
// It returns the number of deaths.
func everyPoint(t *testing.T, power bool, skip func(string) bool, story func(d *driver, at int) error) (deaths int, err error) {
	points, _, err := onePoint(t, 0, power, skip, story)
	if err != nil {
		return 0, fmt.Errorf("not killed at all: %w", err)
	}
	var mu sync.Mutex
	g := new(errgroup.Group)
	g.SetLimit(32) // they mostly wait for back-offs
	for at := 1; at <= points; at++ {
		g.Go(func() error {
			_, died, err := onePoint(t, at, power, skip, story)
			mu.Lock()
			defer mu.Unlock()
			if died {
				deaths++
			}
			return err
		})
	}
	err = g.Wait()
	return deaths, err
}

// onePoint runs story with a worker that dies at one point.
func onePoint(t *testing.T, at int, power bool, skip func(string) bool, story func(d *driver, at int) error) (points int, died bool, err error) {
	n := &node{t: t, dir: memoryDir(t), host: fake.NewHost(), images: newFakeImages()}
	d := &driver{n: n, id: key.NewMachineID(), power: power, skip: skip}
	err = story(d, at)
	if n.w != nil {
		n.w.Close()
	}
	n.host.PowerCut()
	if err != nil {
		err = fmt.Errorf("killed at point %d (%s): %w", at, d.where, err)
	}
	return d.m.n, d.died, err
}

// lifeStory is driver.life with its sums: five starts and five ends, each once.
func lifeStory(d *driver, at int) error {
	ends, err := d.life(at)
	if err != nil {
		return err
	}
	starts := d.n.host.Starts(d.id)
	if d.power && d.died {
		if starts < 5 || starts > 6 {
			return fmt.Errorf("its process was started %d times; 5, or 6 with the power cut, are right", starts)
		}
		return nil
	}
	if starts != 5 {
		return fmt.Errorf("its process was started %d times; 5 are right", starts)
	}
	if ends != 5 {
		return fmt.Errorf("%d exit events; 5 are right", ends)
	}
	return nil
}

// TestKilledAtEveryStep kills the worker at each of its crash points during a
// Machine's whole life: the next worker carries on, nothing runs twice, no end is
// told twice or not at all, and nothing is left.
func TestKilledAtEveryStep(t *testing.T) {
	deaths, err := everyPoint(t, false, nil, lifeStory)
	t.Logf("%d crash points", deaths)
	if err != nil {
		t.Fatal(err)
	}
	if deaths < 50 {
		t.Fatalf("only %d crash points: they are not where they should be", deaths)
	}
}

// TestPowerCutAtEveryStep is the same with everything that ran gone as well.
func TestPowerCutAtEveryStep(t *testing.T) {
	deaths, err := everyPoint(t, true, nil, lifeStory)
	t.Logf("%d crash points", deaths)
	if err != nil {
		t.Fatal(err)
	}
	if deaths < 50 {
		t.Fatalf("only %d crash points", deaths)
	}
}

// onceStory runs a job that must run exactly once.
func onceStory(d *driver, at int) error {
	d.n.host.Install("once", func(p *fake.Process) int { fmt.Fprintln(p.Stdout, "done"); return 3 })
	if err := d.boot(at); err != nil {
		return err
	}
	d.want(d.n.asg(d.id, `{"image":"a","init":{"cmd":["once"]},"restart":{"policy":"no"}}`))
	var codes []int
	err := d.until("its end", func(r *record) bool {
		codes = nil
		for _, x := range exits(r) {
			codes = append(codes, x.ExitCode)
		}
		return d.steady(machine.Stopped)(r) && r.Sandbox == ""
	})
	if err != nil {
		return err
	}
	if s := d.n.host.Starts(d.id); s != 1 || fmt.Sprint(codes) != "[3]" {
		return fmt.Errorf("a job that runs once ran %d times and ended with %v", s, codes)
	}
	return nil
}

// TestAJobRunsOnce: whatever step the worker is killed at, a job with policy "no"
// runs exactly once and its code is told exactly once.
func TestAJobRunsOnce(t *testing.T) {
	deaths, err := everyPoint(t, false, nil, onceStory)
	t.Logf("%d crash points", deaths)
	if err != nil {
		t.Fatal(err)
	}
	if deaths < 12 {
		t.Fatalf("only %d crash points", deaths)
	}
}

// TestSkippedJournalWritesAreNoticed is the control of the tests above: with a
// seeded fault, a journal write that is not made, they must fail. (Some writes can be
// missed without harm, since what follows finds out by looking; these cannot.)
func TestSkippedJournalWritesAreNoticed(t *testing.T) {
	for _, c := range []struct {
		write string
		story func(*driver, int) error
	}{{"start", onceStory}, {"exit", onceStory}, {"forget", lifeStory}} {
		t.Run(c.write, func(t *testing.T) {
			deaths, err := everyPoint(t, false, func(name string) bool { return name == c.write }, c.story)
			if err == nil {
				t.Fatalf("%d crash points passed although %q was never journaled", deaths, c.write)
			}
			t.Logf("noticed: %s", strings.SplitN(err.Error(), "; it is", 2)[0])
		})
	}
}
