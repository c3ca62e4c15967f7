// Package controller is the role that knows what is wanted: it keeps the desired
// state in the store, serves the public API and the registry, signs identities and
// certificates, tells workers what to run and edges where it runs.
//
// Facts and owners. What is wanted of apps and Machines is here, in the store, and
// every acknowledged change is in it first. What is, the workers know; the
// controller keeps their last word in memory (view.go) and merges both for those who
// ask (merge.go). Routes are derived from both (routes.go).
//
// One create, by file: tls.go → http.go → auth.go → create.go → schedule → images.go
// (the worker's Reserve) → state.go → sync.go (the assignment goes down, an
// observation comes up) → wait.go and routes.go.
//
// Rooms: record (what lies in the store, and under which keys), directory (who there is, in
// memory), access (what a caller may do), schedule (where a Machine goes).
//
// Without the controller Machines run on, and edges route by what they last heard.
package controller

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/local"
	"bulkhead/api/rpc"
	"bulkhead/audit/auditlog"
	"bulkhead/controller/directory"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/limit"
	"bulkhead/passkey"
	"bulkhead/pki"
	"bulkhead/registry"
	"bulkhead/role"
	"bulkhead/secret"
	"bulkhead/sso"
	"bulkhead/store"
	"bulkhead/store/etcd"
)

// Config is what a Controller is made from. Zero times mean the defaults.
type Config struct {
	Role role.Config
	Log  *slog.Logger
	// ClusterKey is the open credential that Role.ClusterCredential names.
	ClusterKey io.ReaderAt

	// AckLimit is how long a call waits for the worker to take up a change before it
	// answers anyway; 5 s.
	AckLimit time.Duration
	// GrantTick is how often a session looks whether its node's grants are to be made
	// anew; default a minute.
	GrantTick time.Duration
	// RouteGrace is how long after a start a worker that has not reported keeps its
	// apps' routes from being changed; 30 s.
	RouteGrace time.Duration
	// BodyLimit is how long a caller may take to send a request's body; 30 s.
	BodyLimit time.Duration
	// Conns bound the connections to the public listener.
	Conns ConnLimits
	// TombstoneLife is how long a destroyed Machine is shown; a day.
	TombstoneLife time.Duration
}

// Controller is the role. Make it with New, then Open, then Serve; Close undoes Open.
type Controller struct {
	cfg Config
	log *slog.Logger

	// Set by Open, not changed after.
	store    store.Store
	outbox   *outbox // the store, too
	audit    *auditlog.Log
	refusals *refusals
	left     []pendingRecord // records of calls that the process before did not see to their end
	ca       *pki.CA
	identity *pki.Identity
	cert     *apiCert
	registry *registry.Registry
	grantKey ed25519.PrivateKey
	ring     *secret.Ring // wraps what is secret in the store
	keysMu   sync.RWMutex // held while the ring's keys change
	rotating sync.Mutex   // held while the cluster key is rotated
	tmp      string       // directory of the store's sockets, when DataDir is too deep

	directory *directory.Directory
	issuer    *issuer     // of Machines' identity tokens
	machines  *machineAPI // the API as Machines reach it

	open     openRequests
	view     *view
	routes   *routes
	ledger   *ledger
	metrics  *metrics
	rates    *rates
	gate     *gate
	sessions sessions
	revoked  revocations

	clusterPort atomic.Int64 // of --cluster-addr; 0 without
	peers       peers
	closures    closures
	reserved    reservations

	// Of people who sign in: what was begun and is not finished, and how often.
	ssoClient  *http.Client
	providers  providers
	attempts   *pending[ssoAttempt]
	logins     *pending[*cliLogin]
	discharges *pending[*discharging]
	codes      *pending[string] // ids of logins, by the code of a device
	csrfKey    [32]byte

	party        *passkey.Party
	ceremonies   *pending[ceremony]
	passkeyLinks *pending[*passkeyLink]

	receivers   sync.WaitGroup // sessions and their readers; a new one starts only while a call is served
	finishing   sync.Mutex     // held by finishApp
	unfinished  chan struct{}  // holds one: an app's deletion could not be finished
	logStreams  atomic.Int64   // Machines whose logs are being read
	execStreams atomic.Int64   // commands whose bytes are being carried

	closing context.Context // ends when Serve ends: long answers stop
	close   context.CancelFunc
}

