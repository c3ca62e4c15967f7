package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/store"
)

// Lives of sessions.
const (
	browserLife = 12 * time.Hour
	browserIdle = time.Hour
	cliLife     = 30 * 24 * time.Hour
	cliIdle     = 14 * 24 * time.Hour
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

// newSession has a transaction make a session, from what s says of it, and returns its secret.
func (c *Controller) newSession(t *txn, s record.Session) (string, *record.Session) {
	secret := newSecret()
	s.ID, s.CreatedAt = sessionID(secret), now()
	s.SeenAt = s.CreatedAt
	s.Idle, s.ExpiresAt = browserIdle, s.CreatedAt.Add(browserLife)
	if s.Kind == kindCLI {
		s.Idle, s.ExpiresAt = cliIdle, s.CreatedAt.Add(cliLife)
	}
	if conf := c.directory.SSOOf(s.Org); conf != nil {
		if end := s.CreatedAt.Add(conf.Life()); end.Before(s.ExpiresAt) {
			s.ExpiresAt = end
		}
	}
	if all := c.directory.SessionsOf(s.User); len(all) >= maxSessions {
		for _, old := range all[:len(all)-maxSessions+1] {
			t.end(old)
		}
	}
	t.when(record.SessionKey(s.ID), 0)
	t.do(record.Put(record.SessionKey(s.ID), s))
	return secret, &s
}

// end has a transaction end a session: its token goes with it.
func (t *txn) end(s *record.Session) {
	for _, op := range t.ops {
		if op.Key == record.SessionKey(s.ID) {
			return
		}
	}
	t.do(store.Delete(record.SessionKey(s.ID)))
	if s.TokenID != "" {
		t.do(store.Delete(record.TokenKey(s.TokenID)))
	}
}

// endSession ends one.
func (c *Controller) endSession(ctx context.Context, s *record.Session) error {
	var t txn
	t.end(s)
	return c.commit(ctx, &t)
}

// touch notes that a session was used, at most every tenth of the time that it may idle,
// so that using one is not writing each time.
func (c *Controller) touch(ctx context.Context, s *record.Session) {
	if now().Sub(s.SeenAt) < s.Idle/10 {
		return
	}
	cur, rev, err := record.Get[record.Session](ctx, c.store, record.SessionKey(s.ID))
	if err != nil || cur == nil {
		return
	}
	cur.SeenAt = now()
	t := txn{}
	t.when(record.SessionKey(s.ID), rev)
	t.do(record.Put(record.SessionKey(s.ID), cur))
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
		for _, s := range c.directory.AllSessions() {
			if c.directory.Lives(s.ID, now()) == nil {
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
func (c *Controller) seesSession(who access.Caller, s *record.Session, act access.Action) bool {
	if who.Token != nil && s.TokenID == who.Token.ID || c.authorize(who, access.Request{Act: act, What: access.Account}) == nil {
		return true
	}
	of := s.Org
	if rec := c.directory.Token(s.TokenID); rec != nil {
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
	for _, s := range c.directory.SessionsOf(r.who.User) {
		if c.directory.Lives(s.ID, now()) == nil || !c.seesSession(r.who, s, access.Read) {
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
	for _, s := range c.directory.SessionsOf(r.who.User) {
		current := r.who.Token != nil && s.TokenID == r.who.Token.ID
		if !c.seesSession(r.who, s, access.Delete) {
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
		return 0, nil, fault.New(fault.NotFound, "you have no session %q; \"bulkhead auth sessions list\" shows those you have", fault.Clip(which))
	}
	return http.StatusOK, map[string]int{"ended": ended}, nil
}
