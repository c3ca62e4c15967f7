package token

import (
	"errors"
	"fmt"
)

// Reason says in one word why a token was refused. It is the label of a metric and
// part of audit records: words are never renamed or reused.
type Reason string

// The reasons.
const (
	Missing       Reason = "missing"        // no token
	Malformed     Reason = "malformed"      // not a token, or not in its one encoding
	TooLong       Reason = "too_long"       // beyond a bound of Parse
	UnknownKey    Reason = "unknown_key"    // made with a root key that is not in the ring
	BadSignature  Reason = "bad_signature"  // changed, or made by somebody else
	NoDischarge   Reason = "no_discharge"   // a third party's word is missing, or is for another ticket
	WrongBinding  Reason = "wrong_binding"  // a discharge bound to another token
	Expired       Reason = "expired"        // its time is over
	NotYetValid   Reason = "not_yet_valid"  // its time has not come
	Revoked       Reason = "revoked"        // the controller's: its record is gone
	UnknownCaveat Reason = "unknown_caveat" // a caveat that this server does not understand
	Prohibited    Reason = "prohibited"     // a caveat says no
	SessionEnded  Reason = "session_ended"  // the session of its discharge is over
	// DischargeExpired: the token is good, and the discharge beside it is too old.
	DischargeExpired Reason = "discharge_expired"
	OtherUser        Reason = "different_users" // the controller's: several users' tokens in one header
)

// Refusal is why a token is not good, or not good for this.
type Refusal struct {
	Reason Reason
	// Detail is one sentence for people. It repeats no token.
	Detail string
}

// Error gives the detail.
func (r *Refusal) Error() string { return r.Detail }

// Known reports whether the token itself is good, and only what was asked of it
// is not allowed: the difference between 403 and 401.
func (r *Refusal) Known() bool {
	switch r.Reason {
	case Prohibited, UnknownCaveat:
		return true
	}
	return false
}

// ReasonOf returns the reason in err's chain, or "".
func ReasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

func refuse(why Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: why, Detail: fmt.Sprintf(format, args...)}
}
