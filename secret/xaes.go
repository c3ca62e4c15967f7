package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
)

// Sizes of XAES-256-GCM in bytes.
const (
	NonceSize = 24
	Overhead  = NonceSize + 16 // of Seal: nonce and tag
)

// errOpen says no more than this: why something does not decrypt is nobody's business.
var errOpen = errors.New("it was changed, cut short, or encrypted with another key or for another purpose")

// xaes is XAES-256-GCM (c2sp.org/XAES-256-GCM): AES-256-GCM with a key derived from
// the first half of a nonce of 24 bytes, so that nonces can be drawn at random.
func xaes(key, nonce []byte) (cipher.AEAD, error) {
	if len(key) != KeySize || len(nonce) != NonceSize {
		return nil, errors.New("XAES-256-GCM: a key of 32 and a nonce of 24 bytes are needed")
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	var k1 [aes.BlockSize]byte
	c.Encrypt(k1[:], k1[:])
	var msb byte
	for i := len(k1) - 1; i >= 0; i-- {
		msb, k1[i] = k1[i]>>7, k1[i]<<1|msb
	}
	k1[len(k1)-1] ^= msb * 0b10000111
	x := make([]byte, KeySize)
	for half := range 2 {
		m := append([]byte{0, byte(half + 1), 'X', 0}, nonce[:12]...)
		for i := range m {
			m[i] ^= k1[i]
		}
		c.Encrypt(x[16*half:], m)
	}
	inner, err := aes.NewCipher(x)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(inner)
}

// Seal encrypts plaintext with a key of KeySize bytes under a random nonce, which it
// puts in front, and authenticates ad with it.
func Seal(key, plaintext, ad []byte) []byte {
	nonce := random(NonceSize)
	g, err := xaes(key, nonce)
	if err != nil {
		panic("secret: " + err.Error()) // a key of another size: a fault of ours
	}
	return g.Seal(nonce, nonce[12:], plaintext, ad)
}

// Open is the inverse of Seal.
func Open(key, sealed, ad []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, errOpen
	}
	g, err := xaes(key, sealed[:NonceSize])
	if err != nil {
		return nil, err
	}
	out, err := g.Open(nil, sealed[12:NonceSize], sealed[NonceSize:], ad)
	if err != nil {
		return nil, errOpen
	}
	return out, nil
}
