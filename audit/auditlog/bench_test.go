package auditlog_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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
// BULKHEAD_AUDIT_RECORDS of them, 100,000 if it is not set ("make bench-audit": a million).
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
	began := time.Now()
	wg.Wait()
	appended := time.Since(began)
	b.ReportMetric(float64(n)/appended.Seconds(), "records/s")
	// The tree takes longer than a test waits: as long as it grows, it is waited for.
	cp := checkpoint(b, l, 0)
	for cp.Size < uint64(n/256*256) {
		cp = checkpoint(b, l, cp.Size+1)
	}
	b.ReportMetric(time.Since(began).Seconds(), "s-until-signed")
	took := func(name string, f func()) {
		start := time.Now()
		f()
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, name)
	}
	waits := make([]time.Duration, 2000)
	for i := range waits {
		start := time.Now()
		if err := l.Append(context.Background(), example); err != nil {
			b.Fatal(err)
		}
		waits[i] = time.Since(start)
	}
	slices.Sort(waits)
	b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1000, "ms-append-p50")
	b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds())/1000, "ms-append-p99")
	list := func(q auditlog.Query) *auditlog.Page {
		q.Org = "acme"
		p, err := l.List(context.Background(), q)
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	full := func(name string, q auditlog.Query) {
		q.Limit = 100
		took(name, func() {
			if n := len(list(q).Entries); n != 100 {
				b.Errorf("%s: %d records", name, n)
			}
		})
	}
	full("ms-page", auditlog.Query{})
	full("ms-page-oldest", auditlog.Query{Up: true})
	full("ms-page-by-time", auditlog.Query{Until: began.Add(appended / 2)})
	full("ms-page-by-user", auditlog.Query{User: "ann"})
	full("ms-page-from-middle", auditlog.Query{From: uint64(n / 2)})
	took("ms-page-of-nobody", func() { list(auditlog.Query{User: "nobody"}) })
	took("ms-all-pages-of-nobody", func() {
		for q := (auditlog.Query{User: "nobody"}); ; {
			if q.From = list(q).Next; q.From == 0 {
				return
			}
		}
	})
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
	b.ReportMetric(float64(size)/(1<<20), "MiB-on-disk")
	stop := heapPeak()
	took("ms-verify", func() {
		if r := verify(b, dir, cfg.Key, cp); len(r.Problems) > 0 {
			b.Error(r.Problems)
		}
	})
	b.ReportMetric(float64(stop())/(1<<20), "MiB-verify-peak")
}

// heapPeak samples the memory of the process until what it returns is called, which
// returns the most that was in use beyond what was at first.
func heapPeak() (stop func() uint64) {
	runtime.GC()
	read := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	before := read()
	done, out := make(chan struct{}), make(chan uint64)
	go func() {
		most := uint64(0)
		for {
			most = max(most, read())
			select {
			case <-done:
				out <- most - min(most, before)
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(done); return <-out }
}