// New returns a controller that does nothing yet.
func New(cfg Config) *Controller {
	if cfg.AckLimit == 0 {
		cfg.AckLimit = 5 * time.Second
	}
	if cfg.GrantTick == 0 {
		cfg.GrantTick = time.Minute
	}
	if cfg.BodyLimit == 0 {
		cfg.BodyLimit = bodyLimit
	}
	if cfg.RouteGrace == 0 {
		cfg.RouteGrace = 30 * time.Second
	}
	if cfg.TombstoneLife == 0 {
		cfg.TombstoneLife = tombstoneLife
	}
	if cfg.Role.Region == "" {
		cfg.Role.Region = "local"
	}
	cfg.Log = slog.New(cuttingHandler{cfg.Log.Handler()})
	c := &Controller{cfg: cfg, log: cfg.Log, view: newView(), ledger: newLedger(), unfinished: make(chan struct{}, 1)}
	c.open.all, c.open.poke = map[*openRequest]struct{}{}, make(chan struct{}, 1)
	c.directory = directory.New(now, func(purpose string, wrapped []byte) ([]byte, error) { return c.ring.Unwrap(purpose, wrapped) })
	c.routes = newRoutes(c, cfg.RouteGrace)
	c.issuer, c.machines = newIssuer(c), newMachineAPI()
	c.metrics = newMetrics(c)
	c.revoked.changed = make(chan struct{})
	c.ssoClient = sso.NewClient(cfg.Role.PrivateIssuers, cfg.Role.DeniedRanges)
	c.providers.all = map[string]*discovered{}
	c.discharges = newPending[*discharging](cliLoginLife)
	c.attempts, c.logins, c.codes = newPending[ssoAttempt](attemptLife), newPending[*cliLogin](cliLoginLife), newPending[string](cliLoginLife)
	c.ceremonies, c.passkeyLinks = newPending[ceremony](passkey.Life), newPending[*passkeyLink](passkeyLinkLife)
	rand.Read(c.csrfKey[:])
	c.sessions.cur = map[key.Node]*sessionSlot{}
	c.peers.conns = map[string]*grpc.ClientConn{}
	c.closures.all = map[string]map[key.Digest]bool{}
	c.reserved.all = map[reservation]key.Digest{}
	c.closing, c.close = context.WithCancel(context.Background())
	return c
}

// Open opens the store, the authority, the registry and the keys, and makes the
// organization when there is none. After an error nothing is open.
func (c *Controller) Open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	rc := c.cfg.Role
	set, err := limit.ParseSet(rc.RateLimits)
	if err != nil {
		return err
	}
	c.rates = newRates(set, c.metrics.registry)
	c.gate = newGate(c.cfg.Conns, c.metrics.registry)
	if c.party, err = passkey.New("api."+rc.Domain, strings.TrimSuffix(c.publicURL("/"), "/")); err != nil {
		return err
	}
	if c.grantKey, err = readGrantKey(rc.GrantKeyFile); err != nil {
		return err
	}
	sockets := filepath.Join(rc.DataDir, "store")
	if len(sockets) > 90 { // a unix socket's path has 107 bytes
		if c.tmp, err = os.MkdirTemp("", "bulkhead-store-"); err != nil {
			return err
		}
		sockets = c.tmp
	}
	if c.store, err = openStore(ctx, etcd.Config{Dir: filepath.Join(rc.DataDir, "store"), SocketDir: sockets, Log: c.log}); err != nil {
		return err
	}
	if err := c.openRing(ctx); err != nil {
		return err
	}
	c.outbox = &outbox{Store: c.store}
	c.store = c.outbox
	if err := c.openAudit(ctx); err != nil {
		return err
	}
	if err := c.ensureRootKey(ctx); err != nil {
		return err
	}
	if err := c.ensureOrg(ctx); err != nil {
		return err
	}
	if c.ca, err = pki.OpenCA(filepath.Join(rc.DataDir, "ca"), rc.Cluster, rc.Domain); err != nil {
		return err
	}
	if c.cert, err = openAPICert(c.ca, rc.DataDir, rc.Domain); err != nil {
		return err
	}
	self := pki.ID{Cluster: rc.Cluster, Role: role.Controller, Node: rc.Node}
	signer := func(_ context.Context, csr []byte) ([][]byte, []byte, error) { return c.ca.IssueIdentity(csr, self) }
	if c.identity, err = pki.NewIdentity(ctx, signer, c.log); err != nil {
		return err
	}
	c.registry, err = registry.New(registry.Config{
		Dir: filepath.Join(rc.DataDir, "registry"), Authorize: c.authorizeRegistry, InUse: c.imagesInUse, Log: c.log,
	})
	return err
}

// openStore returns a nil interface with its error.
func openStore(ctx context.Context, cfg etcd.Config) (store.Store, error) {
	s, err := etcd.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func readGrantKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.System(err, "the key that signs grants, %s, cannot be read", path)
	}
	if len(b) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%s holds %d bytes; the key that signs grants has %d", path, len(b), ed25519.PrivateKeySize)
	}
	return ed25519.PrivateKey(b), nil
}

func (c *Controller) ensureOrg(ctx context.Context) error {
	return retry(ctx, func() error {
		o, rev, err := record.Get[record.Org](ctx, c.store, record.OrgKey(record.OrgPersonal))
		if err != nil || o != nil {
			return err
		}
		_, err = c.store.Txn(ctx, []store.Cond{record.At(record.OrgKey(record.OrgPersonal), rev)}, []store.Op{
			record.Put(record.OrgKey(record.OrgPersonal), record.Org{Slug: record.OrgPersonal, Name: record.OrgPersonal, Number: 1, CreatedAt: now()}),
		})
		return err
	})
}

// shutdownLimit is how long answers in progress may take when Serve ends.
const shutdownLimit = 5 * time.Second

