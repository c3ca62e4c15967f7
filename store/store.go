// Package store is the port through which the controller keeps the desired state:
// a small, ordered, transactional map with a history that can be followed.
//
// Adapters: store/etcd (the one in use) and store/fake (in memory, for tests).
// Package store/storetest is the suite that both pass.
//
// # Model
//
// Keys are non-empty strings of at most MaxKey bytes, values are at most MaxValue
// bytes. Every change belongs to a transaction, and every transaction that changes
// something gets the next revision; revisions grow and are never reused. A key
// remembers the revision of its last change.
//
// # Guarantees
//
// Transactions are atomic and strictly serializable; reads see every transaction
// that was acknowledged before the read began. A transaction that returned without
// an error is durable: it survives a kill of any process and a power cut. When it
// returns an error other than ErrChanged or an Invalid one, it may or may not have
// happened: read again before repeating it.
//
// # Errors
//
// Methods return *fault.Error: Invalid for a key, value or transaction out of
// bounds, ErrNotFound, ErrChanged and ErrCompacted as documented, Unavailable when
// the store cannot answer now (closed, no quorum, out of space), and the context's
// error when ctx ended first.
package store

import (
	"context"
	"strings"

	"bulkhead/fault"
)

// Bounds.
const (
	MaxKey   = 512     // bytes
	MaxValue = 1 << 20 // bytes
	MaxOps   = 100     // of one transaction: conditions and changes, each
)

// Sentinel errors; compare with errors.Is.
var (
	// ErrNotFound is Get's answer for a key that does not exist.
	ErrNotFound = &fault.Error{Kind: fault.NotFound, Msg: "no such key in the store"}
	// ErrChanged is Txn's answer when a condition does not hold. Nothing was changed.
	ErrChanged = &fault.Error{Kind: fault.Precondition, Msg: "the record was changed by somebody else meanwhile; read it again and repeat"}
	// ErrCompacted is Watch's answer when the history no longer reaches back to the
	// revision asked for: List again and watch from there.
	ErrCompacted = &fault.Error{Kind: fault.Precondition, Msg: "the store's history no longer reaches back that far"}
)

// KV is a key with its value.
type KV struct {
	Key   string
	Value []byte
	// Revision of the last change; never 0.
	Revision int64
}

// Cond is a condition of a transaction: the key's last change has this revision. 0
// means that the key does not exist.
type Cond struct {
	Key      string
	Revision int64
}

// Op is one change of a transaction.
type Op struct {
	Key    string
	Value  []byte
	Delete bool // remove the key; removing what is not there is no error and no change
}

// Put returns the Op that sets key.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Delete returns the Op that removes key.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// Event is one change that Watch reports. For a removal, Value is nil.
type Event struct {
	KV
	Deleted bool
}

// Store is the port. Implementations are safe for concurrent use.
type Store interface {
	// Get returns the key's value, or ErrNotFound.
	Get(ctx context.Context, key string) (KV, error)
	// List returns everything whose key starts with prefix, ordered by key, as of one
	// revision, which it also returns: Watch from there misses nothing.
	List(ctx context.Context, prefix string) ([]KV, int64, error)
	// Txn makes all changes if all conditions hold, and none otherwise (ErrChanged). It
	// returns the revision at which they were made. A key may be changed once.
	Txn(ctx context.Context, conds []Cond, ops []Op) (int64, error)
	// Watch calls f with every change under prefix after the revision given, in order
	// and none twice; one call holds the changes of one or more whole transactions. It
	// returns f's error, ErrCompacted, Unavailable, or the context's error; never nil.
	// f must not keep the slice.
	Watch(ctx context.Context, prefix string, after int64, f func([]Event) error) error
	// Close releases the store. Calls in progress and after it give Unavailable.
	Close() error
}

// CheckKey is the rule for keys that every adapter applies.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey || strings.IndexByte(key, 0) >= 0 {
		return fault.New(fault.Invalid, "store key of %d bytes: must be 1 to %d bytes without a zero byte", len(key), MaxKey)
	}
	return nil
}

// CheckTxn is the rule for transactions that every adapter applies.
func CheckTxn(conds []Cond, ops []Op) error {
	if len(conds) > MaxOps || len(ops) > MaxOps || len(ops) == 0 {
		return fault.New(fault.Invalid, "store transaction with %d conditions and %d changes: at least 1 change and at most %d of each", len(conds), len(ops), MaxOps)
	}
	for _, c := range conds {
		if err := CheckKey(c.Key); err != nil {
			return err
		}
	}
	seen := make(map[string]bool, len(ops))
	for _, o := range ops {
		if err := CheckKey(o.Key); err != nil {
			return err
		}
		if len(o.Value) > MaxValue {
			return fault.New(fault.Invalid, "store value of %d bytes for key %q: at most %d", len(o.Value), o.Key, MaxValue)
		}
		if seen[o.Key] {
			return fault.New(fault.Invalid, "store transaction changes key %q twice", o.Key)
		}
		seen[o.Key] = true
	}
	return nil
}
