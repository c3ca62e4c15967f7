package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"slices"
	"time"
)

// The file of an Identity: the key, the chain (leaf first) and, last, the roots that
// others are verified by (self-signed, as no certificate of a chain is), each a PEM block. It is written whole or not at all, and of
// no other use than to begin with: what is wrong with it costs a request for another.

// remember writes the file.
func (i *Identity) remember(k *ecdsa.PrivateKey, chain [][]byte, root []byte) error {
	if i.file == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	roots, err := x509.ParseCertificates(root)
	if err != nil {
		return err
	}
	all := slices.Clone(chain)
	for _, r := range roots {
		all = append(all, r.Raw)
	}
	for _, c := range all {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return writeFile(i.file, out, 0o600)
}

// recall reads the file; nil when it holds nothing that is good now.
func (i *Identity) recall() *identityState {
	if i.file == "" {
		return nil
	}
	b, err := os.ReadFile(i.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var s *identityState
	if err == nil {
		s, err = parseRemembered(b)
	}
	if err != nil {
		i.log.Info("the certificate on disk is not used", "file", i.file, "err", err)
		return nil
	}
	return s
}

func parseRemembered(b []byte) (*identityState, error) {
	var key *ecdsa.PrivateKey
	var chain [][]byte
	var roots []byte
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			if bytes.Equal(c.RawSubject, c.RawIssuer) {
				roots = append(roots, c.Raw...)
			} else {
				chain = append(chain, c.Raw)
			}
			continue
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		key, _ = k.(*ecdsa.PrivateKey)
	}
	if key == nil || len(chain) == 0 || roots == nil {
		return nil, errors.New("it is not whole")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("its certificate is for another key")
	}
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return nil, errors.New("its certificate is not good now")
	}
	return stateOf(key, leaf, chain, roots)
}
