package controller

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/passkey"
)

// Ceremonies of passkeys: a browser asks what to have its device sign, and sends what the
// device made as a form. Each is of the browser that began it, good once, and lies in
// memory alone.

// passkeyLinkLife is how long a link to make a passkey is good.
const passkeyLinkLife = 10 * time.Minute

// passkeyState is the word for an answer that belongs to nothing that was asked.
const passkeyState = "passkey_state"

// passkeyLink lets the browser that opens it first make one passkey.
type passkeyLink struct {
	user  key.UserID
	token key.TokenID // of whoever asked for it: the link is good for as long
	name  string      // of the passkey
	until time.Time

	mu      sync.Mutex
	browser string
}

// opens reports whether the link is this browser's: it becomes the first one's.
func (l *passkeyLink) opens(browser string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.browser == "" {
		l.browser = browser
	}
	return l.browser == browser
}

// ceremony is one that was begun.
type ceremony struct {
	asked   *passkey.Pending
	browser string
	next    string // where signing in leads
	link    string // under which the link lies with which a passkey is made, if one is
}

// PasskeyCeremony is what a page gets to work with.
type PasskeyCeremony struct {
	Attempt string          `json:"attempt"`
	Options json.RawMessage `json:"options"`
	User    string          `json:"user,omitempty"` // whose passkey is made
	Name    string          `json:"name,omitempty"`
}

// beginCeremony keeps one until it is over.
func (c *Controller) beginCeremony(r *call, cer ceremony, options []byte) (*PasskeyCeremony, error) {
	cer.browser = r.browser()
	out := &PasskeyCeremony{Attempt: newSecret(), Options: options}
	return out, c.ceremonies.add(sessionID(out.Attempt), r.from(), cer)
}

// takeCeremony ends the one that a form is the answer to, whatever comes of it.
func (c *Controller) takeCeremony(r *call) (ceremony, error) {
	cer, ok := c.ceremonies.take(sessionID(r.PostForm.Get("attempt")))
	if !ok || cer.browser != r.browser() {
		return ceremony{}, fault.New(fault.Invalid, "this answers nothing that this browser was asked, or what is over; go back, load the page again and repeat").WithStatus(passkeyState)
	}
	return cer, nil
}

// beginPasskeySignIn says what to have the device sign. It names nobody.
//
//	POST /login/passkey/begin
func (c *Controller) beginPasskeySignIn(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	options, asked, err := c.party.BeginSignIn()
	if err != nil {
		return 0, nil, err
	}
	out, err := c.beginCeremony(r, ceremony{asked: asked, next: next(r.PostForm.Get("next"))}, options)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, out, nil
}

