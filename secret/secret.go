// Package secret keeps what must not be read by whoever reads the store, the disk or
// a backup. It is envelope encryption with three kinds of keys:
//
//   - The cluster key (Key) lies outside of the store, with a Keeper: a file, a systemd
//     credential, or a file that a key management service has sealed. A Ring holds it
//     in memory, and wraps with it the keys that lie in the store. While the cluster
//     key is rotated a Ring holds several: the newest wraps, all unwrap.
//   - An app's key (AppKey) encrypts the app's secrets. It lies in the store, wrapped.
//   - A key that lives for one call (Recipient) seals an app's secrets on their way to
//     the worker that starts a Machine.
//
// Everything is encrypted with XAES-256-GCM, whose nonces are long enough to be drawn
// at random, and bound to what it is for: a value cannot be moved to another name,
// version, app or cluster without being refused.
package secret

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// KeySize is the size of every symmetric key here, in bytes.
const KeySize = 32

// bind makes associated data of parts such that no two lists of parts give the same.
func bind(parts ...string) []byte {
	var b []byte
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// derive makes of a key one for a single use.
func derive(key []byte, use string) []byte {
	k, err := hkdf.Key(sha256.New, key, nil, "bulkhead secret v1: "+use, KeySize)
	if err != nil {
		panic("secret: " + err.Error()) // of sizes only
	}
	return k
}

// random draws n bytes; it cannot fail (crypto/rand ends the process instead).
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
