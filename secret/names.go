package secret

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"bulkhead/fault"
)

// Bounds of an app's secrets.
const (
	MaxValue   = 64 << 10  // bytes of one value
	MaxTotal   = 256 << 10 // bytes of an app's names and values together
	MaxSecrets = 500       // of one app
	MaxName    = 255       // bytes
)

var nameRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// reservedPrefixes begin names that the platform sets itself.
var reservedPrefixes = []string{"FLY_", "BULKHEAD_"}

// CheckName refuses what cannot be, or may not be, the name of a secret.
func CheckName(name string) error {
	if len(name) > MaxName || !nameRE.MatchString(name) {
		return fault.New(fault.Invalid, "secret name %q: a secret becomes an environment variable, so its name is 1 to %d letters, digits and underscores and does not begin with a digit", clip(name), MaxName)
	}
	for _, p := range reservedPrefixes {
		if strings.HasPrefix(name, p) {
			return fault.New(fault.Invalid, "secret name %q: names that begin with %s are the platform's own", name, p)
		}
	}
	return nil
}

// CheckValue refuses a value that cannot be kept. Its error never holds the value.
func CheckValue(name, value string) error {
	switch {
	case len(value) > MaxValue:
		return fault.New(fault.Invalid, "the value of secret %s has %d bytes; at most %d are kept", name, len(value), MaxValue)
	case strings.IndexByte(value, 0) >= 0:
		return fault.New(fault.Invalid, "the value of secret %s holds a zero byte, which no environment variable can; encode it, for example in base64", name)
	case !utf8.ValidString(value):
		return fault.New(fault.Invalid, "the value of secret %s is not UTF-8; encode it, for example in base64", name)
	}
	return nil
}
