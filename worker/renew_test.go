package worker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/machine"
)

// granted is a node whose runtime holds grants against a clock, and the controller's key.
type granted struct {
	*node
	*clock
	key ed25519.PrivateKey
}

func newGranted(t *testing.T) *granted {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	g := &granted{newNode(t), &clock{}, priv}
	g.onClock(g.clock)
	g.host.GrantKey, g.host.Node, g.host.Now = pub, "n1", g.clock.now
	return g
}

// sign gives an assignment the grant that a controller makes now.
func (g *granted) sign(a *internalpb.Assignment) *internalpb.Assignment {
	a = cloneAsg(a)
	g.signAs(a, grant.Grant{Generation: a.Generation, Ends: grant.End("n1", g.clock.now()).Unix()})
	return a
}

func (g *granted) signAs(a *internalpb.Assignment, as grant.Grant) {
	as.Machine, as.Instance, as.Node, as.Network = key.MachineID(a.MachineId), instanceOf(a), "n1", 5
	var err error
	if a.Grant, a.GrantSignature, err = grant.Sign(g.key, as); err != nil {
		g.t.Fatal(err)
	}
}

// renew is what the controller does at each Sync and every day. It waits until the
// worker has taken the grant over.
func (g *granted) renew(a *internalpb.Assignment) {
	g.t.Helper()
	a = g.assign(g.sign(a))
	g.until(a.MachineId, "the new grant", func(*record) bool { return g.has(a) })
}

func (g *granted) has(a *internalpb.Assignment) bool {
	s, err := g.w.get(key.MachineID(a.MachineId))
	return err == nil && bytes.Equal(s.asg.GetGrant(), a.Grant) && bytes.Equal(s.asg.GetGrantSignature(), a.GrantSignature)
}

// cut cuts the node's power and starts its worker again.
func (g *granted) cut() {
	g.down()
	g.host.PowerCut()
	g.boot()
}

// runsAgain waits for the nth start of a Machine's process.
func (g *granted) runsAgain(a *internalpb.Assignment, nth int, what string) {
	g.t.Helper()
	g.until(a.MachineId, what, func(r *record) bool {
		return r.State == machine.Started && g.host.Starts(key.MachineID(a.MachineId)) == nth
	})
}

// TestGrantsAreRenewed: a Machine under a grant that is made anew every day runs through
// a month untouched and can be restarted beyond the end of every grant but the last, also
// by a node that lost its power; without the controller for two weeks; and after that
// waits, says why, and starts by itself when the controller is there.
func TestGrantsAreRenewed(t *testing.T) {
	g := newGranted(t)
	g.boot()
	a := g.assign(g.sign(g.asg(key.NewMachineID(), `{"image":"a","restart":{"policy":"always"}}`)))
	id := key.MachineID(a.MachineId)
	before := *g.state(a, machine.Started)
	g.until(a.MachineId, "silence", func(*record) bool { return len(g.w.takeDirty()) == 0 })
	for range 30 {
		g.forward(grant.Period)
		g.renew(a)
	}
	r := g.state(a, machine.Started)
	if r.Seq != before.Seq || types(r) != types(&before) || !r.UpdatedAt.Equal(before.UpdatedAt) || g.host.Starts(id) != 1 {
		t.Errorf("30 new grants made of %+v %+v, started %d times", before, *r, g.host.Starts(id))
	}
	if d := g.w.takeDirty(); len(d) != 0 {
		t.Errorf("the controller is told of new grants: %v", d)
	}
	g.host.OOM(id)
	g.runsAgain(a, 2, "a restart after a month")
	g.cut()
	g.runsAgain(a, 3, "a start from the journal")

	// The controller is away for two weeks, and the clock is an hour back after a cut.
	g.forward(grant.Life - time.Minute)
	g.host.OOM(id)
	g.runsAgain(a, 4, "a restart without the controller")
	g.forward(-time.Hour)
	g.cut()
	g.runsAgain(a, 5, "a start after the clock was set back")
	g.forward(time.Hour)
	g.cut()
	g.runsAgain(a, 6, "a start on the last day")

	// Longer: what runs runs on. The control of all the above: nothing starts.
	g.forward(grant.Period + 2*time.Minute)
	if list, _ := g.host.List(t.Context()); len(list) != 1 || !list[0].Running {
		t.Errorf("a machine whose grant has ended is ended: %v", list)
	}
	g.cut()
	r = g.until(a.MachineId, "the reason why it waits", func(r *record) bool { return r.Error != "" })
	if !strings.Contains(r.Error, "grant of machine "+a.MachineId+" ended at ") || !strings.Contains(r.Error, "reaches the controller") || r.Events[0].Request == nil || r.Events[0].Request.Error != r.Error {
		t.Errorf("it waits and says %q; event %+v", r.Error, r.Events[0])
	}
	g.forward(beyond(machine.Starting))
	if r = g.state(a, machine.Failed); !r.Retry || g.host.Starts(id) != 6 || r.SelfDestroy {
		t.Errorf("failed for good, or started: %+v", *r)
	}
	g.renew(a) // without a change by anybody, and without waiting for its next try
	g.runsAgain(a, 7, "a start when the controller is there")
}

