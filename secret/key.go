package secret

import (
	"bytes"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"bulkhead/fault"
)

// Key is a cluster key.
type Key struct {
	ID string // 16 hexadecimal digits that follow from the key: they tell keys apart and find damage
	b  []byte
}

// NewKey draws a cluster key.
func NewKey() Key { return keyOf(random(KeySize)) }

func keyOf(b []byte) Key { return Key{ID: hex.EncodeToString(derive(b, "id")[:8]), b: b} }

// keyLine starts each line of a key file that holds a key.
const keyLine = "bulkhead-cluster-key-1"

// FormatKeys writes keys as a key file has them, the newest first: a line for each,
// "bulkhead-cluster-key-1 ID KEY", KEY in base64. Lines that begin with # are comments.
func FormatKeys(keys []Key) []byte {
	var b bytes.Buffer
	b.WriteString("# The cluster key of a Bulkhead installation. Without it nothing that is secret can be\n" +
		"# opened again. Keep a copy apart from the copies of the data directory.\n")
	for _, k := range keys {
		fmt.Fprintf(&b, "%s %s %s\n", keyLine, k.ID, base64.StdEncoding.EncodeToString(k.b))
	}
	return b.Bytes()
}

// ParseKeys reads what FormatKeys writes. where names the source in errors.
func ParseKeys(b []byte, where string) ([]Key, error) {
	var out []Key
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != keyLine {
			return nil, damaged(where, fmt.Sprintf("line %d is not %q, an id and a key", i+1, keyLine))
		}
		raw, err := base64.StdEncoding.DecodeString(f[2])
		if err != nil || len(raw) != KeySize {
			return nil, damaged(where, fmt.Sprintf("the key in line %d is not %d bytes in base64", i+1, KeySize))
		}
		k := keyOf(raw)
		if subtle.ConstantTimeCompare([]byte(k.ID), []byte(f[1])) != 1 {
			return nil, damaged(where, fmt.Sprintf("the key in line %d does not belong to its id %s", i+1, clip(f[1])))
		}
		if slices.ContainsFunc(out, func(o Key) bool { return o.ID == k.ID }) {
			return nil, damaged(where, fmt.Sprintf("the key in line %d is there twice", i+1))
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, damaged(where, "there is no key in it")
	}
	return out, nil
}

func damaged(where, what string) error {
	return fault.New(fault.Internal, "the cluster key in %s is damaged: %s; restore it from the copy that you keep apart from the data directory. Nothing was changed", where, what)
}

// clip bounds what may be half a secret, or what a key service says, for a message: it repeats less
// than fault.Clip does.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
