package controller

import (
	"errors"
	"time"

	"bulkhead/fault"
	"bulkhead/token"
)

// standing says for whom verified tokens stand now: their records are there, their users
// are, and their organizations let them live so long. It is asked at every request, and again
// while one lasts.
func (d *directory) standing(good []*token.Verified) (caller, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var who caller
	var first error
	for _, v := range good {
		rec, err := d.stands(v, now())
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if who.Token == nil {
			who = caller{Kind: callerPerson, Name: d.users[rec.User].Name, User: rec.User, Token: rec}
		} else if who.User != rec.User {
			return caller{}, &token.Refusal{Reason: token.OtherUser, Detail: "the tokens belong to different users"}
		}
		who.verified = append(who.verified, v)
	}
	if who.Token == nil {
		return caller{}, first
	}
	return who, nil
}

// stands is standing for one token. d.mu is held.
func (d *directory) stands(v *token.Verified, at time.Time) (*tokenRecord, error) {
	rec := d.tokens[v.ID]
	switch {
	case rec == nil:
		return nil, &token.Refusal{Reason: token.Revoked, Detail: "the token was revoked"}
	case d.users[rec.User] == nil:
		return nil, &token.Refusal{Reason: token.Revoked, Detail: "the token's user was removed"}
	case !d.ring.Has(v.KeyID):
		return nil, &token.Refusal{Reason: token.UnknownKey, Detail: "the token's root key was withdrawn"}
	case at.After(v.Until), !at.Before(rec.ExpiresAt):
		return nil, &token.Refusal{Reason: token.Expired, Detail: "the token expired at " + stamp(v.Until)}
	}
	if s := d.tokenOf[rec.ID]; s != nil && d.living(s.ID, at) == nil {
		return nil, &token.Refusal{Reason: token.SessionEnded, Detail: "the session that the token belongs to is over; log in again"}
	}
	if rec.Org == "" {
		return rec, nil
	}
	o := d.orgs[rec.Org]
	if o == nil {
		return nil, &token.Refusal{Reason: token.Revoked, Detail: "the token's organization was removed"}
	}
	if _, most := tokenLife(o); at.Sub(rec.CreatedAt) > most {
		return nil, &token.Refusal{Reason: token.Expired, Detail: "the token is older than organization " + o.Slug + " lets tokens be: " + most.String()}
	}
	return rec, nil
}

// Lives of tokens, where the organization does not say less.
const (
	defaultTokenLife = 30 * 24 * time.Hour
	maxTokenLife     = 365 * 24 * time.Hour
	minTokenLife     = time.Minute
)

// tokenLife is how long an organization's tokens live when nobody says, and at most.
func tokenLife(o *org) (usual, most time.Duration) {
	usual, most = defaultTokenLife, maxTokenLife
	if o.TokenMax > 0 {
		most = min(most, o.TokenMax)
	}
	if o.TokenDefault > 0 {
		usual = o.TokenDefault
	}
	return min(usual, most), most
}

func refusalOf(err error) *token.Refusal {
	var r *token.Refusal
	errors.As(err, &r)
	return r
}

// parseLife reads how long a token shall live, as clients send it: a duration of Go.
func parseLife(field, s string, usual, most time.Duration) (time.Duration, error) {
	if s == "" {
		return usual, nil
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fault.New(fault.Invalid, "%s is %q; it is a duration such as 720h", field, clip(s))
	case d < minTokenLife:
		return 0, fault.New(fault.Invalid, "%s is %s; a token lives for %s at least", field, d, minTokenLife)
	case d > most:
		return 0, fault.New(fault.Invalid, "%s is %s; a token lives for %s at most here", field, d, most)
	}
	return d, nil
}
