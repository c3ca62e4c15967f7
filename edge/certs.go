package edge

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/notice"
	"bulkhead/pki"
)

// issue asks the controller to sign a certificate for app.
type issue func(ctx context.Context, app string, csrDER []byte) (chain [][]byte, err error)

// certStore holds the certificates of apps: one key for all of them, made here and
// kept in DataDir/edge.key, and one chain per app in DataDir/certs/<app>.pem.
// Files are written whole and renamed, so that a crash leaves the old or the new
// one. What is lost is asked for again.
type certStore struct {
	dir    string
	domain string
	key    *ecdsa.PrivateKey
	csr    []byte
	issue  issue
	m      *metrics
	log    *slog.Logger
	board  *notice.Board

	mem sync.Map // app → *tls.Certificate

	mu      sync.Mutex
	flights map[string]*flight
	retry   map[string]retryState
	queue   chan string
	queued  map[string]bool
	wg      sync.WaitGroup
}

// flight is one certificate being fetched, for all who wait for it.
type flight struct {
	done chan struct{}
	cert *tls.Certificate
	err  error
}

// retryState spaces out the background attempts for an app.
type retryState struct {
	after time.Time
	delay time.Duration
}

const (
	issueTimeout    = 5 * time.Second // a handshake waits this long for a missing certificate
	prefetchWorkers = 4
	prefetchQueue   = 4096
	renewEvery      = 30 * time.Second
)

// openCerts opens the store in dataDir and makes its key when there is none.
func openCerts(dataDir, domain string, is issue, m *metrics, log *slog.Logger) (*certStore, error) {
	k, err := pki.OpenKey(filepath.Join(dataDir, "edge.key"))
	if err != nil {
		return nil, fmt.Errorf("open the edge's certificate key: %w", err)
	}
	csr, err := pki.NewCSR(k)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(dataDir, "certs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &certStore{
		dir: dir, domain: domain, key: k, csr: csr, issue: is, m: m, log: log, board: notice.New(log),
		flights: map[string]*flight{}, retry: map[string]retryState{},
		queue: make(chan string, prefetchQueue), queued: map[string]bool{},
	}, nil
}

// run works off the prefetch queue until ctx ends.
func (s *certStore) run(ctx context.Context) {
	for range prefetchWorkers {
		s.wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case app := <-s.queue:
					s.mu.Lock()
					delete(s.queued, app)
					s.mu.Unlock()
					s.refresh(ctx, app)
				}
			}
		})
	}
	s.wg.Wait()
}

// want makes sure, in the background, that app has a certificate in its first half
// of life. It never blocks: what does not fit the queue is found by the next round.
func (s *certStore) want(app string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued[app] || time.Now().Before(s.retry[app].after) {
		return
	}
	select {
	case s.queue <- app:
		s.queued[app] = true
	default:
	}
}

// wants tells whether app's certificate is missing from memory or due for renewal.
func (s *certStore) wants(app string, now time.Time) bool {
	v, ok := s.mem.Load(app)
	return !ok || now.After(halfLife(v.(*tls.Certificate).Leaf))
}

// drop forgets the certificate of an app that is gone.
func (s *certStore) drop(app string) {
	s.mem.Delete(app)
	s.mu.Lock()
	delete(s.retry, app)
	s.mu.Unlock()
	if path, err := s.path(app); err == nil {
		_ = os.Remove(path)
	}
}

// get returns a certificate for app: from memory, from disk, or, within
// issueTimeout, from the controller. One that has expired is better than none when
// the controller cannot be asked.
func (s *certStore) get(ctx context.Context, app string) (*tls.Certificate, error) {
	if v, ok := s.mem.Load(app); ok {
		return v.(*tls.Certificate), nil
	}
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	return s.fly(ctx, app, func(ctx context.Context) (*tls.Certificate, error) {
		cert, err := s.load(app)
		if err == nil && time.Now().Before(cert.Leaf.NotAfter) {
			return cert, nil
		}
		fresh, ierr := s.request(ctx, app)
		if ierr != nil && err == nil {
			s.m.certs.WithLabelValues("expired").Inc()
			return cert, nil
		}
		return fresh, ierr
	})
}

