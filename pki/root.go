package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"

	"bulkhead/fault"
)

// Root is the cluster's root together with its key. Nobody needs one but who makes or
// changes intermediates: the installation, and bulkheadd when the operator rotates.
type Root struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewRoot makes a root that may sign for this cluster's names only.
func NewRoot(cluster, domain string) (*Root, error) {
	return newRoot(rootTemplate(cluster, domain))
}

func newRoot(t *x509.Certificate) (*Root, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := sign(t, t, k.Public(), k, rootLife)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Root{cert, k}, nil
}

// rootTemplate holds the constraints that make a root harmless elsewhere: names below
// the cluster's domain, identities of its trust domain, no address, no e-mail (the one
// domain that is permitted belongs to nobody: RFC 6761), and no use but TLS. They are
// critical: who does not understand them refuses the root.
func rootTemplate(cluster, domain string) *x509.Certificate {
	var tell [4]byte // roots of one cluster are told apart by name too
	rand.Read(tell[:])
	return &x509.Certificate{
		Subject:                     pkix.Name{CommonName: "Bulkhead root " + cluster + " " + hex.EncodeToString(tell[:])},
		IsCA:                        true,
		BasicConstraintsValid:       true,
		MaxPathLen:                  1,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		PermittedDNSDomainsCritical: true, // of all of them
		PermittedDNSDomains:         []string{domain},
		PermittedURIDomains:         []string{cluster},
		PermittedEmailAddresses:     []string{cluster + ".invalid"},
		ExcludedIPRanges: []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		},
	}
}

// ParseRoot puts a root together from its certificate in DER and its key in PEM, and
// refuses a key of another root.
func ParseRoot(der, keyPEM []byte) (*Root, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("the root key is not a PEM private key")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the root key: %w", err)
	}
	k, ok := any.(*ecdsa.PrivateKey)
	if !ok || !k.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the key is not that of the root %q", cert.Subject.CommonName)
	}
	return &Root{cert, k}, nil
}

// KeyPEM returns the root's key, to be sealed.
func (r *Root) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(r.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// IssuerRequests are certificate requests in DER for the keys of both intermediates,
// which the controller made and keeps.
type IssuerRequests struct {
	Identity []byte `json:"identity"`
	Server   []byte `json:"server"`
}

// Issuers are certificates in DER for both intermediates, and their root. The Cross
// certificates are for the same keys, by the root of before: who does not know the new
// root yet verifies by them.
type Issuers struct {
	Root          []byte `json:"root"`
	Identity      []byte `json:"identity"`
	Server        []byte `json:"server"`
	CrossIdentity []byte `json:"cross_identity,omitempty"`
	CrossServer   []byte `json:"cross_server,omitempty"`
	// RootKey is what became of the key of a new root: RootKeySealed or RootKeyDiscarded.
	// It never was on the controller's disk.
	RootKey string `json:"root_key,omitempty"`
}

// Sign answers requests. old is the root of before, if its key is there; nil without.
func (r *Root) Sign(in IssuerRequests, cluster string, old *Root) (Issuers, error) {
	out := Issuers{Root: r.Cert.Raw}
	for _, x := range []struct {
		name        string
		csr         []byte
		cert, cross *[]byte
	}{{identityIssuer, in.Identity, &out.Identity, &out.CrossIdentity}, {serverIssuer, in.Server, &out.Server, &out.CrossServer}} {
		pub, err := requestedKey(x.csr)
		if err != nil {
			return Issuers{}, err
		}
		if *x.cert, err = r.issuer(x.name, cluster, pub); err != nil {
			return Issuers{}, err
		}
		if old == nil {
			continue
		}
		if *x.cross, err = old.issuer(x.name, cluster, pub); err != nil {
			return Issuers{}, err
		}
	}
	return out, nil
}

// Names of the intermediates.
const (
	identityIssuer = "identity"
	serverIssuer   = "server"
)

// issuer signs an intermediate.
func (r *Root) issuer(name, cluster string, pub crypto.PublicKey) ([]byte, error) {
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Bulkhead " + name + " " + cluster},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           issuerUsage(name),
	}
	return sign(t, r.Cert, pub, r.key, intermediateLife)
}

func issuerUsage(name string) []x509.ExtKeyUsage {
	if name == identityIssuer {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

// checkIssuer refuses an intermediate that is not what Root.issuer makes.
func checkIssuer(name string, cert, root *x509.Certificate, pub *ecdsa.PublicKey) error {
	switch {
	case !pub.Equal(cert.PublicKey):
		return fault.New(fault.Invalid, "the %s certificate is for another key than was requested", name)
	case !cert.IsCA || !cert.MaxPathLenZero || cert.KeyUsage&x509.KeyUsageCertSign == 0 || !slices.Equal(cert.ExtKeyUsage, issuerUsage(name)):
		return fault.New(fault.Invalid, "the %s certificate is not one for that intermediate", name)
	}
	if err := cert.CheckSignatureFrom(root); err != nil {
		return fault.Wrap(fault.Invalid, err, "the %s certificate was not signed by its root", name)
	}
	return nil
}

// requestedKey returns the key of a certificate request. Nothing else is taken from
// one, whoever sends it.
func requestedKey(csrDER []byte) (*ecdsa.PublicKey, error) {
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
	return pub, nil
}
