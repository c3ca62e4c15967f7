package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"bulkhead/fault"
)

// Ring wraps with the newest cluster key and unwraps with each it holds. It is safe
// for concurrent use.
type Ring struct {
	cluster string
	where   string
	mu      sync.Mutex // held while held changes
	held    atomic.Pointer[held]
}

// held are a ring's keys. They change together: who reads them meets no key missing.
type held struct {
	keys   []Key // the newest first
	former []Key // which unwrap, until they are forgotten
}

// NewRing returns a ring of a cluster's keys, the newest first. where says in errors
// where the keys lie.
func NewRing(cluster, where string, keys []Key) *Ring {
	r := &Ring{cluster: cluster, where: where}
	r.held.Store(&held{keys: keys})
	return r
}

// Set replaces the keys, the newest first. Those that it held before unwrap still: what
// they wrapped may have been read already. Forget ends that.
func (r *Ring) Set(keys []Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	former := slices.DeleteFunc(r.all(), func(k Key) bool { return holds(keys, k) })
	r.held.Store(&held{keys: keys, former: former})
}

// Forget lets go of keys that were replaced. One that is held again stays.
func (r *Ring) Forget(keys []Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.held.Load()
	former := slices.DeleteFunc(slices.Clone(h.former), func(k Key) bool { return holds(keys, k) })
	r.held.Store(&held{keys: h.keys, former: former})
}

func holds(keys []Key, k Key) bool {
	return slices.ContainsFunc(keys, func(o Key) bool { return o.ID == k.ID })
}

// all lists the keys that unwrap.
func (r *Ring) all() []Key {
	h := r.held.Load()
	return slices.Concat(h.keys, h.former)
}

// Keys returns the keys, the newest first.
func (r *Ring) Keys() []Key { return r.held.Load().keys }

// IDs lists the keys' ids, the newest first.
func (r *Ring) IDs() []string {
	var out []string
	for _, k := range r.Keys() {
		out = append(out, k.ID)
	}
	return out
}

// A wrapped key is magic, the cluster key's id (8 bytes), the purpose's length (1 byte),
// the purpose, and what Seal gives. The purpose is in it so that whoever rotates the
// cluster key need not know what everything is for.
const (
	magic       = "BHWRP1"
	magicBase64 = "QkhXUlAx" // of magic: 6 bytes are 8 characters exactly
	headSize    = len(magic) + 8 + 1
)

// Wrap encrypts plaintext with the newest cluster key. Unwrap gives it back for the
// same purpose, of 1 to 255 bytes, in the same cluster only. Kept in JSON as []byte
// (base64) or as a whole value, it is found when the cluster key is rotated.
func (r *Ring) Wrap(purpose string, plaintext []byte) ([]byte, error) {
	if purpose == "" || len(purpose) > 255 {
		return nil, fault.New(fault.Internal, "secret: a purpose of %d bytes", len(purpose))
	}
	k := r.Keys()[0]
	id, err := hex.DecodeString(k.ID)
	if err != nil {
		return nil, err
	}
	out := append([]byte(magic), id...)
	out = append(out, byte(len(purpose)))
	out = append(out, purpose...)
	return append(out, Seal(derive(k.b, "wrap"), plaintext, bind(r.cluster, k.ID, purpose))...), nil
}

// Unwrap decrypts what Wrap gave for the same purpose.
func (r *Ring) Unwrap(purpose string, wrapped []byte) ([]byte, error) {
	id, is, sealed, ok := split(wrapped)
	if !ok || is != purpose {
		return nil, fault.New(fault.Internal, "what should be a wrapped key for %q is none: it was changed, or put in the place of another", purpose)
	}
	for _, k := range r.all() {
		if k.ID != id {
			continue
		}
		out, err := Open(derive(k.b, "wrap"), sealed, bind(r.cluster, k.ID, purpose))
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "the wrapped key for %q does not open with cluster key %s", purpose, id)
		}
		return out, nil
	}
	return nil, fault.New(fault.Internal, "the key for %q is wrapped with cluster key %s, and %s holds %s: restore that key from the copy that you keep apart from the data directory. Nothing was changed",
		purpose, id, r.where, strings.Join(r.IDs(), ", "))
}

// split takes a wrapped key apart.
func split(wrapped []byte) (id, purpose string, sealed []byte, ok bool) {
	if len(wrapped) < headSize || string(wrapped[:len(magic)]) != magic {
		return "", "", nil, false
	}
	n := int(wrapped[headSize-1])
	if len(wrapped) < headSize+n+Overhead {
		return "", "", nil, false
	}
	return hex.EncodeToString(wrapped[len(magic) : headSize-1]), string(wrapped[headSize : headSize+n]), wrapped[headSize+n:], true
}

// wrappedText finds wrapped keys in JSON: a string that is base64 of one.
var wrappedText = regexp.MustCompile(`"` + magicBase64 + `[A-Za-z0-9+/]*={0,2}"`)

// Rewrap returns a value of the store with everything in it that Wrap made wrapped by
// the newest key: the value itself, or strings of JSON in it. n counts what had
// another key. What looks wrapped and does not open is left as it is and counted in
// lost, unless its key's id is none of the ring's: then it is somebody's text.
func (r *Ring) Rewrap(value []byte) (out []byte, n, lost int) {
	if strings.HasPrefix(string(value), magic) {
		out, n, lost = r.rewrapOne(value)
		return out, n, lost
	}
	if !bytes.Contains(value, []byte(`"`+magicBase64)) {
		return value, 0, 0
	}
	out = wrappedText.ReplaceAllFunc(value, func(quoted []byte) []byte {
		raw, err := base64.StdEncoding.DecodeString(string(quoted[1 : len(quoted)-1]))
		if err != nil {
			return quoted
		}
		b, changed, bad := r.rewrapOne(raw)
		n, lost = n+changed, lost+bad
		if changed == 0 {
			return quoted
		}
		return []byte(`"` + base64.StdEncoding.EncodeToString(b) + `"`)
	})
	return out, n, lost
}

func (r *Ring) rewrapOne(wrapped []byte) (out []byte, n, lost int) {
	id, purpose, _, ok := split(wrapped)
	if !ok || id == r.Keys()[0].ID {
		return wrapped, 0, 0
	}
	if !holds(r.all(), Key{ID: id}) {
		return wrapped, 0, 0
	}
	plain, err := r.Unwrap(purpose, wrapped)
	if err != nil {
		return wrapped, 0, 1
	}
	defer clear(plain)
	if out, err = r.Wrap(purpose, plain); err != nil {
		return wrapped, 0, 1
	}
	return out, 1, 0
}
