package secret

import (
	"crypto/hpke"

	"bulkhead/fault"
	"bulkhead/key"
)

// Recipient is a key pair that lives for one call: what SealTo seals for its public
// half nothing on the way can open, and nothing later, when it is gone.
type Recipient struct{ key hpke.PrivateKey }

// suite is HPKE (RFC 9180) with a hybrid of ML-KEM-768 and X25519.
func suite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.MLKEM768X25519(), hpke.HKDFSHA256(), hpke.AES256GCM()
}

// NewRecipient makes a key pair.
func NewRecipient() (*Recipient, error) {
	kem, _, _ := suite()
	k, err := kem.GenerateKey()
	if err != nil {
		return nil, err
	}
	return &Recipient{key: k}, nil
}

// Public is the half to be sent.
func (r *Recipient) Public() []byte { return r.key.PublicKey().Bytes() }

// Open opens what SealTo sealed for the same parts.
func (r *Recipient) Open(sealed []byte, parts ...string) ([]byte, error) {
	_, kdf, aead := suite()
	out, err := hpke.Open(r.key, kdf, aead, bind(parts...), sealed)
	if err != nil {
		return nil, fault.New(fault.Internal, "what the controller sealed does not open: %v", errOpen)
	}
	return out, nil
}

// SealTo seals plaintext for a Recipient's public half, bound to what it is for.
func SealTo(public, plaintext []byte, parts ...string) ([]byte, error) {
	kem, kdf, aead := suite()
	pk, err := kem.NewPublicKey(public)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the public key of %d bytes is none of this suite", len(public))
	}
	return hpke.Seal(pk, kdf, aead, bind(parts...), plaintext)
}

// ForMachine is what the secrets of one Machine are bound to on their way from the
// controller to the worker of a node, for SealTo and Recipient.Open: they are of that
// instance, and open as no other's.
func ForMachine(cluster string, n key.Node, id key.MachineID, v key.InstanceID) []string {
	return []string{"machine secrets", cluster, string(n), string(id), string(v)}
}
