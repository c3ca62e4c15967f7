// Package auditlog writes the audit log of package audit: records first, durable and in
// one order, then their leaves into a transparency log of tessera's (POSIX driver), which
// signs checkpoints and has witnesses co-sign them.
//
// # What is on disk when
//
// Append returns when its record is synced in a segment of records/, which is the
// write-ahead log of everything else: leaves, tiles and indexes follow from it, within
// a fraction of a second, and after a kill or a power cut the next Open has them follow
// by the same code. So an append costs one sync, shared by all that wait for it, however
// long the tree takes. tessera syncs each file and its directory before it reports a
// leaf as integrated; a signed checkpoint comes CheckpointEvery later at most.
//
// # When it cannot be written
//
// Append fails, Ready says why, and records of changes that were made are kept in memory
// (Must) until they can be written. The log tries again by itself, every retryEvery.
package auditlog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"bulkhead/audit"
	"bulkhead/fault"
	"bulkhead/notice"
	"bulkhead/room"
)

// Times and bounds.
const (
	CheckpointEvery = 250 * time.Millisecond // at most between a record and a checkpoint that has it
	retryEvery      = time.Second
	witnessLimit    = 5 * time.Second // for the witnesses to answer
	queueLimit      = 1024            // appends that wait for the writer
	batchLimit      = 256             // of them in one write
	keptLimit       = 10000           // records that Must holds while nothing can be written
	behindLimit     = 50000           // records that the tree may lag behind before changes are refused
)

// Config says where a log lies and who signs it.
type Config struct {
	Dir    string
	Signer note.Signer
	Key    string // verifier key of Signer
	// Witnesses is a policy of witnesses, in the format of tessera and sigsum; empty: none.
	Witnesses []byte
	// WitnessRequired refuses changes while the policy is not satisfied.
	WitnessRequired bool
	Log             *slog.Logger
	Board           *notice.Board
}

// Log is an audit log that is open, or tries to be. Its methods are safe for concurrent
// use.
type Log struct {
	cfg   Config
	queue chan *appending
	stop  chan struct{} // closed: nothing new is taken
	ended chan struct{} // closed: the writer has written what was taken
	wrote sync.WaitGroup
	grew  sync.WaitGroup

	mu      sync.Mutex
	files   *files // nil until it could be opened
	trouble error  // why records cannot be written
	late    error  // why the tree does not follow
	kept    []*appending
	changed chan struct{} // closed when records come
	behind  atomic.Uint64 // records that the tree has not yet, as it last looked
	last    time.Time     // of the last record

	kick chan struct{} // tells the tree that there are records
}

// appending is a record on its way.
type appending struct {
	rec   audit.Record
	must  bool
	after func()     // called once it is durable
	done  chan error // of capacity 1
}

// Start opens the log, in the background if it cannot be opened now: until then Append
// fails and Ready says why. A Log is ended with Close.
func Start(cfg Config) *Log {
	l := &Log{
		cfg: cfg, queue: make(chan *appending, queueLimit), stop: make(chan struct{}), ended: make(chan struct{}),
		changed: make(chan struct{}), kick: make(chan struct{}, 1),
	}
	quietTessera(cfg.Log)
	l.trouble = errors.New("it is being opened")
	l.open()
	l.wrote.Go(l.write)
	l.grew.Go(l.grow)
	return l
}

// open tries to open the files.
func (l *Log) open() error {
	f, err := openFiles(l.cfg.Dir)
	l.mu.Lock()
	if err == nil {
		l.files = f
		l.wake()
	}
	l.note(err)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.Tail(func(_ audit.Entry, r audit.Record) bool {
		l.last = r.Time
		return false
	})
}

// note keeps why records cannot be written, or that they can. Callers hold mu.
func (l *Log) note(err error) {
	const what = "the audit log cannot be written, and changes are refused"
	l.trouble = err
	if err != nil {
		l.cfg.Board.Trouble(what, err)
	} else {
		l.cfg.Board.Over(what)
	}
}

// wake tells the tree and everybody who follows. Callers hold mu.
func (l *Log) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Ready returns nil when a record could be written now, else an Unavailable error that
// says why not. It does no I/O but ask for the room.
func (l *Log) Ready() error {
	if err := room.Check(l.cfg.Dir, 0, room.Records); err != nil {
		return err
	}
	l.mu.Lock()
	err := l.trouble
	if err == nil {
		err = l.late
	}
	if n := l.behind.Load(); err == nil && n > behindLimit {
		err = fmt.Errorf("its tree is %d records behind", n)
	}
	l.mu.Unlock()
	return refusal(err)
}

// refusal is what a caller is told of err.
func refusal(err error) error {
	if err == nil || fault.Is(err, fault.Full) {
		return err
	}
	if errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS) {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written: its disk fails, or is mounted read-only (the server's log has the error); nothing is changed without a record, and what can be read can be read; mend the disk and mount it anew, then it goes on, after a restart at the latest").WithStatus("audit_unavailable")
	}
	return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written, and nothing is changed without a record; what can be read can be read, and it goes on by itself when the log can be written again").WithStatus("audit_unavailable")
}

