package controller_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"bulkhead/audit"
	"bulkhead/controller"
	"bulkhead/passkey/passkeytest"
	"bulkhead/sso/ssotest"
)

// link asks for one to make a passkey, and opens it.
func (v *visitor) link(e *env, name string, header ...string) string {
	e.t.Helper()
	var l controller.PasskeyLink
	e.want(201, "POST", "/v1/passkeys", config{"name": name}, &l, header...)
	page, secret, ok := strings.Cut(l.URL, "#")
	if !ok || page != apiURL+"/passkeys/add" || len(secret) != 43 {
		e.t.Fatalf("a link: %+v", l)
	}
	v.get(200, "/passkeys/add")
	return secret
}

// begin begins a ceremony on the page that the visitor is on, which stays.
func (v *visitor) begin(code int, path string, kv ...string) controller.PasskeyCeremony {
	v.t.Helper()
	page := v.page
	v.post(code, path, kv...)
	var out controller.PasskeyCeremony
	if code == 200 {
		if err := json.Unmarshal([]byte(v.page), &out); err != nil || out.Attempt == "" {
			v.t.Fatalf("%s: %v", v.page, err)
		}
	}
	v.page = page
	return out
}

// enrol makes a passkey with a device in software.
func (v *visitor) enrol(e *env, name string, header ...string) *passkeytest.Device {
	e.t.Helper()
	secret := v.link(e, name, header...)
	c := v.begin(200, "/passkeys/begin", "link", secret)
	d := passkeytest.New(e.t, apiURL)
	v.post(200, "/passkeys/add", "attempt", c.Attempt, "answer", string(d.Make(c.Options)))
	v.says("Passkey " + name)
	return d
}

// passkeyIn signs in with a device, and spoils what is sent if change is given.
func (v *visitor) passkeyIn(code int, d *passkeytest.Device, next string, change func(form url.Values)) {
	v.t.Helper()
	v.get(200, "/login?next="+next)
	c := v.begin(200, "/login/passkey/begin", "next", next)
	form := url.Values{"attempt": {c.Attempt}, "answer": {string(d.Sign(c.Options))}, "csrf": {csrfField.FindStringSubmatch(v.page)[1]}}
	if change != nil {
		change(form)
	}
	if got := v.do("POST", "/login/passkey", form); got != code {
		v.t.Fatalf("sign in: %d, want %d: %s", got, code, v.page)
	}
}

// passkeyLogin is a whole CLI login by passkey.
func (e *env) passkeyLogin(v *visitor, d *passkeytest.Device, org string) controller.CLIToken {
	e.t.Helper()
	c := e.terminal(controller.CLIStart{Name: "laptop", Org: org})
	path := strings.TrimPrefix(c.AuthURL, apiURL)
	v.passkeyIn(303, d, path, nil)
	if v.at != path {
		e.t.Fatalf("signed in, and led to %q", v.at)
	}
	v.get(200, path)
	v.post(200, path, "decision", "approve")
	return c.poll(200)
}

func (e *env) passkeys(header ...string) []controller.Passkey {
	e.t.Helper()
	var out struct{ Passkeys []controller.Passkey }
	e.want(200, "GET", "/v1/passkeys", nil, &out, header...)
	return out.Passkeys
}

// self is the name of a token's user.
func (e *env) self(header ...string) string {
	e.t.Helper()
	var me controller.Self
	e.want(200, "GET", "/v1/user", nil, &me, header...)
	return me.Name
}

