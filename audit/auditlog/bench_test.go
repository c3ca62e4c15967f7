package auditlog_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"bulkhead/audit"
	"bulkhead/audit/auditlog"
)

var example = audit.Record{
	ID: "01M80VEVZ01Z2KHFNME98CJQWS-local", Org: "acme", User: "u_0123456789abcdef", Name: "ann", Token: "t_0123456789abcdef", From: "192.0.2.1",
	Action: "POST /v1/apps/{app}/machines", App: "shop", Machine: "0123456789abcd", Code: 200, Result: audit.OK,
}

// BenchmarkAppend is what a call waits for its record, one after the other.
func BenchmarkAppend(b *testing.B) {
	l := auditlog.Start(config(b, filepath.Join(b.TempDir(), "audit")))
	defer l.Close()
	for b.Loop() {
		if err := l.Append(context.Background(), example); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppendMany is the same with 64 callers at once.
func BenchmarkAppendMany(b *testing.B) {
	l := auditlog.Start(config(b, filepath.Join(b.TempDir(), "audit")))
	defer l.Close()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Append(context.Background(), example); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkLarge appends to, lists from, reopens and verifies a log of many records:
// BULKHEAD_AUDIT_RECORDS of them, 100,000 if it is not set.
func BenchmarkLarge(b *testing.B) {
	for b.Loop() { // once is enough, and it forgets what was reported before it
	}
	n := 100_000
	if s, err := time.ParseDuration(os.Getenv("BULKHEAD_AUDIT_RECORDS") + "ns"); err == nil {
		n = int(s)
	}
	dir := filepath.Join(b.TempDir(), "audit")
	cfg := config(b, dir)
	l := auditlog.Start(cfg)
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() {
			for range n / 256 {
				if err := l.Append(context.Background(), example); err != nil {
					b.Error(err)
				}
			}
		})
	}
	start := time.Now()
	wg.Wait()
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "records/s")
	var cp *audit.Checkpoint
	for deadline := time.Now().Add(5 * time.Minute); cp == nil || cp.Size < uint64(n/256*256); time.Sleep(50 * time.Millisecond) {
		if cp = checkpoint(b, l, 0); time.Now().After(deadline) {
			b.Fatalf("the tree is at %d", cp.Size)
		}
	}
	b.ReportMetric(time.Since(start).Seconds(), "s-until-signed")
	took := func(name string, f func()) {
		start := time.Now()
		f()
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, name)
	}
	took("ms-append", func() { l.Append(context.Background(), example) })
	took("ms-page", func() {
		if p, err := l.List(context.Background(), auditlog.Query{Org: "acme", Limit: 100}); err != nil || len(p.Entries) != 100 {
			b.Error(err)
		}
	})
	took("ms-page-of-nobody", func() { l.List(context.Background(), auditlog.Query{Org: "acme", User: "nobody"}) })
	took("ms-close", func() { l.Close() })
	took("ms-open", func() { l = auditlog.Start(cfg) })
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	size := int64(0)
	filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && !fi.IsDir() {
			size += fi.Size()
		}
		return err
	})
	b.ReportMetric(float64(size)/float64(n), "bytes/record")
	took("ms-verify", func() {
		if r := verify(b, dir, cfg.Key, cp); len(r.Problems) > 0 {
			b.Error(r.Problems)
		}
	})
}
