package controller_test

import (
	"bytes"
	"html"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"bulkhead/controller"
	"bulkhead/sso/ssotest"
)

// TestSignInAtARealProvider goes the whole way with npm's oidc-provider: a CLI asks, a
// person signs in and approves, a user comes about, and roles follow the groups.
func TestSignInAtARealProvider(t *testing.T) {
	e := newEnvWithoutWorker(t)
	idp := ssotest.Start(t, callback)
	staff := ssotest.Account{Email: "ann@example.com", Verified: true, Name: "Ann", Groups: []string{"staff"}}
	idp.SetAccounts(map[string]ssotest.Account{"s-ann": staff})
	e.want(201, "POST", "/v1/orgs", config{"slug": "acme"}, nil)
	e.want(201, "POST", "/v1/orgs", config{"slug": "other"}, nil)
	e.realSSO(idp, "acme", nil)

	// The browser's way.
	c := e.terminal(controller.CLIStart{Name: "ann's <b>laptop</b>", Org: "acme"})
	path := strings.TrimPrefix(c.AuthURL, apiURL)
	if c.poll(202).Status != "authorization_pending" {
		t.Error("not pending")
	}
	v := e.visitor()
	v.get(303, path)
	if v.at != "/login?next="+path+"&org=acme" {
		t.Errorf("without a session one is led to %s", v.at)
	}
	v.signIn(idp, "acme", "s-ann", path, 303)
	v.get(200, path)
	v.says(c.Code, html.EscapeString("ann's <b>laptop</b>"), "192.0.2.7", "ann@example.com", "acme")
	v.post(200, path, "decision", "approve")
	got := c.poll(200)
	if got.User != "ann@example.com" || got.Org != "acme" || got.Method != "sso" || got.Token == "" || got.Session == "" {
		t.Errorf("%+v", got)
	}
	c.poll(404) // once
	v.get(404, path)

	// The token is good for this organization, as the group says, and for nothing else.
	var me struct{ Name, Email string }
	e.want(200, "GET", "/v1/user", nil, &me, bearer(got.Token)...)
	if me.Name != "ann@example.com" {
		t.Errorf("%+v", me)
	}
	e.want(200, "GET", "/v1/orgs/acme", nil, nil, bearer(got.Token)...)
	e.want(403, "POST", "/v1/apps", config{"name": "a1", "org_slug": "acme"}, nil, bearer(got.Token)...)
	e.want(403, "GET", "/v1/orgs/other", nil, nil, bearer(got.Token)...)

	// Who comes again is the same user, with the role of now.
	staff.Groups = []string{"staff", "ops"}
	idp.SetAccounts(map[string]ssotest.Account{"s-ann": staff})
	again := e.cliLogin(e.visitor(), idp, "acme", "s-ann")
	if again.User != got.User {
		t.Errorf("another user: %+v", again)
	}
	e.want(201, "POST", "/v1/apps", config{"name": "a1", "org_slug": "acme"}, nil, bearer(got.Token)...)
	var sessions struct{ Sessions []controller.Session }
	e.want(200, "GET", "/v1/sessions", nil, &sessions, bearer(again.Token)...)
	if n := len(sessions.Sessions); n != 4 { // two browsers, two CLIs
		t.Errorf("%d sessions: %+v", n, sessions)
	}

	// Signed out is out.
	e.want(200, "DELETE", "/v1/sessions/current", nil, nil, bearer(again.Token)...)
	e.want(401, "GET", "/v1/user", nil, nil, bearer(again.Token)...)
	v.post(200, "/logout")
	v.get(303, "/device")

	// Who leaves the groups is no member from the next try on.
	staff.Groups = []string{"former"}
	idp.SetAccounts(map[string]ssotest.Account{"s-ann": staff})
	v.signIn(idp, "acme", "s-ann", "/device", 403)
	v.says("sso_group")
	e.want(401, "GET", "/v1/orgs/acme", nil, nil, bearer(got.Token)...)

	// An address is no identity: bob has it here and is not signed in as.
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/acme/invitations", config{"role": "owner"}, &inv)
	bob := e.claim(inv.Token, "bob@example.com")
	idp.SetAccounts(map[string]ssotest.Account{"s-eve": {Email: "bob@example.com", Verified: true, Groups: []string{"staff"}}})
	eve := e.cliLogin(e.visitor(), idp, "acme", "s-eve")
	if !strings.HasPrefix(eve.User, "sso-") {
		t.Errorf("who has bob's address at the provider is %q here", eve.User)
	}
	e.want(403, "DELETE", "/v1/orgs/acme", nil, nil, bearer(eve.Token)...)

	// The configuration's end is the sessions' end; its secret is told nobody.
	e.want(200, "GET", "/v1/orgs/acme", nil, nil, bearer(eve.Token)...)
	if a := e.want(200, "GET", "/v1/orgs/acme/sso", nil, nil); bytes.Contains(a.body, []byte(idp.Secret)) || !bytes.Contains(a.body, []byte(callback)) {
		t.Errorf("%s", a.body)
	}
	e.want(200, "DELETE", "/v1/orgs/acme/sso", nil, nil)
	e.want(401, "GET", "/v1/orgs/acme", nil, nil, bearer(eve.Token)...)
	e.want(200, "GET", "/v1/user", nil, nil, bearer(bob)...)
	for _, planted := range []string{idp.Secret, got.Token, got.Session, again.Token, c.secret} {
		if strings.Contains(e.logs.String(), planted) {
			t.Error("a secret is in the log")
		}
	}
}

