// Package supervisor is bulkheadd: it prepares a machine, opens the sockets, runs
// the roles as processes of their own users, and keeps them running.
//
// It is the only part of Bulkhead that is root all the time beside the warden, so
// it is small and listens to nobody: it takes its configuration, signals, and the
// roles' word that they are ready.
//
// Up is the life of one `bulkheadd up`. Its steps, in order: lock the data
// directory, bind the public ports, install (users, keys, directories), make the
// runtime directory and its sockets, start warden, controller, worker and edge
// (each when the one before is ready), wait until the API answers through the
// edge, say so. Up to the first of these steps that changes anything, every wrong
// argument has been refused. A kill at any step leaves a state from which the next
// `bulkheadd up` goes on.
//
// Machines are not processes of bulkheadd: stopping it, or any role, leaves them
// running. Down is what ends them.
package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/handover"
	"bulkhead/notice"
	"bulkhead/privnet"
	"bulkhead/role"
	"bulkhead/room"
	"bulkhead/warden/router"
)

// Supervisor runs one installation. Make it with New, set the fields, call Up.
type Supervisor struct {
	// Config must have gone through Complete.
	Config Config
	// ExplicitDomain says that somebody asked for Config.Domain: then an installation
	// with another domain is refused instead of used.
	ExplicitDomain bool
	// Stdout gets what is for the person who started bulkheadd: the login line.
	Stdout io.Writer
	// Stderr gets the log, that of the roles included.
	Stderr io.Writer
	// Restart asks Up to replace its program by the one that is installed by then.
	Restart <-chan os.Signal

	log     *slog.Logger
	board   *notice.Board
	out     *logWriter
	timing  timing
	probes  []probe // of the host
	fault   hook
	spawner *spawner
	notify  notify
	ready   func(status string) // tells a service manager not to wait any longer
	left    *handover.Inherited // sockets of an earlier bulkheadd

	in      *installation
	sockets *sockets
	runners []*runner // in the order of their start
	state   State
}

// State is what other bulkheadd commands need of a running one. It is kept in the
// data directory as up.json; it is advice, and may be that of an earlier start.
type State struct {
	PID int `json:"pid"`
	// Start is another text at each start, also when the process stays the same.
	Start     string `json:"start,omitempty"`
	RunDir    string `json:"run_dir"`
	Tag       string `json:"tag"`
	Domain    string `json:"domain"`
	APIURL    string `json:"api_url"`
	HTTPAddr  string `json:"http_addr"`
	HTTPSAddr string `json:"https_addr"`
	// ClusterAddr is empty when there is no cluster port.
	ClusterAddr string `json:"cluster_addr,omitempty"`
	// Refused says why the last of so many requests to replace the program was refused.
	Refused  string `json:"refused,omitempty"`
	Refusals int    `json:"refusals,omitempty"`
}

// Ready is the content of the ready file.
type Ready struct {
	APIURL    string `json:"api_url"`
	Domain    string `json:"domain"`
	HTTPSAddr string `json:"https_addr"`
	HTTPAddr  string `json:"http_addr"`
	CAFile    string `json:"ca_file"`
	Pin       string `json:"pin"`
	Token     string `json:"token,omitempty"` // only when this start made it
}

// New returns a Supervisor for a completed configuration.
func New(c Config) *Supervisor {
	t := defaultTiming
	if failpoint.Enabled {
		t.max = t.min // roles die by the hundred
	}
	return &Supervisor{Config: c, Stdout: os.Stdout, Stderr: os.Stderr, timing: t, probes: hostProbes}
}