// finishPasskeySignIn checks what the device signed, and begins a session.
//
//	POST /login/passkey
func (c *Controller) finishPasskeySignIn(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	cer, err := c.takeCeremony(r)
	if err == nil && cer.link != "" {
		err = fault.New(fault.Invalid, "this answers another question").WithStatus(passkeyState)
	}
	if err != nil {
		return 0, nil, c.refusedSignIn(r, "passkey", "", err)
	}
	answer := []byte(r.PostForm.Get("answer"))
	var secret string
	var s *record.Session
	var p *record.Passkey
	err = retry(r.Context(), func() error { // checked again when another sign-in was faster
		var rev int64
		p = nil
		_, signed, err := c.party.FinishSignIn(cer.asked, answer, func(id, handle []byte) (u passkey.User, err error) {
			p, rev, u, err = c.findPasskey(r, id, handle)
			return u, err
		})
		if err != nil {
			return err
		}
		var t txn
		p.Credential, p.UsedAt = *signed, now()
		t.when(record.PasskeyKey(p.User, p.ID), rev)
		t.do(record.Put(record.PasskeyKey(p.User, p.ID), p))
		c.endBrowser(r, &t)
		secret, s = c.newSession(&t, record.Session{User: p.User, Kind: kindBrowser, Passkey: p.ID, Method: "passkey", From: r.from().String()})
		c.noteUser(r, p.User, "")
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, c.refusedPasskey(r, p, err)
	}
	c.metrics.signIns.WithLabelValues("passkey", "ok").Inc()
	setSession(r, secret)
	c.event(r, "signed_in", s.ID[:16], nil)
	return seeOther(r, cer.next)
}

// findPasskey finds what a device says that it has.
func (c *Controller) findPasskey(r *call, id, handle []byte) (*record.Passkey, int64, passkey.User, error) {
	nobody := fault.New(fault.NotFound, "no such passkey")
	uid, err := key.ParseUserID(string(handle))
	if err != nil {
		return nil, 0, passkey.User{}, nobody
	}
	u := c.directory.User(uid)
	if u == nil {
		return nil, 0, passkey.User{}, nobody
	}
	p, rev, err := record.Get[record.Passkey](r.Context(), c.store, record.PasskeyKey(uid, passkeyID(id)))
	switch {
	case err != nil:
		return nil, 0, passkey.User{}, err
	case p == nil:
		return nil, 0, passkey.User{}, nobody
	case !p.SuspectAt.IsZero():
		return nil, 0, passkey.User{}, fault.New(fault.Denied, "there may be a copy of this passkey: its counter went back once; sign in another way, remove it and add another").WithStatus(passkey.Cloned)
	}
	return p, rev, passkey.User{Handle: handle, Name: u.Name, Credentials: []passkey.Credential{p.Credential}}, nil
}

// refusedPasskey counts and notes a sign-in by passkey that was refused. One whose counter
// went back is marked: who signed had its key, and is one of two.
func (c *Controller) refusedPasskey(r *call, p *record.Passkey, err error) error {
	var f *fault.Error
	if p == nil || !errors.As(err, &f) || f.Status != passkey.Cloned {
		return c.refusedSignIn(r, "passkey", "", err)
	}
	c.metrics.signIns.WithLabelValues("passkey", passkey.Cloned).Inc()
	c.noteUser(r, p.User, "")
	c.notePasskey(r, "sign_in_refused: "+passkey.Cloned, p.ID)
	c.log.Warn("a passkey's counter went back: there may be a copy of it", "user", p.User, "passkey", p.ID[:passkeyIDShown], "from", r.from())
	marked := retry(r.Context(), func() error {
		cur, rev, err := record.Get[record.Passkey](r.Context(), c.store, record.PasskeyKey(p.User, p.ID))
		if err != nil || cur == nil || !cur.SuspectAt.IsZero() {
			return err
		}
		cur.SuspectAt = now()
		var t txn
		t.when(record.PasskeyKey(p.User, p.ID), rev)
		t.do(record.Put(record.PasskeyKey(p.User, p.ID), cur))
		return c.commit(r.Context(), &t)
	})
	if marked != nil {
		return marked
	}
	return err
}

// passkeyPage is where a passkey is made. The link's secret is behind the address's #,
// which no browser sends: its script does.
//
//	GET /passkeys/add
func (c *Controller) passkeyPage(r *call) (int, any, error) {
	return c.show(r, http.StatusOK, "passkey.html", "Add a passkey", nil)
}

// linkOf is the link that a form belongs to, and its user. It is over with the token of
// who asked for it, and with that one's session.
func (c *Controller) linkOf(r *call, k string) (*passkeyLink, *record.User, error) {
	gone := fault.New(fault.NotFound, "this link is over: it was used, is older than %s, was opened in another browser first, or is not whole; make another: bulkhead auth passkey add", passkeyLinkLife).WithStatus("passkey_link")
	l, ok := c.passkeyLinks.get(k)
	if !ok {
		return nil, nil, gone
	}
	rec, u, s := c.directory.Token(l.token), c.directory.User(l.user), c.directory.SessionWith(l.token)
	if rec == nil || !now().Before(rec.ExpiresAt) || u == nil || s != nil && c.directory.Lives(s.ID, now()) == nil || !l.opens(r.browser()) {
		return nil, nil, gone
	}
	return l, u, nil
}

// beginPasskey says what to have the device make.
//
//	POST /passkeys/begin
func (c *Controller) beginPasskey(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	k := sessionID(r.PostForm.Get("link"))
	l, u, err := c.linkOf(r, k)
	if err != nil {
		return 0, nil, err
	}
	options, asked, err := c.party.BeginAdd(c.partyUser(u))
	if err != nil {
		return 0, nil, err
	}
	out, err := c.beginCeremony(r, ceremony{asked: asked, link: k}, options)
	if err != nil {
		return 0, nil, err
	}
	out.User, out.Name = u.Name, l.name
	return http.StatusOK, out, nil
}

// partyUser is a user as package passkey knows them. The handle is the id, which tells
// nothing and is never another's.
func (c *Controller) partyUser(u *record.User) passkey.User {
	out := passkey.User{Handle: []byte(u.ID), Name: u.Name}
	for _, p := range c.directory.PasskeysOf(u.ID) {
		out.Credentials = append(out.Credentials, p.Credential)
	}
	return out
}

// finishPasskey keeps what the device made.
//
//	POST /passkeys/add
func (c *Controller) finishPasskey(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	cer, err := c.takeCeremony(r)
	if err != nil {
		return 0, nil, c.refusedSignIn(r, "passkey_add", "", err)
	}
	l, u, err := c.linkOf(r, cer.link)
	if err != nil {
		return 0, nil, c.refusedSignIn(r, "passkey_add", "", err)
	}
	made, err := c.party.FinishAdd(c.partyUser(u), cer.asked, []byte(r.PostForm.Get("answer")))
	if err != nil {
		return 0, nil, c.refusedSignIn(r, "passkey_add", "", err)
	}
	if _, ok := c.passkeyLinks.take(cer.link); !ok { // another tab was faster
		return 0, nil, c.refusedSignIn(r, "passkey_add", "", fault.New(fault.Conflict, "this link was used meanwhile").WithStatus("passkey_link"))
	}
	p := record.Passkey{ID: passkeyID(made.ID), User: u.ID, Name: l.name, Credential: *made, CreatedAt: now()}
	c.noteUser(r, u.ID, "")
	err = c.changePasskeys(r.Context(), u.ID, func(t *txn, _ *record.User, have []*record.Passkey) error {
		if len(have) >= passkey.MaxPerUser {
			return fault.New(fault.Unprocessable, "you have %d passkeys, which is the most there can be; remove one first", len(have))
		}
		if slices.ContainsFunc(have, func(h *record.Passkey) bool { return h.ID == p.ID }) {
			return fault.New(fault.Conflict, "this device has a passkey of yours already")
		}
		t.when(record.PasskeyKey(u.ID, p.ID), 0)
		t.do(record.Put(record.PasskeyKey(u.ID, p.ID), p))
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	c.notePasskey(r, "passkey_added", p.ID)
	return c.show(r, http.StatusOK, "done.html", "Passkey added", "Passkey "+p.Name+" of "+u.Name+" is kept. You can sign in with it, and close this page.")
}