// Append writes a record and returns when it is durable. After an error other than the
// context's it is not there.
func (l *Log) Append(ctx context.Context, r audit.Record) error {
	return l.add(ctx, &appending{rec: r.Bounded(), done: make(chan error, 1)})
}

// Must is Append for what was done already: when the record cannot be written now, it
// is kept and written as soon as it can be. The error says that it is not durable yet;
// after is called when it is, now or later, and must not wait for anything.
func (l *Log) Must(ctx context.Context, r audit.Record, after func()) error {
	return l.add(ctx, &appending{rec: r.Bounded(), must: true, after: after, done: make(chan error, 1)})
}

func (l *Log) add(ctx context.Context, a *appending) error {
	select {
	case l.queue <- a:
	case <-l.stop:
		return refusal(errors.New("it is closed"))
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Offer writes a record some time soon, unless too many wait: then it reports false.
func (l *Log) Offer(r audit.Record) bool {
	select {
	case l.queue <- &appending{rec: r.Bounded(), done: make(chan error, 1)}:
		return true
	default:
		return false
	}
}

// write is the one writer: what waits is written and synced together.
func (l *Log) write() {
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		select {
		case a := <-l.queue:
			batch := []*appending{a}
			for more := true; more && len(batch) < batchLimit; {
				select {
				case a := <-l.queue:
					batch = append(batch, a)
				default:
					more = false
				}
			}
			l.commit(batch)
		case <-retry.C:
			l.heal()
		case <-l.stop:
			for { // what was accepted before the end is written
				select {
				case a := <-l.queue:
					l.commit([]*appending{a})
				default:
					l.heal()
					return
				}
			}
		}
	}
}

// heal tries again what did not work.
func (l *Log) heal() {
	l.mu.Lock()
	broken, kept := l.trouble != nil, l.kept
	l.mu.Unlock()
	if !broken {
		return
	}
	if l.files == nil { // this goroutine and open alone set it
		if l.open() != nil {
			return
		}
	}
	if len(kept) == 0 {
		err := l.files.probe()
		l.mu.Lock()
		l.note(err)
		l.mu.Unlock()
		return
	}
	l.mu.Lock()
	l.kept = nil
	l.mu.Unlock()
	for len(kept) > 0 {
		n := min(len(kept), batchLimit)
		l.commit(kept[:n])
		kept = kept[n:]
	}
}

// commit writes a batch and tells those who wait, one segment after the other.
func (l *Log) commit(batch []*appending) {
	for len(batch) > 0 {
		n := len(batch)
		if l.files != nil {
			n = min(n, l.files.room())
		}
		l.commitPart(batch[:n])
		batch = batch[n:]
	}
}

func (l *Log) commitPart(batch []*appending) {
	err := l.put(batch)
	l.mu.Lock()
	l.note(err)
	for _, a := range batch {
		if err != nil && a.must && len(l.kept) < keptLimit {
			l.kept = append(l.kept, a)
		}
	}
	if err == nil {
		l.wake()
	}
	l.mu.Unlock()
	for _, a := range batch {
		if err == nil && a.after != nil {
			a.after()
		}
		select {
		case a.done <- refusal(err):
		default: // it was told of the first attempt
		}
	}
}

// put makes entries of a batch and writes them.
func (l *Log) put(batch []*appending) error {
	if l.files == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.trouble
	}
	salts := make([]byte, audit.SaltSize*len(batch))
	rand.Read(salts)
	records := make([]audit.Record, len(batch))
	for i, a := range batch {
		// Times do not go back in the log, also when the clock does: pages are found by time.
		if now := time.Now().UTC().Truncate(time.Millisecond); now.After(l.last) {
			l.last = now
		}
		records[i] = a.rec
		records[i].Time = l.last
	}
	return l.files.append(records, salts)
}

// Close writes what waits, has the tree follow, and closes the files. Appends fail from
// then on.
func (l *Log) Close() error {
	select {
	case <-l.stop:
		return nil
	default:
		close(l.stop)
	}
	l.wrote.Wait()
	close(l.ended)
	l.grew.Wait()
	if l.files == nil {
		return nil
	}
	return l.files.close()
}

// Dir is where the log lies.
func (l *Log) Dir() string { return l.cfg.Dir }

// Key is the verifier key of the log's checkpoints.
func (l *Log) Key() string { return l.cfg.Key }

// path is a file of the transparency log.
func (l *Log) path(p string) string {
	return filepath.Join(l.cfg.Dir, audit.LogDir, filepath.FromSlash(p))
}

// Checkpoint returns the checkpoint that is published.
func (l *Log) Checkpoint() ([]byte, error) {
	b, err := readFile(l.path("checkpoint"))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the audit log has no checkpoint yet, or it cannot be read")
	}
	return b, nil
}

var errDamaged = errors.New("the audit log is damaged: \"bulkhead audit verify --dir DIR\" says where; restore it from a backup, or move it away to begin a new one")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w (%s)", errDamaged, fmt.Sprintf(format, args...))
}
