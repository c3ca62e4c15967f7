package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
)

// signedIn is a session: somebody has shown who they are, and may go on as they until it
// ends. A browser's is a cookie; a CLI's goes with one token, which ends with it. The
// secret is kept nowhere: the record lies under its SHA-256.
type signedIn struct {
	ID   string     `json:"id"` // SHA-256 of the secret, in hexadecimal
	User key.UserID `json:"user"`
	Kind string     `json:"kind"` // "browser" or "cli"
	// Org and Config say by which organization's single sign-on they came; both are empty
	// for a passkey and for a token.
	Org    string `json:"org,omitempty"`
	Config string `json:"config,omitempty"`
	Method string `json:"method"` // "sso", "passkey"
	// Passkey is the one they came by: the session is over with it.
	Passkey string `json:"passkey,omitempty"`

	TokenID key.TokenID `json:"token,omitempty"` // of a CLI: ends with the session
	Name    string      `json:"name,omitempty"`  // of the host that asked
	From    string      `json:"from,omitempty"`

	CreatedAt time.Time     `json:"created_at"`
	SeenAt    time.Time     `json:"seen_at"`
	ExpiresAt time.Time     `json:"expires_at"`
	Idle      time.Duration `json:"idle"` // it ends when it was not used for that long
}

// Lives of sessions.
const (
	browserLife = 12 * time.Hour
	browserIdle = time.Hour
	cliLife     = 30 * 24 * time.Hour
	cliIdle     = 14 * 24 * time.Hour
	// ssoLife is how long a session by single sign-on lasts, unless the organization says
	// otherwise: for so long at most somebody stays who has lost their account there.
	ssoLife = 12 * time.Hour
)

// maxSessions bounds a user's sessions; the oldest goes.
const maxSessions = 50

const (
	kindBrowser = "browser"
	kindCLI     = "cli"
)

func sessionID(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// lives reports whether a session is good now. It is asked at every use, and depends on
// what is in force, not on somebody's having removed it: the user, the membership and the
// organization's configuration are as they were when it began.
func (d *directory) lives(id string, now time.Time) *signedIn {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.living(id, now)
}

// living is lives while d.mu is held.
func (d *directory) living(id string, now time.Time) *signedIn {
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

// newSession has a transaction make a session, from what s says of it, and returns its secret.
func (c *Controller) newSession(t *txn, s signedIn) (string, *signedIn) {
	secret := newSecret()
	s.ID, s.CreatedAt = sessionID(secret), now()
	s.SeenAt = s.CreatedAt
	s.Idle, s.ExpiresAt = browserIdle, s.CreatedAt.Add(browserLife)
	if s.Kind == kindCLI {
		s.Idle, s.ExpiresAt = cliIdle, s.CreatedAt.Add(cliLife)
	}
	if conf := c.directory.ssoOf(s.Org); conf != nil {
		if end := s.CreatedAt.Add(conf.life()); end.Before(s.ExpiresAt) {
			s.ExpiresAt = end
		}
	}
	if all := c.directory.sessionsOf(s.User); len(all) >= maxSessions {
		for _, old := range all[:len(all)-maxSessions+1] {
			t.end(old)
		}
	}
	t.when(sessionKey(s.ID), 0)
	t.do(put(sessionKey(s.ID), s))
	return secret, &s
}

// end has a transaction end a session: its token goes with it.
func (t *txn) end(s *signedIn) {
	for _, op := range t.ops {
		if op.Key == sessionKey(s.ID) {
			return
		}
	}
	t.do(store.Delete(sessionKey(s.ID)))
	if s.TokenID != "" {
		t.do(store.Delete(tokenKey(s.TokenID)))
	}
}

// endSession ends one.
func (c *Controller) endSession(ctx context.Context, s *signedIn) error {
	var t txn
	t.end(s)
	return c.commit(ctx, &t)
}

// touch notes that a session was used, at most every tenth of the time that it may idle,
// so that using one is not writing each time.
func (c *Controller) touch(ctx context.Context, s *signedIn) {
	if now().Sub(s.SeenAt) < s.Idle/10 {
		return
	}
	cur, rev, err := get[signedIn](ctx, c.store, sessionKey(s.ID))
	if err != nil || cur == nil {
		return
	}
	cur.SeenAt = now()
	t := txn{}
	t.when(sessionKey(s.ID), rev)
	t.do(put(sessionKey(s.ID), cur))
	c.commit(ctx, &t) // who fails here asks again
}

// sweepSessions removes sessions that are over, with their tokens, until ctx ends. They
// are refused without it.
func (c *Controller) sweepSessions(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Minute):
		}
		for _, s := range c.directory.allSessions() {
			if c.directory.lives(s.ID, now()) == nil {
				if err := c.endSession(ctx, s); err != nil {
					c.log.Warn("a session that is over could not be removed", "err", err)
				}
			}
		}
	}
}

