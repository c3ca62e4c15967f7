package controller

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/superfly/macaroon"

	"bulkhead/controller/access"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/store"
	"bulkhead/token"
)

// maxTokens bounds the tokens of one user.
const maxTokens = 1000

// clockSkew is how much earlier than now a token is valid from: clocks differ, and this
// machine's own may fall back at a reboot, as package pki reckons too.
const clockSkew = 2 * time.Hour

// Token is a token as the API answers it: never the token itself, but once, when it is made.
type Token struct {
	ID        key.TokenID `json:"id"`
	Kind      token.Kind  `json:"kind"`
	Name      string      `json:"name,omitempty"`
	Org       string      `json:"organization,omitempty"`
	App       key.AppName `json:"app,omitempty"`
	User      string      `json:"user"`
	Key       string      `json:"key"` // the root key it was made with
	CreatedAt string      `json:"created_at"`
	ExpiresAt string      `json:"expires_at"`
	Token     string      `json:"token,omitempty"` // when it is made, and never again
}

func (c *Controller) tokenBody(rec *record.Token) Token {
	t := Token{ID: rec.ID, Kind: rec.Kind, Name: rec.Name, Org: rec.Org, App: rec.App, Key: rec.Key, CreatedAt: stamp(rec.CreatedAt), ExpiresAt: stamp(rec.ExpiresAt)}
	if u := c.directory.User(rec.User); u != nil {
		t.User = u.Name
	}
	return t
}

// newToken has a transaction make a token of a user's, from what rec says of it. The token
// itself is kept nowhere.
func (c *Controller) newToken(_ context.Context, t *txn, u *record.User, rec record.Token, life time.Duration) (string, *record.Token, error) {
	return c.mint(t, u, rec, life, [][]macaroon.Caveat{nil})
}

// mint is newToken with caveats: a list for each macaroon that the token consists of. They
// share the record.
func (c *Controller) mint(t *txn, u *record.User, rec record.Token, life time.Duration, lists [][]macaroon.Caveat) (string, *record.Token, error) {
	keys := c.directory.RootKeys()
	if rec.ID == "" {
		rec.ID = key.NewTokenID()
	}
	rec.User, rec.CreatedAt, rec.Key = u.ID, now(), keys.First().String()
	rec.ExpiresAt = rec.CreatedAt.Add(life).Truncate(time.Second)
	for _, caveats := range lists { // what was inherited may end it earlier
		for _, cav := range caveats {
			if w, ok := cav.(*macaroon.ValidityWindow); ok && time.Unix(w.NotAfter, 0).Before(rec.ExpiresAt) {
				rec.ExpiresAt = time.Unix(w.NotAfter, 0).UTC()
			}
		}
	}
	list := ""
	for _, caveats := range lists {
		text, err := keys.Mint(rec.ID, rec.CreatedAt.Add(-clockSkew), rec.ExpiresAt, caveats, c.thirdParties(keys, &rec)...)
		if err != nil {
			return "", nil, err
		}
		if list != "" {
			list += ","
		}
		list += text
	}
	t.when(record.TokenKey(rec.ID), 0)
	t.do(record.Put(record.TokenKey(rec.ID), rec))
	return list, &rec, nil
}

