package etcd

import "go.etcd.io/etcd/server/v3/storage/wal"

// The tests copy, damage and read whole logs: 64 MB of zeros in each would only cost time.
func init() { wal.SegmentSizeBytes = 4 << 20 }

// Flush writes what etcd's database holds in memory to its file, as etcd does every 100 ms.
func (s *Store) Flush() { s.member.Server.Backend().ForceCommit() }

// What the tests see of the log.
var QuietLogger = quietLogger

const ClosedServing = closedServing
