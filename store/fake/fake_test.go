package fake_test

import (
	"context"
	"testing"
	"time"

	"bulkhead/store"
	"bulkhead/store/fake"
	"bulkhead/store/storetest"
)

func harness() storetest.Harness {
	return storetest.Harness{
		Open: func() (store.Store, error) { return fake.New(), nil },
		Reopen: func(s store.Store) (store.Store, error) {
			s.Close()
			return s.(*fake.Store).Reopen(), nil
		},
		Compact: func(s store.Store) error { s.(*fake.Store).Compact(); return nil },
	}
}

func TestConformance(t *testing.T) { storetest.Run(t, harness()) }

// broken is the fake with one fault.
type broken struct {
	*fake.Store
	ignoreConds, loseAfterRestart, dropEvents, splitTxn, shortList, openAfterClose bool
}

func (b broken) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	if b.ignoreConds {
		conds = nil
	}
	if b.splitTxn && len(ops) > 1 {
		b.Store.Txn(ctx, nil, ops[:1])
	}
	return b.Store.Txn(ctx, conds, ops)
}

func (b broken) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	kvs, rev, err := b.Store.List(ctx, prefix)
	if b.shortList && len(kvs) > 500 {
		kvs = kvs[:500]
	}
	return kvs, rev, err
}

func (b broken) Watch(ctx context.Context, prefix string, after int64, f func([]store.Event) error) error {
	n := 0
	return b.Store.Watch(ctx, prefix, after, func(es []store.Event) error {
		if !b.dropEvents {
			return f(es)
		}
		var kept []store.Event
		for _, e := range es {
			if n++; n != 3 {
				kept = append(kept, e)
			}
		}
		return f(kept)
	})
}

func (b broken) Close() error {
	if b.openAfterClose {
		return nil
	}
	return b.Store.Close()
}

// TestControl seeds one fault after the other: the suite must find each.
func TestControl(t *testing.T) {
	for name, fault := range map[string]broken{
		"conditions ignored":         {ignoreConds: true},
		"lost at a restart":          {loseAfterRestart: true},
		"events dropped":             {dropEvents: true},
		"transactions in two parts":  {splitTxn: true},
		"lists cut off":              {shortList: true},
		"open after it was closed":   {openAfterClose: true},
		"compaction does not happen": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting for what a fault keeps from coming
			good := harness()
			h := storetest.Harness{
				Open: func() (store.Store, error) {
					b := fault
					b.Store = fake.New()
					return b, nil
				},
				Reopen: func(s store.Store) (store.Store, error) {
					if fault.loseAfterRestart {
						return fake.New(), nil
					}
					return good.Reopen(s.(broken).Store)
				},
				Compact: func(store.Store) error { return nil },
			}
			if name != "compaction does not happen" {
				h.Compact = func(s store.Store) error { return good.Compact(s.(broken).Store) }
			}
			found := 0
			for _, c := range storetest.Checks() {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				if err := c.Run(ctx, h); err != nil {
					found++
				}
				cancel()
			}
			if found == 0 {
				t.Fatal("the suite did not find the fault")
			}
		})
	}
}