// TestLoginByDevice types the code of a device that has no browser.
func TestLoginByDevice(t *testing.T) {
	e := newEnvWithoutWorker(t)
	idp := ssotest.Start(t, callback)
	idp.SetAccounts(map[string]ssotest.Account{"ann": {Email: "ann@example.com", Verified: true, Groups: []string{"staff"}}})
	e.realSSO(idp, "personal", nil)
	c := e.terminal(controller.CLIStart{Name: "server", Device: true})
	if c.AuthURL != "" || c.VerificationURI != apiURL+"/device" || c.ExpiresIn != 600 || !regexp.MustCompile(`^[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}$`).MatchString(c.Code) {
		t.Errorf("%+v", c.CLISession)
	}
	v := e.visitor()
	v.get(303, "/device")
	v.signIn(idp, "personal", "ann", "/device", 303)
	v.get(200, "/device")
	page := v.page
	v.post(303, "/device", "user_code", strings.ToLower(strings.ReplaceAll(c.Code, "-", " ")))
	v.get(200, v.at)
	v.says("server", c.Code)
	v.post(200, "/cli/"+c.ID, "decision", "approve")
	if got := c.poll(200); got.Org != "personal" || got.Token == "" {
		t.Errorf("%+v", got)
	}

	// A code is good once, and nobody may try many.
	codes := map[int]int{}
	for range 15 {
		v.page = page
		form := url.Values{"csrf": {csrfField.FindStringSubmatch(page)[1]}, "user_code": {c.Code}}
		codes[v.do("POST", "/device", form)]++
	}
	if codes[404] != 9 || codes[429] != 6 || v.head.Get("Retry-After") == "" {
		t.Errorf("guesses were answered %v", codes)
	}

	// Denied is denied.
	d := e.terminal(controller.CLIStart{Name: "x"})
	v.get(200, "/cli/"+d.ID)
	v.post(200, "/cli/"+d.ID, "decision", "deny")
	d.poll(403)
	d.poll(404)

	// Who has not the secret gets nothing, and what is no digest is no challenge.
	f := e.terminal(controller.CLIStart{Name: "x"})
	e.want(404, "POST", "/v1/cli_sessions/"+f.ID+"/poll", config{"secret": "guessed"}, nil, "Authorization", "")
	e.want(400, "POST", "/v1/cli_sessions", config{"name": "x", "challenge": "short"}, nil, "Authorization", "")
}

