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
		return "", fault.New(fault.Invalid, "machine id %q is not 14 hexadecimal digits", fault.Clip(s))
	}
	return MachineID(s), nil
}

// ParseInstanceID checks s.
func ParseInstanceID(s string) (InstanceID, error) {
	if _, err := ulid.ParseStrict(s); err != nil {
		return "", fault.New(fault.Invalid, "instance id %q is not a ULID", fault.Clip(s))
	}
	return InstanceID(s), nil
}

// ParseAppName checks s: a DNS label of at most 63 characters that is not reserved.
func ParseAppName(s string) (AppName, error) {
	if !labelRE.MatchString(s) {
		return "", fault.New(fault.Unprocessable, "app name %q must be 1 to 63 lower-case letters, digits and dashes, and start and end with a letter or digit", fault.Clip(s))
	}
	if reserved[AppName(s)] {
		return "", fault.New(fault.Unprocessable, "app name %q is reserved", s)
	}
	return AppName(s), nil
}

// ParseNode checks s: a DNS label.
func ParseNode(s string) (Node, error) {
	if !labelRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "node name %q is not a DNS label", fault.Clip(s))
	}
	return Node(s), nil
}

// ParseDigest checks s.
func ParseDigest(s string) (Digest, error) {
	if !digestRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "digest %q is not sha256: and 64 hexadecimal digits", fault.Clip(s))
	}
	return Digest(s), nil
}

// Hex returns the digest without its algorithm, fit for a file name.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// UserID names a person: "u_" and 16 lower-case hexadecimal digits. It is never given
// to another.
type UserID string

// TokenID names a token: "t_" and 16 lower-case hexadecimal digits. It is no secret.
type TokenID string

// NewUserID returns a fresh random UserID.
func NewUserID() UserID { return UserID("u_" + randomHex(8)) }

// NewTokenID returns a fresh random TokenID.
func NewTokenID() TokenID { return TokenID("t_" + randomHex(8)) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

var (
	userRE     = regexp.MustCompile(`^u_[0-9a-f]{16}$`)
	tokenRE    = regexp.MustCompile(`^t_[0-9a-f]{16}$`)
	userNameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9._+@-]{0,126}[a-z0-9])?$`)
)

// ParseUserID checks s.
func ParseUserID(s string) (UserID, error) {
	if !userRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "user id %q is not u_ and 16 hexadecimal digits", fault.Clip(s))
	}
	return UserID(s), nil
}

// ParseTokenID checks s.
func ParseTokenID(s string) (TokenID, error) {
	if !tokenRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "token id %q is not t_ and 16 hexadecimal digits", fault.Clip(s))
	}
	return TokenID(s), nil
}

// ParseUserName checks a user's name: a handle or an e-mail address, in lower case.
func ParseUserName(s string) (string, error) {
	if !userNameRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "user name %q must be 1 to 128 of a-z, 0-9 and . _ + @ -, and begin and end with a letter or digit", fault.Clip(s))
	}
	return s, nil
}

// ParseOrg checks the slug of an organization: a DNS label.
func ParseOrg(s string) (string, error) {
	if !labelRE.MatchString(s) {
		return "", fault.New(fault.Invalid, "organization %q must be 1 to 63 of a-z, 0-9 and -, and begin and end with a letter or digit", fault.Clip(s))
	}
	return s, nil
}
