package access

import (
	"errors"
	"net/netip"

	"bulkhead/controller/directory"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/token"
)

// CallerKind is what sort of caller there is.
type CallerKind string

// The kinds of callers.
const (
	ByPerson  CallerKind = "person"  // a user's token
	ByMachine CallerKind = "machine" // a Machine, over its own socket
	ByClaim   CallerKind = "claim"   // a one-time token, good for becoming a user
)

// Caller is who makes a request.
type Caller struct {
	Kind CallerKind
	// Name goes into leases, logs and the audit log; it is no secret.
	Name string
	User key.UserID // of a person
	// Token is the record of the token, or of the first of several, and Verified are those
	// that are good, whose caveats narrow what the user may: one of them must allow it.
	Token    *record.Token
	Verified []*token.Verified
	From     netip.Addr // where the request came from; token.FromAddress asks
	// App and Machine are those of a Machine.
	App     key.AppName
	Machine key.MachineID
	Claim   *record.Claim // of a claim
}

// ErrToken is the answer to every request without a good token.
var ErrToken = fault.New(fault.Unauthenticated, "Authenticate: token validation error")

// RateKey names a caller for its limits: its token's id, which is no secret.
func (who Caller) RateKey() string {
	switch {
	case who.Token != nil:
		return string(who.Token.ID)
	case who.Claim != nil:
		return "claim " + who.Claim.ID
	case who.Machine != "":
		return "machine " + string(who.Machine)
	}
	return who.Name
}

// UserKey names who is behind a caller, whichever of their tokens it comes with: the user, and
// who is none like RateKey.
func (who Caller) UserKey() string {
	if who.User != "" {
		return string(who.User)
	}
	return who.RateKey()
}

// Standing says for whom verified tokens stand now: their records are there, their users
// are, and their organizations let them live so long. It is asked at every request, and again
// while one lasts. A refusal is a *token.Refusal.
func Standing(d *directory.Directory, good []*token.Verified) (Caller, error) {
	var who Caller
	var first error
	for _, v := range good {
		rec, u, err := d.Stands(v)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if who.Token == nil {
			who = Caller{Kind: ByPerson, Name: u.Name, User: rec.User, Token: rec}
		} else if who.User != rec.User {
			return Caller{}, &token.Refusal{Reason: token.OtherUser, Detail: "the tokens belong to different users"}
		}
		who.Verified = append(who.Verified, v)
	}
	if who.Token == nil {
		return Caller{}, first
	}
	return who, nil
}

func refusalOf(err error) *token.Refusal {
	var r *token.Refusal
	errors.As(err, &r)
	return r
}

// RefusedToken is the answer to a token that is not good, or not for this.
func RefusedToken(err error) error {
	if err == nil {
		return nil
	}
	r := refusalOf(err)
	switch {
	case r == nil:
		return err
	case r.Known():
		return fault.Wrap(fault.Denied, r, "%s", r.Detail)
	}
	f := fault.Wrap(fault.Unauthenticated, r, "%s: %s", ErrToken.Msg, r.Detail)
	if r.Reason == token.NoDischarge || r.Reason == token.DischargeExpired {
		return f.WithStatus(string(r.Reason)) // clients fetch one
	}
	return f
}