// TestLyingProviders: what a provider may send, through the whole server: the right code,
// counted, noted, and nobody signed in.
func TestLyingProviders(t *testing.T) {
	e := newEnvWithoutWorker(t)
	l := ssotest.StartLiar(t)
	e.want(200, "PUT", "/v1/orgs/personal/sso", config{"issuer": l.URL, "client_id": l.ClientID, "client_secret": l.Secret, "domains": []string{"example.com"}, "role": "viewer"}, nil)
	claims := func(k string, v any) ssotest.Lie { return ssotest.Lie{Claims: map[string]any{k: v}} }
	try := func() *visitor {
		v := e.visitor()
		to := v.leave("personal", "/device")
		resp, err := ssotest.Browser(t, nil).Get(to)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		v.do("GET", resp.Header.Get("Location"), nil)
		return v
	}
	tests := []struct {
		lie  ssotest.Lie
		word string
	}{
		{claims("iss", "https://accounts.example.com"), "sso_issuer"},
		{claims("aud", "somebody"), "sso_audience"},
		{claims("nonce", "n"), "sso_nonce"},
		{claims("exp", 1), "sso_expired"},
		{claims("email_verified", false), "sso_email"},
		{claims("email", "eve@evil.example"), "sso_domain"},
		{ssotest.Lie{Key: true}, "sso_signature"},
		{ssotest.Lie{Alg: "none"}, "sso_algorithm"},
		{ssotest.Lie{Alg: "HS256"}, "sso_algorithm"},
		{ssotest.Lie{Back: map[string]string{"iss": "https://other.example.com"}}, "sso_mixed_up"},
		{ssotest.Lie{Back: map[string]string{"error": "access_denied"}}, "sso_refused"},
		{ssotest.Lie{Userinfo: map[string]any{"sub": "bob"}}, "sso_subject"},
	}
	for _, tt := range tests {
		l.Tell(ssotest.Lie{})
		if v := try(); v.at != "/device" {
			t.Fatalf("the truth, before %s: %s", tt.word, v.page)
		}
		l.Tell(tt.lie)
		v := try()
		v.says(tt.word)
		v.get(303, "/device") // not signed in
	}
	l.Tell(ssotest.Lie{})

	// An answer that was given before, or belongs to another browser.
	v := e.visitor()
	resp, err := ssotest.Browser(t, nil).Get(v.leave("personal", "/device"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	back := resp.Header.Get("Location")
	e.visitor().get(400, back) // another browser's: and spent
	v.get(400, back)
	v.says("sso_state")
	resp, _ = ssotest.Browser(t, nil).Get(v.leave("personal", "/device"))
	resp.Body.Close()
	v.get(303, resp.Header.Get("Location"))
	v.get(400, resp.Header.Get("Location"))
	v.says("sso_state")

	metrics := string(e.want(200, "GET", "/metrics?role=controller", nil, nil).body)
	for _, tt := range tests {
		if !strings.Contains(metrics, `outcome="`+tt.word+`"`) {
			t.Errorf("%s is not counted", tt.word)
		}
	}
	t.Logf("%d lies refused, counted and noted", len(tests)+2)
}

// TestPagesAreOurs: forms of other sites, frames, caches, and cookies.
func TestPagesAreOurs(t *testing.T) {
	e := newEnvWithoutWorker(t)
	l := ssotest.StartLiar(t)
	e.want(200, "PUT", "/v1/orgs/personal/sso", config{"issuer": l.URL, "client_id": l.ClientID, "domains": []string{"example.com"}, "role": "viewer"}, nil)
	v := e.visitor()
	v.get(200, "/login")
	for k, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
		"Cache-Control": "no-store", "Cross-Origin-Opener-Policy": "same-origin",
	} {
		if !strings.HasPrefix(v.head.Get(k), want) {
			t.Errorf("%s is %q", k, v.head.Get(k))
		}
	}
	if csp := v.head.Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Error(csp)
	}
	cookie := v.head.Get("Set-Cookie")
	for _, want := range []string{"__Host-", "HttpOnly", "Secure", "SameSite=Lax", "Path=/"} {
		if !strings.Contains(cookie, want) {
			t.Errorf("cookie %q has no %s", cookie, want)
		}
	}
	page := v.page
	csrf := csrfField.FindStringSubmatch(page)[1]
	for _, tt := range []struct{ site, csrf string }{{"cross-site", csrf}, {"same-site", csrf}, {"none", csrf}, {"", csrf}, {"same-origin", ""}, {"same-origin", strings.Repeat("0", 64)}} {
		v.site = tt.site
		if code := v.do("POST", "/login/sso", url.Values{"csrf": {tt.csrf}, "org": {"personal"}}); code != 403 {
			t.Errorf("a form from %q with token %q: %d", tt.site, tt.csrf, code)
		}
	}
	v.site = "same-origin"
	other := e.visitor()
	other.get(200, "/login")
	if code := other.do("POST", "/login/sso", url.Values{"csrf": {csrf}, "org": {"personal"}}); code != 403 {
		t.Errorf("another browser's token: %d", code)
	}
	if code := v.do("POST", "/login/sso", url.Values{"csrf": {csrf}, "org": {"personal"}}); code != 200 {
		t.Errorf("the page's own form: %d %s", code, v.page)
	}
	v.page = page
	v.post(404, "/login/sso", "org", "nobody")
	// Nobody is led away from here after signing in.
	for _, bad := range []string{"//evil.example", "https://evil.example", "/cli/../logout", "/login?x", "/\\evil.example"} {
		v.get(200, "/login?next="+url.QueryEscape(bad))
		if strings.Contains(v.page, "evil") || strings.Contains(v.page, "logout") {
			t.Errorf("next=%q stands in the page", bad)
		}
	}
	v.get(200, "/ui/style.css")
	v.get(404, "/ui/login.html")
	v.get(404, "/ui/..%2flogin.html")
	// What needs a token does not get by without one, whatever the cookie.
	if got := v.do("GET", "/v1/user", nil); got != 401 {
		t.Errorf("the API by cookie: %d", got)
	}
}

