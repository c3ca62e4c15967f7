package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"bulkhead/fault"
	"bulkhead/store"
)

// Numbers of a store that fills up. etcd itself, once over its quota, applies a
// change and calls it refused, and then refuses every change until somebody comes
// with its tools. So it is never let to get there.
const (
	// reserve is the part of the quota, one in so many, that is kept for what makes
	// room: transactions that remove something, and small ones.
	reserve = 8
	// smallTxn is how many bytes a transaction may write that is let into the reserve:
	// the wish to destroy a Machine is one.
	smallTxn = 16 << 10
	// relieveEvery is how often the history is given up for room, at most.
	relieveEvery = 10 * time.Second
)

// makeRoom refuses a transaction for which there is no room, after it has tried to
// make some.
func (s *Store) makeRoom(ctx context.Context, ops []store.Op) error {
	size, removes := int64(0), false
	for _, o := range ops {
		size += int64(len(o.Key) + len(o.Value))
		removes = removes || o.Delete
	}
	limit := s.quota - s.quota/reserve
	if removes || size <= smallTxn {
		limit = s.quota - s.quota/(4*reserve)
	}
	s.room.Lock()
	defer s.room.Unlock()
	if file, _ := s.sizes(); file+size < limit {
		s.pending += size
		return nil
	}
	if time.Since(s.relieved) > relieveEvery {
		if err := s.relieve(ctx); err != nil {
			return s.fault(ctx, err)
		}
		s.relieved = time.Now()
	}
	if _, inUse := s.sizes(); inUse+size < limit {
		s.pending += size
		return nil // pages that are free within the file
	}
	return fault.New(fault.Unavailable, "the store is full (%d MiB); remove apps or machines that are not needed", s.quota>>20)
}

// sizes returns the bytes of the database's file, and those of them that are in use.
// etcd counts anew when it commits, some ten times a second: what was written since
// is added. s.room is held.
func (s *Store) sizes() (file, inUse int64) {
	be := s.member.Server.Backend()
	now := [2]int64{be.Size(), be.SizeInUse()}
	if now != s.counted {
		s.counted, s.pending = now, 0
	}
	return now[0] + s.pending, now[1] + s.pending
}

// relieve gives up the history, and the room that it took in the file, and ends an
// alarm of etcd's. Watchers that are behind list again.
func (s *Store) relieve(ctx context.Context) error {
	began, before := time.Now(), s.member.Server.Backend().Size()
	if err := s.Compact(ctx); err != nil && ctx.Err() != nil {
		return err // otherwise: there is no history that could be given up
	}
	if err := s.member.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("shrink the store: %w", err)
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return fmt.Errorf("end the store's alarm: %w", err)
	}
	s.log.Info("the store gave up its history for room", "bytes_before", before, "bytes", s.member.Server.Backend().Size(), "took", time.Since(began))
	return nil
}