// refresh is get's background half: it also renews.
func (s *certStore) refresh(ctx context.Context, app string) {
	ctx, cancel := context.WithTimeout(ctx, 2*issueTimeout)
	defer cancel()
	_, err := s.fly(ctx, app, func(ctx context.Context) (*tls.Certificate, error) {
		cert, err := s.load(app)
		if err == nil {
			if time.Now().Before(halfLife(cert.Leaf)) {
				return cert, nil
			}
			s.mem.Store(app, cert) // serve it meanwhile
		}
		return s.request(ctx, app)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.retry, app)
		return
	}
	d := min(max(2*s.retry[app].delay, time.Second), 5*time.Minute)
	s.retry[app] = retryState{after: time.Now().Add(d/2 + rand.N(d)), delay: d}
	if !errors.Is(err, context.Canceled) {
		s.log.Warn("no certificate for an app yet, trying again", "app", app, "err", err)
	}
}

// fly runs fn once for all callers who ask for app at the same time. fn runs under
// the first caller's deadline, but is not cancelled when that caller goes away.
func (s *certStore) fly(ctx context.Context, app string, fn func(context.Context) (*tls.Certificate, error)) (*tls.Certificate, error) {
	s.mu.Lock()
	f := s.flights[app]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flights[app] = f
		s.mu.Unlock()
		f.cert, f.err = fn(ctx)
		if f.err == nil {
			s.mem.Store(app, f.cert)
		}
		s.mu.Lock()
		delete(s.flights, app)
		s.mu.Unlock()
		close(f.done)
		return f.cert, f.err
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.cert, f.err
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Timeout, ctx.Err(), "no certificate for %s in time", app)
	}
}

// path is the app's file. Names come from the controller, but a path is built only
// of a checked one.
func (s *certStore) path(app string) (string, error) {
	name, err := key.ParseAppName(app)
	if err != nil {
		return "", err
	}
	return filepath.Join(s.dir, string(name)+".pem"), nil
}

// load reads the app's certificate from disk.
func (s *certStore) load(app string) (*tls.Certificate, error) {
	path, err := s.path(app)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		chain = append(chain, block.Bytes)
	}
	cert, err := s.check(app, chain)
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		err = errors.New("the file is torn")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s.m.certs.WithLabelValues("disk").Inc()
	return cert, nil
}

// certsStand is what the board calls certificates that cannot be kept.
const certsStand = "certificates are served, but not kept on disk: an edge that starts without the controller has not got the newest"

// request gets a new certificate from the controller and writes it to disk. A disk
// that is full does not keep it from being served.
func (s *certStore) request(ctx context.Context, app string) (*tls.Certificate, error) {
	chain, err := s.issue(ctx, app, s.csr)
	if err == nil {
		var cert *tls.Certificate
		if cert, err = s.check(app, chain); err == nil {
			s.m.certs.WithLabelValues("issued").Inc()
			if werr := s.save(app, chain); werr != nil {
				s.board.Trouble(certsStand, fault.System(werr, "the certificate of %s cannot be written to %s", app, s.dir))
			} else {
				s.board.Over(certsStand)
			}
			return cert, nil
		}
	}
	s.m.certs.WithLabelValues("failed").Inc()
	return nil, err
}

// check makes a usable certificate of a chain, or says what is wrong with it.
func (s *certStore) check(app string, chain [][]byte) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("no certificate in the chain")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	if !s.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if err := leaf.VerifyHostname(app + "." + s.domain); err != nil {
		return nil, err
	}
	// A client has the root alone: a chain that lost its end convinces nobody.
	for i, der := range chain[1:] {
		above, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if below, err := x509.ParseCertificate(chain[i]); err != nil || below.CheckSignatureFrom(above) != nil {
			return nil, errors.New("the chain does not hang together")
		}
	}
	if len(chain) < 2 {
		return nil, errors.New("the chain ends before an authority")
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: s.key, Leaf: leaf}, nil
}

// save writes the chain beside its place, syncs it and renames it.
func (s *certStore) save(app string, chain [][]byte) error {
	path, err := s.path(app)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, der := range chain {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(s.dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// sweep removes what a crash left half-written.
func (s *certStore) sweep() {
	old, _ := filepath.Glob(filepath.Join(s.dir, ".new-*"))
	for _, p := range old {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("left-over file not removed", "path", p, "err", err)
		}
	}
}

func halfLife(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}
