// Package comparisons is the control of TestSecretsAreComparedInConstantTime: every
// line that is marked is a fault of the kind that it looks for, and no other line is.
package comparisons

import (
	"bytes"
	"crypto/subtle"
	"strings"
)

type record struct {
	Token, TokenHash []byte
	Nonce, TokenKind string
	session          func() string
}

func compare(r record, token, nonce, gotMAC, wantMAC, Secret, adminToken string, tokenHash, b []byte, macs map[string]string) bool {
	_ = token == Secret                            // fault
	_ = r.Nonce != nonce                           // fault
	_ = gotMAC == wantMAC                          // fault
	_ = string(r.Token) == token                   // fault
	_ = bytes.Equal(r.TokenHash, b)                // fault
	_ = bytes.Equal(b, []byte(nonce))              // fault
	_ = strings.EqualFold(adminToken, r.session()) // fault
	_ = bytes.Compare(tokenHash[:4], b) == 0       // fault
	_ = (Secret) == r.session()                    // fault
	_ = macs["a"] == r.session()                   // fault
	_ = strings.HasPrefix(token, r.session())      // fault
	switch token {
	case "", "-":
	case r.session(): // fault
	}
	if b := r.session(); b != nonce { // fault
		return false
	}
	_ = token == "" || token != "-" || r.Token == nil || len(token) == len(nonce)
	_ = r.TokenKind == r.session()
	_ = strings.HasPrefix(token, "bh_")
	machine, machineID := "a", "b"
	_ = machine == machineID
	return subtle.ConstantTimeCompare([]byte(token), b) == 1
}