// TestPasskeys: local users make them, sign in with them, approve a command line, and take
// them away; with each goes what came by it.
func TestPasskeys(t *testing.T) {
	e := newEnvWithoutWorker(t)
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/personal/invitations", config{"role": "deployer"}, &inv)
	ann := bearer(e.claim(inv.Token, "ann"))
	d := e.visitor().enrol(e, "first", ann...)
	if all := e.passkeys(ann...); len(all) != 1 || all[0].Name != "first" || all[0].UsedAt != "" || len(e.passkeys()) != 0 {
		t.Fatalf("passkeys: %+v", all)
	}
	v := e.visitor()
	got := e.passkeyLogin(v, d, "")
	if got.User != "ann" || got.Method != "passkey" || got.Org != "" || got.Token == "" {
		t.Errorf("%+v", got)
	}
	e.want(200, "GET", "/v1/orgs/personal", nil, nil, bearer(got.Token)...)
	e.find("", "enrolment", func(r audit.Record) bool { return r.Detail == "passkey_added" && r.Name == "ann" && r.Code == 200 })
	e.find("", "sign-in", func(r audit.Record) bool {
		return r.Action == "POST /login/passkey" && r.Detail == "signed_in" && r.Name == "ann"
	})

	// By the token of that login another one, and the first goes: its sessions with it.
	second := e.visitor().enrol(e, "second", bearer(got.Token)...)
	kept := e.passkeyLogin(e.visitor(), second, "personal")
	e.want(200, "DELETE", "/v1/passkeys/first", nil, nil, ann...)
	if a := e.do("GET", "/v1/user", nil, bearer(got.Token)...); a.code != 401 {
		t.Errorf("a token of a passkey that is gone: %d", a.code)
	}
	e.want(200, "GET", "/v1/user", nil, nil, bearer(kept.Token)...)
	v.get(303, "/device")
	e.visitor().passkeyIn(403, d, "/device", nil)
	e.find("", "removal", func(r audit.Record) bool {
		return r.Detail == "passkey_removed" && r.Name == "ann" && strings.HasPrefix(r.Target, "passkey=")
	})

	// The last one stays, unless it is forced.
	e.refused(409, "your last passkey", "DELETE", "/v1/passkeys/second", nil, ann...)
	e.want(404, "DELETE", "/v1/passkeys/first", nil, nil, ann...)
	e.want(404, "DELETE", "/v1/passkeys/second", nil, nil) // another user's
	e.visitor().passkeyIn(303, second, "/device", nil)
	e.want(200, "DELETE", "/v1/passkeys/"+e.passkeys(ann...)[0].ID+"?force=true", nil, nil, ann...)
	e.visitor().passkeyIn(403, second, "/device", nil)

	// With the user goes all.
	third := e.visitor().enrol(e, "third", ann...)
	e.want(200, "DELETE", "/v1/users/ann", nil, nil)
	e.visitor().passkeyIn(403, third, "/device", nil)
	if left := e.ctl.Values(t, "/passkey/"); left != "" {
		t.Errorf("left of a removed user: %s", left)
	}
}

