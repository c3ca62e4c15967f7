// Package fake is the store in memory, for tests that need no durability. It keeps
// the contract of package store, history and compaction included.
package fake

import (
	"context"
	"sort"
	"strings"
	"sync"

	"bulkhead/fault"
	"bulkhead/store"
)

// Store is a store in memory.
type Store struct {
	mu      sync.Mutex
	kv      map[string]store.KV
	log     [][]store.Event // one element for each transaction that changed something
	logRevs []int64         // the revision of each element of log
	rev     int64
	oldest  int64 // history after this revision is still there
	closed  bool
	changed chan struct{} // closed and replaced at each change
}

// New returns an empty store.
func New() *Store {
	return &Store{kv: map[string]store.KV{}, rev: 1, changed: make(chan struct{})}
}

var errClosed = fault.New(fault.Unavailable, "the store is closed")

func (s *Store) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed {
		return errClosed
	}
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	if err := store.CheckKey(key); err != nil {
		return store.KV{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return store.KV{}, err
	}
	kv, ok := s.kv[key]
	if !ok {
		return store.KV{}, store.ErrNotFound
	}
	return clone(kv), nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return nil, 0, err
	}
	var out []store.KV
	for k, kv := range s.kv {
		if strings.HasPrefix(k, prefix) {
			out = append(out, clone(kv))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out, s.rev, nil
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	if err := store.CheckTxn(conds, ops); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return 0, err
	}
	for _, c := range conds {
		if s.kv[c.Key].Revision != c.Revision {
			return 0, store.ErrChanged
		}
	}
	var events []store.Event
	next := s.rev + 1
	for _, o := range ops {
		if o.Delete {
			if _, ok := s.kv[o.Key]; ok {
				delete(s.kv, o.Key)
				events = append(events, store.Event{KV: store.KV{Key: o.Key, Revision: next}, Deleted: true})
			}
			continue
		}
		kv := clone(store.KV{Key: o.Key, Value: o.Value, Revision: next})
		s.kv[o.Key] = kv
		events = append(events, store.Event{KV: kv})
	}
	if len(events) > 0 {
		s.rev = next
		s.log = append(s.log, events)
		s.logRevs = append(s.logRevs, next)
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return s.rev, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after int64, f func([]store.Event) error) error {
	for {
		s.mu.Lock()
		if err := s.check(ctx); err != nil {
			s.mu.Unlock()
			return err
		}
		if after < s.oldest {
			s.mu.Unlock()
			return store.ErrCompacted
		}
		var out []store.Event
		i := sort.Search(len(s.logRevs), func(i int) bool { return s.logRevs[i] > after })
		for ; i < len(s.log); i++ {
			after = s.logRevs[i]
			for _, e := range s.log[i] {
				if strings.HasPrefix(e.Key, prefix) {
					e.KV = clone(e.KV)
					out = append(out, e)
				}
			}
		}
		changed := s.changed
		s.mu.Unlock()
		if len(out) > 0 {
			if err := f(out); err != nil {
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Compact forgets the history up to and including the current revision.
func (s *Store) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest, s.log, s.logRevs = s.rev, nil, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.changed)
	}
	return nil
}

// Reopen returns a store with the same content and history, as after a restart.
func (s *Store) Reopen() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Store{kv: s.kv, log: s.log, logRevs: s.logRevs, rev: s.rev, oldest: s.oldest, changed: make(chan struct{})}
}

func clone(kv store.KV) store.KV {
	if kv.Value != nil {
		kv.Value = append([]byte{}, kv.Value...)
	}
	return kv
}
