// Package worker runs Machines on a node: it takes assignments from the
// controller, carries them out step by step, and reports what it observes.
//
// Everything that the worker knows about a Machine is in its journal (a bbolt
// file). Each Machine has one goroutine, its actor, that asks a pure function
// (plan) what to do next, does it, and journals the outcome in one fsynced
// transaction before the next effect and before it is reported. So a worker that
// was killed at any instruction carries on by the same code that runs without a
// kill, and there is no other recovery. The controller is needed to learn of new
// wishes, and for nothing else: Machines run, are watched and restarted without it.
//
// The worker is unprivileged: what needs root it asks of the warden, through
// sandbox.Runtime.
package worker

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/image"
	"bulkhead/key"
	"bulkhead/logs"
	"bulkhead/machine"
	"bulkhead/notice"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/warden/client"
)

// Images is what a Worker needs of an image store. Package image's Store behind
// NewImages is the real one.
type Images interface {
	// Resolve finds what a reference to a registry elsewhere names now.
	Resolve(ctx context.Context, ref string) (machine.ImageRef, error)
	// Check reports, as far as it can be told from the manifest of an image of the
	// cluster's own registry, whether the image can run on this node.
	Check(ctx context.Context, id key.MachineID, ref machine.ImageRef, manifest []byte) error
	// Ensure fetches, verifies and seals the image unless it is there.
	Ensure(ctx context.Context, id key.MachineID, ref machine.ImageRef) (*image.Image, error)
	// Lookup finds a sealed image.
	Lookup(digest key.Digest) (*image.Image, bool)
	// Verify reads a sealed image whole; one that is damaged is removed, and the error
	// is not NotFound.
	Verify(ctx context.Context, digest key.Digest) error
	// List gives all sealed images.
	List() []*image.Image
	// GC removes the images that keep does not want.
	GC(keep func(key.Digest) bool) ([]key.Digest, error)
}

// Options are what a Worker runs with. Zero fields get their defaults.
type Options struct {
	Dir     string       // the worker's own directory: journal and logs
	Node    key.Node     // this node
	Host    privnet.Host // its number in the address plan
	Runtime sandbox.Runtime
	Images  Images
	Log     *slog.Logger

	// MemoryMB is the node's memory for Machines, in MiB; by default the node's own
	// minus ReserveMB (1024, or an eighth of a small node's), times Overcommit (1).
	MemoryMB   int64
	ReserveMB  int64
	Overcommit float64

	// Nameservers are what Machines resolve with unless their config says otherwise;
	// by default those of the node's resolv.conf that Machines can reach.
	Nameservers []netip.Addr
	// ResolvConfs are the files that may name the node's; privnet.ResolvConfs by default.
	ResolvConfs []string

	// API takes the connections that Machines make to their own API; nil leaves them
	// without an answer.
	API internalpb.ControllerClient

	// Warden asks the warden for what it counts; nil leaves its metrics out.
	Warden func(context.Context) (*client.Metrics, error)

	// UsageEvery is how often the warden is asked what Machines use; default 5 s.
	UsageEvery time.Duration

	// RouteGrace is how long a Machine with services goes on answering after it was
	// told to stop, so that every edge has heard of it; default 200 ms.
	RouteGrace time.Duration

	// Secrets is asked for the secrets of Machines that start; nil: they get none.
	// Cluster is the cluster's name, to which they are sealed. SecretDir is a directory in
	// memory that keeps them, encrypted, for starts without the controller; empty: they
	// are kept in this process.
	Secrets   SecretSource
	Cluster   string
	SecretDir string

	Logs logs.Options
	// ImageAge is how long an image is kept after its last use; default 24 h.
	ImageAge time.Duration
	// ImageBudget is how many bytes images may take before those out of use are
	// removed, the longest unused first, whatever their age; default 20 GiB.
	ImageBudget int64
	// ScrubAfter is how long after its start the worker begins to read the images of
	// its Machines whole, to find damage before a start does; ScrubEvery the time
	// between two rounds. Defaults: a minute, a day.
	ScrubAfter, ScrubEvery time.Duration

	// Now is the clock; tests replace it.
	Now func() time.Time
}