// TestBadPasskeysGetNobodyIn: what a hostile page, device or user sends, through the whole
// server: refused with its word, counted, noted, and nobody is signed in.
func TestBadPasskeysGetNobodyIn(t *testing.T) {
	e := newEnvWithoutWorker(t)
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/personal/invitations", config{"role": "viewer"}, &inv)
	eve := bearer(e.claim(inv.Token, "eve"))
	good, hers := e.visitor().enrol(e, "good"), e.visitor().enrol(e, "hers", eve...)
	var earlier url.Values
	e.visitor().passkeyIn(303, good, "/device", func(f url.Values) { earlier = f })
	earlierAnswer := earlier.Get("answer")
	tests := []struct {
		name, word string
		code       int
		spoil      func(d *passkeytest.Device)
		change     func(f url.Values)
	}{
		{name: "another origin", word: "passkey_refused", code: 403, spoil: func(d *passkeytest.Device) { d.Origin = "https://api." + domain + ".evil.example:8443" }},
		{name: "an app's origin", word: "passkey_refused", code: 403, spoil: func(d *passkeytest.Device) { d.Origin = "https://app." + domain + ":8443" }},
		{name: "another RP id", word: "passkey_refused", code: 403, spoil: func(d *passkeytest.Device) { d.RPID = domain }},
		{name: "user not verified", word: "passkey_refused", code: 403, spoil: func(d *passkeytest.Device) { d.NoUser = true }},
		{name: "a challenge of before", word: "passkey_refused", code: 403, change: func(f url.Values) { f.Set("answer", earlierAnswer) }},
		{name: "all of before", word: "passkey_state", code: 400, change: func(f url.Values) { f.Set("attempt", earlier.Get("attempt")); f.Set("answer", earlierAnswer) }},
		{name: "another user's credential", word: "passkey_unknown", code: 403, spoil: func(d *passkeytest.Device) { d.ID = hers.ID }},
		{name: "another user's handle", word: "passkey_unknown", code: 403, spoil: func(d *passkeytest.Device) { d.Handle = hers.Handle }},
		{name: "no JSON", word: "passkey_refused", code: 403, change: func(f url.Values) { f.Set("answer", "{") }},
		{name: "no attempt", word: "passkey_state", code: 400, change: func(f url.Values) { f.Del("attempt") }},
		{name: "no page's form", word: "csrf", code: 403, change: func(f url.Values) { f.Del("csrf") }},
	}
	for _, tt := range tests {
		e.ctl.ForgetLimits()
		v, d := e.visitor(), *good
		if tt.spoil != nil {
			tt.spoil(&d)
		}
		v.passkeyIn(tt.code, &d, "/device", tt.change)
		v.says(tt.word)
		v.get(303, "/device") // not signed in
		good.Counter = max(good.Counter, d.Counter)
		e.visitor().passkeyIn(303, good, "/device", nil) // the truth goes on
	}

	// Another browser's challenge; and an answer sent twice.
	a, b := e.visitor(), e.visitor()
	a.get(200, "/login")
	b.get(200, "/login")
	c := a.begin(200, "/login/passkey/begin")
	answer := string(good.Sign(c.Options))
	b.post(400, "/login/passkey", "attempt", c.Attempt, "answer", answer)
	a.post(400, "/login/passkey", "attempt", c.Attempt, "answer", answer) // it is spent
	a.get(200, "/login")
	c = a.begin(200, "/login/passkey/begin")
	answer = string(good.Sign(c.Options))
	a.post(303, "/login/passkey", "attempt", c.Attempt, "answer", answer)
	a.get(200, "/login")
	a.post(400, "/login/passkey", "attempt", c.Attempt, "answer", answer)
	a.says("passkey_state")

	// Too late.
	v := e.visitor()
	v.get(200, "/login")
	c = v.begin(200, "/login/passkey/begin")
	back := controller.Ahead(6 * time.Minute)
	v.post(400, "/login/passkey", "attempt", c.Attempt, "answer", string(good.Sign(c.Options)))
	back()

	e.ctl.ForgetLimits()

	// A copy: its counter is behind. It is out, and so is who came with it, and the
	// device itself; the owner sees why, and takes it away without force.
	v = e.visitor()
	v.passkeyIn(303, good, "/device", nil)
	v.get(200, "/device")
	copied := *good
	copied.Counter = 1
	w := e.visitor()
	w.passkeyIn(403, &copied, "/device", nil)
	w.says("passkey_cloned")
	v.get(303, "/device")
	e.visitor().passkeyIn(403, good, "/device", nil)
	if all := e.passkeys(); len(all) != 1 || all[0].SuspectAt == "" {
		t.Errorf("a passkey of which there is a copy: %+v", all)
	}
	e.find("", "the copy", func(r audit.Record) bool {
		return r.Detail == "sign_in_refused: passkey_cloned" && r.Name == "admin" && r.Result == audit.Refused && r.Code == 403
	})
	e.want(200, "DELETE", "/v1/passkeys/good", nil, nil)

	metrics := string(e.want(200, "GET", "/metrics?role=controller", nil, nil).body)
	for _, word := range []string{"passkey_refused", "passkey_unknown", "passkey_state", "passkey_cloned"} {
		if !strings.Contains(metrics, `method="passkey",outcome="`+word+`"`) && !strings.Contains(metrics, `outcome="`+word+`",method="passkey"`) {
			t.Errorf("%s is not counted", word)
		}
	}
	noted := 0
	for _, r := range e.auditLog("") {
		if strings.HasPrefix(r.Detail, "sign_in_refused: passkey_") && r.Result == audit.Refused {
			noted += max(r.Count, 1)
		}
	}
	if noted < 3 { // many of one address at once are counted together
		t.Errorf("%d refusals are in the audit log", noted)
	}
	t.Logf("%d bad answers refused", len(tests)+5)
}

