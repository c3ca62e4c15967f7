package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
)

// Signer gets a key's certificate: the chain in DER, leaf first, and the roots to
// verify others by, one after the other: two while the root changes. In a role it asks the controller (see Enroller); in the
// controller it is the CA itself.
type Signer func(ctx context.Context, csrDER []byte) (chain [][]byte, roots []byte, err error)

// Identity is a role's own certificate, renewed at half its life with a new key. An
// Identity survives the controller's absence for as long as its certificate is good,
// and heals by itself when the controller is back, also long after the certificate has
// expired. It is held in memory, and with OpenIdentity in one file of the role's own
// directory too, so that it also survives the role's restart meanwhile.
type Identity struct {
	signer  Signer
	log     *slog.Logger
	file    string // "" keeps nothing on disk
	state   atomic.Pointer[identityState]
	unkept  func() error // writes the file with the newest certificate, when that failed
	revoked revoked
	doubted atomic.Int64  // when a peer's authority was last unknown, in Unix ns
	soon    chan struct{} // holds one: the certificate is to be renewed at once
	cancel  context.CancelFunc
	done    chan struct{}
}

// identityState is one certificate; it is replaced whole.
type identityState struct {
	id    ID
	cert  tls.Certificate
	roots *x509.CertPool
}

// NewIdentity gets a first certificate, trying until ctx ends, and renews it until
// Close.
func NewIdentity(ctx context.Context, signer Signer, log *slog.Logger) (*Identity, error) {
	return OpenIdentity(ctx, "", signer, log)
}

// OpenIdentity is NewIdentity that keeps the certificate and its key in a file, mode
// 0600, and begins with what the file holds if that is still good: a role that starts
// while the controller is away is known all the same. The first chance to renew is
// taken, so that an authority that was made anew counts as soon as it answers.
func OpenIdentity(ctx context.Context, file string, signer Signer, log *slog.Logger) (*Identity, error) {
	i := newIdentity(file, signer, log)
	i.recallRevoked()
	if s := i.recall(); s != nil {
		i.state.Store(s)
		i.begin(true)
		return i, nil
	}
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		err := i.renew(ctx)
		if err == nil {
			break
		}
		log.Info("no certificate yet", "err", err)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("get a certificate: %w", errors.Join(err, ctx.Err()))
		case <-time.After(delay):
		}
	}
	i.begin(false)
	return i, nil
}

func newIdentity(file string, signer Signer, log *slog.Logger) *Identity {
	return &Identity{signer: signer, log: log, file: file, soon: make(chan struct{}, 1), done: make(chan struct{})}
}

// begin starts the renewal.
func (i *Identity) begin(recalled bool) {
	run, cancel := context.WithCancel(context.Background())
	i.cancel = cancel
	go i.keepFresh(run, recalled)
}

// ID returns who this is.
func (i *Identity) ID() ID { return i.state.Load().id }

// Close stops the renewal.
func (i *Identity) Close() {
	i.cancel()
	<-i.done
}

// keepFresh renews at half life, and every few seconds from there until it works; one
// that was recalled from disk is renewed at once.
func (i *Identity) keepFresh(ctx context.Context, due bool) {
	defer close(i.done)
	for {
		leaf := i.state.Load().cert.Leaf
		half := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
		if due || !time.Now().Before(half) {
			rctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := i.renew(rctx)
			cancel()
			if due = due && err != nil; err != nil && ctx.Err() == nil {
				i.log.Warn("certificate not renewed, trying again", "expires", leaf.NotAfter, "err", err)
			}
		}
		// The wall clock may jump: never sleep long on its word.
		wait := min(max(time.Until(half), 5*time.Second), time.Minute)
		if i.unkept != nil && i.unkept() == nil {
			i.log.Info("over: a certificate is not kept on disk", "file", i.file)
			i.unkept = nil
		}
		if due || i.unkept != nil {
			wait = 5 * time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case <-i.soon:
			due = true
		}
	}
}

// RenewSoon gets a new certificate at once instead of at half life: the authority may
// have changed.
func (i *Identity) RenewSoon() {
	select {
	case i.soon <- struct{}{}:
	default:
	}
}

// doubtEvery is how often strangers can make this ask for another certificate.
const doubtEvery = 10 * time.Second

// doubt is RenewSoon with a bound.
func (i *Identity) doubt() {
	now, last := time.Now().UnixNano(), i.doubted.Load()
	if d := time.Duration(now - last); (d > doubtEvery || d < 0) && i.doubted.CompareAndSwap(last, now) {
		i.RenewSoon()
	}
}

// renew makes a new key and gets it a certificate.
func (i *Identity) renew(ctx context.Context) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := NewCSR(k)
	if err != nil {
		return err
	}
	chain, rootDER, err := i.signer(ctx, csr)
	if err != nil {
		return err
	}
	if len(chain) == 0 {
		return errors.New("the authority answered with no certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return err
	}
	if !k.PublicKey.Equal(leaf.PublicKey) {
		return errors.New("the authority answered with a certificate for another key")
	}
	s, err := stateOf(k, leaf, chain, rootDER)
	if err != nil {
		return err
	}
	i.state.Store(s)
	i.unkept = nil
	keep := func() error { return i.remember(k, chain, rootDER) }
	if err := keep(); err != nil { // it serves all the same
		i.log.Warn("a certificate is not kept on disk; it is tried again", "file", i.file, "err", err)
		i.unkept = keep
	}
	return nil
}

func stateOf(k *ecdsa.PrivateKey, leaf *x509.Certificate, chain [][]byte, rootDER []byte) (*identityState, error) {
	all, err := x509.ParseCertificates(rootDER)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("the authority answered without a root")
	}
	id, err := IDOf(leaf)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, root := range all {
		roots.AddCert(root)
	}
	return &identityState{id: id, cert: tls.Certificate{Certificate: chain, PrivateKey: k, Leaf: leaf}, roots: roots}, nil
}

// ServerTLS is for a listener that only roles of this cluster may call. Who may
// call what is decided per method, see package rpc.
func (i *Identity) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert,
		NextProtos: []string{"h2"},
		// Sessions would outlive a certificate's revocation.
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &i.state.Load().cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := i.verify(cs, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// ClientTLS is for a call to a given role; node may be empty for any.
func (i *Identity) ClientTLS(role string, node key.Node) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		ServerName: "bulkhead.internal", // not used: identities are URIs
		// The standard verification wants a DNS name; VerifyConnection below replaces it
		// with a stricter one.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &i.state.Load().cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := i.verify(cs, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if i.Revoked(peer) {
				return errRevoked(peer)
			}
			if peer.Role != role || (node != "" && peer.Node != node) {
				return fault.New(fault.Unauthenticated, "called %s/%s, answered by %s", role, node, peer)
			}
			return nil
		},
	}
}

// verify checks the peer's chain against the cluster's root, and that its
// identity is of this cluster.
func (i *Identity) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage) (ID, error) {
	s := i.state.Load()
	if len(cs.PeerCertificates) == 0 {
		return ID{}, fault.New(fault.Unauthenticated, "the peer shows no certificate")
	}
	inter := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		inter.AddCert(c)
	}
	leaf := cs.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
			i.doubt() // or this one has missed a change of the root
		}
		return ID{}, fault.Wrap(fault.Unauthenticated, err, "the peer's certificate is not good")
	}
	id, err := IDOf(leaf)
	if err != nil {
		return ID{}, err
	}
	if id.Cluster != s.id.Cluster {
		return ID{}, fault.New(fault.Unauthenticated, "the peer %s is of another cluster", id)
	}
	return id, nil
}
