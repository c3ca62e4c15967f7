// Package audit is the record of who did what: what one record says, how it is
// committed to a transparency log, and how anybody who holds a checkpoint checks, with
// nothing but files, that the log of today still says what it said.
//
// The log (C2SP tlog-tiles, tlog-checkpoint) holds one leaf of 32 bytes per record: a
// salted commitment. Leaves and tiles can be shown to everybody who may read any
// record, because they tell nothing of the others. Records lie beside the log, each
// with its salt; who is shown a record computes its leaf anew and proves that the
// signed tree has it, where it says.
//
// Package audit/auditlog writes the log; this package has no part in that and links
// into the CLI on every system.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Result is what came of what was asked for.
type Result string

// The results. They are stored and never renamed.
const (
	OK          Result = "ok"          // done
	Refused     Result = "refused"     // not allowed, not known, or too often: 401, 403, 429
	Failed      Result = "failed"      // allowed and not done
	Interrupted Result = "interrupted" // the controller died meanwhile: it may have been done
)

// Results lists every Result.
func Results() []Result { return []Result{OK, Refused, Failed, Interrupted} }

// ResultOf is what an HTTP status says.
func ResultOf(code int) Result {
	switch {
	case code == 401 || code == 403 || code == 429:
		return Refused
	case code >= 400:
		return Failed
	}
	return OK
}

// Record is one thing that somebody did, or was refused. It never holds a token, a
// secret, or what was in a request's body.
type Record struct {
	// Time and Seq are set by the log: when it took the record, and the record's number
	// among those of the same Org, from 1 and without gaps.
	Time time.Time `json:"time"`
	Seq  uint64    `json:"seq"`

	ID    string `json:"id,omitempty"`    // of the request, as in fly-request-id
	Org   string `json:"org,omitempty"`   // whose record it is; empty: the cluster's operators'
	User  string `json:"user,omitempty"`  // id of the user
	Name  string `json:"name,omitempty"`  // who, for people
	Token string `json:"token,omitempty"` // id of the token, which is no secret
	From  string `json:"from,omitempty"`  // address of the client

	Action  string `json:"action"` // the endpoint, as in docs/api.md, or the event
	App     string `json:"app,omitempty"`
	Machine string `json:"machine,omitempty"`
	Target  string `json:"target,omitempty"` // what else it was about, "kind=name"

	Code   int    `json:"code,omitempty"` // HTTP status of the answer
	Result Result `json:"result"`
	Detail string `json:"detail,omitempty"`
	// Count is set in records that stand for many refusals of the same kind.
	Count int `json:"count,omitempty"`
}

// Bounds of a record's fields, so that no caller makes a record large.
const (
	maxField = 200  // bytes of a field
	maxLine  = 8192 // bytes of an Entry as it is stored
)

// Bounded returns the record with every text valid UTF-8 and of bounded length.
func (r Record) Bounded() Record {
	for _, s := range []*string{&r.ID, &r.Org, &r.User, &r.Name, &r.Token, &r.From, &r.Action, &r.App, &r.Machine, &r.Target, &r.Detail} {
		*s = strings.ToValidUTF8(*s, "?")
		if len(*s) > maxField {
			cut := maxField
			for !utf8.RuneStart((*s)[cut]) {
				cut--
			}
			*s = (*s)[:cut] + "…"
		}
	}
	return r
}

// SaltSize is the size of an Entry's salt: too many to try, so that a leaf tells
// nothing of its record, however little there is to guess in it.
const SaltSize = 16

// Entry is a record as it is stored and shown: the exact bytes that were committed to,
// with what it takes to check that.
type Entry struct {
	N      uint64          `json:"n"` // the leaf's number in the log
	Salt   []byte          `json:"salt"`
	Record json.RawMessage `json:"record"`
}

// commitment separates these hashes from all others.
const commitment = "bulkhead audit record 1\n"

// Leaf is the entry's leaf in the log.
func (e Entry) Leaf() []byte {
	h := sha256.New()
	h.Write([]byte(commitment))
	h.Write(e.Salt)
	h.Write(e.Record)
	return h.Sum(nil)
}

// Open reads the record.
func (e Entry) Open() (Record, error) {
	var r Record
	if err := json.Unmarshal(e.Record, &r); err != nil {
		return r, fmt.Errorf("record %d of the audit log cannot be read: %w", e.N, err)
	}
	return r, nil
}

// NewEntry commits to a record.
func NewEntry(n uint64, salt []byte, r Record) (Entry, error) {
	b, err := json.Marshal(r)
	return Entry{N: n, Salt: salt, Record: b}, err
}

// Line is the entry as it is stored, with a newline at its end.
func (e Entry) Line() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(b) >= maxLine {
		return nil, fmt.Errorf("record %d of the audit log has %d bytes; at most %d", e.N, len(b), maxLine)
	}
	return append(b, '\n'), nil
}

// ParseLine reads a stored entry, without its newline. Every byte of it counts: what is
// not exactly as Line makes it is an error.
func ParseLine(line []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return e, err
	}
	if len(e.Salt) != SaltSize {
		return e, fmt.Errorf("a salt of %d bytes", len(e.Salt))
	}
	again, err := e.Line()
	if err != nil {
		return e, err
	}
	if !bytes.Equal(again[:len(again)-1], line) {
		return e, errors.New("not as it was written")
	}
	return e, nil
}
