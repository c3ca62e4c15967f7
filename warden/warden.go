// Package warden is the privileged side of a worker: a closed list of operations
// with typed, checked arguments over one unix socket. It makes a Machine's network,
// cgroup and sandbox and takes them away again. It has no network of its own and
// parses nothing that a tenant wrote.
//
// Every claim of the worker is checked against a grant that the controller signed,
// so that whoever takes the worker over gets no more than what was assigned to it.
//
// All state is in directories that only root can write (see layout.go); a warden
// that is killed at any point is followed by one that finds or undoes what it left.
// Sandboxes do not notice.
package warden

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/api/local"
	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/role"
	"bulkhead/sandbox"
	"bulkhead/warden/cgroup"
	"bulkhead/warden/client"
	"bulkhead/warden/router"
	"bulkhead/warden/started"
)

// Config is what a warden needs to know.
type Config struct {
	Node key.Node
	Host privnet.Host
	Tag  string // tells installations on one host apart

	RunDir     string // on a file system in memory; see layout.go
	MachineDir string // on the same file system as ImageDir
	ImageDir   string // the worker's sealed images
	LibDir     string // bulkhead-shim and bulkhead-sandbox
	DataDir    string // the warden's own, on disk: what it has started; see package started

	Denied []netip.Prefix // where Machines may not connect to, besides what is not public

	WorkerUID uint32            // the only user that may call, and the owner of images
	GrantKey  ed25519.PublicKey // the controller's
	Log       *slog.Logger
	Now       func() time.Time // the clock that grants are held against; tests replace it
}

// FromRole makes a Config of what bulkheadd says; it reads the grant key.
func FromRole(c role.Config, log *slog.Logger) (Config, error) {
	uid, ok := c.UIDs[role.Worker]
	if !ok || uid == 0 {
		return Config{}, fault.New(fault.Invalid, "uids: the worker's user is missing or root")
	}
	k, err := os.ReadFile(c.GrantKeyFile)
	if err != nil {
		return Config{}, fmt.Errorf("grant key: %w", err)
	}
	if len(k) != ed25519.PublicKeySize {
		return Config{}, fault.New(fault.Invalid, "grant key %s has %d bytes instead of %d", c.GrantKeyFile, len(k), ed25519.PublicKeySize)
	}
	return Config{
		Node: c.Node, Host: c.Host, Tag: c.Tag,
		RunDir: c.RunDir, MachineDir: c.MachineDir, ImageDir: c.ImageDir, LibDir: c.LibDir, DataDir: c.DataDir,
		Denied: c.DeniedRanges, WorkerUID: uid, GrantKey: k, Log: log,
	}, nil
}

// requestTimeout bounds how long a caller may take to say what it wants, and to
// acknowledge a start.
const requestTimeout = 10 * time.Second

// Server is a warden.
type Server struct {
	counters counters

	config  Config
	log     *slog.Logger
	groups  *cgroup.Tree
	router  *router.Router
	started *started.Register

	mu       sync.Mutex // guards what follows; never held during an operation
	machines map[key.MachineID]*machine
	slots    map[privnet.Slot]key.MachineID
	locks    map[key.MachineID]*machineLock
	commands map[key.MachineID]int // execs and the like that run

	calls sync.WaitGroup
}

// New returns a Server that does nothing yet.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Server{
		config: c, log: c.Log, started: started.Open(filepath.Join(c.DataDir, startedFile), c.Now),
		machines: map[key.MachineID]*machine{},
		slots:    map[privnet.Slot]key.MachineID{},
		locks:    map[key.MachineID]*machineLock{},
		commands: map[key.MachineID]int{},
	}
}

// groupName is the installation's directory in each cgroup hierarchy.
func groupName(tag string) string { return "bulkhead-" + tag }

