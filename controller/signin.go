package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sso"
	"bulkhead/store"
)

// attemptLife is how long a person may take at the provider.
const attemptLife = 10 * time.Minute

// ssoAttempt is a browser that was sent to a provider.
type ssoAttempt struct {
	sso.Attempt
	browser string
	org     string
	config  string
	next    string
}

// loginPage is where a person signs in.
//
//	GET /login?org=acme&next=/device
func (c *Controller) loginPage(r *call) (int, any, error) {
	q := r.URL.Query()
	s, org := c.browserSession(r), fault.Clip(q.Get("org"))
	return c.show(r, http.StatusOK, "login.html", "Sign in", map[string]any{
		"Org": org, "Next": next(q.Get("next")), "SignedIn": s != nil, "Needs": s != nil && org != "" && c.needsSSO(s, org),
	})
}

// toLogin sends a browser without a session to the page above, and back.
func toLogin(r *call, org string) (int, any, error) {
	to := "/login?next=" + next(r.URL.Path)
	if org != "" {
		to += "&org=" + org
	}
	return seeOther(r, to)
}

// startSSO sends the browser to an organization's provider. The page goes on by itself:
// a redirect would be held against the form's policy.
//
//	POST /login/sso
func (c *Controller) startSSO(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	slug := r.PostForm.Get("org")
	conf := c.directory.SSOOf(slug)
	if conf == nil {
		return 0, nil, noSSO(slug)
	}
	p, err := c.discover(r.Context(), conf)
	if err != nil {
		return 0, nil, c.refusedSignIn(r, "sso", slug, err)
	}
	a := ssoAttempt{Attempt: sso.NewAttempt(), browser: r.browser(), org: slug, config: conf.ID, next: next(r.PostForm.Get("next"))}
	if err := c.attempts.add(sessionID(a.State), r.from(), a); err != nil {
		return 0, nil, err
	}
	return c.show(r, http.StatusOK, "leaving.html", "Signing in", map[string]string{"To": p.AuthURL(c.publicURL("/sso/callback"), a.Attempt), "Issuer": conf.Issuer})
}

// finishSSO takes what the provider's answer says, checks it, and begins a session.
//
//	GET /sso/callback?state=…&code=…&iss=…
func (c *Controller) finishSSO(r *call) (int, any, error) {
	q := r.URL.Query()
	a, ok := c.attempts.take(sessionID(q.Get("state"))) // whatever comes of it, it is over
	if !ok || a.browser != r.browser() {
		return 0, nil, c.refusedSignIn(r, "sso", a.org, sso.Refuse(sso.BadState, nil, "this answer belongs to no sign-in of this browser, or to one that is over; begin again"))
	}
	conf := c.directory.SSOOf(a.org)
	if conf == nil || conf.ID != a.config {
		return 0, nil, c.refusedSignIn(r, "sso", a.org, sso.Refuse(sso.BadState, nil, "the organization's single sign-on was changed meanwhile; begin again"))
	}
	p, err := c.discover(r.Context(), conf)
	if err != nil {
		return 0, nil, c.refusedSignIn(r, "sso", a.org, err)
	}
	id, err := p.Redeem(r.Context(), c.publicURL("/sso/callback"), a.Attempt, q)
	if err != nil {
		return 0, nil, c.refusedSignIn(r, "sso", a.org, err)
	}
	role, err := conf.Policy.Admit(id)
	if err != nil {
		if e := c.expel(r.Context(), conf, id); e != nil {
			return 0, nil, e
		}
		return 0, nil, c.refusedSignIn(r, "sso", a.org, err)
	}
	var secret string
	var s *record.Session
	err = retry(r.Context(), func() error {
		var t txn
		u, err := c.admitPerson(r.Context(), &t, conf, id, record.Role(role))
		if err != nil {
			return err
		}
		c.endBrowser(r, &t)
		secret, s = c.newSession(&t, record.Session{User: u, Kind: kindBrowser, Org: conf.Org, Config: conf.ID, Method: "sso", From: r.from().String()})
		c.noteUser(r, s.User, s.Org)
		return c.commit(r.Context(), &t)
	})
	if fault.Is(err, fault.TooMany) {
		return 0, nil, c.refusedSignIn(r, "sso", a.org, err)
	}
	if err != nil {
		return 0, nil, err
	}
	setSession(r, secret)
	c.event(r, "signed_in", s.ID[:16], nil)
	return seeOther(r, a.next)
}

// identity ties a person at a provider to a user here. Nothing else does: not the e-mail
// address, which the provider may give to another.
type identity struct {
	Issuer  string     `json:"issuer"`
	Subject string     `json:"subject"`
	User    key.UserID `json:"user"`
}

func identityKeyOf(issuer, subject string) string {
	sum := sha256.Sum256([]byte(issuer + "\x00" + subject))
	return record.IdentityKey(hex.EncodeToString(sum[:]))
}

// fromSSO is the source of memberships that single sign-on made and keeps. One that
// somebody set by hand is theirs to keep.
const fromSSO = "sso"

