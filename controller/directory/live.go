package directory

import (
	"time"

	"bulkhead/controller/record"
	"bulkhead/token"
)

// SessionBehind is the live session by an organization's single sign-on that a token came
// with, or that discharged it; nil for none.
func (d *Directory) SessionBehind(v *token.Verified, slug string) *record.Session {
	d.mu.RLock()
	defer d.mu.RUnlock()
	rec, o, at := d.tokens[v.ID], d.orgs[slug], d.now()
	if rec == nil || o == nil {
		return nil
	}
	if s := d.tokenOf[v.ID]; s != nil {
		if s = d.living(s.ID, at); s != nil && s.Org == slug && s.User == rec.User {
			return s
		}
	}
	if f := v.For; f == nil || f.Org != uint64(o.Number) || f.User != rec.User || f.Token != rec.ID {
		return nil
	}
	for _, id := range v.Sessions {
		if s := d.living(id, at); s != nil && s.Org == slug && s.User == rec.User {
			return s
		}
	}
	return nil
}

// Lives reports whether a session is good now. It is asked at every use, and depends on
// what is in force, not on somebody's having removed it: the user, the membership and the
// organization's configuration are as they were when it began.
func (d *Directory) Lives(id string, now time.Time) *record.Session {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.living(id, now)
}

// living is Lives while d.mu is held.
func (d *Directory) living(id string, now time.Time) *record.Session {
	s := d.sessions[id]
	if s == nil || !now.Before(s.ExpiresAt) || now.Sub(s.SeenAt) >= s.Idle || d.users[s.User] == nil {
		return nil
	}
	if s.Org != "" {
		conf := d.sso[s.Org]
		if conf == nil || conf.ID != s.Config || d.members[s.Org][s.User] == nil {
			return nil
		}
	}
	if s.Passkey != "" {
		if p := d.passkeys[s.User][s.Passkey]; p == nil || !p.SuspectAt.IsZero() {
			return nil
		}
	}
	return s
}

// Stands says whose a verified token is now, or why it is nobody's: its record is there, its
// user is, and its organization lets it live so long. A refusal is a *token.Refusal.
func (d *Directory) Stands(v *token.Verified) (*record.Token, *record.User, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	at := d.now()
	rec := d.tokens[v.ID]
	switch {
	case rec == nil:
		return nil, nil, &token.Refusal{Reason: token.Revoked, Detail: "the token was revoked"}
	case d.users[rec.User] == nil:
		return nil, nil, &token.Refusal{Reason: token.Revoked, Detail: "the token's user was removed"}
	case !d.ring.Has(v.KeyID):
		return nil, nil, &token.Refusal{Reason: token.UnknownKey, Detail: "the token's root key was withdrawn"}
	case at.After(v.Until), !at.Before(rec.ExpiresAt):
		return nil, nil, &token.Refusal{Reason: token.Expired, Detail: "the token expired at " + v.Until.UTC().Format(time.RFC3339Nano)}
	}
	if s := d.tokenOf[rec.ID]; s != nil && d.living(s.ID, at) == nil {
		return nil, nil, &token.Refusal{Reason: token.SessionEnded, Detail: "the session that the token belongs to is over; log in again"}
	}
	if rec.Org == "" {
		return rec, d.users[rec.User], nil
	}
	o := d.orgs[rec.Org]
	if o == nil {
		return nil, nil, &token.Refusal{Reason: token.Revoked, Detail: "the token's organization was removed"}
	}
	if _, most := o.TokenLife(); at.Sub(rec.CreatedAt) > most {
		return nil, nil, &token.Refusal{Reason: token.Expired, Detail: "the token is older than organization " + o.Slug + " lets tokens be: " + most.String()}
	}
	return rec, d.users[rec.User], nil
}

// SessionLives is asked by tokens that are bound to a session.
func (d *Directory) SessionLives(id string) bool { return d.Lives(id, d.now()) != nil }