// Worker runs the Machines of a node. Make it with New, Open it, Serve, Close.
type Worker struct {
	opt      Options
	log      *slog.Logger
	board    *notice.Board
	runtime  sandbox.Runtime
	images   Images
	journal  *journal
	vault    *vault
	online   atomic.Bool // the controller answers
	outcast  atomic.Bool // the node was removed from the cluster
	logs     *logs.Store
	metrics  *metrics
	capacity *capacity
	starts   gate // sandboxes being started at once
	fetches  gate // images being fetched at once from the cluster's own registry
	foreign  gate // and from registries elsewhere, which may be slow or hostile
	apiCalls gate // connections of Machines to their API

	life   context.Context // ends with Close
	end    context.CancelFunc
	done   sync.WaitGroup
	whole  chan struct{} // closed when the journal knows the node's Machines; see rebuild
	survey chan struct{} // closed when the sandboxes of unknown Machines are gone
	linked chan struct{} // closed when the controller has answered for the first time
	link   sync.Once
	kick   chan struct{} // holds one: images are collected at once
	// suspects are images that something did not run well from.
	suspects chan key.Digest

	lostAt atomic.Int64 // when output was lost last, Unix nanoseconds; 0 when it is not being lost

	sealing sync.RWMutex // held shared from a sealing until its image is marked as used

	mu       sync.Mutex
	actors   map[key.MachineID]*actor
	seen     map[key.MachineID]*seen
	dirty    map[key.MachineID]bool                   // observations that no Sync has sent
	late     map[key.MachineID]*internalpb.Assignment // could not be journaled, and are tried again
	changed  chan struct{}                            // holds one: dirty has something
	lastUsed map[key.Digest]time.Time
	awake    map[group]int // Machines that run and are to, by whom min_machines_running counts
	closed   bool

	idling sync.Mutex // held while one Machine more is made to stop for want of traffic

	// point and skip are the journal's, for tests.
	point func(string) error
	skip  func(string) bool
}

// seen is the newest truth about a Machine as others in this process read it.
type seen struct {
	rec *record // not changed any more
	asg *internalpb.Assignment
	obs *internalpb.Observation
	// may is what the assignment's config lets traffic do.
	may  machine.Traffic
	next chan struct{} // closed when this is the newest truth no more
}

// New returns a Worker that is not open yet.
func New(opt Options) *Worker {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.ImageAge == 0 {
		opt.ImageAge = 24 * time.Hour
	}
	if opt.ImageBudget == 0 {
		opt.ImageBudget = 20 << 30
	}
	if opt.ResolvConfs == nil {
		opt.ResolvConfs = privnet.ResolvConfs
	}
	if opt.ScrubAfter == 0 {
		opt.ScrubAfter = time.Minute
	}
	if opt.ScrubEvery == 0 {
		opt.ScrubEvery = 24 * time.Hour
	}
	if opt.RouteGrace == 0 {
		opt.RouteGrace = 200 * time.Millisecond
	}
	if opt.UsageEvery == 0 {
		opt.UsageEvery = 5 * time.Second
	}
	opt.Logs.Log = opt.Log
	if failpoint.Enabled {
		opt.Runtime = marked{opt.Runtime}
	}
	w := &Worker{
		opt: opt, log: opt.Log, board: notice.New(opt.Log), kick: make(chan struct{}, 1), suspects: make(chan key.Digest, 16), runtime: opt.Runtime, images: opt.Images,
		capacity: newCapacity(memoryLimit(opt)), starts: newGate(8), fetches: newGate(3), foreign: newGate(3), apiCalls: newGate(apiCalls),
		whole: make(chan struct{}), survey: make(chan struct{}), linked: make(chan struct{}), changed: make(chan struct{}, 1),
		actors: map[key.MachineID]*actor{}, seen: map[key.MachineID]*seen{},
		dirty: map[key.MachineID]bool{}, late: map[key.MachineID]*internalpb.Assignment{}, lastUsed: map[key.Digest]time.Time{}, awake: map[group]int{},
	}
	w.metrics = newMetrics(w)
	return w
}

