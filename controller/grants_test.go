package controller_test

import (
	"crypto/ed25519"
	"os"
	"testing"
	"time"

	"bulkhead/controller"
	"bulkhead/grant"
	"bulkhead/internal/await"
	"bulkhead/key"
)

// grants reads what the worker holds of Machines, as a warden would.
func (e *env) grants(at time.Time, ids ...string) (out []grant.Grant, generations []int64) {
	e.t.Helper()
	priv, err := os.ReadFile(e.cfg.Role.GrantKeyFile)
	if err != nil {
		e.t.Fatal(err)
	}
	e.worker.mu.Lock()
	defer e.worker.mu.Unlock()
	for _, id := range ids {
		a := e.worker.machines[key.MachineID(id)].a
		g, err := grant.Verify(ed25519.PrivateKey(priv).Public().(ed25519.PublicKey), node, a.Grant, a.GrantSignature)
		if err != nil {
			e.t.Fatal(err)
		}
		if g.Generation != a.Generation || string(g.Machine) != id || string(g.Instance) != a.InstanceId {
			e.t.Errorf("grant %+v of assignment %v", g, a)
		}
		if err := g.Usable(at); err != nil {
			e.t.Error(err)
		}
		out, generations = append(out, g), append(generations, a.Generation)
	}
	return out, generations
}

// TestGrantsAreSentAnew: at each Sync, once a day, and when the clock was set, forward or
// back; under the same generation, for every Machine, and no more often than that.
func TestGrantsAreSentAnew(t *testing.T) {
	// Just after the second of the day at which the node's grants change: none changes by
	// itself for as long as the test lasts, whenever that is.
	begin := time.Until(grant.End(node, time.Now()).Add(-grant.Life)) + time.Minute
	defer controller.Ahead(begin)()
	e := newEnvWith(t, func(c *controller.Config) { c.GrantTick = 5 * time.Millisecond })
	e.startWorker()
	e.app("web")
	var ids []string
	for range 3 {
		ids = append(ids, e.launch("web", image()).ID)
	}
	renewed := func() int {
		e.worker.mu.Lock()
		defer e.worker.mu.Unlock()
		return e.worker.renewed
	}
	first, generations := e.grants(time.Now().Add(begin), ids...)
	if n := renewed(); n != 0 {
		t.Fatalf("%d new grants before a day has passed", n)
	}
	for i, ahead := range []time.Duration{grant.Period, 20 * grant.Period, -20 * grant.Period, 0} {
		controller.Ahead(begin + ahead)
		await.True(e.t, "new grants", func() bool { return renewed() == 3*(i+1) })
		got, now := e.grants(time.Now().Add(begin+ahead), ids...)
		for j := range got {
			if want := time.Unix(first[j].Ends, 0).Add(ahead); got[j].Ends != want.Unix() || now[j] != generations[j] {
				t.Errorf("%v ahead: machine %d, generation %d instead of %d, ends at %v instead of %v", ahead, j, now[j], generations[j], time.Unix(got[j].Ends, 0), want)
			}
		}
	}
	// A worker that was away gets young ones with what is assigned; one that was away for a
	// moment, the same.
	e.stopWorker()
	e.waitNode(false)
	controller.Ahead(begin + 10*grant.Period)
	e.connectWorker()
	await.True(e.t, "new grants at a sync", func() bool { return renewed() == 15 })
	e.grants(time.Now().Add(begin+10*grant.Period), ids...)
	e.stopWorker()
	e.waitNode(false)
	e.connectWorker()
	<-time.After(50 * time.Millisecond) // ten ticks, none of which may send anything
	if n := renewed(); n != 15 {
		t.Errorf("%d new grants, 15 are right: a sync within the day made others", n)
	}
}