// admitPerson has a transaction make the user whom a provider vouches for, at the first time,
// and the membership as the policy says now.
func (c *Controller) admitPerson(ctx context.Context, t *txn, conf *record.SSO, id *sso.Identity, role record.Role) (key.UserID, error) {
	ik := identityKeyOf(id.Issuer, id.Subject)
	known, rev, err := record.Get[identity](ctx, c.store, ik)
	if err != nil {
		return "", err
	}
	t.when(ik, rev)
	var uid key.UserID
	if known != nil && c.directory.User(known.User) != nil {
		uid = known.User
	} else {
		if err := c.roomForUser(conf.Org, 0); err != nil {
			return "", err
		}
		name, email, err := c.nameFor(ctx, t, conf.Org, id)
		if err != nil {
			return "", err
		}
		u, err := c.newUser(ctx, t, record.User{Name: name, Email: email, Issuer: id.Issuer, Org: conf.Org})
		if err != nil {
			return "", err
		}
		uid = u.ID
		t.do(record.Put(ik, identity{Issuer: id.Issuer, Subject: id.Subject, User: uid}))
	}
	m, mrev, err := record.Get[record.Member](ctx, c.store, record.MemberKey(conf.Org, uid))
	if err != nil {
		return "", err
	}
	_, orgRev, err := record.Get[record.Org](ctx, c.store, record.OrgKey(conf.Org))
	if err != nil {
		return "", err
	}
	if m == nil {
		m = &record.Member{Org: conf.Org, User: uid, Source: fromSSO, CreatedAt: now()}
	}
	if m.Source == fromSSO && m.Role != role {
		if m.Role == record.Owner { // the last owner stays one, whatever the groups say
			if err := c.mayGo(ctx, t, m); err != nil {
				return uid, nil
			}
		}
		m.Role = role
		t.when(record.OrgKey(conf.Org), orgRev)
		t.when(record.MemberKey(conf.Org, uid), mrev)
		t.do(record.Put(record.MemberKey(conf.Org, uid), m))
	}
	return uid, nil
}

// expel ends the membership of somebody whom the provider still knows, and the policy no
// longer lets in, if single sign-on had made it.
func (c *Controller) expel(ctx context.Context, conf *record.SSO, id *sso.Identity) error {
	return retry(ctx, func() error {
		known, _, err := record.Get[identity](ctx, c.store, identityKeyOf(id.Issuer, id.Subject))
		if err != nil || known == nil {
			return err
		}
		m, rev, err := record.Get[record.Member](ctx, c.store, record.MemberKey(conf.Org, known.User))
		if err != nil || m == nil || m.Source != fromSSO {
			return err
		}
		var t txn
		if err := c.mayGo(ctx, &t, m); err != nil {
			return nil // the last owner
		}
		t.when(record.MemberKey(conf.Org, known.User), rev)
		t.do(store.Delete(record.MemberKey(conf.Org, known.User)))
		if err := c.commit(ctx, &t); err != nil {
			return err
		}
		c.log.Info("member removed by single sign-on", "org", conf.Org, "user", known.User)
		return c.dropTokens(ctx, known.User, conf.Org)
	})
}

// nameFor is a free name for a new user, and the address if the organization vouches for
// its domain: then it is the name, if nobody has it. What another organization says is
// marked as its word: ann@example.com@acme. Otherwise it is a name that cannot be taken
// for somebody else.
func (c *Controller) nameFor(ctx context.Context, t *txn, org string, id *sso.Identity) (name, email string, err error) {
	sum := sha256.Sum256([]byte(id.Issuer + "\x00" + id.Subject))
	names := []string{"sso-" + hex.EncodeToString(sum[:8])}
	if id.EmailVerified && strings.Count(id.Email, "@") == 1 {
		ok, err := c.vouches(ctx, t, org, id.Email)
		if err != nil {
			return "", "", err
		}
		if ok {
			email = id.Email
			names = slices.Insert(names, 0, id.Email)
		} else {
			names = slices.Insert(names, 0, id.Email+"@"+org)
		}
	}
	for _, name := range names {
		if _, err := key.ParseUserName(name); err != nil {
			continue
		}
		taken, _, err := record.Get[record.UserName](ctx, c.store, record.UserNameKey(name))
		if err != nil {
			return "", "", err
		}
		if taken == nil {
			return name, email, nil
		}
	}
	return "", "", fault.New(fault.Unprocessable, "there is another user of your name; ask an operator to remove or rename it").WithStatus("name_taken")
}

// endBrowser has a transaction end the session that the browser had: it gets another.
func (c *Controller) endBrowser(r *call, t *txn) {
	if s := c.browserSession(r); s != nil {
		t.end(s)
	}
}

// logoutBrowser ends the browser's session.
//
//	POST /logout
func (c *Controller) logoutBrowser(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	if s := c.browserSession(r); s != nil {
		if err := c.endSession(r.Context(), s); err != nil {
			return 0, nil, err
		}
		c.event(r, "session_ended", s.ID[:16], nil)
	}
	clearSession(r)
	return c.show(r, http.StatusOK, "done.html", "Signed out", "You are signed out here. Sessions of command lines go on; bulkhead auth sessions shows them.")
}

// refusedSignIn counts and notes a sign-in that was refused, and returns why.
func (c *Controller) refusedSignIn(r *call, method, on string, err error) error {
	var f *fault.Error
	word := "other"
	if errors.As(err, &f) && f.Status != "" {
		word = f.Status
	}
	c.metrics.signIns.WithLabelValues(method, word).Inc()
	c.event(r, "sign_in_refused", on, err)
	return err
}

// event notes what happened around a sign-in.
func (c *Controller) event(r *call, what, on string, err error) {
	c.noteEvent(r, what, on, err)
	log := c.log.With("request", r.id, "event", what, "on", on, "from", r.from())
	if err != nil {
		log.Warn("sign-in event", "err", err)
		return
	}
	log.Info("sign-in event")
}
