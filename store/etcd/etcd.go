// Package etcd is the store that Bulkhead uses: an etcd member inside the
// controller's own process. It opens no TCP port; what etcd wants to listen on are
// two unix sockets in a directory of mode 0700, and Bulkhead itself calls it in
// process.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/store"
)

// Numbers of the member.
const (
	quota       = 1 << 30          // bytes of the database, by default; see room.go
	retention   = "1h"             // of the history; a watcher away for longer lists again
	startLimit  = 60 * time.Second // to replay the log and be elected
	pageSize    = 500              // keys of one read of a List
	tickMs      = 10               // a single member: elections are quick and nobody is asked
	electionMs  = 100
	maxSockPath = 107 // bytes of a unix socket's path
)

// Config says where the member lives.
type Config struct {
	// Dir holds the data; it is made with mode 0700, and one process at a time may
	// have it open.
	Dir string
	// SocketDir holds the sockets etcd insists on; it is made with mode 0700 and must
	// be short: with the names of the sockets at most 107 bytes. Empty means Dir.
	SocketDir string
	Log       *slog.Logger
	// Quota bounds the database, in bytes; 0 means 1 GiB.
	Quota int64
}

// Store is an open member. It implements store.Store.
type Store struct {
	member *embed.Etcd
	client *clientv3.Client
	lock   *os.File
	log    *slog.Logger
	quota  int64 // bytes
	dir    string

	room     sync.Mutex // guards what follows, and is held while room is made
	relieved time.Time  // when that was
	counted  [2]int64   // sizes as etcd last counted them
	pending  int64      // bytes written since
	held     int64      // bytes of the database's file that the disk's blocks are given to

	closeOnce sync.Once
	closing   context.Context // ends when Close begins
	cancel    context.CancelFunc
}

// Open starts the member in dir and returns when it can take writes.
//
// It is safe after a kill at any instant and after a power cut: etcd replays its
// write-ahead log, and everything acknowledged is there. Damage of another kind is an
// error that says so; see recover.go.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.SocketDir == "" {
		c.SocketDir = c.Dir
	}
	if c.Quota == 0 {
		c.Quota = quota
	}
	for _, d := range []string{c.Dir, c.SocketDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fault.System(err, "the store's directory %s cannot be made", d)
		}
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	g := &guard{}
	cfg, err := memberConfig(c, g)
	if err == nil {
		err = check(c)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	member, err := g.start(cfg, c.Dir)
	if err != nil {
		lock.Close()
		return nil, fault.System(err, "the store in %s cannot be started", c.Dir)
	}
	s := &Store{member: member, lock: lock, log: c.Log, quota: c.Quota, dir: c.Dir}
	s.closing, s.cancel = context.WithCancel(context.Background())
	select {
	case <-member.Server.ReadyNotify():
	case err = <-member.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(startLimit):
		err = fmt.Errorf("not ready after %v", startLimit)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("start the store in %s: %w", c.Dir, err)
	}
	s.client = v3client.New(member.Server)
	if err := s.hold(member.Server.Backend().Size() + ahead); err != nil {
		c.Log.Warn("the store takes no changes before there is room", "err", err)
	}
	if len(member.Server.Alarms()) > 0 {
		if err := s.relieve(ctx); err != nil {
			s.Close()
			return nil, fmt.Errorf("start the store in %s: %w", c.Dir, err)
		}
	}
	return s, nil
}

// lockDir refuses a second process on the same directory, with a sentence instead
// of etcd's waiting.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fault.New(fault.Conflict, "another process has the store in %s open; stop it first", dir)
	}
	return f, nil
}

func memberConfig(c Config, g *guard) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Name = "n1"
	cfg.Dir = filepath.Join(c.Dir, "etcd")
	client, err := socketURL(c.SocketDir, "etcd-c")
	if err != nil {
		return nil, err
	}
	peer, err := socketURL(c.SocketDir, "etcd-p")
	if err != nil {
		return nil, err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	// For its peers' socket etcd reads the URL's host and not its path; without one it
	// would listen on an abstract socket, which every user of the machine may call.
	cfg.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: peer.Path}}
	cfg.AdvertisePeerUrls = []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.QuotaBackendBytes = c.Quota
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = retention
	cfg.MaxTxnOps = 2 * store.MaxOps
	cfg.MaxRequestBytes = 4 << 20
	cfg.TickMs, cfg.ElectionMs = tickMs, electionMs
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(g.logger(c.Log))
	return cfg, nil
}