// TestPasskeyLinks: who may make a passkey, for whom, and once.
func TestPasskeyLinks(t *testing.T) {
	p := newPeople(t)
	e := p.e
	owner := bearer(p.tokens["O"])

	// Lesser tokens: a passkey would be worth more than they are.
	var made struct{ Token string }
	e.want(201, "POST", "/v1/orgs/acme/tokens", config{"kind": "org"}, &made, owner...)
	var deploy struct{ Token string }
	e.want(200, "POST", "/v1/apps/shop/deploy_token", nil, &deploy, owner...)
	for name, token := range map[string]string{"an org's": made.Token, "a deploy": deploy.Token, "an attenuated": narrow(t, p.tokens["O"], act("rwcdC"))} {
		for _, path := range []string{"POST /v1/passkeys", "DELETE /v1/passkeys/0123456789abcdef"} {
			method, path, _ := strings.Cut(path, " ")
			if a := e.do(method, path, nil, bearer(token)...); a.code != 403 {
				t.Errorf("%s by %s token: %d %s", method, name, a.code, a.body)
			}
		}
	}
	e.want(400, "POST", "/v1/passkeys", config{"name": "a\x1bb"}, nil, owner...)
	e.want(400, "POST", "/v1/passkeys", config{"name": strings.Repeat("x", 65)}, nil, owner...)

	// A link: the first browser's, once, while its maker's token is good, for ten minutes.
	v := e.visitor()
	secret := v.link(e, "one", owner...)
	c := v.begin(200, "/passkeys/begin", "link", secret)
	if c.User != "the-owner" || c.Name != "one" {
		t.Errorf("%+v", c)
	}
	other := e.visitor()
	other.get(200, "/passkeys/add")
	other.begin(404, "/passkeys/begin", "link", secret)
	d := passkeytest.New(t, apiURL)
	other.post(400, "/passkeys/add", "attempt", c.Attempt, "answer", string(d.Make(c.Options))) // which ends it
	v.post(400, "/passkeys/add", "attempt", c.Attempt, "answer", string(d.Make(c.Options)))
	v.get(200, "/passkeys/add")
	c = v.begin(200, "/passkeys/begin", "link", secret)
	for _, spoil := range []func(d *passkeytest.Device){
		func(d *passkeytest.Device) { d.Origin = "https://evil.example" }, func(d *passkeytest.Device) { d.RPID = domain }, func(d *passkeytest.Device) { d.NoUser = true },
	} {
		bad := passkeytest.New(t, apiURL)
		spoil(bad)
		v.post(403, "/passkeys/add", "attempt", c.Attempt, "answer", string(bad.Make(c.Options)))
		v.says("passkey_refused")
		v.get(200, "/passkeys/add")
		c = v.begin(200, "/passkeys/begin", "link", secret)
	}
	again := v.begin(200, "/passkeys/begin", "link", secret)
	sign := e.visitor()
	sign.get(200, "/login")
	sign.post(400, "/login/passkey", "attempt", again.Attempt, "answer", "{}") // not a sign-in's
	v.post(200, "/passkeys/add", "attempt", c.Attempt, "answer", string(d.Make(c.Options)))
	v.get(200, "/passkeys/add")
	v.begin(404, "/passkeys/begin", "link", secret)
	v.begin(404, "/passkeys/begin", "link", "")
	twice := v.link(e, "twice", owner...)
	c = v.begin(200, "/passkeys/begin", "link", twice)
	v.post(409, "/passkeys/add", "attempt", c.Attempt, "answer", string(d.Make(c.Options))) // the same device lies that it has none
	v.get(200, "/passkeys/add")
	if len(e.passkeys(owner...)) != 1 {
		t.Error("one link, and not one passkey")
	}
	deployer := bearer(p.tokens["D"])
	late := v.link(e, "late", deployer...)
	back := controller.Ahead(11 * time.Minute)
	v.begin(404, "/passkeys/begin", "link", late)
	back()
	v.begin(200, "/passkeys/begin", "link", late)
	cut := v.begin(200, "/passkeys/begin", "link", late)
	e.want(200, "DELETE", "/v1/users/the-deployer", nil, nil, bearer(p.tokens["P"])...)
	v.begin(404, "/passkeys/begin", "link", late)
	v.post(404, "/passkeys/add", "attempt", cut.Attempt, "answer", string(passkeytest.New(t, apiURL).Make(cut.Options)))

	// No more than there may be.
	viewer := bearer(p.tokens["V"])
	for range 20 {
		e.ctl.ForgetLimits()
		e.visitor().enrol(e, "many", viewer...)
	}
	e.refused(422, "20 passkeys", "POST", "/v1/passkeys", nil, viewer...)
	e.refused(409, "20 of your passkeys", "DELETE", "/v1/passkeys/many", nil, viewer...)
	if strings.Contains(e.logs.String(), secret) || strings.Contains(e.logs.String(), late) {
		t.Error("a link's secret is in the log")
	}
}

