package controller

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"bulkhead/audit"
	"bulkhead/audit/auditlog"
	"bulkhead/controller/record"
	"bulkhead/failpoint"
	"bulkhead/store"
)

// prefixPending is where the records of changes lie that may not be in the audit log yet.
const prefixPending = "/audit/pending/"

// Times of the outbox.
const (
	clearEvery   = time.Second     // records that are in the log are forgotten together
	clearLimit   = 5 * time.Second // for that, at the end
	recoverEvery = time.Second
	recoverSlack = 10 * time.Minute // by which clocks may have been set back
	recoverScan  = 100_000          // records of the log that are looked at for those that are there already
)

// pendingRecord is a change's record as it lies in the store.
type pendingRecord struct {
	At     time.Time    `json:"at"`
	Record audit.Record `json:"record"` // without its result
}

// callRecord is the record of the call that is being served. It travels in the context of
// its handler.
type callRecord struct {
	at    time.Time
	ready func() error // asked before the first change, if set: of calls that were not asked before they began

	mu     sync.Mutex
	rec    audit.Record
	stored bool // it may be in the store
}

type recordKey struct{}

func withRecord(ctx context.Context, p *callRecord) context.Context {
	return context.WithValue(ctx, recordKey{}, p)
}

func recordIn(ctx context.Context) *callRecord {
	p, _ := ctx.Value(recordKey{}).(*callRecord)
	return p
}

// change changes the record.
func (p *callRecord) change(f func(r *audit.Record)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.rec)
}

// isStored reports whether the record may be in the store.
func (p *callRecord) isStored() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stored
}

// op is the change of the store that writes the record down.
func (p *callRecord) op() store.Op {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored = true
	return record.Put(prefixPending+p.rec.ID, pendingRecord{p.at, p.rec.Bounded()})
}

// outbox is the store as handlers see it: the first thing that a call changes takes the
// call's record along, in the same transaction. So there is no instant at which a
// change is made and nothing tells who made it: the controller may die anywhere, and the
// next one finds the record in the store (recover) and writes it to the log.
//
// A record leaves the store once it is durable in the log, lazily: one that is in both
// is known by its request id.
type outbox struct {
	store.Store

	mu   sync.Mutex
	done []string // ids of records that are in the log
}

// Txn implements store.Store.
func (o *outbox) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	p := recordIn(ctx)
	if p == nil {
		return o.Store.Txn(ctx, conds, ops)
	}
	if p.ready != nil && !p.isStored() {
		if err := p.ready(); err != nil {
			return 0, err
		}
	}
	if len(ops) >= store.MaxOps {
		if err := o.begin(ctx, p); err != nil {
			return 0, err
		}
		return o.Store.Txn(ctx, conds, ops)
	}
	return o.Store.Txn(ctx, conds, append(ops[:len(ops):len(ops)], p.op()))
}

// begin writes the record of a call down before it does what is not a change of the
// store.
func (o *outbox) begin(ctx context.Context, p *callRecord) error {
	_, err := o.Store.Txn(ctx, nil, []store.Op{p.op()})
	return err
}

// forget notes that a record is in the log.
func (o *outbox) forget(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = append(o.done, id)
}

// clear removes records that are in the log from the store.
func (o *outbox) clear(ctx context.Context) error {
	for {
		o.mu.Lock()
		n := min(len(o.done), store.MaxOps)
		ids := o.done[:n]
		o.mu.Unlock()
		if n == 0 {
			return nil
		}
		ops := make([]store.Op, n)
		for i, id := range ids {
			ops[i] = store.Delete(prefixPending + id)
		}
		if _, err := o.Store.Txn(ctx, nil, ops); err != nil {
			return err
		}
		o.mu.Lock()
		o.done = o.done[n:]
		o.mu.Unlock()
	}
}

// run brings what an earlier process left into the log, and clears, until ctx ends.
func (o *outbox) run(ctx context.Context, l *auditlog.Log, left []pendingRecord) error {
	for len(left) > 0 {
		if err := o.recover(ctx, l, left); err == nil {
			break
		}
		select {
		case <-time.After(recoverEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	tick := time.NewTicker(clearEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			o.clear(ctx) // the next one tries again
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearLimit)
			defer cancel()
			o.clear(last)
			return ctx.Err()
		}
	}
}

// leftover lists the records of calls that an earlier process did not see to their end.
func (o *outbox) leftover(ctx context.Context) ([]pendingRecord, error) {
	kvs, _, err := o.List(ctx, prefixPending)
	if err != nil {
		return nil, err
	}
	out := make([]pendingRecord, len(kvs))
	for i, kv := range kvs {
		if json.Unmarshal(kv.Value, &out[i]) != nil { // still a trace of a change
			out[i] = pendingRecord{Record: audit.Record{Action: "unreadable record"}}
		}
		out[i].Record.ID = record.LastPart(kv.Key)
	}
	return out, nil
}

// recover writes records of interrupted calls to the log, unless they are there. It may
// be cut off and called again at any point.
func (o *outbox) recover(ctx context.Context, l *auditlog.Log, left []pendingRecord) error {
	there, oldest := map[string]bool{}, time.Now()
	for _, p := range left {
		there[p.Record.ID] = false
		if p.At.Before(oldest) {
			oldest = p.At
		}
	}
	looked := 0
	err := l.Tail(func(_ audit.Entry, r audit.Record) bool {
		if _, asked := there[r.ID]; asked {
			there[r.ID] = true
		}
		looked++
		return looked < recoverScan && !r.Time.Before(oldest.Add(-recoverSlack))
	})
	if err != nil {
		return err
	}
	for _, p := range left {
		if !there[p.Record.ID] {
			p.Record.Result, p.Record.Code = audit.Interrupted, 0
			err := failpoint.Write("audit/recover", func() error { return l.Append(ctx, p.Record) })
			if err != nil {
				return errors.Join(err, ctx.Err())
			}
		}
		o.forget(p.Record.ID)
	}
	return nil
}