// TestGrantsWithoutAnEnd: an installation of a version that made them is started by this
// one. What runs runs on; what does not waits for the controller and says so, and the
// first Sync ends it.
func TestGrantsWithoutAnEnd(t *testing.T) {
	g := newGranted(t)
	check := g.host.GrantKey
	g.host.GrantKey = nil // the older warden
	g.boot()
	a := g.asg(key.NewMachineID(), plain)
	g.signAs(a, grant.Grant{})
	b := g.asg(key.NewMachineID(), plain)
	g.signAs(b, grant.Grant{})
	g.state(g.assign(a), machine.Started)
	g.state(g.assign(b), machine.Started)
	g.down()
	g.host.GrantKey = check
	g.boot()
	g.host.OOM(key.MachineID(a.MachineId))
	r := g.until(a.MachineId, "the reason why it waits", func(r *record) bool { return strings.Contains(r.Error, "older version of Bulkhead") })
	if g.host.Starts(key.MachineID(a.MachineId)) != 1 {
		t.Errorf("started by a grant without an end: %+v", *r)
	}
	if s, _ := g.w.get(key.MachineID(b.MachineId)); s.rec.State != machine.Started {
		t.Errorf("what runs does not run on: %s", s.rec.State)
	}
	g.renew(a)
	g.renew(b)
	g.runsAgain(a, 2, "a start with a grant of this version")
	if n := g.host.Starts(key.MachineID(b.MachineId)); n != 1 {
		t.Errorf("what ran was started %d times", n)
	}
}

// TestOldGrantsReplaceNothing: of two grants of one generation the one that was sent last
// counts, also when the clock was set back and it ends sooner; one of an older generation
// does not, nor does one that comes with a newer generation that is still on its way in.
func TestOldGrantsReplaceNothing(t *testing.T) {
	g := newGranted(t)
	g.boot()
	a := g.assign(g.sign(g.asg(key.NewMachineID(), plain)))
	g.state(a, machine.Started)
	b := g.assign(g.sign(g.next(a)))
	g.until(b.MachineId, "the newer generation", func(*record) bool { return g.has(b) })
	g.forward(3 * grant.Period)
	old := g.assign(g.sign(a)) // of the older generation, but younger
	g.forward(-5 * grant.Period)
	g.renew(b)
	if g.has(old) {
		t.Error("a grant of an older generation was taken over")
	}
	g.cut()
	g.runsAgain(b, 2, "a start by the grant that came last")
}

// TestGrantBeforeItsGeneration: a grant that is made anew between an assignment's being
// heard of and its being accepted is taken over when it is accepted.
func TestGrantBeforeItsGeneration(t *testing.T) {
	g := newGranted(t)
	g.boot()
	old := g.sign(g.asg(key.NewMachineID(), plain))
	id := key.MachineID(old.MachineId)
	r := &record{Machine: id, Seq: 1, State: machine.Created, Since: g.clock.now(), Instance: instanceOf(old)}
	if err := g.w.journal.create(r, old); err != nil {
		t.Fatal(err)
	}
	a := newActor(g.w, entry{rec: r, asg: old}) // which nobody runs
	next := g.sign(g.asg(id, plain))
	a.offer(next)
	g.forward(grant.Period)
	young := g.sign(next)
	a.offer(young)
	for _, step := range []func() error{a.renew, a.accept, a.renew} { // it was past accept when both came
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.asg.GetGrant(), young.Grant) || a.asg.GetGeneration() != next.Generation || a.young != nil {
		t.Errorf("it has %s, want %s", a.asg.GetGrant(), young.Grant)
	}
}