// createToken makes a token for an organization, or one of its apps.
//
//	POST /v1/orgs/{org}/tokens {"kind": "deploy", "app": "hello", "name": "CI", "expiry": "720h", "commands": [["ls"]], "exact": false}
func (c *Controller) createToken(r *call) (int, any, error) {
	var in struct {
		Kind     string     `json:"kind"`
		App      string     `json:"app"`
		Name     string     `json:"name"`
		Expiry   string     `json:"expiry"`
		Commands [][]string `json:"commands"`
		Exact    bool       `json:"exact"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	kind, err := token.ParseKind(in.Kind)
	if err != nil {
		return 0, nil, fault.New(fault.Invalid, "kind: %v", err)
	}
	rec := record.Token{Org: r.PathValue("org"), Kind: kind, Name: in.Name}
	scope := token.Scope{Commands: in.Commands, Exact: in.Exact}
	if in.App != "" {
		a := c.directory.App(key.AppName(in.App))
		if a == nil || a.Org != rec.Org || c.authorize(r.who, access.Request{Act: access.Read, What: access.App, Org: a.Org, App: a.Name}) != nil {
			return 0, nil, fault.New(fault.NotFound, "app %q not found in organization %q", fault.Clip(in.App), fault.Clip(rec.Org))
		}
		rec.App, scope.App = a.Name, uint64(a.Number)
	}
	text, made, err := c.grantToken(r, rec, scope, in.Expiry)
	if err != nil {
		return 0, nil, err
	}
	body := c.tokenBody(made)
	body.Token = text
	return http.StatusCreated, body, nil
}

// createPlatformToken makes a token that is about the platform as a whole: to read its metrics.
//
//	POST /v1/platform/tokens {"kind": "metrics", "name": "prometheus", "expiry": "8760h"}
func (c *Controller) createPlatformToken(r *call) (int, any, error) {
	var in struct {
		Kind   string `json:"kind"`
		Name   string `json:"name"`
		Expiry string `json:"expiry"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	kind, err := token.ParseKind(in.Kind)
	if err != nil {
		return 0, nil, fault.New(fault.Invalid, "kind: %v", err)
	}
	text, made, err := c.grantToken(r, record.Token{Kind: kind, Name: in.Name}, token.Scope{Platform: true}, in.Expiry)
	if err != nil {
		return 0, nil, err
	}
	body := c.tokenBody(made)
	body.Token = text
	return http.StatusCreated, body, nil
}

// createDeployToken makes a token for an app, as clients of the Machines API ask for it.
//
//	POST /v1/apps/{app}/deploy_token {"expiry": "720h"}
func (c *Controller) createDeployToken(r *call) (int, any, error) {
	var in struct {
		Expiry string `json:"expiry"`
	}
	if err := r.read(&in, false); err != nil {
		return 0, nil, err
	}
	a := c.directory.App(key.AppName(r.app()))
	if a == nil {
		return 0, nil, noApp(r.app())
	}
	rec := record.Token{Org: a.Org, App: a.Name, Kind: token.Deploy, Name: "deploy token of " + string(a.Name)}
	text, _, err := c.grantToken(r, rec, token.Scope{App: uint64(a.Number)}, in.Expiry)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, struct {
		Token string `json:"token"`
	}{text}, nil
}

// grantToken makes a token that gives no more than the caller's own: the caller's user is
// its user, whose rights are asked at every use, and the caller's caveats are among its own.
func (c *Controller) grantToken(r *call, rec record.Token, scope token.Scope, expiry string) (string, *record.Token, error) {
	o, u := c.directory.Org(rec.Org), c.directory.User(r.who.User)
	switch {
	case o == nil && !scope.Platform:
		return "", nil, access.NoOrg(rec.Org)
	case u == nil:
		return "", nil, access.ErrToken
	case len(rec.Name) > 128:
		return "", nil, fault.New(fault.Invalid, "name is longer than 128 bytes")
	case len(c.directory.TokensOf(u.ID)) >= maxTokens:
		return "", nil, fault.New(fault.Unprocessable, "you have %d tokens; revoke some first", maxTokens)
	}
	usual, most := record.DefaultTokenLife, record.MaxTokenLife
	if o != nil {
		usual, most = o.TokenLife()
		scope.Org = uint64(o.Number)
	}
	life, err := parseLife("expiry", expiry, usual, most)
	if err != nil {
		return "", nil, err
	}
	lists, err := rec.Kind.Caveats(scope)
	if err != nil {
		return "", nil, fault.New(fault.Invalid, "%v", err)
	}
	own, err := inherited(r.who)
	if err != nil {
		return "", nil, err
	}
	for i := range lists {
		lists[i] = append(slices.Clone(own), lists[i]...)
	}
	var t txn
	text, made, err := c.mint(&t, u, rec, life, lists)
	if errors.As(err, new(*token.Refusal)) {
		return "", nil, fault.New(fault.Invalid, "%v: your own token has too many caveats to make others with", err)
	}
	if err != nil {
		return "", nil, err
	}
	if err := c.commit(r.Context(), &t); err != nil {
		return "", nil, err
	}
	c.log.Info("token made", "token", made.ID, "kind", made.Kind, "org", made.Org, "app", made.App, "by", r.who.Name)
	return text, made, nil
}

// inherited are the caveats that a caller's token hands on to those it makes: all that
// were added to it after it was made. Its own end is not one of them: it is short because it lies
// on somebody's disk. Only the token of a login makes others, so that there are no chains of
// tokens of which each lives as long again.
func inherited(who access.Caller) ([]macaroon.Caveat, error) {
	if who.Token == nil || who.Token.Kind != token.Login || len(who.Verified) != 1 {
		return nil, fault.New(fault.Denied, "tokens are made with the token of a login, not with others; log in: bulkhead login")
	}
	var out []macaroon.Caveat
	for _, cav := range who.Verified[0].Own[1:] {
		if third, ok := cav.(*macaroon.Caveat3P); ok {
			return nil, fault.New(fault.Denied, "your token needs the word of %s, which cannot be handed on; make tokens with one that does not", fault.Clip(third.Location))
		}
		out = append(out, cav)
	}
	return out, nil
}

// listTokens lists an organization's tokens: the caller's own, and everybody's for who may
// see them.
//
//	GET /v1/orgs/{org}/tokens
func (c *Controller) listTokens(r *call) (int, any, error) {
	slug := r.PathValue("org")
	all := c.authorize(r.who, access.Request{Act: access.Read, What: access.Tokens, Org: slug}) == nil
	var recs []*record.Token
	if all {
		for _, m := range c.directory.MembersIn(slug) {
			recs = append(recs, c.directory.TokensOf(m.User)...)
		}
	} else {
		recs = c.directory.TokensOf(r.who.User)
	}
	return c.answerTokens(recs, func(rec *record.Token) bool { return rec.Org == slug })
}

// listOwnTokens lists all tokens of the caller's, those of logins too; with a login for one
// organization those for it.
//
//	GET /v1/tokens
func (c *Controller) listOwnTokens(r *call) (int, any, error) {
	all := c.authorize(r.who, access.Request{Act: access.Read, What: access.Account}) == nil
	return c.answerTokens(c.directory.TokensOf(r.who.User), func(rec *record.Token) bool { return all || rec.Org == r.who.Token.Org })
}

func (c *Controller) answerTokens(recs []*record.Token, want func(*record.Token) bool) (int, any, error) {
	out := struct {
		Tokens []Token `json:"tokens"`
	}{Tokens: []Token{}}
	slices.SortFunc(recs, func(a, b *record.Token) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, rec := range recs {
		if want(rec) {
			out.Tokens = append(out.Tokens, c.tokenBody(rec))
		}
	}
	return http.StatusOK, out, nil
}

// revokeToken ends a token, and those narrowed from it: they are refused when this is
// answered, and what they have open ends. Who revokes needs not hold it.
//
//	DELETE /v1/tokens/{token}
//	DELETE /v1/orgs/{org}/tokens/{token}
func (c *Controller) revokeToken(r *call) (int, any, error) {
	id, err := key.ParseTokenID(r.PathValue("token"))
	if err != nil {
		return 0, nil, err
	}
	rec := c.directory.Token(id)
	gone := fault.New(fault.NotFound, "token %s not found", id)
	if rec == nil || r.PathValue("org") != "" && rec.Org != r.PathValue("org") {
		return 0, nil, gone
	}
	if err := c.mayRevoke(r.who, rec); err != nil {
		return 0, nil, err
	}
	var t txn
	t.do(store.Delete(record.TokenKey(id)))
	if err := c.commit(r.Context(), &t); err != nil {
		return 0, nil, err
	}
	c.log.Info("token revoked", "token", id, "by", r.who.Name)
	return ok()
}

// mayRevoke lets a token end itself, a user their own, those who manage an organization its
// members', and operators everybody's.
func (c *Controller) mayRevoke(who access.Caller, rec *record.Token) error {
	if who.Token != nil && who.Token.ID == rec.ID {
		return nil
	}
	if c.authorize(who, access.Request{Act: access.Delete, What: access.Cluster}) == nil {
		return nil
	}
	switch {
	case rec.Org != "" && rec.User != who.User:
		return c.authorize(who, access.Request{Act: access.Delete, What: access.Tokens, Org: rec.Org})
	case rec.Org != "":
		return c.authorize(who, access.Request{Act: access.Delete, What: access.OwnToken, Org: rec.Org})
	case rec.User == who.User:
		return c.authorize(who, access.Request{Act: access.Delete, What: access.Account})
	}
	return fault.New(fault.NotFound, "token %s not found", rec.ID)
}

// changeOrg changes an organization's settings: so far how long its tokens live, those that
// there are too. "" is the cluster's own bound.
//
//	PATCH /v1/orgs/{org} {"token_default_expiry": "168h", "token_max_expiry": "720h"}
func (c *Controller) changeOrg(r *call) (int, any, error) {
	var in struct {
		Usual *string `json:"token_default_expiry"`
		Most  *string `json:"token_max_expiry"`
	}
	if err := r.read(&in, true); err != nil {
		return 0, nil, err
	}
	if in.Usual == nil && in.Most == nil {
		return 0, nil, fault.New(fault.Invalid, "nothing to change: token_default_expiry or token_max_expiry")
	}
	var o *record.Org
	err := retry(r.Context(), func() (err error) {
		var rev int64
		if o, rev, err = record.Get[record.Org](r.Context(), c.store, record.OrgKey(r.PathValue("org"))); err != nil {
			return err
		}
		if o == nil {
			return access.NoOrg(r.PathValue("org"))
		}
		for field, s := range map[string]*string{"token_default_expiry": in.Usual, "token_max_expiry": in.Most} {
			if s == nil {
				continue
			}
			d, err := parseLife(field, *s, 0, record.MaxTokenLife)
			if err != nil {
				return err
			}
			if field == "token_max_expiry" {
				o.TokenMax = d
			} else {
				o.TokenDefault = d
			}
		}
		if o.TokenMax > 0 && o.TokenDefault > o.TokenMax {
			return fault.New(fault.Invalid, "token_default_expiry is %s, which is more than token_max_expiry, %s", o.TokenDefault, o.TokenMax)
		}
		var t txn
		t.when(record.OrgKey(o.Slug), rev)
		t.do(record.Put(record.OrgKey(o.Slug), o))
		return c.commit(r.Context(), &t)
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, c.orgBody(o), nil
}

// parseLife reads how long a token shall live, as clients send it: a duration of Go.
func parseLife(field, s string, usual, most time.Duration) (time.Duration, error) {
	if s == "" {
		return usual, nil
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fault.New(fault.Invalid, "%s is %q; it is a duration such as 720h", field, fault.Clip(s))
	case d < record.MinTokenLife:
		return 0, fault.New(fault.Invalid, "%s is %s; a token lives for %s at least", field, d, record.MinTokenLife)
	case d > most:
		return 0, fault.New(fault.Invalid, "%s is %s; a token lives for %s at most here", field, d, most)
	}
	return d, nil
}
