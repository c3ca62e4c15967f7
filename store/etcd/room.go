package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/room"
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
	// ahead is how many bytes beyond what is in use are held of the disk: what changes
	// that are acknowledged, and not yet in the database's file, may need. step is how
	// much more is taken at a time.
	ahead = 8 << 20
	step  = 8 << 20
)

// makeRoom refuses a transaction for which there is no room, after it has tried to
// make some.
func (s *Store) makeRoom(ctx context.Context, ops []store.Op) error {
	size, removes := int64(0), false
	for _, o := range ops {
		size += int64(len(o.Key) + len(o.Value))
		removes = removes || o.Delete
	}
	if err := room.Check(s.dir, size, room.Records); err != nil {
		return err
	}
	limit := s.quota - s.quota/reserve
	if removes || size <= smallTxn {
		limit = s.quota - s.quota/(4*reserve)
	}
	s.room.Lock()
	defer s.room.Unlock()
	file, _ := s.sizes()
	if err := s.hold(file + size + ahead); err != nil {
		return err
	}
	if file+size < limit {
		s.pending += size
		return nil
	}
	if time.Since(s.relieved) > relieveEvery {
		if err := s.relieve(ctx); err != nil {
			return s.fault(ctx, err)
		}
		s.relieved, s.held = time.Now(), 0 // it has made a new file
	}
	if _, inUse := s.sizes(); inUse+size < limit {
		s.pending += size
		return nil // pages that are free within the file
	}
	return s.full(nil)
}

// full is the refusal of a change for which the database has no room.
func (s *Store) full(cause error) error {
	return fault.Wrap(fault.Full, cause, "the store is full (%d MiB); remove apps or machines that are not needed", s.quota>>20).WithStatus("store_full")
}

// hold has the disk's blocks given to the first n bytes of the database's file. etcd
// acknowledges a change when it is in its log, writes it to the database later, and
// ends the process when it then finds the disk full, at each start anew: so the room
// is taken before. s.room is held, or s is not shared yet.
func (s *Store) hold(n int64) error {
	if n <= s.held {
		return nil
	}
	path := filepath.Join(s.dir, "etcd", "member", "snap", "db")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fault.System(err, "the store's database %s cannot be opened", path)
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n+step)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fault.System(err, "the store's database %s cannot grow", path)
	}
	s.held = n + step
	return nil
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
