package controller

import (
	"net/http"
	"sync"
	"time"

	"bulkhead/audit"
	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/token"
)

// Discharges. Tokens of an organization that requires single sign-on are good only with the
// word of a third party, which is this server: that their user has a live session by that
// single sign-on. Clients ask for it as those of the Machines API do (package tp of the
// macaroon library): with the session's secret at once, without one through a browser.

const (
	// dischargeLife is how long a discharge is good. Its session is asked at every use besides.
	dischargeLife = 10 * time.Minute
	// maxTicketBody bounds the body: a ticket has some two hundred bytes.
	maxTicketBody = 8 << 10

	dischargePath = "/aaa/v1"
	dischargeInit = dischargePath + "/.well-known/macfly/3p"
	dischargePoll = dischargeInit + "/poll"
)

// sessionLocation is the third party's, as it stands in tokens.
func (c *Controller) sessionLocation() string { return c.publicURL(dischargePath) }

// thirdParties are those whose word a token that is made needs beside itself.
func (c *Controller) thirdParties(keys *token.Keys, rec *record.Token) []token.Third {
	conf, o := c.directory.SSOOf(rec.Org), c.directory.Org(rec.Org)
	if o == nil || conf == nil || conf.Mode != record.SSORequired || rec.Kind == token.Login || conf.Exempts(rec) {
		return nil // a login has a session of its own
	}
	return []token.Third{keys.NeedsSession(c.sessionLocation(), token.ForSession{Org: uint64(o.Number), User: rec.User, Token: rec.ID})}
}

// discharging is a ticket that waits for somebody to approve it in a browser.
type discharging struct {
	page, poll string // the names of its page, and of its answer: who knows one knows not the other
	ticket     []byte
	from       string

	mu      sync.Mutex
	granted string
	denied  bool
}

// dischargeAnswer is what clients read.
type dischargeAnswer struct {
	Error           string           `json:"error,omitempty"`
	Discharge       string           `json:"discharge,omitempty"`
	UserInteractive *userInteractive `json:"user_interactive,omitempty"`
}

type userInteractive struct {
	PollURL string `json:"poll_url"`
	UserURL string `json:"user_url"`
}

// askDischarge answers a ticket: with a discharge, if a session's secret comes along, and
// otherwise with a page for somebody who is signed in.
//
//	POST /aaa/v1/.well-known/macfly/3p {"ticket": "…"}
func (c *Controller) askDischarge(r *call) (int, any, error) {
	var in struct {
		Ticket []byte `json:"ticket"`
	}
	r.Body = http.MaxBytesReader(r.w, r.Body, maxTicketBody)
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	select {
	case <-c.directory.Loaded():
	case <-r.Context().Done():
		return 0, nil, r.Context().Err()
	}
	t, rec, err := c.openTicket(r, in.Ticket)
	if err != nil {
		return 0, nil, err
	}
	secret := tokenOf(r.Request)
	if secret == "" {
		return c.beginDischarge(r, in.Ticket)
	}
	s := c.directory.Lives(sessionID(secret), now())
	if s == nil {
		err := fault.New(fault.Unauthenticated, "this session is over, or there never was one: run \"bulkhead auth login --org %s\"", rec.Org).WithStatus("session_ended")
		return 0, nil, c.rates.failedAuth(r.RemoteAddr, string(rec.ID), c.refusedDischarge(r, rec.Org, err))
	}
	r.who = access.Caller{Kind: access.ByPerson, User: s.User, From: r.from()} // for the records
	if u := c.directory.User(s.User); u != nil {
		r.who.Name = u.Name
	}
	text, err := c.giveDischarge(r, t, rec, s)
	if err != nil {
		return 0, nil, err
	}
	c.touch(r.Context(), s)
	return http.StatusCreated, dischargeAnswer{Discharge: text}, nil
}

// openTicket opens a ticket whose token, user and organization there still are.
func (c *Controller) openTicket(r *call, ticket []byte) (*token.Ticket, *record.Token, error) {
	t, err := c.directory.RootKeys().OpenTicket(c.sessionLocation(), ticket)
	if err != nil {
		return nil, nil, c.refusedDischarge(r, "", fault.Wrap(fault.Invalid, err, "ticket: %v", err).WithStatus("ticket_bad"))
	}
	rec, o := c.directory.Token(t.Token), c.directory.OrgNumbered(int64(t.Org))
	if rec == nil || o == nil || rec.Org != o.Slug || rec.User != t.User {
		return nil, nil, c.refusedDischarge(r, "", fault.New(fault.Denied, "ticket: its token was revoked, or its organization is gone").WithStatus("ticket_over"))
	}
	return t, rec, nil
}

// giveDischarge makes a discharge for a session, if it is one of the token's user and by the
// organization's own single sign-on. It is in the audit log before it is given.
func (c *Controller) giveDischarge(r *call, t *token.Ticket, rec *record.Token, s *record.Session) (string, error) {
	if s.User != rec.User || s.Org != rec.Org {
		return "", c.refusedDischarge(r, rec.Org, fault.New(fault.Denied,
			"this session is not by the single sign-on of organization %q, or not of the token's user, who alone can discharge it: run \"bulkhead auth login --org %s\"", rec.Org, rec.Org).WithStatus("session_other"))
	}
	at := now()
	until := at.Add(dischargeLife)
	for _, end := range []time.Time{s.ExpiresAt, rec.ExpiresAt} {
		if end.Before(until) {
			until = end
		}
	}
	text, err := t.Discharge(s.ID, at.Add(-clockSkew), until)
	if err != nil {
		return "", err
	}
	ar := c.recordOf(r)
	ar.User, ar.Org, ar.App, ar.Token = string(rec.User), rec.Org, string(rec.App), string(rec.ID)
	if u := c.directory.User(rec.User); u != nil {
		ar.Name = u.Name
	}
	ar.Target, ar.Detail, ar.Code, ar.Result = "session="+s.ID[:16], "discharged", http.StatusCreated, audit.OK
	if err := c.record(r.Context(), ar); err != nil {
		return "", err
	}
	c.metrics.signIns.WithLabelValues("discharge", "ok").Inc()
	return text, nil
}

