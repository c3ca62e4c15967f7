package auditlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"bulkhead/audit"
	"bulkhead/fault"
)

// Bounds of one page.
const (
	PageLimit = 500  // records
	scanLimit = 2000 // records that are looked at
)

// Query says which records of an organization are wanted. Empty fields ask for nothing.
type Query struct {
	Org string

	User, Token, App, Machine string
	Action                    string // begins with it
	Result                    audit.Result
	Since, Until              time.Time

	// From is the number (Seq) to begin with: downwards, or upwards with Up. 0 is the
	// newest, or the oldest.
	From  uint64
	Up    bool
	Limit int
}

// Page is an answer.
type Page struct {
	Entries []audit.Entry
	// Next is where the next page begins; 0 when there is nothing more that way. With Up
	// it is where records will come.
	Next uint64
	Last uint64 // number of the organization's newest record
}

// matches reports whether the query asks for the record.
func (q *Query) matches(r *audit.Record) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return (is(q.User, r.User) || is(q.User, r.Name)) && is(q.Token, r.Token) && is(q.App, r.App) && is(q.Machine, r.Machine) &&
		is(string(q.Result), string(r.Result)) && (len(r.Action) >= len(q.Action) && r.Action[:len(q.Action)] == q.Action) &&
		(q.Since.IsZero() || !r.Time.Before(q.Since)) && (q.Until.IsZero() || r.Time.Before(q.Until))
}

// List returns a page. Its cost is bounded, whatever the size of the log: a page may
// hold fewer records than there are, and Next says where to go on.
func (l *Log) List(ctx context.Context, q Query) (*Page, error) {
	f, err := l.opened()
	if err != nil {
		return nil, err
	}
	if q.Limit <= 0 || q.Limit > PageLimit {
		q.Limit = PageLimit
	}
	p := &Page{Last: f.count(q.Org)}
	idx, err := os.Open(filepath.Join(f.dir, audit.IndexPath(q.Org)))
	if errors.Is(err, fs.ErrNotExist) && p.Last == 0 {
		if q.Up {
			p.Next = 1
		}
		return p, nil
	}
	if err != nil {
		return nil, fault.System(err, "the audit log's index cannot be read")
	}
	defer idx.Close()
	r := &reader{files: f, idx: idx}
	defer r.close()
	seq, err := q.begin(r, p.Last)
	if err != nil {
		return nil, err
	}
	for looked := 0; seq >= 1 && seq <= p.Last; looked++ {
		if looked == scanLimit || len(p.Entries) == q.Limit {
			p.Next = seq
			return p, ctx.Err()
		}
		e, rec, err := r.read(seq)
		if err != nil {
			return nil, err
		}
		if q.matches(&rec) {
			p.Entries = append(p.Entries, e)
		}
		if !q.Up && rec.Time.Before(q.Since) || q.Up && !q.Until.IsZero() && rec.Time.After(q.Until) {
			return p, ctx.Err()
		}
		if q.Up {
			seq++
		} else {
			seq--
		}
	}
	if q.Up {
		p.Next = max(seq, 1)
	}
	return p, ctx.Err()
}

// begin is the number to begin with: what is outside the times asked for is skipped by
// halving, since no record has an earlier time than the one before it (Log.put).
func (q *Query) begin(r *reader, last uint64) (uint64, error) {
	seq := q.From
	if seq == 0 && !q.Up || seq > last && !q.Up {
		seq = last
	}
	edge := q.Until
	if q.Up {
		seq = max(seq, 1)
		edge = q.Since
	}
	if q.Up && q.Since.IsZero() || !q.Up && q.Until.IsZero() {
		return seq, nil
	}
	lo, hi := uint64(1), last+1 // the first record that is not before edge
	for lo < hi {
		mid := lo + (hi-lo)/2
		_, rec, err := r.read(mid)
		if err != nil {
			return 0, err
		}
		if rec.Time.Before(edge) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if q.Up {
		return max(seq, lo), nil
	}
	return min(seq, lo-1), nil
}

// Wait returns when the organization has a record of the number given, or when ctx ends.
func (l *Log) Wait(ctx context.Context, org string, seq uint64) error {
	for {
		l.mu.Lock()
		changed := l.changed
		f := l.files
		l.mu.Unlock()
		if f != nil && f.count(org) >= seq {
			return nil
		}
		select {
		case <-changed:
		case <-l.stop:
			return refusal(errors.New("it is closed"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Tail calls f with the newest records of all organizations, backwards, until it
// returns false.
func (l *Log) Tail(f func(e audit.Entry, r audit.Record) bool) error {
	fs, err := l.opened()
	if err != nil {
		return err
	}
	for n := fs.size(); n > 0; {
		i := (n - 1) / audit.SegmentSize
		entries, err := fs.segment(i)
		if err != nil {
			return err
		}
		for k := min(len(entries), int(n-i*audit.SegmentSize)) - 1; k >= 0; k-- {
			r, err := entries[k].Open()
			if err != nil || !f(entries[k], r) {
				return err
			}
		}
		n = i * audit.SegmentSize
	}
	return nil
}

// opened is the files, if they could be opened.
func (l *Log) opened() (*files, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.files == nil {
		return nil, refusal(l.trouble)
	}
	return l.files, nil
}

// reader reads records of one organization, and keeps the segment open that it read from.
type reader struct {
	files *files
	idx   *os.File
	seg   *os.File
	i     uint64
}

func (r *reader) close() {
	if r.seg != nil {
		r.seg.Close()
	}
}

// read reads the record of a number.
func (r *reader) read(seq uint64) (audit.Entry, audit.Record, error) {
	fail := func(err error) (audit.Entry, audit.Record, error) {
		return audit.Entry{}, audit.Record{}, fault.Wrap(fault.Internal, err, "a record of the audit log cannot be read")
	}
	p, err := place(r.idx, seq)
	if err != nil {
		return fail(err)
	}
	if i := p.N / audit.SegmentSize; r.seg == nil || r.i != i {
		r.close()
		if r.seg, err = os.Open(filepath.Join(r.files.dir, audit.SegmentPath(i))); err != nil {
			return fail(err)
		}
		r.i = i
	}
	b := make([]byte, p.Size)
	if _, err := r.seg.ReadAt(b, int64(p.Offset)); err != nil {
		return fail(err)
	}
	e, err := audit.ParseLine(b[:len(b)-1])
	if err != nil {
		return fail(err)
	}
	rec, err := e.Open()
	if err == nil && (e.N != p.N || rec.Seq != seq) {
		err = fmt.Errorf("the index names record %d for number %d, and it is record %d with number %d", p.N, seq, e.N, rec.Seq)
	}
	if err != nil {
		return fail(err)
	}
	return e, rec, nil
}