// TestALeaseCutsNoStepShort: a lease that is taken or refreshed while a step runs, the fetch of
// a large image for one, lets the step go on. The worker has the lease after it and reports that.
func TestALeaseCutsNoStepShort(t *testing.T) {
	g := newGranted(t)
	g.boot()
	as := g.sign(g.asg(key.NewMachineID(), plain))
	id := key.MachineID(as.MachineId)
	r := &record{Machine: id, Seq: 1, State: machine.Created, Since: g.clock.now(), Instance: instanceOf(as)}
	if err := g.w.journal.create(r, as); err != nil {
		t.Fatal(err)
	}
	a := newActor(g.w, entry{rec: r, asg: as}) // which nobody runs
	a.cancel = func(err error) { t.Errorf("the step was cut short: %v", err) }
	for revision := range int64(3) {
		leased := cloneAsg(as)
		leased.LeaseRevision, leased.LeaseUntilMs, leased.LeaseTtlMs = 7+revision, 1000*revision, 13_000
		a.offer(leased)
		if a.inbox != nil {
			t.Fatal("a lease counts as a new assignment")
		}
		if err := a.renew(); err != nil {
			t.Fatal(err)
		}
		d := g.w.takeDirty()
		if len(d) != 1 || d[0].LeaseRevision != 7+revision || d[0].Seq != 1 || a.asg.LeaseUntilMs != 1000*revision {
			t.Errorf("after lease %d the worker has %v and reports %v", 7+revision, a.asg, d)
		}
	}
	a.cancel = nil
	released := cloneAsg(as)
	a.offer(released)
	if err := a.renew(); err != nil || a.asg.LeaseRevision != 0 || a.asg.LeaseUntilMs != 0 {
		t.Errorf("the released lease stays: %v %v", a.asg, err)
	}
}

// TestRenewalIsKilledAtEveryStep: the worker dies at every step around a renewal; after
// it the journal holds the new grant, and the Machine was started once.
func TestRenewalIsKilledAtEveryStep(t *testing.T) {
	story := func(d *driver, at int) error {
		if err := d.boot(at); err != nil {
			return err
		}
		d.want(d.n.asg(d.id, plain))
		if err := d.until("launch", d.steady(machine.Started)); err != nil {
			return err
		}
		young := cloneAsg(d.asg)
		young.Grant, young.GrantSignature = []byte(`{"network":5,"ends":7}`), []byte("signed")
		d.want(young)
		has := func(*record) bool {
			s, _ := d.n.w.get(d.id)
			return s != nil && bytes.Equal(s.asg.GetGrant(), young.Grant) && bytes.Equal(s.asg.GetGrantSignature(), young.GrantSignature)
		}
		if err := d.until("the new grant", has); err != nil {
			return err
		}
		if err := d.n.w.Close(); err != nil {
			return err
		}
		d.died = d.died || d.m.isDead()
		asg, m := d.asg, d.m
		d.asg = nil // the controller is away
		if err := d.boot(0); err != nil {
			return err
		}
		d.m = m // whose steps count
		if !has(nil) {
			return errors.New("the new grant is not in the journal")
		}
		d.asg = asg
		if n := d.n.host.Starts(d.id); n != 1 {
			return fmt.Errorf("started %d times", n)
		}
		if list, _ := d.n.host.List(context.Background()); len(list) != 1 || !list[0].Running {
			return fmt.Errorf("it does not run on: %v", list)
		}
		return nil
	}
	deaths, err := everyPoint(t, false, nil, story)
	if err != nil {
		t.Error(err)
	}
	t.Logf("renewal: %d deaths", deaths)
	if deaths < 4 {
		t.Errorf("only %d deaths", deaths)
	}
	// The control: a grant that is not written and reported as written is seen.
	if _, err := everyPoint(t, false, func(name string) bool { return name == "renew" }, story); err == nil {
		t.Error("a grant that was not journaled was not seen")
	}
}
