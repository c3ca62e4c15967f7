package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/fault"
)

// Lifetimes.
const (
	rootLife         = 20 * 365 * 24 * time.Hour
	intermediateLife = 10 * 365 * 24 * time.Hour
	// IdentityLife is how long a role's certificate is good; it is renewed at half.
	IdentityLife = 24 * time.Hour
	// ServerLife is how long a server certificate is good; it is renewed at half.
	ServerLife = 90 * 24 * time.Hour
	// skew is how far a verifier's clock may lag behind the signer's, or this machine's
	// own fall back at a reboot.
	skew = 2 * time.Hour
	// authoritySkew is the same for what lasts: a certificate for an hour can be had
	// anew, the authority cannot.
	authoritySkew = 30 * 24 * time.Hour
)

// CA is the cluster's certificate authority: the root certificates that count and the
// intermediates with their keys. It lives in the controller alone, and has no use for
// the root's key. Its methods may be called concurrently.
type CA struct {
	dir     string
	cluster string
	domain  string
	now     func() time.Time // for tests
	overlap time.Duration    // see rotate.go

	change sync.Mutex // held by what changes gens or the files
	gens   atomic.Pointer[[]*generation]
}

// issuer is an intermediate and its key. cross is a certificate for the same key by the
// root of before; nil without.
type issuer struct {
	cert, cross *x509.Certificate
	key         crypto.Signer
}

// OpenCA opens the authority in dir, or makes it when dir holds none. dir is the
// controller's own and mode 0700.
//
// Crash safety: every file is written whole under a temporary name, synced and
// renamed, keys before the certificates that need them, and "complete" last. As
// long as "complete" is missing nobody has seen a certificate of this authority,
// and it is made afresh.
func OpenCA(dir, cluster, domain string) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "complete")); errors.Is(err, os.ErrNotExist) {
		if err := createCA(dir, cluster, domain); err != nil {
			return nil, fmt.Errorf("make the cluster's certificate authority: %w", err)
		}
	} else if err != nil {
		return nil, err
	}
	ca := &CA{dir: dir, cluster: cluster, domain: domain, now: time.Now, overlap: defaultOverlap}
	return ca, ca.load()
}

func createCA(dir, cluster, domain string) error {
	root, err := NewRoot(cluster, domain)
	if err != nil {
		return err
	}
	return createUnder(root, dir, cluster)
}

func createUnder(root *Root, dir, cluster string) error {
	for _, name := range []string{identityIssuer, serverIssuer} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		der, err := root.issuer(name, cluster, k.Public())
		if err != nil {
			return err
		}
		if err := writeKey(filepath.Join(dir, name+".key"), k); err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, name+".crt"), certPEM(der), 0o644); err != nil {
			return err
		}
	}
	if err := writeKey(filepath.Join(dir, rootKeyFile), root.key); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "root.crt"), certPEM(root.Cert.Raw), 0o644); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "complete"), []byte("1\n"), 0o600)
}

// sign makes a certificate from t with a fresh serial, good from a little before
// now for life.
func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer, life time.Duration) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	now := time.Now()
	t.NotBefore = now.Add(-skew)
	if t.IsCA {
		t.NotBefore = now.Add(-authoritySkew)
	}
	t.NotAfter = now.Add(life)
	return x509.CreateCertificate(rand.Reader, t, parent, pub, key)
}

// RootPEM returns the root certificates that count now, for clients that want to trust
// the cluster's names: one, and during a change of the root two, the newest last.
func (ca *CA) RootPEM() []byte {
	var out []byte
	for _, r := range ca.roots() {
		out = append(out, certPEM(r.Raw)...)
	}
	return out
}

// IssueIdentity signs an identity certificate for the key of a certificate
// request in DER. Only the key is taken from the request. It returns the chain in
// DER, leaf first, and the roots to verify others by, one after the other.
func (ca *CA) IssueIdentity(csrDER []byte, id ID) (chain [][]byte, root []byte, err error) {
	if id.Cluster != ca.cluster {
		return nil, nil, fault.New(fault.Denied, "identity %s is of another cluster than %s", id, ca.cluster)
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.Role + "/" + string(id.Node)},
		URIs:        []*url.URL{id.URI()},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	chain, err = ca.issue(ca.issuing().identity, t, csrDER, IdentityLife)
	for _, r := range ca.roots() {
		root = append(root, r.Raw...)
	}
	return chain, root, err
}

// IssueServer signs a server certificate for names below the cluster's domain,
// for the key of a certificate request in DER. Only the key is taken from the
// request.
func (ca *CA) IssueServer(csrDER []byte, names ...string) (chain [][]byte, err error) {
	t := &x509.Certificate{
		Subject:     pkix.Name{},
		DNSNames:    names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	return ca.issue(ca.issuing().server, t, csrDER, ServerLife)
}

func (ca *CA) issue(by *issuer, t *x509.Certificate, csrDER []byte, life time.Duration) ([][]byte, error) {
	pub, err := requestedKey(csrDER)
	if err != nil {
		return nil, err
	}
	leaf, err := sign(t, by.cert, pub, by.key, life)
	if err != nil {
		return nil, err
	}
	chain := [][]byte{leaf, by.cert.Raw}
	if by.cross != nil {
		chain = append(chain, by.cross.Raw)
	}
	return chain, nil
}

func readIssuer(dir, name string) (*issuer, error) {
	cert, err := readCert(filepath.Join(dir, name+".crt"))
	if err != nil {
		return nil, err
	}
	key, err := ReadKey(filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s: the key does not belong to the certificate beside it", filepath.Join(dir, name+".key"))
	}
	i := &issuer{cert: cert, key: key}
	if i.cross, err = readCert(filepath.Join(dir, name+"-cross.crt")); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return i, err
}

func readCert(path string) (*x509.Certificate, error) {
	b, err := readWhole(path, "certificate")
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s: not one PEM certificate: it was cut short or overwritten; restore it from a backup", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup", path, err)
	}
	return cert, nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