// Session is a session as the API answers it.
type Session struct {
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	Method    string `json:"method"`
	Org       string `json:"organization,omitempty"`
	Name      string `json:"name,omitempty"`
	From      string `json:"from,omitempty"`
	Token     string `json:"token_id,omitempty"`
	CreatedAt string `json:"created_at"`
	SeenAt    string `json:"seen_at"`
	ExpiresAt string `json:"expires_at"`
	Current   bool   `json:"current,omitempty"`
}

// seesSession reports whether a caller has to do with a session of their user's. A login
// for one organization, whose provider may have vouched for anybody, has to do with those for
// that organization.
func (c *Controller) seesSession(who caller, s *signedIn, act action) bool {
	if who.Token != nil && s.TokenID == who.Token.ID || c.authorize(who, access{Act: act, What: whatAccount}) == nil {
		return true
	}
	of := s.Org
	if rec := c.directory.token(s.TokenID); rec != nil {
		of = rec.Org
	}
	return of != "" && who.Token != nil && of == who.Token.Org
}

// listSessions lists the caller's own sessions that live.
//
//	GET /v1/sessions
func (c *Controller) listSessions(r *call) (int, any, error) {
	out := struct {
		Sessions []Session `json:"sessions"`
	}{Sessions: []Session{}}
	for _, s := range c.directory.sessionsOf(r.who.User) {
		if c.directory.lives(s.ID, now()) == nil || !c.seesSession(r.who, s, actRead) {
			continue
		}
		out.Sessions = append(out.Sessions, Session{
			ID: s.ID[:16], Kind: s.Kind, Method: s.Method, Org: s.Org, Name: s.Name, From: s.From, Token: string(s.TokenID),
			CreatedAt: stamp(s.CreatedAt), SeenAt: stamp(s.SeenAt), ExpiresAt: stamp(s.ExpiresAt),
			Current: r.who.Token != nil && s.TokenID == r.who.Token.ID,
		})
	}
	return http.StatusOK, out, nil
}

// deleteSession ends one of the caller's sessions, "current" the one that the token came
// with, or "all". Its token is refused from then on.
//
//	DELETE /v1/sessions/{session}
func (c *Controller) deleteSession(r *call) (int, any, error) {
	which := r.PathValue("session")
	ended := 0
	for _, s := range c.directory.sessionsOf(r.who.User) {
		current := r.who.Token != nil && s.TokenID == r.who.Token.ID
		if !c.seesSession(r.who, s, actDelete) {
			continue
		}
		if which == "all" || which == "current" && current || len(which) >= 16 && strings.HasPrefix(s.ID, which) {
			if err := c.endSession(r.Context(), s); err != nil {
				return 0, nil, err
			}
			ended++
			c.event(r, "session_ended", s.ID[:16], nil)
		}
	}
	if ended == 0 && which != "all" {
		return 0, nil, fault.New(fault.NotFound, "you have no session %q; \"bulkhead auth sessions list\" shows those you have", clip(which))
	}
	return http.StatusOK, map[string]int{"ended": ended}, nil
}

// The directory's sessions and configurations of single sign-on.

func (d *directory) takeSession(e store.Event) {
	id := strings.TrimPrefix(e.Key, prefixSession)
	if old := d.sessions[id]; old != nil {
		drop(d.signed, old.User, id)
		delete(d.tokenOf, old.TokenID)
		delete(d.sessions, id)
	}
	if s := live[signedIn](e); s != nil {
		d.sessions[id] = s
		add(d.signed, s.User, id, s)
		if s.TokenID != "" {
			d.tokenOf[s.TokenID] = s
		}
	}
}

func (d *directory) takeSSO(e store.Event) {
	slug := strings.TrimPrefix(e.Key, prefixSSO)
	delete(d.sso, slug)
	if s := live[ssoConfig](e); s != nil {
		d.sso[slug] = s
	}
}

// sessionWith is the session that a token came with, whether it lives or not.
func (d *directory) sessionWith(id key.TokenID) *signedIn {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.tokenOf[id]
}

func (d *directory) ssoOf(slug string) *ssoConfig {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.sso[slug]
}

// sessionsOf are a user's, the oldest first.
func (d *directory) sessionsOf(id key.UserID) []*signedIn {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := sorted(d.signed[id])
	slices.SortStableFunc(out, func(a, b *signedIn) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}

func (d *directory) allSessions() []*signedIn {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.sessions)
}