// socketURL is the address of a socket, after removing what a killed process left.
func socketURL(dir, name string) (url.URL, error) {
	path := filepath.Join(dir, name)
	if len(path) > maxSockPath {
		return url.URL{}, fault.New(fault.Invalid, "the store's socket %s is longer than %d bytes; use a shorter run directory", path, maxSockPath)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return url.URL{}, err
	}
	return url.URL{Scheme: "unix", Path: path}, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	if err := s.open(ctx); err != nil {
		return store.KV{}, err
	}
	if err := store.CheckKey(key); err != nil {
		return store.KV{}, err
	}
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return store.KV{}, s.fault(ctx, err)
	}
	if len(resp.Kvs) == 0 {
		return store.KV{}, store.ErrNotFound
	}
	kv := resp.Kvs[0]
	return store.KV{Key: key, Value: kv.Value, Revision: kv.ModRevision}, nil
}

// List implements store.Store. It reads page by page at one revision, so that no
// single answer grows with the prefix.
func (s *Store) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	if err := s.open(ctx); err != nil {
		return nil, 0, err
	}
	var out []store.KV
	from, end, rev := prefix, clientv3.GetPrefixRangeEnd(prefix), int64(0)
	if from == "" {
		from = "\x00"
	}
	for {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(rev))
		if err != nil {
			return nil, 0, s.fault(ctx, err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			out = append(out, store.KV{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
		}
		if !resp.More {
			return out, rev, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	if err := s.open(ctx); err != nil {
		return 0, err
	}
	if err := store.CheckTxn(conds, ops); err != nil {
		return 0, err
	}
	if err := s.makeRoom(ctx, ops); err != nil {
		return 0, err
	}
	cmps := make([]clientv3.Cmp, len(conds))
	for i, c := range conds {
		cmps[i] = clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Revision)
	}
	eops := make([]clientv3.Op, len(ops))
	for i, o := range ops {
		if o.Delete {
			eops[i] = clientv3.OpDelete(o.Key)
		} else {
			eops[i] = clientv3.OpPut(o.Key, string(o.Value))
		}
	}
	var resp *clientv3.TxnResponse
	err := failpoint.Write(place(ops), func() (err error) {
		resp, err = s.client.Txn(ctx).If(cmps...).Then(eops...).Commit()
		return err
	})
	if err != nil {
		return 0, s.fault(ctx, err)
	}
	if failpoint.Enabled && resp == nil {
		return 0, nil // a test's seeded fault: not written, reported as written
	}
	if !resp.Succeeded {
		return 0, store.ErrChanged
	}
	return resp.Header.Revision, nil
}

// place names a transaction for tests by what it writes: the first parts of its
// keys, with a minus where they are removed.
func place(ops []store.Op) string {
	if !failpoint.Enabled {
		return ""
	}
	var kinds []string
	for _, o := range ops {
		kind, _, _ := strings.Cut(strings.TrimPrefix(o.Key, "/"), "/")
		if o.Delete {
			kind = "-" + kind
		}
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return "store/txn/" + strings.Join(kinds, ",")
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after int64, f func([]store.Event) error) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.closing, cancel)
	defer stop()
	if prefix == "" {
		prefix = "\x00"
	}
	opt := clientv3.WithPrefix()
	if prefix == "\x00" {
		opt = clientv3.WithFromKey()
	}
	for resp := range s.client.Watch(wctx, prefix, opt, clientv3.WithRev(after+1)) {
		if resp.CompactRevision != 0 {
			return store.ErrCompacted
		}
		if err := resp.Err(); err != nil {
			return s.fault(ctx, err)
		}
		if len(resp.Events) == 0 {
			continue
		}
		events := make([]store.Event, len(resp.Events))
		for i, e := range resp.Events {
			events[i] = store.Event{
				KV:      store.KV{Key: string(e.Kv.Key), Value: e.Kv.Value, Revision: e.Kv.ModRevision},
				Deleted: e.Type == clientv3.EventTypeDelete,
			}
		}
		if err := f(events); err != nil {
			return err
		}
	}
	return s.fault(ctx, context.Canceled)
}

// Compact forgets the history up to the current revision; the member does it by
// itself every hour.
func (s *Store) Compact(ctx context.Context) error {
	resp, err := s.client.Get(ctx, "\x00", clientv3.WithLimit(1))
	if err == nil {
		_, err = s.client.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		return s.fault(ctx, err)
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.cancel()
		if s.client != nil {
			s.client.Close()
		}
		s.member.Close()
		<-s.member.Server.StopNotify()
		s.lock.Close()
	})
	return nil
}

// open refuses calls after Close, and with a context that has ended.
func (s *Store) open(ctx context.Context) error {
	if s.closing.Err() != nil {
		return fault.New(fault.Unavailable, "the store is closed")
	}
	return ctx.Err()
}

// fault gives an error of etcd its kind.
func (s *Store) fault(ctx context.Context, err error) error {
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	if s.closing.Err() != nil {
		return fault.Wrap(fault.Unavailable, err, "the store is closed")
	}
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(err, rpctypes.ErrNoSpace) || strings.Contains(err.Error(), "database space exceeded"):
		return s.full(err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return fault.Wrap(fault.Invalid, err, "the change is too large for the store")
	}
	return fault.Wrap(fault.Unavailable, err, "the store does not answer")
}
