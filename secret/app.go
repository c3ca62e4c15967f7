package secret

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

// AppKey encrypts the secrets of one app.
type AppKey struct {
	enc, digest  []byte
	cluster, app string
}

// NewAppKey draws what an AppKey is made of: KeySize bytes, to be wrapped.
func NewAppKey() []byte { return random(KeySize) }

// AppKeyOf makes the key of an app, by its id, which no other app ever has.
func AppKeyOf(raw []byte, cluster, appID string) AppKey {
	return AppKey{enc: derive(raw, "app values"), digest: derive(raw, "app digests"), cluster: cluster, app: appID}
}

// Seal encrypts a value of a kind ("secret", "secret key") under its name and version.
func (k AppKey) Seal(kind, name string, version uint64, value []byte) []byte {
	return Seal(k.enc, value, k.bind(kind, name, version))
}

// Open is the inverse of Seal, for the same kind, name and version.
func (k AppKey) Open(kind, name string, version uint64, sealed []byte) ([]byte, error) {
	return Open(k.enc, sealed, k.bind(kind, name, version))
}

func (k AppKey) bind(kind, name string, version uint64) []byte {
	return bind(k.cluster, k.app, kind, name, strconv.FormatUint(version, 10))
}

// Digest tells values apart, for people. It is keyed: who does not have the app's key
// cannot guess at the value with it, however few values there could be.
func (k AppKey) Digest(name string, value []byte) string {
	m := hmac.New(sha256.New, k.digest)
	m.Write(bind(name))
	m.Write(value)
	return hex.EncodeToString(m.Sum(nil)[:8])
}

// Clear wipes the key, and has what it sealed and opened forgotten, with the copies that
// the runtime has made.
func (k AppKey) Clear() {
	clear(k.enc)
	clear(k.digest)
	Forget()
}