// TestPasskeysAreNoSingleSignOn: for an organization that requires its own, a passkey
// gives no session and no token; and who came by it makes no passkey.
func TestPasskeysAreNoSingleSignOn(t *testing.T) {
	e := newEnvWithoutWorker(t)
	l := ssotest.StartLiar(t)
	e.want(201, "POST", "/v1/orgs", config{"slug": "acme"}, nil)
	conf := config{"issuer": l.URL, "client_id": l.ClientID, "client_secret": l.Secret, "domains": []string{"example.com"}, "role": "admin"}
	e.want(200, "PUT", "/v1/orgs/acme/sso", conf, nil)
	d := e.visitor().enrol(e, "mine")

	v := e.visitor()
	c := e.terminal(controller.CLIStart{Name: "laptop", Org: "acme"})
	path := strings.TrimPrefix(c.AuthURL, apiURL)
	resp, err := ssotest.Browser(t, nil).Get(v.leave("acme", path))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	v.get(303, resp.Header.Get("Location"))
	v.get(200, path)
	v.post(200, path, "decision", "approve")
	sso := bearer(c.poll(200).Token)
	conf["mode"] = "required"
	e.want(200, "PUT", "/v1/orgs/acme/sso", conf, nil, sso...)
	e.refused(403, "good for organization", "POST", "/v1/passkeys", nil, sso...)

	// Who came about there has another way in than the last passkey, for as long as there is.
	name := e.self(sso...)
	root := bearer(e.claim(e.mint(""), name))
	for _, code := range []int{200, 409} {
		e.visitor().enrol(e, "last", root...)
		if a := e.do("DELETE", "/v1/passkeys/last", nil, root...); a.code != code {
			t.Errorf("the last passkey of who comes by single sign-on: %d %s, want %d", a.code, a.body, code)
		}
		if code == 200 {
			e.want(200, "DELETE", "/v1/orgs/acme/members/"+name, nil, nil, sso...)
		}
	}

	got := e.passkeyLogin(e.visitor(), d, "")
	e.want(200, "GET", "/v1/orgs/personal", nil, nil, bearer(got.Token)...)
	e.refused(403, "requires single sign-on", "GET", "/v1/orgs/acme", nil, bearer(got.Token)...)
	c = e.terminal(controller.CLIStart{Name: "laptop", Org: "acme"})
	path = strings.TrimPrefix(c.AuthURL, apiURL)
	w := e.visitor()
	w.passkeyIn(303, d, path, nil)
	w.get(303, path)
	w.get(200, w.at)
	w.says("wants you to sign in by its own single sign-on")
	w.post(403, path, "decision", "approve")
	w.says("sso_required")
	c.poll(202)
}