// TestPublicEndpoints: each of them, without a token, is limited per address; and no other
// endpoint answers without one.
func TestPublicEndpoints(t *testing.T) {
	e := newEnvWithoutWorker(t)
	for _, pattern := range e.ctl.Endpoints() {
		method, path, ok := strings.Cut(pattern, " ")
		if !ok {
			method, path = "GET", pattern
		}
		path = regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "x")
		if a := e.do(method, path, nil, "Authorization", ""); a.code != 401 {
			t.Errorf("%s without a token: %d %s", pattern, a.code, a.body)
		}
	}
	limited := 0
	for _, pattern := range e.ctl.PublicEndpoints() {
		e.ctl.ForgetLimits()
		method, path, _ := strings.Cut(pattern, " ")
		path = regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "x")
		v := e.visitor()
		seen := map[int]int{}
		for n := 0; n < 2000 && seen[429] == 0; n++ { // on a slow machine the limit fills up again meanwhile
			seen[v.do(method, path, url.Values{})]++
		}
		if seen[429] == 0 || seen[401] > 0 && path != "/device" || seen[500] > 0 || v.head.Get("Retry-After") == "" {
			t.Errorf("%s answered %v", pattern, seen)
		} else {
			limited++
		}
	}
	t.Logf("%d public endpoints limited", limited)
}

