// Package pki gives every role of a cluster an identity and every public name a
// certificate.
//
// One root is made at installation. Below it are two intermediates that cannot
// stand in for each other: one signs identities (SPIFFE ids, for calls between
// roles), the other server certificates (DNS names, for browsers and clients). A
// server certificate is therefore worth nothing on an internal socket.
//
// Identities are spiffe://<cluster>/<role>/<node>, as in the SPIFFE ID
// specification; their keys are made where they are used and never moved.
package pki

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"net/url"
	"strings"

	"bulkhead/fault"
	"bulkhead/key"
)

// ID is who a role on a node is.
type ID struct {
	Cluster string // trust domain
	Role    string
	Node    key.Node
}

// String gives the SPIFFE form.
func (id ID) String() string { return id.URI().String() }

// URI gives the SPIFFE form as it stands in a certificate.
func (id ID) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.Cluster, Path: "/" + id.Role + "/" + string(id.Node)}
}

// ParseID is the reverse of ID.URI.
func ParseID(u *url.URL) (ID, error) {
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != "spiffe" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || len(parts) != 2 || parts[0] == "" {
		return ID{}, fault.New(fault.Unauthenticated, "%q is not an identity of the form spiffe://cluster/role/node", u)
	}
	node, err := key.ParseNode(parts[1])
	if err != nil {
		return ID{}, fault.Wrap(fault.Unauthenticated, err, "identity %q names no node", u)
	}
	return ID{Cluster: u.Host, Role: parts[0], Node: node}, nil
}

// IDOf returns the identity that a verified certificate carries: exactly one URI.
func IDOf(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fault.New(fault.Unauthenticated, "the certificate carries %d identities, want 1", len(cert.URIs))
	}
	return ParseID(cert.URIs[0])
}

// Pin names a public key: the base64url SHA-256 of its SubjectPublicKeyInfo, so
// that it outlives the certificates that carry the key (RFC 7469 pins the same).
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// PinOfKey is Pin for a key alone.
func PinOfKey(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", err
	}
	return Pin(&x509.Certificate{RawSubjectPublicKeyInfo: der}), nil
}
