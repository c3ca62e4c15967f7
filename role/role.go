// Package role is what the programs of a node have in common: how bulkheadd hands
// a role its configuration and its sockets, and how the role says that it is ready.
//
// bulkheadd starts each role as its own user with two things: a file, readable by
// that user alone, that holds a Config, and open file descriptors, named in the
// environment as systemd does (LISTEN_FDS, LISTEN_FDNAMES). Sockets stay open in
// bulkheadd, so callers wait instead of failing while a role is restarted.
package role

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bulkhead/coredump"
	"bulkhead/key"
	"bulkhead/notice"
	"bulkhead/privnet"
)

// Names of the roles. They are also the role part of SPIFFE identities.
const (
	Controller = "controller"
	Worker     = "worker"
	Warden     = "warden"
	Edge       = "edge"
)

// All are the roles that there are.
var All = []string{Controller, Worker, Warden, Edge}

// Names of the sockets that bulkheadd opens (see docs/sockets.md).
const (
	SocketInternal = "internal" // controller: gRPC, mutual TLS
	SocketCluster  = "cluster"  // controller: as internal, on TCP (--cluster-addr)
	SocketEnroll   = "enroll"   // controller: HTTP, peer credentials; signs role certificates
	SocketAdmin    = "admin"    // controller: HTTP, peer credentials of root; makes the admin token
	SocketAPI      = "api"      // controller: TLS, preceded by a PROXY v2 header; public API and registry
	SocketWorker   = "worker"   // worker: gRPC, mutual TLS
	SocketWarden   = "warden"   // warden: framed JSON, peer credentials of the worker
	SocketEdge     = "edge"     // edge: gRPC, mutual TLS (telemetry)
	SocketHTTP     = "http"     // edge: public, plain HTTP
	SocketHTTPS    = "https"    // edge: public, TLS
)

// FileClusterKey names the open file that is handed to the controller when its key is a
// credential.
const FileClusterKey = "cluster-key"

// Config is what bulkheadd tells a role. Every role gets the same shape; fields that
// a role has no use for are empty.
type Config struct {
	Role    string       `json:"role"`
	Cluster string       `json:"cluster"` // SPIFFE trust domain
	Node    key.Node     `json:"node"`
	Host    privnet.Host `json:"host"`
	Region  string       `json:"region"`
	Domain  string       `json:"domain"`

	DataDir string `json:"data_dir"` // the role's own directory, mode 0700, empty at first
	RunDir  string `json:"run_dir"`  // the node's runtime directory (sockets)
	LibDir  string `json:"lib_dir"`  // directory of Bulkhead's programs

	HTTPAddr  string `json:"http_addr"`  // as the public reaches it, host:port
	HTTPSAddr string `json:"https_addr"` // as the public reaches it, host:port

	// IdleAfter is how long a Machine with autostop runs on without a request, in
	// nanoseconds; 0 means the edge's default.
	IdleAfter time.Duration `json:"idle_after,omitempty"`

	// PrivateIssuers are addresses, besides public ones, at which organizations may have
	// their identity providers.
	PrivateIssuers []netip.Prefix `json:"private_issuers,omitempty"`

	// Nameservers are what Machines resolve with in place of the host's; empty: the host's.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`

	// DeniedRanges are where neither Machines nor the platform on behalf of somebody may
	// connect to, besides what is not public.
	DeniedRanges []netip.Prefix `json:"denied_ranges,omitempty"`

	// RateLimits are the API's, as limit.ParseSet reads them; empty for the defaults.
	RateLimits string `json:"rate_limits,omitempty"`

	// SSOUsers is how many users one organization may make, by its identity provider and by
	// invitations; 0: 5000.
	SSOUsers int `json:"sso_users,omitempty"`

	// Sockets maps a socket's name to its path, for callers.
	Sockets map[string]string `json:"sockets"`
	// UIDs maps a role to the user it runs as.
	UIDs map[string]uint32 `json:"uids"`
	GIDs map[string]uint32 `json:"gids"`

	// GrantKeyFile is the private (controller) or public (warden) half of the key
	// that signs grants: 64 or 32 raw bytes.
	GrantKeyFile string `json:"grant_key_file,omitempty"`
	// ClusterKeyFile is where the controller keeps the key that wraps what is secret in
	// the store; empty: cluster.key in DataDir.
	ClusterKeyFile string `json:"cluster_key_file,omitempty"`
	// ClusterKMS is the socket of the key management service that seals that file, and
	// ClusterCredential the name of the credential that holds the key in place of it: an
	// open file named FileClusterKey. Empty: neither.
	ClusterKMS        string `json:"cluster_kms,omitempty"`
	ClusterCredential string `json:"cluster_credential,omitempty"`
	// SecretDir is a directory in memory, the worker's, for what its Machines need to start
	// again while the controller is away.
	SecretDir string `json:"secret_dir,omitempty"`
	// AuditWitnesses is the policy of the audit log's witnesses, empty for none, and
	// AuditWitnessRequired refuses changes while it is not satisfied.
	AuditWitnesses       string `json:"audit_witnesses,omitempty"`
	AuditWitnessRequired bool   `json:"audit_witness_required,omitempty"`

	// ImageDir is where the worker keeps sealed images, for the warden.
	ImageDir string `json:"image_dir,omitempty"`
	// MachineDir is the warden's directory for what Machines hold on disk.
	MachineDir string `json:"machine_dir,omitempty"`
	// Tag tells installations on one host apart: 1 to 4 letters and digits, part of
	// interface, cgroup and table names.
	Tag string `json:"tag"`
}

