package token

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/superfly/macaroon"
)

// KeyID names a root key; it is part of every token made with it.
type KeyID [8]byte

// NewKeyID returns a random one.
func NewKeyID() (id KeyID) {
	rand.Read(id[:])
	return id
}

// String gives it in hexadecimal.
func (id KeyID) String() string { return fmt.Sprintf("%x", id[:]) }

// Key is a root key: who holds it makes any token.
type Key struct {
	ID     KeyID
	Secret macaroon.SigningKey
}

// NewKey makes a root key.
func NewKey() Key { return Key{ID: NewKeyID(), Secret: macaroon.NewSigningKey()} }

// Party is a third party that this side trusts: it may attest, and tickets to it can be made.
type Party struct {
	Location string
	Key      macaroon.EncryptionKey
}

// Keys is a ring of root keys: the first makes tokens, all verify, so that a new one
// can be put first while tokens of the old ones live on. It does not change.
type Keys struct {
	first   Key
	byID    map[KeyID]macaroon.SigningKey
	trusted map[string][]macaroon.EncryptionKey
}

// NewKeys makes a ring of one key or more.
func NewKeys(keys []Key, parties ...Party) (*Keys, error) {
	if len(keys) == 0 {
		return nil, errors.New("a ring needs a root key")
	}
	r := &Keys{first: keys[0], byID: map[KeyID]macaroon.SigningKey{}, trusted: map[string][]macaroon.EncryptionKey{}}
	for _, k := range keys {
		if len(k.Secret) != 32 {
			return nil, fmt.Errorf("root key %s has %d bytes; 32 are wanted", k.ID, len(k.Secret))
		}
		if _, twice := r.byID[k.ID]; twice {
			return nil, fmt.Errorf("root key %s is in the ring twice", k.ID)
		}
		r.byID[k.ID] = k.Secret
	}
	for _, p := range parties {
		if len(p.Key) != macaroon.EncryptionKeySize {
			return nil, fmt.Errorf("the key of third party %s has %d bytes; %d are wanted", p.Location, len(p.Key), macaroon.EncryptionKeySize)
		}
		r.trusted[p.Location] = append(r.trusted[p.Location], p.Key)
	}
	return r, nil
}

// Third is a third-party caveat to mint: the token is good only with a discharge by the
// party, which checks Caveats before it gives one.
type Third struct {
	Party
	Caveats []macaroon.Caveat
}

// Minted is a new token.
type Minted struct {
	ID    string // of its record; every token narrowed from it has the same
	Text  string // the token itself
	KeyID KeyID
}

// Mint makes a token that is valid in a window of time, with caveats. There is no token
// without an end. The window is always the first caveat.
func (r *Keys) Mint(from, until time.Time, caveats []macaroon.Caveat, thirds ...Third) (Minted, error) {
	if !until.After(from) {
		return Minted{}, fmt.Errorf("a token from %s until %s is never valid", from, until)
	}
	m, err := macaroon.New(r.first.ID[:], Location, r.first.Secret)
	if err != nil {
		return Minted{}, err
	}
	if err := m.Add(&macaroon.ValidityWindow{NotBefore: from.Unix(), NotAfter: until.Unix()}); err != nil {
		return Minted{}, err
	}
	if err := m.Add(caveats...); err != nil {
		return Minted{}, err
	}
	for _, t := range thirds {
		if err := m.Add3P(t.Key, t.Location, t.Caveats...); err != nil {
			return Minted{}, err
		}
	}
	left := MaxCaveats
	if err := inspect(m.UnsafeCaveats.Caveats, 0, &left); err != nil {
		return Minted{}, err
	}
	text, err := encode(m)
	return Minted{ID: m.Nonce.UUID().String(), Text: text, KeyID: r.first.ID}, err
}