// refusedDischarge counts and notes a refusal, and returns why.
func (c *Controller) refusedDischarge(r *call, org string, err error) error {
	return c.refusedSignIn(r, "discharge", org, err)
}

// beginDischarge has somebody asked in a browser.
func (c *Controller) beginDischarge(r *call, ticket []byte) (int, any, error) {
	d := &discharging{page: newSecret(), poll: newSecret(), ticket: ticket, from: r.from().String()}
	for _, name := range []string{d.page, d.poll} {
		if err := c.discharges.add(name, r.from(), d); err != nil {
			return 0, nil, err
		}
	}
	return http.StatusCreated, dischargeAnswer{UserInteractive: &userInteractive{
		PollURL: c.publicURL(dischargePoll) + "?id=" + d.poll, // not in the path, which goes into logs
		UserURL: c.publicURL("/3p/" + d.page),
	}}, nil
}

// pollDischarge tells whether it was approved, and gives the discharge once.
//
//	GET /aaa/v1/.well-known/macfly/3p/poll?id=…
func (c *Controller) pollDischarge(r *call) (int, any, error) {
	d, ok := c.discharges.get(r.URL.Query().Get("id"))
	if !ok || d.poll != r.URL.Query().Get("id") {
		return 0, nil, fault.New(fault.NotFound, "no such discharge: it was not approved within %s, was fetched already, or the server was started anew; begin again", cliLoginLife).WithStatus("expired_token")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.granted == "" && !d.denied {
		return http.StatusAccepted, dischargeAnswer{Error: "not ready"}, nil
	}
	c.discharges.take(d.poll)
	if d.denied {
		return 0, nil, fault.New(fault.Denied, "it was denied in the browser").WithStatus("access_denied")
	}
	return http.StatusOK, dischargeAnswer{Discharge: d.granted}, nil
}

// dischargeOf is the discharge that a page is about.
func (c *Controller) dischargeOf(r *call) (*discharging, *token.Ticket, *record.Token, error) {
	d, ok := c.discharges.get(r.PathValue("id"))
	if ok {
		d.mu.Lock()
		ok = d.page == r.PathValue("id") && d.granted == "" && !d.denied
		d.mu.Unlock()
	}
	if !ok {
		return nil, nil, nil, fault.New(fault.NotFound, "this is over, or there is nothing of this address; begin again where the token is used").WithStatus("expired_token")
	}
	t, rec, err := c.openTicket(r, d.ticket)
	return d, t, rec, err
}

var othersToken = fault.New(fault.Denied, "this token is another user's, who alone can discharge it").WithStatus("session_other")

// dischargePage shows which token wants a session's word.
//
//	GET /3p/{id}
func (c *Controller) dischargePage(r *call) (int, any, error) {
	d, _, rec, err := c.dischargeOf(r)
	if err != nil {
		return 0, nil, err
	}
	s := c.browserSession(r)
	if s == nil || s.Org != rec.Org {
		return toLogin(r, rec.Org)
	}
	if s.User != rec.User {
		return 0, nil, othersToken
	}
	return c.show(r, http.StatusOK, "discharge.html", "Let a token be used", map[string]string{
		"ID": d.page, "Token": string(rec.ID), "Name": rec.Name, "Kind": string(rec.Kind), "Org": rec.Org, "App": string(rec.App), "From": d.from,
	})
}

// decideDischarge gives the session's word for a token, or refuses it.
//
//	POST /3p/{id}
func (c *Controller) decideDischarge(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	s := c.browserSession(r)
	if s == nil {
		return 0, nil, fault.New(fault.Unauthenticated, "you are not signed in any more; go back, sign in, and approve again")
	}
	d, t, rec, err := c.dischargeOf(r)
	if err != nil {
		return 0, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.granted != "" || d.denied {
		return 0, nil, fault.New(fault.Conflict, "this was decided already")
	}
	if r.PostForm.Get("decision") != "approve" {
		if s.User != rec.User {
			return 0, nil, othersToken
		}
		d.denied = true
		c.discharges.take(d.page)
		c.refusedDischarge(r, rec.Org, fault.New(fault.Denied, "denied in the browser").WithStatus("access_denied"))
		return c.show(r, http.StatusOK, "done.html", "Denied", "The token gets nothing. If you did not expect this, revoke it: bulkhead tokens revoke "+string(rec.ID))
	}
	text, err := c.giveDischarge(r, t, rec, s)
	if err != nil {
		return 0, nil, err
	}
	d.granted = text
	c.discharges.take(d.page)
	return c.show(r, http.StatusOK, "done.html", "Approved", "Token "+string(rec.ID)+" can be used for "+dischargeLife.String()+". You can close this page.")
}