// Up runs the platform until ctx is done, then stops it in order and returns nil.
// When the platform cannot be started it stops what it started and returns a
// sentence that says why.
func (s *Supervisor) Up(ctx context.Context) error {
	s.out = &logWriter{w: s.Stderr, text: s.Config.LogFormat == "text"}
	s.log = slog.New(slog.NewJSONHandler(s.out, nil)).With("role", "bulkheadd")
	s.board = notice.New(s.log)
	s.notify = newNotify()
	s.left = handover.Take()
	defer s.left.Close()
	s.spawner = newSpawner()
	defer close(s.spawner.calls)
	if err := s.open(ctx); err != nil {
		return err
	}
	defer s.close()
	var aside sync.WaitGroup
	defer aside.Wait()
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	aside.Go(func() { room.Watch(watch, s.in.dir, s.board) }) // also while roles start
	pet := sync.OnceFunc(func() {
		aside.Go(func() { s.notify.watchdog(watch, func() { s.spawner.do(func() {}) }) })
	})
	if s.left.Exec {
		pet() // the service manager knows this process as ready
	}
	s.ready = func(status string) {
		s.notify.send("READY=1" + status)
		pet()
	}
	if err := s.start(ctx); err != nil {
		s.stop()
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	s.ready("")
	if s.awaitEnd(ctx) {
		s.log.Info("the program is replaced: roles stop, sockets stay open, Machines keep running")
		s.stop()
		cancel()
		aside.Wait()
		return fmt.Errorf("bulkheadd cannot replace its program: %w", s.replace())
	}
	aside.Wait()
	s.notify.send("STOPPING=1")
	s.log.Info("stopping; Machines keep running until \"bulkheadd down\" or a restart of this machine")
	s.stop()
	return nil
}

// open does everything that needs no role: it checks, locks, binds and installs.
func (s *Supervisor) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	c := &s.Config
	if os.Geteuid() != 0 {
		return errors.New("bulkheadd up must run as root: it creates users, namespaces and sockets; the roles it starts give up what they do not need")
	}
	if err := preflight(ctx, s.probes); err != nil {
		return err
	}
	if err := checkPrograms(c.LibDir); err != nil {
		return err
	}
	if err := checkDataDir(c.DataDir); err != nil {
		return err
	}
	if err := checkRunDir(c.RunDir); err != nil {
		return err
	}
	if c.ReadyFile != "" {
		if fi, err := os.Stat(filepath.Dir(c.ReadyFile)); err != nil || !fi.IsDir() {
			return fmt.Errorf("ready file %s cannot be written: %s is not a directory", c.ReadyFile, filepath.Dir(c.ReadyFile))
		}
	}
	lock, err := takeLock(c.DataDir, false)
	if err != nil {
		return err
	}
	s.in = &installation{dir: c.DataDir, lock: lock}
	if err := checkIdentity(*c, s.ExplicitDomain); err != nil {
		return err
	}
	patience := time.Duration(0)
	if lock != nil { // the ports may be held by dying roles of a bulkheadd that was killed
		patience = 3 * time.Second
	}
	if s.sockets, err = openPublic(*c, s.left, patience); err != nil {
		return err
	}
	s.storeSockets(s.left.Close())
	unix.Umask(0o077)
	if err := s.prepare(ctx, lock); err != nil {
		return err
	}
	return nil
}

// prepare changes the machine: data directory, users, runtime directory, sockets.
func (s *Supervisor) prepare(ctx context.Context, lock *os.File) error {
	c := &s.Config
	if err := ensureDir(s.fault, c.DataDir, 0o711, root); err != nil {
		return err
	}
	if lock == nil {
		if err := s.fault.at("lock"); err != nil {
			return err
		}
		var err error
		if lock, err = takeLock(c.DataDir, true); err != nil {
			return err
		}
	}
	s.in.lock = lock
	in, err := install(ctx, *c, lock, s.fault)
	if err != nil {
		return err
	}
	s.in = in
	if closed := checkReachable(c.LibDir); closed != "" {
		if c.LibDir, err = copyPrograms(s.fault, c.LibDir, in.path(programDir)); err != nil {
			return err
		}
		s.log.Info("the programs are copied, because their directory is closed to the roles' users", "closed", closed, "to", c.LibDir)
	}
	if err := ensureDir(s.fault, c.RunDir, 0o711, root); err != nil {
		return err
	}
	if err := writeFile(s.fault, filepath.Join(c.RunDir, ownerFile), []byte(c.DataDir+"\n"), 0o600, root); err != nil {
		return err
	}
	for _, d := range []string{"roles", "machines"} {
		if err := ensureDir(s.fault, filepath.Join(c.RunDir, d), 0o711, root); err != nil {
			return err
		}
	}
	if err := ensureMemory(s.fault, filepath.Join(c.RunDir, "machines"), "mode=0711,size=512m,nr_inodes=200k"); err != nil {
		return err
	}
	if err := s.ensureSecretDir(); err != nil {
		return err
	}
	if err := s.fault.at("sockets"); err != nil {
		return err
	}
	if err := s.sockets.openUnix(c.RunDir, in.users); err != nil {
		return err
	}
	if c.ReadyFile != "" { // an old one must not be mistaken for this start's
		if err := os.Remove(c.ReadyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("ready file: %w", err)
		}
	}
	s.state = State{
		PID: os.Getpid(), Start: rand.Text(), RunDir: c.RunDir, Tag: in.id.Tag, Domain: in.id.Domain,
		HTTPAddr: s.sockets.addrs[role.SocketHTTP], HTTPSAddr: s.sockets.addrs[role.SocketHTTPS],
		ClusterAddr: s.sockets.addrs[role.SocketCluster],
	}
	s.state.APIURL = apiURL(in.id.Domain, s.state.HTTPSAddr)
	return s.keepState()
}

