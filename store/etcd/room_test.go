package etcd_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/store"
	"bulkhead/store/etcd"
)

func openSmall(t *testing.T) (*etcd.Store, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	s, err := etcd.Open(ctx, etcd.Config{Dir: shortDir(t), Log: slog.New(slog.DiscardHandler), Quota: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, ctx
}

// TestHistoryDoesNotFillTheStore writes one key over and over, several times what
// fits: its history makes room.
func TestHistoryDoesNotFillTheStore(t *testing.T) {
	s, ctx := openSmall(t)
	for i := range 160 {
		if _, err := s.Txn(ctx, nil, []store.Op{store.Put("/k", make([]byte, 512<<10))}); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
	}
}

// TestAFullStoreCanBeEmptied fills it with what stays: it says so without having
// written, small changes and removals go on, and then there is room again.
func TestAFullStoreCanBeEmptied(t *testing.T) {
	s, ctx := openSmall(t)
	var last string
	n := 0
	for ; ; n++ {
		last = fmt.Sprintf("/big/%03d", n)
		_, err := s.Txn(ctx, nil, []store.Op{store.Put(last, make([]byte, 512<<10))})
		if fault.Is(err, fault.Full) {
			break
		}
		if err != nil || n > 200 {
			t.Fatalf("write %d: %v", n, err)
		}
	}
	if _, err := s.Get(ctx, last); !fault.Is(err, fault.NotFound) {
		t.Errorf("what was refused is there: %v", err)
	}
	if n < 64 {
		t.Errorf("only %d were taken", n)
	}
	if _, err := s.Txn(ctx, nil, []store.Op{store.Put("/wish", []byte("destroy"))}); err != nil {
		t.Errorf("a small change: %v", err)
	}
	for i := range n {
		ops := []store.Op{store.Delete(fmt.Sprintf("/big/%03d", i)), store.Put("/tomb", make([]byte, 20<<10))}
		if _, err := s.Txn(ctx, nil, ops); err != nil {
			t.Fatalf("removal %d: %v", i, err)
		}
	}
	// The pages of what was removed are free once its history is given up.
	if err := s.Compact(ctx); err != nil {
		t.Fatal(err)
	}
	await.True(t, "there is room again", func() bool {
		_, err := s.Txn(ctx, nil, []store.Op{store.Put("/again", make([]byte, 512<<10))})
		return err == nil
	})
}
