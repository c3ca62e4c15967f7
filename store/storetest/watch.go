package storetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bulkhead/fault"
	"bulkhead/store"
)

var errEnough = errors.New("seen enough")

// collect watches until it has n events.
func collect(ctx context.Context, s store.Store, prefix string, after int64, n int) ([]store.Event, error) {
	var got []store.Event
	err := s.Watch(ctx, prefix, after, func(es []store.Event) error {
		for _, e := range es {
			e.Value = append([]byte(nil), e.Value...)
			got = append(got, e)
		}
		if len(got) >= n {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		return got, fmt.Errorf("watch ended after %d of %d events: %w", len(got), n, err)
	}
	return got, nil
}

// checkWatch writes while it watches.
func checkWatch(ctx context.Context, s store.Store) error {
	const n = 200
	_, start, err := s.List(ctx, "/w/")
	if err != nil {
		return err
	}
	wrote := make(chan error, 1)
	go func() {
		for i := range n {
			if _, err := put(ctx, s, "/other", fmt.Sprint(i)); err != nil {
				wrote <- err
				return
			}
			if _, err := put(ctx, s, fmt.Sprintf("/w/%d", i%7), fmt.Sprint(i)); err != nil {
				wrote <- err
				return
			}
		}
		_, err := s.Txn(ctx, nil, []store.Op{store.Delete("/w/0"), store.Put("/w/end", []byte("end"))})
		wrote <- err
	}()
	got, err := collect(ctx, s, "/w/", start, n+2)
	if err != nil {
		return err
	}
	if err := <-wrote; err != nil {
		return err
	}
	for i, e := range got[:n] {
		if string(e.Value) != fmt.Sprint(i) || e.Deleted || e.Key != fmt.Sprintf("/w/%d", i%7) {
			return fmt.Errorf("event %d is %+v", i, e)
		}
		if i > 0 && e.Revision <= got[i-1].Revision {
			return fmt.Errorf("event %d at revision %d after %d", i, e.Revision, got[i-1].Revision)
		}
	}
	del, end := got[n], got[n+1]
	if end.Deleted {
		del, end = end, del
	}
	if !del.Deleted || del.Key != "/w/0" || end.Key != "/w/end" || del.Revision != end.Revision {
		return fmt.Errorf("the last transaction is %+v and %+v", del, end)
	}
	return nil
}

// checkResume watches from each revision of a history in turn.
func checkResume(ctx context.Context, s store.Store) error {
	var revs []int64
	for i := range 10 {
		rev, err := put(ctx, s, "/r", fmt.Sprint(i))
		if err != nil {
			return err
		}
		revs = append(revs, rev)
	}
	for i, rev := range revs[:9] {
		got, err := collect(ctx, s, "/", rev, 9-i)
		if err != nil {
			return err
		}
		if string(got[0].Value) != fmt.Sprint(i+1) || len(got) != 9-i {
			return fmt.Errorf("resumed after change %d: first is %s, %d in all", i, got[0].Value, len(got))
		}
	}
	return nil
}

func checkCompacted(ctx context.Context, h Harness) error {
	s, err := h.Open()
	if err != nil {
		return err
	}
	defer s.Close()
	first, err := put(ctx, s, "/a", "1")
	if err != nil {
		return err
	}
	for range 3 {
		if _, err := put(ctx, s, "/a", "2"); err != nil {
			return err
		}
	}
	if err := h.Compact(s); err != nil {
		return err
	}
	never := func([]store.Event) error { return errors.New("an event of forgotten history") }
	if err := s.Watch(ctx, "/", first, never); !errors.Is(err, store.ErrCompacted) {
		return fmt.Errorf("watch of forgotten history: %v, want ErrCompacted", err)
	}
	kvs, rev, err := s.List(ctx, "/")
	if err != nil || len(kvs) != 1 {
		return fmt.Errorf("list after compaction: %v, %v", kvs, err)
	}
	if _, err := put(ctx, s, "/a", "3"); err != nil {
		return err
	}
	got, err := collect(ctx, s, "/", rev, 1)
	if err != nil || string(got[0].Value) != "3" {
		return fmt.Errorf("watch after listing anew: %v, %v", got, err)
	}
	return nil
}

func checkClosed(ctx context.Context, h Harness) error {
	s, err := h.Open()
	if err != nil {
		return err
	}
	rev, err := put(ctx, s, "/a", "1")
	if err != nil {
		return err
	}
	seen, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		first := true
		ended <- s.Watch(ctx, "/", rev, func([]store.Event) error {
			if first {
				first = false
				close(seen)
			}
			return nil
		})
	}()
	if _, err := put(ctx, s, "/a", "2"); err != nil {
		return err
	}
	<-seen
	if err := s.Close(); err != nil {
		return err
	}
	select {
	case err := <-ended:
		if !fault.Is(err, fault.Unavailable) {
			return fmt.Errorf("a watch ended with %v when the store was closed, want Unavailable", err)
		}
	case <-time.After(5 * time.Second):
		return errors.New("a watch outlives the store")
	}
	if _, err := s.Get(ctx, "/a"); !fault.Is(err, fault.Unavailable) {
		return fmt.Errorf("get of a closed store: %v, want Unavailable", err)
	}
	if _, err := put(ctx, s, "/a", "3"); !fault.Is(err, fault.Unavailable) {
		return fmt.Errorf("put to a closed store: %v, want Unavailable", err)
	}
	return s.Close()
}
