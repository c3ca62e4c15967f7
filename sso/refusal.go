package sso

import "bulkhead/fault"

// Reason is why a sign-in was refused: the machine-readable word of the refusal, of
// the counter and of the audit record. Values are stored; never rename one.
type Reason string

// The reasons.
const (
	BadState     Reason = "sso_state"       // no such attempt, of another browser, expired, or answered before
	BadResponse  Reason = "sso_response"    // the provider's answer is not what the protocol wants
	RefusedByIDP Reason = "sso_refused"     // the provider itself said no
	MixedUp      Reason = "sso_mixed_up"    // another provider answered (RFC 9207)
	BadIssuer    Reason = "sso_issuer"      // the provider or its token names another issuer
	BadAudience  Reason = "sso_audience"    // the token is for somebody else
	BadNonce     Reason = "sso_nonce"       // the token is of another attempt
	Expired      Reason = "sso_expired"     // the token's time is over, or has not come
	BadSignature Reason = "sso_signature"   // the token is not signed by the provider's keys
	BadAlgorithm Reason = "sso_algorithm"   // the token's algorithm is not on the list
	BadSubject   Reason = "sso_subject"     // no subject, or userinfo is about somebody else
	Unreachable  Reason = "sso_unreachable" // the provider does not answer, or too much or too late
	BadAddress   Reason = "sso_address"     // the provider is at an address that may not be connected to
	Unverified   Reason = "sso_email"       // no verified e-mail address where one is needed
	BadDomain    Reason = "sso_domain"      // the address is of a domain that is not let in
	NoGroup      Reason = "sso_group"       // in no group that is let in
)

// kinds gives the reasons that are not Denied.
var kinds = map[Reason]fault.Kind{BadState: fault.Invalid, BadResponse: fault.Invalid, Unreachable: fault.Unavailable, BadAddress: fault.Unprocessable}

// Refuse makes a refusal: a fault whose Status is the reason.
func Refuse(r Reason, cause error, format string, args ...any) error {
	k, ok := kinds[r]
	if !ok {
		k = fault.Denied
	}
	return fault.Wrap(k, cause, format, args...).WithStatus(string(r))
}