// Open makes the node's router and cgroups, takes up the Machines that run, and
// undoes what an earlier warden left half-made.
func (s *Server) Open(ctx context.Context) (err error) {
	if s.config.Node == "" || s.config.Host == 0 {
		return fault.New(fault.Invalid, "node name and host number must be set")
	}
	if err := s.makeDirs(); err != nil {
		return err
	}
	if s.groups, err = cgroup.Detect(groupName(s.config.Tag)); err != nil {
		return err
	}
	if err := s.started.Load(); err != nil {
		s.log.Error("no machine starts", "err", err) // each start says so; all else goes on
	}
	return s.recover(ctx)
}

// Serve answers on l until ctx is done. Operations under way are then finished.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var follower sync.WaitGroup
	defer follower.Wait()
	following, end := context.WithCancel(ctx)
	defer end()
	follower.Go(func() {
		if err := router.FollowForwarding(following, s.config.Tag, s.log); err != nil && following.Err() == nil {
			s.log.Error("changes of the host's routes are not seen", "err", err)
		}
	})
	for {
		c, err := l.Accept()
		if err != nil {
			s.calls.Wait()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		s.calls.Go(func() {
			defer c.Close()
			if err := s.serveConn(ctx, c); err != nil {
				s.log.Warn("a call to the warden failed", "err", err)
			}
		})
	}
}

// Close lets go of everything; Machines run on.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.machines {
		m.close()
	}
	s.machines = map[key.MachineID]*machine{}
	if s.router != nil {
		return s.router.Close()
	}
	return nil
}

// serveConn carries out one operation.
func (s *Server) serveConn(ctx context.Context, nc net.Conn) error {
	c, ok := nc.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("connection is a %T", nc)
	}
	uid, err := peerUID(c)
	if err != nil {
		return err
	}
	users := local.Users{role.Worker: s.config.WorkerUID}
	if err := users.Admit(role.SocketWarden, uid); err != nil {
		s.log.Warn("refused a caller that is not the worker", "uid", uid)
		return client.Send(c, client.Response{Error: client.ToError(err)})
	}
	c.SetReadDeadline(time.Now().Add(requestTimeout))
	var req client.Request
	files, err := client.Receive(c, &req)
	defer closeFiles(files)
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return errors.Join(err, client.Send(c, client.Response{Error: client.ToError(fault.Wrap(fault.Invalid, err, "the request cannot be read"))}))
	}
	c.SetReadDeadline(time.Time{})
	if err := mayCall(users, uid, req.Op); err != nil {
		s.log.Warn("refused a call", "uid", uid, "err", err)
		s.counters.add(req.Op, err)
		return client.Send(c, client.Response{Error: client.ToError(err)})
	}
	with, err := broughtBy(req.Op, files)
	if err != nil {
		return errors.Join(err, client.Send(c, client.Response{Error: client.ToError(err)}))
	}
	if req.Op == client.OpStart {
		return s.serveStart(ctx, c, req.Spec, with.secrets)
	}
	// A caller that hangs up while it waits does not want the answer any more.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		c.Read(make([]byte, 1))
		cancel()
	}()
	resp, files, err := s.do(ctx, req, with)
	defer closeFiles(files)
	s.counters.add(req.Op, err)
	if err != nil {
		s.logFailure(req, err)
		resp.Error = client.ToError(err)
	}
	c.SetWriteDeadline(time.Now().Add(requestTimeout))
	return client.Send(c, resp, files...)
}

// mayCall refuses operations that there are not, and those that the caller may not ask for.
func mayCall(users local.Users, uid uint32, op client.Op) error {
	if !client.Known(op) {
		return fault.New(fault.Invalid, "the warden knows no operation %q", op)
	}
	return users.Check(role.SocketWarden, string(op), uid)
}

// brought are the files of a request. They are passed on to the sandbox and never read here.
type brought struct {
	streams []*os.File // of a command: stdin, stdout, stderr
	secrets *os.File   // of a start or a command; nil when there are none
}

