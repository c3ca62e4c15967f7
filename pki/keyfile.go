package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"bulkhead/failpoint"
	"bulkhead/fault"
)

// OpenKey reads the ECDSA P-256 key in path, or makes it, mode 0600, when there is
// none.
func OpenKey(path string) (*ecdsa.PrivateKey, error) {
	k, err := ReadKey(path)
	if !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	if k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	return k, writeKey(path, k)
}

// ReadKey reads an ECDSA P-256 key from a PKCS #8 PEM file.
func ReadKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := readWhole(path, "key")
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s: not one PEM private key: it was cut short or overwritten; restore it from a backup", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: not an ECDSA P-256 key", path)
	}
	return ec, nil
}

// readWhole reads a key or certificate. A missing file is os.ErrNotExist; one that
// may not be read, and one that is empty, are told apart from a damaged one.
func readWhole(path, what string) ([]byte, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, err
	case err != nil:
		return nil, fault.System(err, "the %s %s cannot be read", what, path)
	case len(bytes.TrimSpace(b)) == 0:
		return nil, fmt.Errorf("%s: the %s is empty; restore it from a backup", path, what)
	}
	return b, nil
}

func writeKey(path string, k *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// writeFile writes a file whole or not at all: temporary name, sync, rename, sync
// of the directory.
func writeFile(path string, b []byte, mode os.FileMode) error {
	return failpoint.Write("pki/write/"+filepath.Base(path), func() error { return replace(path, b, mode) })
}

// WriteFile writes a file that a key depends on whole or not at all.
func WriteFile(path string, b []byte, mode os.FileMode) error { return writeFile(path, b, mode) }

func replace(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		os.Remove(path + ".tmp")
		return err
	}
	err = failpoint.Write("pki/rename/"+filepath.Base(path), func() error { return os.Rename(path+".tmp", path) })
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// NewCSR returns a certificate request in DER that carries nothing but the key.
func NewCSR(k *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
}
