package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"bulkhead/store/etcd"
)

// TestAnOrderlyEndIsNoTrouble closes a store: its log has none of etcd's complaints about
// listeners that were closed. Another error of the same place is still a warning.
func TestAnOrderlyEndIsNoTrouble(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := etcd.Open(ctx, etcd.Config{Dir: shortDir(t), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	etcd.QuietLogger(log).Error(etcd.ClosedServing, zap.Error(&net.OpError{Op: "accept", Err: net.ErrClosed}))
	if strings.Contains(b.String(), etcd.ClosedServing) { // it may warn of other things
		t.Errorf("an orderly end says:\n%s", b.String())
	}
	etcd.QuietLogger(log).Error(etcd.ClosedServing, zap.Error(errors.New("no memory")))
	if !strings.Contains(b.String(), etcd.ClosedServing) || !strings.Contains(b.String(), "no memory") {
		t.Errorf("another error is not said:\n%s", b.String())
	}
}
