package controller

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/limit"
)

// Logins of the command line. The CLI begins one, keeps a secret of which it told the
// digest, and polls; a person approves it in a browser in which they are signed in. What
// is approved is told to whoever has the secret, once.

const (
	cliLoginLife = 10 * time.Minute
	cliInterval  = 2 * time.Second
	maxHostName  = 100
)

// userCodeAlphabet has no vowel, so that no word comes about, and nothing that looks like
// something else (RFC 8628, 6.1). Eight letters of it are 34 bits; with a few tries a
// minute for each address and ten minutes for each code nobody guesses one.
const userCodeAlphabet = "BCDFGHJKLMNPQRSTVWXZ"

// cliLogin is a login of a CLI that was begun.
type cliLogin struct {
	ID        string
	Code      string // shown on both sides; of a device what the person types
	Device    bool
	Name      string // of the host, as it says itself
	Org       string // the organization that the token is to be good for, if any
	From      string
	challenge [32]byte

	mu      sync.Mutex
	granted *CLIToken
	denied  bool
	polled  time.Time
}

// CLIStart is the body of POST /v1/cli_sessions.
type CLIStart struct {
	Name      string `json:"name"`      // of the host that asks
	Challenge string `json:"challenge"` // base64url of the SHA-256 of the secret
	Device    bool   `json:"device,omitempty"`
	Org       string `json:"organization,omitempty"`
}

// CLISession is the answer to it: in the words of RFC 8628 for a device.
type CLISession struct {
	ID              string `json:"id"`
	Code            string `json:"user_code"`
	AuthURL         string `json:"auth_url,omitempty"`
	VerificationURI string `json:"verification_uri,omitempty"`
	ExpiresIn       int    `json:"expires_in"`
	Interval        int    `json:"interval"`
}

// CLIToken is what an approved login gives, this once.
type CLIToken struct {
	Status    string `json:"status"` // "approved", or "authorization_pending"
	Token     string `json:"token,omitempty"`
	Session   string `json:"session,omitempty"` // its secret: what discharges are had with
	User      string `json:"user,omitempty"`
	Org       string `json:"organization,omitempty"`
	Method    string `json:"method,omitempty"`
	ExpiresAt string `json:"expires_at,omitempty"`
}

// startCLI begins a login of a CLI.
//
//	POST /v1/cli_sessions {"name": "laptop", "challenge": "…", "device": false}
func (c *Controller) startCLI(r *call) (int, any, error) {
	var in CLIStart
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	ch, err := base64.RawURLEncoding.DecodeString(in.Challenge)
	if err != nil || len(ch) != sha256.Size {
		return 0, nil, fault.New(fault.Invalid, "challenge is not the base64url of a SHA-256")
	}
	if in.Org != "" {
		if _, err := key.ParseOrg(in.Org); err != nil {
			return 0, nil, err
		}
	}
	l := &cliLogin{ID: newSecret(), Code: newUserCode(), Device: in.Device, Name: hostName(in.Name), Org: in.Org, From: r.from().String(), challenge: [32]byte(ch)}
	if err := c.logins.add(l.ID, r.from(), l); err != nil {
		return 0, nil, err
	}
	out := CLISession{ID: l.ID, Code: showCode(l.Code), ExpiresIn: int(cliLoginLife / time.Second), Interval: int(cliInterval / time.Second)}
	if in.Device {
		if err := c.codes.add(l.Code, r.from(), l.ID); err != nil {
			return 0, nil, err
		}
		out.VerificationURI = c.publicURL("/device")
	} else {
		out.AuthURL = c.publicURL("/cli/" + l.ID)
	}
	return http.StatusCreated, out, nil
}

// hostName is what a stranger calls their computer, made fit to be shown.
func hostName(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > maxHostName {
		s = string(r[:maxHostName])
	}
	if s == "" {
		return "(it does not say)"
	}
	return s
}

func newUserCode() string {
	var out [8]byte
	for i := 0; i < len(out); {
		var b [16]byte
		rand.Read(b[:])
		for _, x := range b {
			if n := len(userCodeAlphabet); int(x) < 256/n*n && i < len(out) { // each letter as likely
				out[i] = userCodeAlphabet[int(x)%n]
				i++
			}
		}
	}
	return string(out[:])
}

func showCode(c string) string { return c[:4] + "-" + c[4:] }

// readCode is showCode undone, however it was typed.
func readCode(s string) string {
	return strings.Map(func(r rune) rune {
		if r = unicode.ToUpper(r); strings.ContainsRune(userCodeAlphabet, r) {
			return r
		}
		return -1
	}, fault.Clip(s))
}

