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
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"bulkhead/fault"
)

// Lifetimes. Intermediates are renewed with the root until rotation is built.
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

// CA is the cluster's certificate authority: the root certificate and both
// intermediates. It lives in the controller alone. Its methods may be called
// concurrently.
type CA struct {
	cluster string
	domain  string
	root    *x509.Certificate

	identity *issuer
	server   *issuer
}

// issuer is an intermediate and its key.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
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
	ca := &CA{cluster: cluster, domain: domain}
	var err error
	if ca.root, err = readCert(filepath.Join(dir, "root.crt")); err != nil {
		return nil, err
	}
	if ca.identity, err = readIssuer(dir, "identity"); err != nil {
		return nil, err
	}
	if ca.server, err = readIssuer(dir, "server"); err != nil {
		return nil, err
	}
	return ca, ca.belongs(dir)
}

// belongs refuses an authority of another cluster, and one put together from two.
func (ca *CA) belongs(dir string) error {
	if !slices.Equal(ca.root.PermittedURIDomains, []string{ca.cluster}) || !slices.Equal(ca.root.PermittedDNSDomains, []string{ca.domain}) {
		return fmt.Errorf("the certificate authority in %s is that of cluster %v, domain %v, and this is cluster %s, domain %s; restore this cluster's own from a backup",
			dir, ca.root.PermittedURIDomains, ca.root.PermittedDNSDomains, ca.cluster, ca.domain)
	}
	for name, i := range map[string]*issuer{"identity": ca.identity, "server": ca.server} {
		if err := i.cert.CheckSignatureFrom(ca.root); err != nil {
			return fmt.Errorf("%s was not signed by the root beside it (%w); restore both from one backup", filepath.Join(dir, name+".crt"), err)
		}
	}
	return nil
}

func createCA(dir, cluster, domain string) error {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	// The root may sign for this cluster's names only, so that importing it into a
	// browser can harm nobody elsewhere.
	rootTmpl := &x509.Certificate{
		Subject:                     pkix.Name{CommonName: "Bulkhead root " + cluster},
		IsCA:                        true,
		BasicConstraintsValid:       true,
		MaxPathLen:                  1,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{domain},
		PermittedURIDomains:         []string{cluster},
		ExcludedIPRanges: []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		},
	}
	rootDER, err := sign(rootTmpl, rootTmpl, rootKey.Public(), rootKey, rootLife)
	if err != nil {
		return err
	}
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return err
	}
	for _, name := range []string{"identity", "server"} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		usage := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		t := &x509.Certificate{
			Subject:               pkix.Name{CommonName: "Bulkhead " + name + " " + cluster},
			IsCA:                  true,
			BasicConstraintsValid: true,
			MaxPathLenZero:        true,
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		if name == "identity" {
			usage = append(usage, x509.ExtKeyUsageClientAuth)
		}
		t.ExtKeyUsage = usage
		der, err := sign(t, root, k.Public(), rootKey, intermediateLife)
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
	if err := writeKey(filepath.Join(dir, "root.key"), rootKey); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "root.crt"), certPEM(rootDER), 0o644); err != nil {
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

// RootPEM returns the root certificate, for clients that want to trust the
// cluster's names.
func (ca *CA) RootPEM() []byte { return certPEM(ca.root.Raw) }

// IssueIdentity signs an identity certificate for the key of a certificate
// request in DER. Only the key is taken from the request. It returns the chain in
// DER, leaf first, and the root.
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
	chain, err = ca.issue(ca.identity, t, csrDER, IdentityLife)
	return chain, ca.root.Raw, err
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
	return ca.issue(ca.server, t, csrDER, ServerLife)
}

func (ca *CA) issue(by *issuer, t *x509.Certificate, csrDER []byte, life time.Duration) ([][]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate request cannot be read")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate request is not signed by its own key")
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fault.New(fault.Invalid, "the certificate request's key is not ECDSA P-256")
	}
	leaf, err := sign(t, by.cert, pub, by.key, life)
	if err != nil {
		return nil, err
	}
	return [][]byte{leaf, by.cert.Raw}, nil
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
	return &issuer{cert: cert, key: key}, nil
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