// Open reads the journal and takes up every Machine in it where the last worker
// left it.
func (w *Worker) Open() (err error) {
	if err := os.MkdirAll(w.opt.Dir, 0o700); err != nil {
		return fault.System(err, "the worker's directory %s cannot be made", w.opt.Dir)
	}
	j, entries, err := openOrReplace(w.opt.Dir, w.now(), w.log)
	if err != nil {
		return err
	}
	w.journal = j
	if w.point != nil {
		j.point = w.point
	}
	j.skip, j.board = w.skip, w.board
	if w.logs, err = logs.Open(filepath.Join(w.opt.Dir, "logs"), w.opt.Logs); err != nil {
		return errors.Join(err, j.close())
	}
	if w.vault, err = openVault(w.opt.SecretDir, w.log); err != nil {
		return errors.Join(err, j.close())
	}
	if len(w.nameservers()) == 0 {
		w.log.Warn("machines cannot resolve names: the host has no public IPv4 name server; set nameservers in bulkhead.toml")
	}
	w.life, w.end = context.WithCancel(context.Background())
	for _, img := range w.images.List() {
		w.lastUsed[img.Digest] = w.now()
	}
	if j.mark == nil {
		w.takeUpAll(entries)
	} else {
		w.log.Info("the worker's journal is new: what belongs in it, the controller says")
	}
	w.done.Go(w.clearStrays)
	w.done.Go(w.collect)
	w.done.Go(w.scrub)
	w.done.Go(w.sweepLogs)
	w.done.Go(w.watchUsage)
	return nil
}

// takeUpAll starts the actors of all Machines of a journal that is whole.
func (w *Worker) takeUpAll(entries []entry) {
	known := map[key.MachineID]bool{}
	for _, e := range entries {
		known[e.rec.Machine] = true
	}
	w.vault.keepOnly(func(id key.MachineID) bool { return known[id] })
	if err := w.logs.Sweep(func(id key.MachineID) bool { return known[id] }); err != nil {
		w.log.Warn("logs of unknown machines stay", "err", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return // the journal has them
	}
	for _, e := range entries {
		e.rec.NextStart = nextStart(e.rec, w.now())
		// The deadlines of passing states count the time that a worker was there for.
		e.rec.Since = w.now()
		if e.rec.Sandbox != "" {
			w.capacity.hold(e.rec.Machine, guestMB(e.asg))
		}
		w.begin(e)
	}
	close(w.whole)
	w.log.Info("the worker carries on", "machines", len(entries))
}

// nextStart is a record's NextStart by the clock of now, which may have been set back
// since the record was written: then the wait begins anew, since nobody knows how much
// of it is over, and otherwise it would be longer by what the clock is back.
func nextStart(r *record, now time.Time) time.Time {
	wait := failedRetryMax // no wait is longer
	if now.Before(r.Since) {
		wait = min(wait, max(0, r.NextStart.Sub(r.Since)))
	}
	if latest := now.Add(wait); r.NextStart.After(latest) {
		return latest
	}
	return r.NextStart
}

// Connected is closed when the controller has said for the first time what is assigned.
func (w *Worker) Connected() <-chan struct{} { return w.linked }

// begin starts the actor of an entry. w.mu is held.
func (w *Worker) begin(e entry) *actor {
	a := newActor(w, e)
	w.actors[a.id] = a
	w.setSeen(e.rec, e.asg)
	w.done.Go(func() { a.run(w.life) })
	return a
}

// Close ends the worker's work. Machines run on.
func (w *Worker) Close() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.end()
	w.done.Wait()
	return errors.Join(w.logs.Close(), w.journal.close())
}

func (w *Worker) now() time.Time { return w.opt.Now() }