// TestSSOSettings: what cannot be configured, and by whom.
func TestSSOSettings(t *testing.T) {
	p := newPeople(t)
	e := p.e
	l := ssotest.StartLiar(t)
	good := config{"issuer": l.URL, "client_id": l.ClientID, "client_secret": l.Secret, "domains": []string{"example.com"}, "role": "viewer"}
	with := func(k string, v any) config {
		out := config{}
		for a, b := range good {
			out[a] = b
		}
		if out[k] = v; v == nil {
			delete(out, k)
		}
		return out
	}
	owner, admin := bearer(p.tokens["O"]), bearer(p.tokens["A"])
	for name, tt := range map[string]struct {
		code int
		body config
	}{
		"no issuer":         {400, with("issuer", nil)},
		"no client":         {400, with("client_id", nil)},
		"unknown mode":      {400, with("mode", "always")},
		"everybody":         {400, with("domains", nil)},
		"a wildcard":        {400, with("domains", []string{"*.com"})},
		"no such role":      {400, with("role", "root")},
		"long sessions":     {400, with("session_hours", 1000)},
		"a scope of two":    {400, with("scopes", []string{"a b"})},
		"the metadata":      {422, with("issuer", "http://169.254.169.254")},
		"a private address": {422, with("issuer", "https://10.0.0.1")},
		"nobody there":      {503, with("issuer", "http://127.0.0.1:1")},
		"owners by admin":   {403, with("role", "owner")},
		"required at once":  {409, with("mode", "required")},
	} {
		if a := e.do("PUT", "/v1/orgs/acme/sso", tt.body, admin...); a.code != tt.code {
			t.Errorf("%s: %d %s, want %d", name, a.code, a.body, tt.code)
		}
	}
	e.want(404, "GET", "/v1/orgs/acme/sso", nil, nil, owner...)
	e.want(200, "PUT", "/v1/orgs/acme/sso", good, nil, admin...)
	e.want(200, "PUT", "/v1/orgs/acme/sso", with("role", "owner"), nil, owner...)
	// Where the provider makes owners, whoever changes what it says unmakes them.
	e.want(403, "PUT", "/v1/orgs/acme/sso", good, nil, admin...)
	e.want(403, "DELETE", "/v1/orgs/acme/sso", nil, nil, admin...)
	e.want(200, "DELETE", "/v1/orgs/acme/sso", nil, nil, bearer(p.tokens["P"])...) // the way back
	e.want(200, "PUT", "/v1/orgs/acme/sso", good, nil, admin...)
	if all := e.ctl.Values(t, "/sso/"); strings.Contains(all, l.Secret) || !strings.Contains(all, l.URL) {
		t.Error("a client secret is in the store as it is, or the store was not looked at")
	}
}

// TestRequiredSSO: only tokens whose session by the organization's own single sign-on lives.
func TestRequiredSSO(t *testing.T) {
	e := newEnvWithoutWorker(t)
	idp := ssotest.Start(t, callback)
	idp.SetAccounts(map[string]ssotest.Account{"ann": {Email: "ann@example.com", Verified: true, Groups: []string{"ops"}}})
	e.want(201, "POST", "/v1/orgs", config{"slug": "acme"}, nil)
	e.realSSO(idp, "acme", nil)
	first := e.cliLogin(e.visitor(), idp, "acme", "ann")
	required := config{
		"issuer": idp.Issuer, "client_id": idp.ClientID, "scopes": []string{"groups"}, "mode": "required",
		"domains": []string{"example.com"}, "groups": config{"ops": "admin"},
	}
	e.refused(409, "sign in by it once", "PUT", "/v1/orgs/acme/sso", required) // by a token that did not come by it
	e.want(200, "PUT", "/v1/orgs/acme/sso", required, nil, bearer(first.Token)...)

	// A token of before is refused for this organization, and says what to do.
	e.refused(403, "bulkhead auth login --org acme", "GET", "/v1/orgs/acme", nil)
	e.refused(403, "bulkhead auth login --org acme", "GET", "/v1/orgs/acme/members", nil)
	e.want(200, "GET", "/v1/orgs/personal", nil, nil)
	e.want(200, "GET", "/v1/user", nil, nil)
	v := e.visitor()
	second := e.cliLogin(v, idp, "acme", "ann")
	e.want(200, "GET", "/v1/orgs/acme", nil, nil, bearer(second.Token)...)

	// The end of the session is the end of the token, at once; others go on.
	e.want(200, "DELETE", "/v1/sessions/current", nil, nil, bearer(second.Token)...)
	if a := e.do("GET", "/v1/orgs/acme", nil, bearer(second.Token)...); a.code != 401 {
		t.Errorf("after its session: %d %s", a.code, a.body)
	}
	e.want(200, "GET", "/v1/orgs/acme", nil, nil, bearer(first.Token)...)
	// So is the end of the membership.
	third := e.cliLogin(e.visitor(), idp, "acme", "ann")
	e.want(200, "DELETE", "/v1/orgs/acme/members/ann@example.com", nil, nil, bearer(third.Token)...)
	for _, token := range []string{first.Token, third.Token} {
		if a := e.do("GET", "/v1/orgs/acme", nil, bearer(token)...); a.code != 401 && a.code != 403 {
			t.Errorf("after the membership: %d %s", a.code, a.body)
		}
	}
	// An operator may take the requirement away.
	e.want(200, "DELETE", "/v1/orgs/acme/sso", nil, nil)
	e.want(200, "GET", "/v1/orgs/acme", nil, nil)
}