// pollCLI tells the CLI whether it was approved.
//
//	POST /v1/cli_sessions/{id}/poll {"secret": "…"}
func (c *Controller) pollCLI(r *call) (int, any, error) {
	var in struct {
		Secret string `json:"secret"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	l, ok := c.logins.get(r.PathValue("id"))
	sum := sha256.Sum256([]byte(in.Secret))
	if !ok || subtle.ConstantTimeCompare(sum[:], l.challenge[:]) != 1 {
		return 0, nil, fault.New(fault.NotFound, "no such login: it was not approved within %s, was fetched already, or the server was started anew; begin again", cliLoginLife).WithStatus("expired_token")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.denied:
		c.logins.take(l.ID)
		return 0, nil, fault.New(fault.Denied, "the login was denied in the browser").WithStatus("access_denied")
	case l.granted != nil:
		c.logins.take(l.ID)
		return http.StatusOK, l.granted, nil
	}
	if at := now(); at.Sub(l.polled) < cliInterval/2 {
		return 0, nil, tooMany(cliInterval, "ask every %s", cliInterval).WithStatus("slow_down")
	} else {
		l.polled = at
	}
	return http.StatusAccepted, CLIToken{Status: "authorization_pending"}, nil
}

// loginOf is the login that a page is about.
func (c *Controller) loginOf(r *call) (*cliLogin, error) {
	l, ok := c.logins.get(r.PathValue("id"))
	if ok {
		l.mu.Lock()
		ok = l.granted == nil && !l.denied
		l.mu.Unlock()
	}
	if !ok {
		return nil, fault.New(fault.NotFound, "this login is over, or there is none of this address; begin again in the terminal").WithStatus("expired_token")
	}
	return l, nil
}

// approvalPage shows what asks.
//
//	GET /cli/{id}
func (c *Controller) approvalPage(r *call) (int, any, error) {
	l, err := c.loginOf(r)
	if err != nil {
		return 0, nil, err
	}
	s := c.browserSession(r)
	if s == nil || l.Org != "" && c.needsSSO(s, l.Org) {
		return toLogin(r, l.Org)
	}
	org := l.Org
	if s.Org != "" {
		org = s.Org
	}
	return c.show(r, http.StatusOK, "approve.html", "Approve a login", map[string]string{"ID": l.ID, "Code": showCode(l.Code), "Name": l.Name, "From": l.From, "Org": org})
}

// needsSSO says whether a session is none by which to act in an organization.
func (c *Controller) needsSSO(s *record.Session, slug string) bool {
	conf := c.directory.SSOOf(slug)
	return s.Org != slug && (s.Org != "" || conf != nil && conf.Mode == record.SSORequired)
}

// approve approves a login, or denies it.
//
//	POST /cli/{id}
func (c *Controller) approve(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	s := c.browserSession(r)
	if s == nil {
		return 0, nil, fault.New(fault.Unauthenticated, "you are not signed in any more; go back, sign in, and approve again")
	}
	l, err := c.loginOf(r)
	if err != nil {
		return 0, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.granted != nil || l.denied {
		return 0, nil, fault.New(fault.Conflict, "this login was decided already")
	}
	c.codes.take(l.Code)
	if r.PostForm.Get("decision") != "approve" {
		l.denied = true
		c.event(r, "cli_login_denied", l.Name, nil)
		return c.show(r, http.StatusOK, "done.html", "Denied", "The command line gets nothing.")
	}
	granted, err := c.grant(r, s, l)
	if err != nil {
		return 0, nil, err
	}
	l.granted = granted
	return c.show(r, http.StatusOK, "done.html", "Approved", "The command line on "+l.Name+" is logged in. You can close this page.")
}

// grant makes the CLI's session and its token. Somebody who came by an organization's
// single sign-on gets a token for that organization alone: its admins choose the
// provider, and a provider can say of anybody that it is they.
func (c *Controller) grant(r *call, s *record.Session, l *cliLogin) (*CLIToken, error) {
	org := l.Org
	if org == "" {
		org = s.Org
	}
	u := c.directory.User(s.User)
	if u == nil {
		return nil, access.ErrToken
	}
	if org != "" {
		switch {
		case c.directory.Member(org, u.ID) == nil:
			return nil, fault.New(fault.Denied, "%s is no member of organization %q", u.Name, org)
		case c.needsSSO(s, org):
			return nil, fault.New(fault.Denied, "organization %q wants you to sign in by its own single sign-on; sign out and begin again", org).WithStatus("sso_required")
		}
	}
	var secret, token string
	var cs *record.Session
	var rec *record.Token
	err := retry(r.Context(), func() error {
		var t txn
		life := loginLife
		id := key.NewTokenID()
		secret, cs = c.newSession(&t, record.Session{User: u.ID, Kind: kindCLI, TokenID: id, Org: s.Org, Config: s.Config, Method: s.Method, Passkey: s.Passkey, Name: l.Name, From: l.From})
		c.noteUser(r, u.ID, org)
		if left := cs.ExpiresAt.Sub(now()); left < life {
			life = left
		}
		var err error
		if token, rec, err = c.newToken(r.Context(), &t, u, record.Token{ID: id, Kind: "login", Name: "login on " + l.Name, Org: org}, life); err != nil {
			return err
		}
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return nil, err
	}
	c.event(r, "cli_login_approved", l.Name, nil)
	return &CLIToken{Status: "approved", Token: token, Session: secret, User: u.Name, Org: org, Method: s.Method, ExpiresAt: stamp(rec.ExpiresAt)}, nil
}

// devicePage is where a device's code is typed.
//
//	GET /device
func (c *Controller) devicePage(r *call) (int, any, error) {
	if c.browserSession(r) == nil {
		return toLogin(r, "")
	}
	return c.show(r, http.StatusOK, "device.html", "Log a device in", map[string]string{"Code": ""})
}

// enterCode takes a device's code. Tries are few: for each address and for each session.
//
//	POST /device
func (c *Controller) enterCode(r *call) (int, any, error) {
	if err := c.form(r); err != nil {
		return 0, nil, err
	}
	s := c.browserSession(r)
	if s == nil {
		return 0, nil, fault.New(fault.Unauthenticated, "you are not signed in any more; go back and sign in")
	}
	for _, whose := range []string{limit.Address(r.RemoteAddr), string(s.User)} {
		if err := c.rates.take(c.rates.codes, "code", whose, "codes were tried"); err != nil {
			c.metrics.signIns.WithLabelValues("device", "rate_limited").Inc()
			return 0, nil, err
		}
	}
	id, ok := c.codes.get(readCode(r.PostForm.Get("user_code")))
	if !ok {
		c.event(r, "device_code_wrong", "", nil)
		return 0, nil, fault.New(fault.NotFound, "there is no such code: it was typed wrong, was used, or is older than %s", cliLoginLife).WithStatus("bad_code")
	}
	return seeOther(r, "/cli/"+id)
}
