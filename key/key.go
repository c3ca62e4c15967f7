// Package key holds the identifiers of Bulkhead: one type for each, its grammar,
// and how a new one is made. An identifier that has passed its Parse function is
// safe in a path, a log line and a DNS name.
package key

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"bulkhead/fault"
)

// MachineID names a Machine: 14 lower-case hexadecimal digits (56 random bits),
// as on Fly.
type MachineID string

// InstanceID names one version of a Machine's config: a ULID.
type InstanceID string

// AppName names an app, cluster-wide: it is a DNS label.
type AppName string

// Node names a server of the cluster: it is a DNS label.
type Node string

// Digest is an OCI digest, always "sha256:" and 64 lower-case hexadecimal digits.
type Digest string

var (
	machineRE = regexp.MustCompile(`^[0-9a-f]{14}$`)
	labelRE   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	digestRE  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Reserved app names have a meaning of their own below the cluster's domain.
var reserved = map[AppName]bool{"api": true, "registry": true, "www": true, "auth": true, "dashboard": true, "internal": true}

// NewMachineID returns a fresh random MachineID.
func NewMachineID() MachineID {
	var b [7]byte
	rand.Read(b[:])
	return MachineID(hex.EncodeToString(b[:]))
}

// NewInstanceID returns a fresh InstanceID; later ones sort after earlier ones.
func NewInstanceID() InstanceID {
	return InstanceID(ulid.MustNew(ulid.Timestamp(time.Now()), rand.Reader).String())
}

// ParseMachineID checks s.
func ParseMachineID(s string) (MachineID, error) {
	if !machineRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "machine id %q is not 14 hexadecimal digits", clip(s))
	}
	return MachineID(s), nil
}

// ParseInstanceID checks s.
func ParseInstanceID(s string) (InstanceID, error) {
	if _, err := ulid.ParseStrict(s); err != nil {
		return "", fault.New(fault.Invalid, "instance id %q is not a ULID", clip(s))
	}
	return InstanceID(s), nil
}

// ParseAppName checks s: a DNS label of at most 63 characters that is not reserved.
func ParseAppName(s string) (AppName, error) {
	if !labelRE.MatchString(s) {
		return "", fault.New(fault.Unprocessable, "app name %q must be 1 to 63 lower-case letters, digits and dashes, and start and end with a letter or digit", clip(s))
	}
	if reserved[AppName(s)] {
		return "", fault.New(fault.Unprocessable, "app name %q is reserved", s)
	}
	return AppName(s), nil
}

// ParseNode checks s: a DNS label.
func ParseNode(s string) (Node, error) {
	if !labelRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "node name %q is not a DNS label", clip(s))
	}
	return Node(s), nil
}

// ParseDigest checks s.
func ParseDigest(s string) (Digest, error) {
	if !digestRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "digest %q is not sha256: and 64 hexadecimal digits", clip(s))
	}
	return Digest(s), nil
}

// Hex returns the digest without its algorithm, fit for a file name.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// clip bounds a hostile string for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