// Serve answers on the listeners, by the names of package role, until ctx ends or a
// part fails, and returns why. ready is called when everything answers. Listeners
// that are missing are not served; all given ones are closed when it returns.
func (c *Controller) Serve(ctx context.Context, ls map[string]net.Listener, ready func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	run := func(name string, f func() error) {
		wg.Go(func() {
			if err := f(); ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, errors.Join(err, errors.New("ended"))))
			}
		})
	}
	if st := c.ca.Status().RootKey.State; st == pki.RootKeyClear {
		c.log.Info("the root key of the certificate authority lies on this machine; \"bulkheadd ca seal\" or \"bulkheadd ca discard\" takes it away")
	}
	loaded := make(chan struct{})
	run("directory", func() error { return c.directory.Run(ctx, c.store) })
	run("open requests", func() error { return c.endOpen(ctx) })
	run("issuer", func() error { return c.issuer.run(ctx) })
	machines := c.machineServer()
	run("machines' API", func() error { return machines.Serve(c.machines) })
	run("ledger", func() error { return c.ledger.run(ctx, c.store, loaded) })
	run("routes", func() error { return c.routes.run(ctx) })
	run("revocations", func() error { return c.followRevoked(ctx) })
	run("sessions", func() error { return c.sweepSessions(ctx) })
	run("outbox", func() error { return c.outbox.run(ctx, c.audit, c.left) })
	run("refusals", func() error { return c.refusals.run(ctx) })
	run("collector", func() error { return c.collect(ctx) })

	wg.Go(func() { c.resumeRotation(ctx) })

	g := rpc.NewServer(c.identity, c.log, c.refusedInternal, c.admit)
	internalpb.RegisterControllerServer(g, internalServer{c: c})
	internalpb.RegisterMembershipServer(g, membershipServer{c: c})
	internalpb.RegisterTelemetryServer(g, telemetryServer{c: c})
	if l := ls[role.SocketCluster]; l != nil {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			c.clusterPort.Store(int64(a.Port))
		}
	}
	for _, name := range []string{role.SocketInternal, role.SocketCluster} {
		if l := ls[name]; l != nil {
			run(name, func() error { return g.Serve(l) })
		}
	}
	if l := ls[role.SocketEnroll]; l != nil {
		e := &pki.EnrollServer{CA: c.ca, Cluster: c.cfg.Role.Cluster, Node: c.cfg.Role.Node, Roles: c.enrollRoles(), Log: c.log}
		e.Refused = func(uid uint32) { c.refusedLocal(role.SocketEnroll, "POST /", uid) }
		run(role.SocketEnroll, func() error { return e.Serve(ctx, l) })
	}
	admin := &http.Server{
		Handler: c.adminHandler(), ConnContext: pki.WithPeer, MaxHeaderBytes: 8 << 10, ErrorLog: quietHTTPLog(c.log),
		ReadHeaderTimeout: headerLimit, ReadTimeout: headerLimit, WriteTimeout: 30 * time.Second, IdleTimeout: idleLimit,
	}
	if l := ls[role.SocketAdmin]; l != nil {
		run(role.SocketAdmin, func() error { return admin.Serve(l) })
	}
	api := c.apiServer()
	if l := ls[role.SocketAPI]; l != nil {
		run(role.SocketAPI, func() error { return api.ServeTLS(c.gate.listener(proxyListener(l)), "", "") })
	}
	select {
	case <-loaded:
		select {
		case <-c.directory.Loaded():
		case <-ctx.Done():
		}
		if err := ready(); err != nil {
			cancel(err)
		}
	case <-ctx.Done():
	}
	<-ctx.Done()
	c.close()
	stop, done := context.WithTimeout(context.Background(), shutdownLimit)
	defer done()
	api.Shutdown(stop)
	machines.Shutdown(stop)
	admin.Shutdown(stop)
	api.Close()
	machines.Close()
	admin.Close()
	g.Stop()
	wg.Wait()
	c.receivers.Wait()
	return context.Cause(ctx)
}

// enrollRoles says which role's identity a user id gets.
func (c *Controller) enrollRoles() map[uint32]string {
	users, out := local.Users(c.cfg.Role.UIDs), map[uint32]string{}
	for _, uid := range users {
		if users.Check(role.SocketEnroll, "POST /", uid) == nil {
			out[uid] = users.Caller(uid)
		}
	}
	return out
}

// Close releases what Open opened. Serve must have returned.
func (c *Controller) Close() error {
	c.close()
	c.ssoClient.CloseIdleConnections()
	c.peers.close()
	if c.identity != nil {
		c.identity.Close()
		c.identity = nil
	}
	var errs []error
	if c.registry != nil {
		errs = append(errs, c.registry.Close())
		c.registry = nil
	}
	if c.audit != nil {
		errs = append(errs, c.audit.Close())
		c.audit = nil
	}
	if c.store != nil {
		errs = append(errs, c.store.Close())
		c.store = nil
	}
	if c.tmp != "" {
		errs = append(errs, os.RemoveAll(c.tmp))
		c.tmp = ""
	}
	return errors.Join(errs...)
}

// quietHTTPLog keeps what the HTTP servers say about broken clients at debug level.
func quietHTTPLog(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }
