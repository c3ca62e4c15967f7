package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"bulkhead/audit"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/passkey"
	"bulkhead/store"
	"bulkhead/token"
)

func passkeyID(credential []byte) string {
	sum := sha256.Sum256(credential)
	return hex.EncodeToString(sum[:])
}

// passkeyIDShown is how many letters of an id people see.
const passkeyIDShown = 16

// Passkey is a passkey as the API answers it.
type Passkey struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Synced    bool   `json:"synced"` // its maker keeps copies of it
	CreatedAt string `json:"created_at"`
	UsedAt    string `json:"used_at,omitempty"`
	SuspectAt string `json:"suspect_at,omitempty"` // its counter went back: it signs nobody in
}

// PasskeyLink is where a browser makes a passkey.
type PasskeyLink struct {
	URL       string `json:"url"` // a secret: who opens it first makes the passkey
	Name      string `json:"name"`
	ExpiresAt string `json:"expires_at"`
}

// listPasskeys lists the caller's own.
//
//	GET /v1/passkeys
func (c *Controller) listPasskeys(r *call) (int, any, error) {
	out := struct {
		Passkeys []Passkey `json:"passkeys"`
	}{Passkeys: []Passkey{}}
	for _, p := range c.directory.PasskeysOf(r.who.User) {
		b := Passkey{ID: p.ID[:passkeyIDShown], Name: p.Name, Synced: p.Credential.Flags.BackupState, CreatedAt: stamp(p.CreatedAt)}
		if !p.UsedAt.IsZero() {
			b.UsedAt = stamp(p.UsedAt)
		}
		if !p.SuspectAt.IsZero() {
			b.SuspectAt = stamp(p.SuspectAt)
		}
		out.Passkeys = append(out.Passkeys, b)
	}
	return http.StatusOK, out, nil
}

// ownLogin refuses all tokens but that of a login, for no organization in particular and
// with nothing taken from it: a passkey signs its user in with all their rights, so that a
// lesser token must not make one, nor take away the others.
func ownLogin(who access.Caller) error {
	if who.Token == nil || who.Token.Kind != token.Login || len(who.Verified) != 1 || len(who.Verified[0].Own) > 1 {
		return fault.New(fault.Denied, "passkeys are made and removed with the token of a login, not with others; log in: bulkhead login").WithStatus("passkey_token")
	}
	if who.Token.Org != "" {
		return fault.New(fault.Denied, "this login is good for organization %q alone, and a passkey is good for all that is yours: use a login that is for no organization; who comes by single sign-on needs no passkey", who.Token.Org).WithStatus("passkey_token")
	}
	return nil
}

// maxPasskeyName bounds the name of a passkey, in bytes.
const maxPasskeyName = 64

// addPasskey makes a link to the page on which a browser makes a passkey for the caller.
// It is good once, for ten minutes, and for as long as the caller's own token.
//
//	POST /v1/passkeys {"name": "laptop"}
func (c *Controller) addPasskey(r *call) (int, any, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := r.read(&in, false); err != nil {
		return 0, nil, err
	}
	if err := ownLogin(r.who); err != nil {
		return 0, nil, err
	}
	if in.Name == "" {
		in.Name = "passkey"
	}
	if len(in.Name) > maxPasskeyName || hostName(in.Name) != in.Name {
		return 0, nil, fault.New(fault.Invalid, "name is %q; it is at most %d bytes that can be shown", fault.Clip(in.Name), maxPasskeyName)
	}
	if n := len(c.directory.PasskeysOf(r.who.User)); n >= passkey.MaxPerUser {
		return 0, nil, fault.New(fault.Unprocessable, "you have %d passkeys, which is the most there can be; remove one first", n)
	}
	secret := newSecret()
	l := &passkeyLink{user: r.who.User, token: r.who.Token.ID, name: in.Name, until: now().Add(passkeyLinkLife)}
	if err := c.passkeyLinks.add(sessionID(secret), r.from(), l); err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, PasskeyLink{URL: c.publicURL("/passkeys/add#" + secret), Name: in.Name, ExpiresAt: stamp(l.until)}, nil
}

// removePasskey removes one of the caller's passkeys, by its id or name. Sessions that
// came by it are over with it. The last one stays, unless it is forced, if there is no
// other way in.
//
//	DELETE /v1/passkeys/{passkey}?force=true
func (c *Controller) removePasskey(r *call) (int, any, error) {
	force, err := r.flag("force")
	if err != nil {
		return 0, nil, err
	}
	if err := ownLogin(r.who); err != nil {
		return 0, nil, err
	}
	which := r.PathValue("passkey")
	var gone *record.Passkey
	err = c.changePasskeys(r.Context(), r.who.User, func(t *txn, u *record.User, have []*record.Passkey) error {
		var found []*record.Passkey
		for _, p := range have {
			if len(which) >= passkeyIDShown && strings.HasPrefix(p.ID, which) || p.Name == which {
				found = append(found, p)
			}
		}
		switch {
		case len(found) == 0:
			return fault.New(fault.NotFound, "you have no passkey %q; \"bulkhead auth passkey list\" shows those you have", fault.Clip(which))
		case len(found) > 1:
			return fault.New(fault.Conflict, "%d of your passkeys are called %q; give the id that \"bulkhead auth passkey list\" shows", len(found), fault.Clip(which))
		}
		gone = found[0]
		good := slices.ContainsFunc(have, func(p *record.Passkey) bool { return p != gone && p.SuspectAt.IsZero() })
		if !force && !good && gone.SuspectAt.IsZero() && !c.comesBySSO(u) {
			return fault.New(fault.Conflict, "this is your last passkey, and you have no other way to sign in when your token is over; add another one first: bulkhead auth passkey add; or force it").WithStatus("passkey_last")
		}
		t.do(store.Delete(record.PasskeyKey(u.ID, gone.ID)))
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	for _, s := range c.directory.SessionsOf(r.who.User) { // they live no more; their tokens end here
		if s.Passkey == gone.ID {
			if err := c.endSession(r.Context(), s); err != nil {
				return 0, nil, err
			}
		}
	}
	c.notePasskey(r, "passkey_removed", gone.ID)
	return ok()
}

// comesBySSO reports whether a user came about at a provider that still lets people in to
// an organization of theirs.
func (c *Controller) comesBySSO(u *record.User) bool {
	for _, m := range c.directory.OrgsOf(u.ID) {
		if conf := c.directory.SSOOf(m.Org); u.Issuer != "" && conf != nil && conf.Issuer == u.Issuer {
			return true
		}
	}
	return false
}

// changePasskeys is the one door through which a user's passkeys come and go.
func (c *Controller) changePasskeys(ctx context.Context, id key.UserID, f func(t *txn, u *record.User, have []*record.Passkey) error) error {
	return retry(ctx, func() error {
		u, rev, err := record.Get[record.User](ctx, c.store, record.UserKey(id))
		if err != nil {
			return err
		}
		if u == nil {
			return access.ErrToken
		}
		have, _, err := record.List[record.Passkey](ctx, c.store, record.PasskeysOf(id))
		if err != nil {
			return err
		}
		var t txn
		t.when(record.UserKey(id), rev)
		t.do(record.Put(record.UserKey(id), u))
		if err := f(&t, u, have); err != nil {
			return err
		}
		return c.commit(ctx, &t)
	})
}

// dropPasskeys has the transaction that removes a user remove their passkeys.
func (c *Controller) dropPasskeys(ctx context.Context, t *txn, id key.UserID) error {
	have, _, err := record.List[record.Passkey](ctx, c.store, record.PasskeysOf(id))
	for _, p := range have {
		t.do(store.Delete(record.PasskeyKey(id, p.ID)))
	}
	return err
}

// notePasskey says in the record of a call what happened to a passkey.
func (c *Controller) notePasskey(r *call, what, id string) {
	if p := recordIn(r.Context()); p != nil {
		p.change(func(rec *audit.Record) { rec.Detail, rec.Target = what, "passkey="+id[:passkeyIDShown] })
	}
	c.log.Info("passkey event", "request", r.id, "event", what, "passkey", id[:passkeyIDShown], "from", r.from())
}
