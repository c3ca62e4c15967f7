// Package storetest is the suite that every adapter of package store passes.
//
// The checks are plain functions that return an error, so that a control can run
// them against a store with a fault and see them fail.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/store"
)

// Harness makes stores for the checks.
type Harness struct {
	// Open returns an empty store.
	Open func() (store.Store, error)
	// Reopen closes the store as a restart does and returns it with its content.
	Reopen func(store.Store) (store.Store, error)
	// Compact forgets the store's history up to now.
	Compact func(store.Store) error
}

// Check is one promise of package store.
type Check struct {
	Name string
	Run  func(ctx context.Context, h Harness) error
}

// limit is how long a check may take.
const limit = 30 * time.Second

// Run runs all checks.
func Run(t *testing.T, h Harness) {
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			if err := c.Run(ctx, h); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Checks lists the checks.
func Checks() []Check {
	return []Check{
		{"what is put can be read and is gone when deleted", withStore(checkPutGet)},
		{"a list is ordered, complete and only of its prefix", withStore(checkList)},
		{"a transaction happens only if its conditions hold", withStore(checkConds)},
		{"a transaction happens whole or not at all", withStore(checkAtomic)},
		{"of two who change the same record one wins", withStore(checkRace)},
		{"a watch reports every change once and in order", withStore(checkWatch)},
		{"a watch resumes where it was", withStore(checkResume)},
		{"a watch after a compaction says so", checkCompacted},
		{"what is out of bounds is refused", withStore(checkBounds)},
		{"what was acknowledged is there after a restart", checkReopen},
		{"a closed store says so and lets its watchers go", checkClosed},
	}
}

func withStore(f func(ctx context.Context, s store.Store) error) func(context.Context, Harness) error {
	return func(ctx context.Context, h Harness) error {
		s, err := h.Open()
		if err != nil {
			return err
		}
		defer s.Close()
		return f(ctx, s)
	}
}

func put(ctx context.Context, s store.Store, key, value string) (int64, error) {
	return s.Txn(ctx, nil, []store.Op{store.Put(key, []byte(value))})
}

func checkPutGet(ctx context.Context, s store.Store) error {
	if _, err := s.Get(ctx, "/a"); !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("get of a missing key: %v, want ErrNotFound", err)
	}
	rev, err := put(ctx, s, "/a", "1")
	if err != nil {
		return err
	}
	kv, err := s.Get(ctx, "/a")
	if err != nil || string(kv.Value) != "1" || kv.Revision != rev || kv.Key != "/a" {
		return fmt.Errorf("get after put at %d: %+v, %v", rev, kv, err)
	}
	rev2, err := put(ctx, s, "/a", "2")
	if err != nil || rev2 <= rev {
		return fmt.Errorf("second put at %d after %d: %v", rev2, rev, err)
	}
	if kv, err = s.Get(ctx, "/a"); err != nil || string(kv.Value) != "2" || kv.Revision != rev2 {
		return fmt.Errorf("get after second put at %d: %+v, %v", rev2, kv, err)
	}
	if _, err := s.Txn(ctx, nil, []store.Op{store.Delete("/a"), store.Delete("/never")}); err != nil {
		return err
	}
	if _, err := s.Get(ctx, "/a"); !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("get of a deleted key: %v, want ErrNotFound", err)
	}
	return nil
}

func checkList(ctx context.Context, s store.Store) error {
	const n = 1203 // more than a page of any adapter
	for i := 0; i < n; i += 50 {
		var ops []store.Op
		for j := i; j < min(i+50, n); j++ {
			ops = append(ops, store.Put(fmt.Sprintf("/l/%06d", (j*7919)%1000003), []byte{byte(j)}))
		}
		if _, err := s.Txn(ctx, nil, ops); err != nil {
			return err
		}
	}
	last, err := s.Txn(ctx, nil, []store.Op{store.Put("/k", nil), store.Put("/l", nil), store.Put("/m/1", nil), store.Put("/l0", nil)})
	if err != nil {
		return err
	}
	got, rev, err := s.List(ctx, "/l/")
	if err != nil || rev != last {
		return fmt.Errorf("list at %d, want %d: %v", rev, last, err)
	}
	if len(got) != n {
		return fmt.Errorf("list has %d keys, want %d", len(got), n)
	}
	for i := 1; i < len(got); i++ {
		if got[i-1].Key >= got[i].Key {
			return fmt.Errorf("%s before %s", got[i-1].Key, got[i].Key)
		}
	}
	if got, _, err = s.List(ctx, "/nothing"); err != nil || len(got) != 0 {
		return fmt.Errorf("list of nothing: %v, %v", got, err)
	}
	if got, _, err = s.List(ctx, ""); err != nil || len(got) != n+4 {
		return fmt.Errorf("list of everything: %d, want %d: %v", len(got), n+4, err)
	}
	return nil
}

