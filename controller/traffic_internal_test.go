package controller

import (
	"encoding/json"
	"testing"

	"bulkhead/controller/record"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/store"
)

// TestWantsIsTheLastWord: a user's word counts until traffic has made something of it,
// as far as the config lets it, and again from the user's next word on. What the ledger
// counts for placement follows.
func TestWantsIsTheLastWord(t *testing.T) {
	const start, stop, none = machine.WantStarted, machine.WantStopped, machine.Desired("")
	for _, c := range []struct {
		what     string
		services string
		desired  machine.Desired
		wish     int64
		local    machine.Desired
		heard    int64 // the wish that local is about
		want     machine.Desired
	}{
		{"nobody but the user", `{"autostart":true}`, stop, 3, none, 0, stop},
		{"woken", `{"autostart":true}`, stop, 3, start, 3, start},
		{"woken, and stopped since", `{"autostart":true}`, stop, 4, start, 3, stop},
		{"woken without autostart", `{"autostop":true}`, stop, 3, start, 3, stop},
		{"idle", `{"autostop":true}`, start, 3, stop, 3, stop},
		{"idle, and started since", `{"autostop":true}`, start, 4, stop, 3, start},
		{"idle without autostop", `{"autostart":true}`, start, 3, stop, 3, start},
		{"to be destroyed", `{"autostart":true}`, machine.WantDestroyed, 3, start, 3, machine.WantDestroyed},
	} {
		conf := new(machine.Config)
		if err := json.Unmarshal([]byte(`{"services":[`+c.services+`],"guest":{"memory_mb":256}}`), conf); err != nil {
			t.Fatal(err)
		}
		m := &record.Machine{ID: "m1", Node: "n1", Config: conf, Desired: c.desired, Wish: c.wish}
		s := &seen{Machine: "m1", Node: "n1", Local: c.local, Wish: c.heard}
		if got := wants(m, s); got != c.want {
			t.Errorf("%s: wants %s; want %s", c.what, got, c.want)
		}
		if got := wants(m, nil); got != c.desired {
			t.Errorf("%s, before its worker reports: wants %s; want %s", c.what, got, c.desired)
		}
	}
	// The ledger hears of both in any order.
	put := func(l *ledger, runs bool, wish int64) {
		b, _ := json.Marshal(record.Assigned{App: "web", MemoryMB: 256, Runs: runs, Wish: wish})
		l.take(store.Event{KV: store.KV{Key: record.NodeKey("n1", "m1"), Value: b}})
	}
	woken := &seen{Machine: "m1", Node: "n1", Local: start, Wish: 1}
	for _, c := range []struct {
		what string
		do   func(l *ledger)
		want int64
	}{
		{"woken", func(l *ledger) { put(l, false, 1); l.heard(woken) }, 256},
		{"woken, heard first", func(l *ledger) { l.heard(woken); put(l, false, 1) }, 256},
		{"and told twice", func(l *ledger) { put(l, false, 1); l.heard(woken); l.heard(woken); put(l, false, 1) }, 256},
		{"and stopped since", func(l *ledger) { put(l, false, 1); l.heard(woken); put(l, false, 2) }, 0},
		{"and idle", func(l *ledger) {
			put(l, true, 1)
			l.heard(&seen{Machine: "m1", Node: "n1", Local: stop, Wish: 1})
		}, 0},
		{"and no more", func(l *ledger) { put(l, false, 1); l.heard(woken); l.heard(&seen{Machine: "m1", Node: "n1"}) }, 0},
		{"and destroyed", func(l *ledger) {
			put(l, false, 1)
			l.heard(woken)
			l.take(store.Event{KV: store.KV{Key: record.NodeKey("n1", "m1")}, Deleted: true})
		}, 0},
	} {
		l := newLedger()
		c.do(l)
		if got := l.used(key.Node("n1")); got != c.want {
			t.Errorf("%s: the ledger counts %d MiB; want %d", c.what, got, c.want)
		}
	}
}

// TestWhoseWorkerHearsOfALease: those of Machines that traffic starts or stops. A lease is no new
// assignment: neither the record nor the generation changes.
func TestWhoseWorkerHearsOfALease(t *testing.T) {
	for services, told := range map[string]bool{`{}`: false, `{"autostart":true}`: true, `{"autostop":true}`: true} {
		conf := new(machine.Config)
		if err := json.Unmarshal([]byte(`{"services":[`+services+`]}`), conf); err != nil {
			t.Fatal(err)
		}
		m := &record.Machine{ID: "m1", App: "web", Node: "n1", Config: conf, Generation: 1, Wish: 1}
		ops := leaseToWorker(m)
		if (len(ops) > 0) != told || m.Generation != 1 || m.Wish != 1 {
			t.Errorf("%s: %d changes, generation %d, wish %d", services, len(ops), m.Generation, m.Wish)
		}
		for _, op := range ops {
			if op.Key == record.MachineKey(m.App, m.ID) {
				t.Errorf("%s: the lease rewrites the Machine's record", services)
			}
		}
	}
}