// Env is what a role runs with.
type Env struct {
	Config    Config
	Listeners map[string]net.Listener
	Files     map[string]*os.File // inherited descriptors that are not listeners
	Log       *slog.Logger
	// Board is where a role notes what lasts and is tried again.
	Board *notice.Board

	ready *os.File
}

// Ready tells bulkheadd that the role serves. Calls after the first do nothing.
func (e *Env) Ready() error {
	if e.ready == nil {
		return nil
	}
	f := e.ready
	e.ready = nil
	if _, err := f.Write([]byte("ready\n")); err != nil {
		return fmt.Errorf("tell bulkheadd that the role is ready: %w", err)
	}
	return f.Close()
}

// EndsWith is the message of a role's last log line when it ends with an error; its
// attribute err is the reason. bulkheadd reads it there.
const EndsWith = "the role ends with an error"

// Main is the main function of a role's program: it reads the configuration named
// by the one argument, takes the inherited descriptors, and runs the role until
// SIGTERM or SIGINT cancels ctx. It does not return.
func Main(name string, run func(ctx context.Context, env *Env) error) {
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel()})).With("role", name)
	slog.SetDefault(log)
	// They hold keys and secrets, and traffic of apps.
	if err := coredump.Forbid(); err != nil {
		fmt.Fprintf(os.Stderr, "bulkhead-%s: %v\n", name, err)
		os.Exit(1)
	}
	env, err := load(name, log)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bulkhead-%s: %v\n", name, err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, env); err != nil && !errors.Is(err, context.Canceled) {
		log.Error(EndsWith, "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// load reads the configuration file and takes the descriptors.
func load(name string, log *slog.Logger) (*Env, error) {
	if len(os.Args) != 2 || strings.HasPrefix(os.Args[1], "-") {
		return nil, fmt.Errorf("usage: bulkhead-%s CONFIG.json (bulkheadd starts it; run \"bulkheadd up\")", name)
	}
	b, err := os.ReadFile(os.Args[1])
	if err != nil {
		return nil, err
	}
	var c Config
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("%s: %w", os.Args[1], err)
	}
	if c.Role != name {
		return nil, fmt.Errorf("%s is the configuration of role %q, this is %q", os.Args[1], c.Role, name)
	}
	env := &Env{Config: c, Listeners: map[string]net.Listener{}, Files: map[string]*os.File{}, Log: log.With("node", string(c.Node))}
	env.Board = notice.New(env.Log)
	return env, takeFiles(env)
}

// takeFiles sorts the inherited descriptors into listeners, the ready pipe and others.
func takeFiles(env *Env) error {
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	os.Unsetenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_FDNAMES")
	os.Unsetenv("LISTEN_PID")
	if n > 0 && len(names) != n {
		return fmt.Errorf("LISTEN_FDS is %d but LISTEN_FDNAMES has %d names", n, len(names))
	}
	for i := range n {
		fd, name := 3+i, names[i]
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), name)
		if name == "ready" {
			env.ready = f
			continue
		}
		if l, err := net.FileListener(f); err == nil {
			if u, ok := l.(*net.UnixListener); ok {
				u.SetUnlinkOnClose(false)
			}
			env.Listeners[name] = &listener{Listener: l, name: name, board: env.Board}
			f.Close()
			continue
		}
		env.Files[name] = f
	}
	return nil
}

// logLevel is Info, or Debug when BULKHEAD_DEBUG is set.
func logLevel() slog.Level {
	if os.Getenv("BULKHEAD_DEBUG") != "" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// MaxSSOUsers is SSOUsers, or what it is when nobody says.
func (c Config) MaxSSOUsers() int {
	if c.SSOUsers == 0 {
		return 5000
	}
	return c.SSOUsers
}