// publish makes a journaled change known. Only what is on disk gets here.
func (w *Worker) publish(r *record, a *internalpb.Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setSeen(r, a)
	w.dirty[r.Machine] = true
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *Worker) setSeen(r *record, a *internalpb.Assignment) {
	s := &seen{rec: r, asg: a, obs: r.observation(a, w.opt.Host), next: make(chan struct{})}
	old := w.seen[r.Machine]
	if old != nil && old.asg == a {
		s.may = old.may
	} else {
		s.may = trafficOf(a)
	}
	w.seen[r.Machine] = s
	w.count(s, 1)
	w.unsee(old)
}

// unsee ends what was the newest truth about a Machine. w.mu is held.
func (w *Worker) unsee(s *seen) {
	if s != nil {
		w.count(s, -1)
		close(s.next)
	}
}

// get returns what is known of a Machine.
func (w *Worker) get(id key.MachineID) (*seen, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.seen[id]; s != nil {
		return s, nil
	}
	if err := w.notWhole(); err != nil {
		return nil, err
	}
	return nil, fault.New(fault.NotFound, "machine %s is not on this node", id)
}

// Assign takes over an assignment from the controller. A newer one replaces an
// older; a stale one is ignored. When it returns nil for a Machine that was not
// known, the Machine is in the journal.
func (w *Worker) Assign(asg *internalpb.Assignment) error { return w.take(asg, false) }

// take is Assign. A late one is tried again: it counts only as long as nothing else
// came for its Machine, which may have come, run and been destroyed meanwhile.
func (w *Worker) take(asg *internalpb.Assignment, late bool) error {
	id, err := checkAssignment(asg)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fault.New(fault.Unavailable, "the worker is stopping")
	}
	if late && w.late[id] != asg {
		return nil
	}
	if err := w.notWhole(); err != nil {
		return err
	}
	if a := w.actors[id]; a != nil {
		delete(w.late, id)
		a.offer(asg)
		return nil
	}
	w.log.Debug("trace", "step", "assigned", "machine", id)
	now := w.now()
	r := &record{Machine: id, Seq: 1, State: machine.Created, Since: now, Instance: instanceOf(asg), UpdatedAt: now}
	r.event(now, "launch", byUser, nil)
	if err := w.journal.create(r, asg); err != nil {
		w.late[id] = asg
		return err
	}
	w.log.Debug("trace", "step", "journaled create", "machine", id)
	delete(w.late, id)
	w.begin(entry{rec: r, asg: asg})
	w.dirty[id] = true
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return nil
}

// checkAssignment refuses what no controller says.
func checkAssignment(asg *internalpb.Assignment) (key.MachineID, error) {
	id, err := key.ParseMachineID(asg.GetMachineId())
	if err != nil {
		return "", err
	}
	if _, err := key.ParseInstanceID(asg.GetInstanceId()); err != nil {
		return "", err
	}
	switch machine.Desired(asg.GetDesired()) {
	case machine.WantStarted, machine.WantStopped, machine.WantDestroyed:
	default:
		return "", fault.New(fault.Invalid, "machine %s is wanted %q, which is not a state to want", id, asg.GetDesired())
	}
	return id, nil
}

// Forget drops a destroyed Machine; for any other it does nothing.
func (w *Worker) Forget(id key.MachineID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.late, id)
	if a := w.actors[id]; a != nil {
		a.release()
	}
}

// dropped is told by an actor that its Machine is forgotten.
func (w *Worker) dropped(id key.MachineID, a *actor) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.actors[id] == a {
		delete(w.actors, id)
		w.unsee(w.seen[id])
		delete(w.seen, id)
		delete(w.dirty, id)
		w.board.Forget(a.stands())
	}
}

// nameservers are those that Machines get by default.
func (w *Worker) nameservers() []netip.Addr {
	if len(w.opt.Nameservers) > 0 {
		return w.opt.Nameservers
	}
	for _, p := range w.opt.ResolvConfs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if found := privnet.Nameservers(string(b)); len(found) > 0 {
			return found
		}
	}
	return nil
}
