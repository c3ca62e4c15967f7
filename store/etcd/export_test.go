package etcd

// Flush writes what etcd's database holds in memory to its file, as etcd does every 100 ms.
func (s *Store) Flush() { s.member.Server.Backend().ForceCommit() }

// What the tests see of the log.
var QuietLogger = quietLogger

const ClosedServing = closedServing
