package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/audit"
	"bulkhead/audit/auditlog"
	"bulkhead/controller/record"
	"bulkhead/notice"
	"bulkhead/store"
	"bulkhead/store/fake"
)

// mortal is a store of a process that dies at its n-th transaction: before it, or after
// it was made and before anybody hears of it.
type mortal struct {
	store.Store
	left   int
	before bool
	die    func()
	dead   bool
}

var errDead = errors.New("dead")

func (m *mortal) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	m.left--
	if m.dead || m.left == 0 && m.before {
		m.kill()
		return 0, errDead
	}
	rev, err := m.Store.Txn(ctx, conds, ops)
	if m.left == 0 {
		m.kill()
		return 0, errDead
	}
	return rev, err
}

func (m *mortal) kill() {
	if !m.dead {
		m.dead = true
		m.die()
	}
}

// TestKilledAnywhereLeavesNoChangeWithoutARecord lets a process that makes changes die
// before and after each of its transactions, and between them, and its successor before
// and after each of its own, and looks after that: every change that is in the store has
// exactly one record, every acknowledged one with its result, and the outbox is empty.
// Control: with changes that bypass the outbox it finds some without.
func TestKilledAnywhereLeavesNoChangeWithoutARecord(t *testing.T) {
	const changes = 3
	trial := func(t *testing.T, first, second int, before bool, bypass bool) (missing, twice []string) {
		disk := fake.New()
		dir := filepath.Join(t.TempDir(), "audit")
		signer, key, err := auditlog.OpenKey(dir+".key", "test/audit")
		if err != nil {
			t.Error(err)
			return nil, nil
		}
		log := slog.New(slog.DiscardHandler)
		start := func() *auditlog.Log {
			return auditlog.Start(auditlog.Config{Dir: dir, Signer: signer, Key: key, Log: log, Board: notice.New(log)})
		}
		acked := map[string]bool{}
		life := func(deaths int, work func(o *outbox, l *auditlog.Log)) {
			l := start()
			defer l.Close()
			m := &mortal{Store: disk, left: deaths, before: before, die: func() { l.Close() }}
			o := &outbox{Store: m}
			left, err := o.leftover(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if o.recover(t.Context(), l, left) == nil && o.clear(t.Context()) == nil {
				work(o, l)
			}
		}
		life(first, func(o *outbox, l *auditlog.Log) {
			for i := range changes {
				c := &Controller{audit: l, outbox: o}
				id := fmt.Sprint("r", i)
				p := &callRecord{at: now(), rec: audit.Record{ID: id, Action: "PUT", Org: "acme"}}
				var s store.Store = o
				if bypass {
					s = o.Store
				}
				if _, err := s.Txn(withRecord(t.Context(), p), nil, []store.Op{store.Put("/change/"+id, []byte("x"))}); err != nil {
					return
				}
				acked[id] = c.finish(t.Context(), p, 200) == nil
				if o.clear(t.Context()) != nil {
					return
				}
			}
		})
		life(second, func(*outbox, *auditlog.Log) {})
		life(-1, func(o *outbox, l *auditlog.Log) {
			results := map[string][]audit.Result{}
			err := l.Tail(func(_ audit.Entry, r audit.Record) bool {
				results[r.ID] = append(results[r.ID], r.Result)
				return true
			})
			kvs, _, lerr := disk.List(t.Context(), "/")
			if err := errors.Join(err, lerr); err != nil {
				t.Error(err)
				return
			}
			for _, kv := range kvs {
				id := record.LastPart(kv.Key)
				switch got := results[id]; {
				case strings.HasPrefix(kv.Key, prefixPending):
					t.Errorf("%s is left", kv.Key)
				case len(got) == 0:
					missing = append(missing, id)
				case len(got) > 1:
					twice = append(twice, id)
				case acked[id] && got[0] != audit.OK:
					t.Errorf("%s was acknowledged, and its record says %s", id, got[0])
				}
			}
		})
		return missing, twice
	}
	var all sync.WaitGroup // they wait more than they work
	trials := 0
	for first := 1; first <= 2*changes+1; first++ {
		for second := 1; second <= 2; second++ {
			for _, before := range []bool{true, false} {
				trials++
				all.Go(func() {
					missing, twice := trial(t, first, second, before, false)
					if len(missing)+len(twice) > 0 {
						t.Errorf("killed at transaction %d (before it: %v), then at %d: without a record %v, with two %v", first, before, second, missing, twice)
					}
				})
			}
		}
	}
	var found atomic.Int64
	for first := 1; first <= changes; first++ {
		all.Go(func() {
			missing, _ := trial(t, first, -1, false, true)
			found.Add(int64(len(missing)))
		})
	}
	all.Wait()
	t.Logf("%d trials", trials)
	if found.Load() == 0 {
		t.Error("control: changes without the outbox all had their records")
	}
}

// TestFloodsOfRefusalsAreBounded: a flood from one address, and one from many, leave a
// few records with counts, and what members do is not hidden by strangers.
func TestFloodsOfRefusalsAreBounded(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := filepath.Join(t.TempDir(), "audit")
	signer, key, err := auditlog.OpenKey(dir+".key", "test/audit")
	if err != nil {
		t.Fatal(err)
	}
	l := auditlog.Start(auditlog.Config{Dir: dir, Signer: signer, Key: key, Log: log, Board: notice.New(log)})
	defer l.Close()
	r := newRefusals(l)
	const flood = 20000
	for i := range flood {
		r.add(audit.Record{Action: "GET", From: "192.0.2.1", Code: 401, Result: audit.Refused})
		r.add(audit.Record{Action: "GET", From: fmt.Sprintf("2001:db8:%x:%x::1", i>>8, i&255), Code: 401, Result: audit.Refused})
		r.add(audit.Record{Action: "GET", From: fmt.Sprintf("2001:db8::%x", i), Code: 401, Result: audit.Refused})
	}
	r.add(audit.Record{Action: "DELETE /v1/apps/{app}", Name: "mallory", Org: "acme", From: "192.0.2.9", Code: 403, Result: audit.Refused})
	r.flush(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := l.Append(ctx, audit.Record{ID: "last", Result: audit.OK}); err != nil { // after all that were offered
		t.Fatal(err)
	}
	records, counted, member := 0, 0, 0
	err = l.Tail(func(_ audit.Entry, rec audit.Record) bool {
		if rec.ID == "last" {
			return true
		}
		records++
		counted += max(rec.Count, 1)
		if rec.Name == "mallory" {
			member++
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if records > 2*refusalBurst+4 || counted != 3*flood+1 || member != 1 {
		t.Errorf("%d refusals left %d records that count %d, of the member %d", 3*flood+1, records, counted, member)
	}
}