// broughtBy sorts the files that a request may bring.
func broughtBy(op client.Op, files []*os.File) (b brought, err error) {
	if op == client.OpExec && len(files) >= client.ExecFiles {
		b.streams, files = files[:client.ExecFiles], files[client.ExecFiles:]
	}
	switch {
	case op == client.OpExec && b.streams == nil:
		return b, fault.New(fault.Invalid, "an exec brings %d files; it needs %d streams", len(files), client.ExecFiles)
	case len(files) == 0:
		return b, nil
	case len(files) > 1 || op != client.OpStart && op != client.OpExec:
		return b, fault.New(fault.Invalid, "%q brings %d files too many; a start and an exec may bring one, of secrets", op, len(files))
	}
	b.secrets = files[0]
	return b, client.CheckSecretFile(b.secrets)
}

// logFailure logs what the caller is not told: causes of internal errors.
func (s *Server) logFailure(req client.Request, err error) {
	if fault.KindOf(err) == fault.Internal {
		s.log.Error("operation failed", "op", req.Op, "machine", req.Machine, "err", err)
	}
}

// serveStart carries out a start and undoes it unless the caller acknowledges it.
func (s *Server) serveStart(ctx context.Context, c *net.UnixConn, spec *sandbox.Spec, secrets *os.File) error {
	acked, gone := make(chan struct{}), make(chan struct{})
	startCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		var req client.Request
		files, err := client.Receive(c, &req)
		closeFiles(files)
		if err == nil && req.Op == client.OpAck {
			close(acked)
			return
		}
		close(gone)
		cancel()
	}()
	var id key.MachineID
	if spec != nil {
		id = spec.Machine
	}
	files, err := s.start(startCtx, spec, secrets)
	defer closeFiles(files)
	s.counters.add(client.OpStart, err)
	c.SetWriteDeadline(time.Now().Add(requestTimeout))
	if err != nil {
		s.logFailure(client.Request{Op: client.OpStart, Machine: id}, err)
		return client.Send(c, client.Response{Error: client.ToError(err)})
	}
	werr := failpoint.Write("warden/start/answer", func() error { return client.Send(c, client.Response{}, files...) })
	if werr == nil {
		select {
		case <-acked:
			return nil
		case <-gone:
		case <-time.After(requestTimeout):
		}
	}
	s.log.Warn("a start was not acknowledged and is undone", "machine", id)
	return errors.Join(werr, s.remove(context.WithoutCancel(ctx), id))
}

// do carries out every operation but OpStart.
func (s *Server) do(ctx context.Context, req client.Request, with brought) (resp client.Response, files []*os.File, err error) {
	if req.Op != client.OpPing && req.Op != client.OpList && req.Op != client.OpMetrics {
		if _, err := key.ParseMachineID(string(req.Machine)); err != nil {
			return resp, nil, err
		}
	}
	switch req.Op {
	case client.OpPing:
	case client.OpAttach:
		files, err = s.attach(req.Machine)
	case client.OpSignal:
		err = s.signal(ctx, req.Machine, req.Signal)
	case client.OpExec:
		resp.Exec, err = s.exec(ctx, req.Machine, req.Exec, with)
	case client.OpProcesses:
		resp.Processes, err = s.processes(ctx, req.Machine)
	case client.OpListen:
		files, err = s.listen(ctx, req.Machine)
	case client.OpRemove:
		// Half a removal helps nobody: it goes on when the caller has left.
		err = s.remove(context.WithoutCancel(ctx), req.Machine)
	case client.OpList:
		resp.List, err = s.list()
	case client.OpMetrics:
		resp.Metrics = s.metrics()
	default:
		err = fault.New(fault.Invalid, "%q is no operation by itself", req.Op)
	}
	return resp, files, err
}

// peerUID returns the user at the other end.
func peerUID(c *net.UnixConn) (uint32, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return cred.Uid, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// machineLock serializes operations on one Machine; users counts who holds or wants it.
type machineLock struct {
	held  chan struct{}
	users int
}

// lock waits for the Machine to be free and returns the function that frees it.
func (s *Server) lock(ctx context.Context, id key.MachineID) (unlock func(), err error) {
	s.mu.Lock()
	l := s.locks[id]
	if l == nil {
		l = &machineLock{held: make(chan struct{}, 1)}
		s.locks[id] = l
	}
	l.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(s.locks, id)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fault.Wrap(fault.Timeout, ctx.Err(), "machine %s was busy", id)
	}
}
