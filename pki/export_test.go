package pki

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// OpenUnconstrained makes an authority whose root may sign for everybody.
func OpenUnconstrained(t *testing.T, cluster, domain string) *CA {
	t.Helper()
	r := rootTemplate(cluster, domain)
	r.PermittedDNSDomains, r.PermittedURIDomains, r.PermittedEmailAddresses, r.ExcludedIPRanges = nil, nil, nil, nil
	dir := t.TempDir()
	root, err := newRoot(r)
	if err == nil {
		err = createUnder(root, dir, cluster)
	}
	if err != nil {
		t.Fatal(err)
	}
	g := &generation{root: root.Cert}
	g.identity, _ = readIssuer(dir, identityIssuer)
	g.server, _ = readIssuer(dir, serverIssuer)
	ca := &CA{dir: dir, cluster: cluster, domain: domain, now: time.Now}
	ca.gens.Store(&[]*generation{g})
	return ca
}

// SetTime sets the clock by which the authority changes roots, and the overlap.
func (ca *CA) SetTime(now func() time.Time, overlap time.Duration) { ca.now, ca.overlap = now, overlap }

// Roots are the roots that count, in DER.
func (ca *CA) Roots() (out [][]byte) {
	for _, r := range ca.roots() {
		out = append(out, r.Raw)
	}
	return out
}

// Leaf signs whatever t says: an authority in the wrong hands.
func (ca *CA) Leaf(t *x509.Certificate, byIdentity bool, life time.Duration) (leaf, issuer []byte, key crypto.Signer, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	by := ca.issuing().server
	if byIdentity {
		by = ca.issuing().identity
	}
	leaf, err = sign(t, by.cert, k.Public(), by.key, life)
	return leaf, by.cert.Raw, k, err
}

// Renew gets a new certificate now, as the role's own goroutine does, and waits for it.
func (i *Identity) Renew(ctx context.Context) error {
	before := i.state.Load()
	i.RenewSoon()
	for i.state.Load() == before {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Microsecond):
		}
	}
	return nil
}

// IssueIdentityAt is IssueIdentity as of another time.
func (ca *CA) IssueIdentityAt(csr []byte, id ID, at time.Time) (chain [][]byte, roots []byte, err error) {
	pub, err := requestedKey(csr)
	if err != nil {
		return nil, nil, err
	}
	by := ca.issuing().identity
	t := &x509.Certificate{
		URIs: []*url.URL{id.URI()}, KeyUsage: x509.KeyUsageDigitalSignature, SerialNumber: big.NewInt(at.UnixNano()),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   at.Add(-skew), NotAfter: at.Add(IdentityLife),
	}
	leaf, err := x509.CreateCertificate(rand.Reader, t, by.cert, pub, by.key)
	return [][]byte{leaf, by.cert.Raw}, ca.roots()[0].Raw, err
}
