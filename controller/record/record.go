// Package record holds what lies in the cluster's store, as JSON, and under which keys.
// Fields are added, never renamed or reused: what an earlier version wrote is read.
//
// Records are the controller's alone; nobody else has the store. What a single part of it
// reads and writes (secrets, the audit log's outbox, join tokens) is defined there.
package record

import (
	"context"
	"encoding/json"
	"errors"

	"bulkhead/fault"
	"bulkhead/store"
)

// Get reads a record; its revision is 0 and the value nil when there is none.
func Get[T any](ctx context.Context, s store.Store, k string) (*T, int64, error) {
	kv, err := s.Get(ctx, k)
	if errors.Is(err, store.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	v, err := Decode[T](kv)
	return v, kv.Revision, err
}

// Decode is the record that a store's value holds.
func Decode[T any](kv store.KV) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(kv.Value, v); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the record %s cannot be read", kv.Key)
	}
	return v, nil
}

// List reads every record under a prefix.
func List[T any](ctx context.Context, s store.Store, prefix string) ([]*T, int64, error) {
	kvs, rev, err := s.List(ctx, prefix)
	if err != nil {
		return nil, 0, err
	}
	out := make([]*T, len(kvs))
	for i, kv := range kvs {
		if out[i], err = Decode[T](kv); err != nil {
			return nil, 0, err
		}
	}
	return out, rev, nil
}

// Put is the change that writes a record. Records always encode: they came from JSON.
func Put(k string, v any) store.Op {
	b, err := json.Marshal(v)
	if err != nil {
		panic("record: a record does not encode: " + err.Error())
	}
	return store.Put(k, b)
}

// At is the condition that a record is still as read.
func At(k string, rev int64) store.Cond { return store.Cond{Key: k, Revision: rev} }