func checkConds(ctx context.Context, s store.Store) error {
	create := []store.Cond{{Key: "/c", Revision: 0}}
	rev, err := s.Txn(ctx, create, []store.Op{store.Put("/c", []byte("x"))})
	if err != nil {
		return err
	}
	if _, err := s.Txn(ctx, create, []store.Op{store.Put("/c", []byte("y"))}); !errors.Is(err, store.ErrChanged) {
		return fmt.Errorf("create of what is there: %v, want ErrChanged", err)
	}
	if _, err := s.Txn(ctx, []store.Cond{{Key: "/c", Revision: rev}}, []store.Op{store.Put("/c", []byte("z"))}); err != nil {
		return fmt.Errorf("change at the right revision: %w", err)
	}
	if _, err := s.Txn(ctx, []store.Cond{{Key: "/c", Revision: rev}}, []store.Op{store.Delete("/c")}); !errors.Is(err, store.ErrChanged) {
		return fmt.Errorf("delete at an old revision: %v, want ErrChanged", err)
	}
	if kv, err := s.Get(ctx, "/c"); err != nil || string(kv.Value) != "z" {
		return fmt.Errorf("after refused transactions: %q, %v", kv.Value, err)
	}
	// A key that was deleted and made again is not the one that was read.
	kv, _ := s.Get(ctx, "/c")
	if _, err := s.Txn(ctx, nil, []store.Op{store.Delete("/c")}); err != nil {
		return err
	}
	if _, err := put(ctx, s, "/c", "z"); err != nil {
		return err
	}
	if _, err := s.Txn(ctx, []store.Cond{{Key: "/c", Revision: kv.Revision}}, []store.Op{store.Put("/c", nil)}); !errors.Is(err, store.ErrChanged) {
		return fmt.Errorf("change of a key that was replaced: %v, want ErrChanged", err)
	}
	return nil
}

func checkAtomic(ctx context.Context, s store.Store) error {
	rev, err := s.Txn(ctx, nil, []store.Op{store.Put("/x", []byte("1")), store.Put("/y", []byte("1"))})
	if err != nil {
		return err
	}
	conds := []store.Cond{{Key: "/x", Revision: rev}, {Key: "/y", Revision: rev + 1}}
	ops := []store.Op{store.Put("/x", []byte("2")), store.Delete("/y"), store.Put("/z", nil)}
	if _, err := s.Txn(ctx, conds, ops); !errors.Is(err, store.ErrChanged) {
		return fmt.Errorf("one condition of two holds: %v, want ErrChanged", err)
	}
	kvs, _, err := s.List(ctx, "/")
	if err != nil || len(kvs) != 2 || string(kvs[0].Value) != "1" || string(kvs[1].Value) != "1" {
		return fmt.Errorf("a refused transaction left %v, %v", kvs, err)
	}
	conds[1].Revision = rev
	rev, err = s.Txn(ctx, conds, ops)
	if err != nil {
		return err
	}
	kvs, _, err = s.List(ctx, "/")
	if err != nil || len(kvs) != 2 || kvs[0].Revision != rev || kvs[1].Revision != rev || kvs[1].Key != "/z" {
		return fmt.Errorf("a transaction at %d left %v, %v", rev, kvs, err)
	}
	return nil
}

// checkRace adds to a counter from many sides, each by read and conditional write.
func checkRace(ctx context.Context, s store.Store) error {
	const sides, each = 8, 20
	errs := make(chan error, sides)
	for range sides {
		go func() {
			for done := 0; done < each; {
				var n, rev int64
				kv, err := s.Get(ctx, "/n")
				switch {
				case err == nil:
					fmt.Sscan(string(kv.Value), &n)
					rev = kv.Revision
				case !errors.Is(err, store.ErrNotFound):
					errs <- err
					return
				}
				_, err = s.Txn(ctx, []store.Cond{{Key: "/n", Revision: rev}}, []store.Op{store.Put("/n", fmt.Append(nil, n+1))})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrChanged):
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range sides {
		if err := <-errs; err != nil {
			return err
		}
	}
	if kv, err := s.Get(ctx, "/n"); err != nil || string(kv.Value) != fmt.Sprint(sides*each) {
		return fmt.Errorf("the counter is %s, want %d: %v", kv.Value, sides*each, err)
	}
	return nil
}

func checkBounds(ctx context.Context, s store.Store) error {
	many := make([]store.Op, store.MaxOps+1)
	for i := range many {
		many[i] = store.Put(fmt.Sprint("/", i), nil)
	}
	for name, ops := range map[string][]store.Op{
		"no change":         nil,
		"an empty key":      {store.Put("", nil)},
		"a long key":        {store.Put(string(make([]byte, store.MaxKey+1)), nil)},
		"a zero byte":       {store.Put("/a\x00", nil)},
		"a long value":      {store.Put("/a", make([]byte, store.MaxValue+1))},
		"too many changes":  many,
		"one key two times": {store.Put("/a", nil), store.Delete("/a")},
	} {
		if _, err := s.Txn(ctx, nil, ops); !fault.Is(err, fault.Invalid) {
			return fmt.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if _, err := s.Txn(ctx, nil, many[:store.MaxOps]); err != nil {
		return fmt.Errorf("as many changes as are allowed: %w", err)
	}
	if _, err := s.Txn(ctx, nil, []store.Op{store.Put("/a", make([]byte, store.MaxValue))}); err != nil {
		return fmt.Errorf("a value as long as is allowed: %w", err)
	}
	return nil
}

func checkReopen(ctx context.Context, h Harness) error {
	s, err := h.Open()
	if err != nil {
		return err
	}
	rev, err := s.Txn(ctx, nil, []store.Op{store.Put("/a", []byte("1")), store.Put("/b", []byte("2"))})
	if err != nil {
		return err
	}
	if s, err = h.Reopen(s); err != nil {
		return err
	}
	defer s.Close()
	kvs, _, err := s.List(ctx, "/")
	if err != nil || len(kvs) != 2 || string(kvs[1].Value) != "2" || kvs[0].Revision != rev {
		return fmt.Errorf("after a restart: %v, %v", kvs, err)
	}
	next, err := put(ctx, s, "/a", "3")
	if err != nil || next <= rev {
		return fmt.Errorf("a put after a restart is at %d, before it was %d: %v", next, rev, err)
	}
	return nil
}