// keepState writes the state file. It is advice: a disk that is full must not keep
// the platform, which may be what makes room again, from starting.
func (s *Supervisor) keepState() error {
	b, err := json.MarshalIndent(s.state, "", "  ")
	if err != nil {
		return err
	}
	path := s.in.path(stateFile)
	err = fault.System(writeFile(s.fault, path, append(b, '\n'), 0o600, root), "%s cannot be written", path)
	if _, serr := os.Stat(path); fault.Is(err, fault.Full) && serr == nil {
		s.log.Warn("the platform starts, and the other commands of bulkheadd may find that of an earlier start", "why", err.Error())
		return nil
	}
	return err
}

// close gives back sockets and lock.
func (s *Supervisor) close() {
	if s.sockets != nil {
		s.sockets.Close()
	}
	if s.in != nil && s.in.lock != nil {
		s.in.lock.Close()
	}
}

// start starts the roles, each when the one before is ready or waits for room on the
// disk, and waits until the platform answers.
func (s *Supervisor) start(ctx context.Context) error {
	for _, name := range []string{role.Warden, role.Controller, role.Worker, role.Edge} {
		r, err := s.newRunner(name)
		if err != nil {
			return err
		}
		s.runners = append(s.runners, r)
		go r.loop()
		select {
		case <-r.first:
		case <-r.stuck: // the others may run
			s.waitForRoom(fmt.Errorf("the %s does not start", name))
		case <-r.ended:
			return s.explain(r, r.failure)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.announce(ctx)
}

// explain adds the last lines of a role's log to an error that gives no reason.
func (s *Supervisor) explain(r *runner, err error) error {
	if err == nil {
		err = fmt.Errorf("the %s ended", r.name)
	}
	if r.voice == nil || r.voice.reason() != "" {
		return err
	}
	if t := r.voice.tail.all(); len(t) > 0 {
		return fmt.Errorf("%w; the last lines of its log:\n%s", err, strings.Join(t, "\n"))
	}
	return err
}

// stop ends the roles, last started first.
func (s *Supervisor) stop() {
	for i := len(s.runners) - 1; i >= 0; i-- {
		s.runners[i].stop()
		s.log.Info("a role is stopped", "what", s.runners[i].name)
	}
}

// newRunner writes a role's configuration and makes the runner.
func (s *Supervisor) newRunner(name string) (*runner, error) {
	c, in := s.Config, s.in
	rc := role.Config{
		Role: name, Cluster: in.id.Cluster, Node: in.id.Node, Host: in.id.Host, Region: c.Region, Domain: in.id.Domain,
		DataDir: in.path(name), RunDir: c.RunDir, LibDir: c.LibDir,
		HTTPAddr: s.state.HTTPAddr, HTTPSAddr: s.state.HTTPSAddr,
		Sockets: s.sockets.paths, UIDs: in.users.uid, GIDs: in.users.gid, Tag: in.id.Tag,
	}
	denied, _ := privnet.ParseDenied(c.DeniedRanges) // checked when the configuration was read
	var names []string
	var files []*os.File
	switch name {
	case role.Controller:
		rc.RateLimits = c.RateLimits
		rc.SSOUsers, _ = strconv.Atoi(c.SSOUsers) // checked; 0 for the default
		rc.GrantKeyFile = in.path(grantKey)
		f, err := s.clusterKey(&rc)
		if err != nil {
			return nil, err
		}
		if f != nil {
			names, files = append(names, role.FileClusterKey), append(files, f)
		}
		rc.DeniedRanges = denied
		rc.PrivateIssuers, _ = c.privateIssuers() // checked when the configuration was read
		if c.AuditWitnesses != "" {
			b, err := os.ReadFile(c.AuditWitnesses)
			if err != nil {
				return nil, fmt.Errorf("audit_witnesses: %w", err)
			}
			rc.AuditWitnesses, rc.AuditWitnessRequired = string(b), c.AuditWitnessRequired == "yes"
		}
	case role.Warden:
		rc.DeniedRanges = denied
		rc.GrantKeyFile, rc.ImageDir, rc.MachineDir = in.path(grantPub), in.path(imageDir), in.path(machineDir)
	case role.Worker:
		rc.DeniedRanges = denied
		rc.ImageDir, rc.SecretDir = in.path(imageDir), filepath.Join(c.RunDir, secretDir)
		rc.Nameservers, _ = privnet.ParseNameservers(c.Nameservers) // checked when the configuration was read
	case role.Edge:
		rc.IdleAfter, _ = time.ParseDuration(c.IdleAfter) // checked when the configuration was read
	}
	r := &runner{
		name: name, config: rc, cred: in.users.of(name), groups: []uint32{in.users.group}, runDir: c.RunDir,
		env: environment(name), names: names, files: files, spawn: s.spawner, out: s.out, log: s.log, timing: s.timing, board: s.board,
	}
	r.init()
	switch name {
	case role.Warden:
		r.groups, r.caps = nil, wardenCaps
	case role.Edge:
		r.netns = router.Path(c.RunDir)
	}
	for _, n := range s.sockets.of(name) {
		r.names, r.files = append(r.names, n), append(r.files, s.sockets.files[n])
	}
	b, err := json.MarshalIndent(rc, "", "  ")
	if err != nil {
		return nil, err
	}
	return r, writeFile(nil, r.configFile(), append(b, '\n'), 0o640, owner{0, r.cred.gid})
}

// passed are bulkheadd's own variables that every role gets.
var passed = []string{"BULKHEAD_DEBUG"}

// environment is all a role finds in its environment. The worker fetches images,
// so it alone learns of the machine's proxies and certificate stores.
func environment(name string) []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/nonexistent"}
	pass := slices.Clone(passed)
	if failpoint.Enabled && name != role.Edge { // which may open nothing outside its own directory
		pass = append(pass, failpoint.Env)
	}
	if name == role.Controller || name == role.Worker {
		// What they free is overwritten when it is collected (secret.Forget).
		env = append(env, "GODEBUG=clobberfree=1")
	}
	if name == role.Worker {
		pass = append(pass, "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
	}
	for _, k := range pass {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// announce waits until the platform answers as a whole, hands out the first token,
// writes the ready file and prints the login line.
func (s *Supervisor) announce(ctx context.Context) error {
	a := newAdmin(s.sockets.paths[role.SocketAdmin])
	l, err := s.awaitPlatform(ctx, a)
	if err != nil {
		return err
	}
	ca := s.in.path(caFile)
	if have, err := os.ReadFile(ca); err != nil || string(have) != l.CAPEM {
		if err := writeFile(s.fault, ca, []byte(l.CAPEM), 0o644, root); err != nil {
			return err
		}
	}
	// The first token is marked as given after it was shown: a kill in between makes
	// another one at the next start, which is better than none that anybody knows.
	token := ""
	if _, err := os.Stat(s.in.path(tokenMark)); errors.Is(err, os.ErrNotExist) {
		if token, err = a.token(ctx); err != nil {
			return err
		}
	}
	if f := s.Config.ReadyFile; f != "" {
		b, err := json.MarshalIndent(Ready{
			APIURL: s.state.APIURL, Domain: s.state.Domain, HTTPSAddr: s.state.HTTPSAddr, HTTPAddr: s.state.HTTPAddr,
			CAFile: ca, Pin: l.Pin, Token: token,
		}, "", "  ")
		if err != nil {
			return err
		}
		if err := writeFile(s.fault, f, append(b, '\n'), 0o600, root); err != nil {
			return fmt.Errorf("ready file: %w", err)
		}
	}
	if token == "" {
		fmt.Fprintf(s.Stdout, "Bulkhead is ready at %s\nTo log in, make a token: bulkheadd token --data-dir %s\n", s.state.APIURL, s.in.dir)
		return nil
	}
	fmt.Fprintf(s.Stdout, "Bulkhead is ready at %s\nLog in, here or on your own machine, with:\n\n%s\n\n", s.state.APIURL, loginLine(s.state.APIURL, l.Pin, token))
	if err := s.fault.at("token shown"); err != nil {
		return err
	}
	return writeFile(s.fault, s.in.path(tokenMark), nil, 0o600, root)
}
