package token

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/superfly/macaroon"

	"bulkhead/key"
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

// NoKeys is a ring that verifies nothing and makes nothing.
var NoKeys = &Keys{}

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

// kidLen is the length of what a token says of its making: the root key's id and its own.
const kidLen = 16

func kid(k KeyID, id key.TokenID) ([]byte, error) {
	own, err := hex.DecodeString(strings.TrimPrefix(string(id), "t_"))
	if err != nil || len(own) != kidLen-len(k) {
		return nil, fmt.Errorf("token id %q is not t_ and 16 hexadecimal digits", id)
	}
	return append(k[:], own...), nil
}

// idOf reads in a token what kid wrote, verified or not.
func idOf(m *macaroon.Macaroon) (k KeyID, id key.TokenID, ok bool) {
	if len(m.Nonce.KID) != kidLen {
		return KeyID{}, "", false
	}
	return KeyID(m.Nonce.KID[:len(k)]), key.TokenID("t_" + hex.EncodeToString(m.Nonce.KID[len(k):])), true
}

// Mint makes a token with the id of its record, that is valid in a window of time, with
// caveats. There is no token without an end. The window is always the first caveat. The id, which
// is no secret, is the same in every token narrowed from it: to revoke one is to revoke all.
func (r *Keys) Mint(id key.TokenID, from, until time.Time, caveats []macaroon.Caveat, thirds ...Third) (string, error) {
	if !until.After(from) {
		return "", fmt.Errorf("a token from %s until %s is never valid", from, until)
	}
	if len(r.first.Secret) == 0 {
		return "", errors.New("there is no root key to make tokens with")
	}
	made, err := kid(r.first.ID, id)
	if err != nil {
		return "", err
	}
	m, err := macaroon.New(made, Location, r.first.Secret)
	if err != nil {
		return "", err
	}
	if err := m.Add(&macaroon.ValidityWindow{NotBefore: from.Unix(), NotAfter: until.Unix()}); err != nil {
		return "", err
	}
	if err := m.Add(caveats...); err != nil {
		return "", err
	}
	for _, t := range thirds {
		if err := m.Add3P(t.Key, t.Location, t.Caveats...); err != nil {
			return "", err
		}
	}
	left := MaxCaveats
	if err := inspect(m.UnsafeCaveats.Caveats, 0, &left); err != nil {
		return "", err
	}
	return encode(m)
}

// Has reports whether a key is in the ring.
func (r *Keys) Has(id KeyID) bool { return r.byID[id] != nil }

// First is the id of the key that makes tokens.
func (r *Keys) First() KeyID { return r.first.ID }
