package secret

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"math/big"
	"regexp"
	"strings"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/crypto/nacl/auth"
	"golang.org/x/crypto/nacl/box"
	"golang.org/x/crypto/nacl/secretbox"

	"bulkhead/fault"
)

// The types of secret keys, by the names of the Machines API, with what a key, a
// ciphertext and a signature of each is.
const (
	ES256         = "es256"          // key: 32-byte scalar of P-256; public: 65-byte point; signature: r and s, 64 bytes, over SHA-256
	HS256         = "hs256"          // key: at least 32 bytes; signature: HMAC-SHA-256
	HS384         = "hs384"          // key: at least 48 bytes; signature: HMAC-SHA-384
	HS512         = "hs512"          // key: at least 64 bytes; signature: HMAC-SHA-512
	XAES256GCM    = "xaes256gcm"     // key: 32 bytes; ciphertext: nonce (24), text, tag (16); takes associated data
	NaClAuth      = "nacl_auth"      // key: 32 bytes; signature: HMAC-SHA-512-256
	NaClBox       = "nacl_box"       // key: 32-byte scalar of Curve25519; public: 32 bytes; ciphertext: a sealed box
	NaClSecretBox = "nacl_secretbox" // key: 32 bytes; ciphertext: nonce (24), box
	NaClSign      = "nacl_sign"      // key: 32-byte seed or 64-byte key of Ed25519; public: 32 bytes; signature: 64 bytes
)

// maxHMACKey bounds keys of types that take any length, in bytes.
const maxHMACKey = 1024

// keyType says what a type can do.
type keyType struct {
	sizes    []int // that a key may have; nil: least to maxHMACKey
	least    int
	encrypts bool
	signs    bool
}

var keyTypes = map[string]keyType{
	ES256: {sizes: []int{32}, signs: true},
	HS256: {least: 32, signs: true}, HS384: {least: 48, signs: true}, HS512: {least: 64, signs: true},
	XAES256GCM: {sizes: []int{32}, encrypts: true},
	NaClAuth:   {sizes: []int{32}, signs: true}, NaClBox: {sizes: []int{32}, encrypts: true},
	NaClSecretBox: {sizes: []int{32}, encrypts: true}, NaClSign: {sizes: []int{32, 64}, signs: true},
}

// Types lists the types of secret keys.
func Types() []string {
	return []string{ES256, HS256, HS384, HS512, XAES256GCM, NaClAuth, NaClBox, NaClSecretBox, NaClSign}
}

// CheckType refuses what is no type.
func CheckType(typ string) error {
	if _, ok := keyTypes[typ]; !ok {
		return fault.New(fault.Invalid, "type %q is none of a secret key; there are %s", clip(typ), strings.Join(Types(), ", "))
	}
	return nil
}

var keyNameRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,254}$`)

// CheckKeyName refuses what cannot be the name of a secret key.
func CheckKeyName(name string) error {
	if !keyNameRE.MatchString(name) {
		return fault.New(fault.Invalid, "secret key name %q must be 1 to %d letters, digits, underscores, dots and dashes, and begin with a letter or underscore", clip(name), MaxName)
	}
	return nil
}

// GenerateKey makes a key of a type.
func GenerateKey(typ string) ([]byte, error) {
	t, ok := keyTypes[typ]
	if !ok {
		return nil, CheckType(typ)
	}
	if typ == ES256 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return k.Bytes()
	}
	if t.sizes != nil {
		return random(t.sizes[0]), nil
	}
	return random(t.least), nil
}

// PublicKey checks a key of a type and returns its public half; nil for a type that
// has none.
func PublicKey(typ string, key []byte) ([]byte, error) {
	t, ok := keyTypes[typ]
	if !ok {
		return nil, CheckType(typ)
	}
	fits := t.sizes == nil && len(key) >= t.least && len(key) <= maxHMACKey
	for _, n := range t.sizes {
		fits = fits || len(key) == n
	}
	if !fits {
		return nil, badKey(typ, "has %d bytes, which is no size of this type", len(key))
	}
	switch typ {
	case ES256:
		k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), key)
		if err != nil {
			return nil, badKey(typ, "is no scalar of P-256")
		}
		return k.PublicKey.Bytes()
	case NaClBox:
		return curve25519.X25519(key, curve25519.Basepoint)
	case NaClSign:
		k, err := signKey(key)
		if err != nil {
			return nil, err
		}
		return k.Public().(ed25519.PublicKey), nil
	}
	return nil, nil
}

func badKey(typ, format string, args ...any) error {
	return fault.New(fault.Invalid, "value: a key of type "+typ+" "+format, args...)
}

// signKey makes an Ed25519 key of a seed, or checks a whole one.
func signKey(b []byte) (ed25519.PrivateKey, error) {
	k := ed25519.NewKeyFromSeed(b[:ed25519.SeedSize])
	if len(b) == ed25519.PrivateKeySize && !k.Equal(ed25519.PrivateKey(b)) {
		return nil, badKey(NaClSign, "has two halves that do not belong together")
	}
	return k, nil
}

func cannot(typ, what string) error {
	return fault.New(fault.Invalid, "a secret key of type %s cannot %s", typ, what)
}

// wrong is the one answer to what does not open or verify.
func wrong(what string) error {
	return fault.New(fault.Invalid, "the %s is not of this key, or was changed", what)
}

// noAD refuses associated data where a type has no place for it.
func noAD(typ string, ad []byte) error {
	if len(ad) > 0 && typ != XAES256GCM {
		return fault.New(fault.Invalid, "associated_data: a secret key of type %s takes none; %s does", typ, XAES256GCM)
	}
	return nil
}

// Encrypt encrypts with a checked key.
func Encrypt(typ string, key, plaintext, ad []byte) ([]byte, error) {
	if !keyTypes[typ].encrypts {
		return nil, cannot(typ, "encrypt")
	}
	if err := noAD(typ, ad); err != nil {
		return nil, err
	}
	switch typ {
	case XAES256GCM:
		return Seal(key, plaintext, ad), nil
	case NaClSecretBox:
		nonce := [24]byte(random(24))
		return secretbox.Seal(nonce[:], plaintext, &nonce, (*[32]byte)(key)), nil
	}
	public, err := curve25519.X25519(key, curve25519.Basepoint)
	if err != nil {
		return nil, err
	}
	return box.SealAnonymous(nil, plaintext, (*[32]byte)(public), rand.Reader)
}

// Decrypt is the inverse of Encrypt.
func Decrypt(typ string, key, ciphertext, ad []byte) ([]byte, error) {
	if !keyTypes[typ].encrypts {
		return nil, cannot(typ, "decrypt")
	}
	if err := noAD(typ, ad); err != nil {
		return nil, err
	}
	var out []byte
	var ok bool
	switch typ {
	case XAES256GCM:
		b, err := Open(key, ciphertext, ad)
		out, ok = b, err == nil
	case NaClSecretBox:
		if len(ciphertext) >= 24 {
			out, ok = secretbox.Open(nil, ciphertext[24:], (*[24]byte)(ciphertext), (*[32]byte)(key))
		}
	case NaClBox:
		public, err := curve25519.X25519(key, curve25519.Basepoint)
		if err != nil {
			return nil, err
		}
		out, ok = box.OpenAnonymous(nil, ciphertext, (*[32]byte)(public), (*[32]byte)(key))
	}
	if !ok {
		return nil, wrong("ciphertext")
	}
	if out == nil {
		out = []byte{}
	}
	return out, nil
}

// Sign signs, or authenticates, with a checked key.
func Sign(typ string, key, message []byte) ([]byte, error) {
	switch typ {
	case ES256:
		k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), key)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(message)
		r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
		if err != nil {
			return nil, err
		}
		out := make([]byte, 64)
		r.FillBytes(out[:32])
		s.FillBytes(out[32:])
		return out, nil
	case HS256, HS384, HS512:
		m := hmac.New(hashOf[typ], key)
		m.Write(message)
		return m.Sum(nil), nil
	case NaClAuth:
		sum := auth.Sum(message, (*[32]byte)(key))
		return sum[:], nil
	case NaClSign:
		k, err := signKey(key)
		if err != nil {
			return nil, err
		}
		return ed25519.Sign(k, message), nil
	}
	return nil, cannot(typ, "sign")
}

var hashOf = map[string]func() hash.Hash{HS256: sha256.New, HS384: sha512.New384, HS512: sha512.New}

// Verify checks what Sign gave, in constant time where the key is secret.
func Verify(typ string, key, message, signature []byte) error {
	ok := false
	switch typ {
	case ES256:
		k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), key)
		if err != nil {
			return err
		}
		if len(signature) == 64 {
			sum := sha256.Sum256(message)
			ok = ecdsa.Verify(&k.PublicKey, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
		}
	case HS256, HS384, HS512, NaClAuth:
		want, err := Sign(typ, key, message)
		if err != nil {
			return err
		}
		ok = hmac.Equal(want, signature)
	case NaClSign:
		k, err := signKey(key)
		if err != nil {
			return err
		}
		ok = len(signature) == ed25519.SignatureSize && ed25519.Verify(k.Public().(ed25519.PublicKey), message, signature)
	default:
		return cannot(typ, "verify")
	}
	if !ok {
		return wrong("signature")
	}
	return nil
}
