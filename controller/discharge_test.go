package controller_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/flyio/machinesapi"
	"github.com/superfly/macaroon/resset"
	"github.com/superfly/macaroon/tp"

	"bulkhead/audit"
	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/sso/ssotest"
	"bulkhead/token"
)

const (
	thirdParty = apiURL + "/aaa/v1"
	dischargeP = "/aaa/v1/.well-known/macfly/3p"
)

// shut is an organization that requires single sign-on, with an app and two people.
type shut struct {
	*env
	idp      *ssotest.IDP
	settings config
	ann, bob controller.CLIToken // an owner, and a deployer
	early    string              // a token of ann's of before it was required
}

func newShut(t *testing.T) *shut {
	s := &shut{env: newEnvWithoutWorker(t), idp: ssotest.Start(t, callback)}
	s.idp.SetAccounts(map[string]ssotest.Account{
		"ann": {Email: "ann@example.com", Verified: true, Groups: []string{"own"}}, "bob": {Email: "bob@example.com", Verified: true, Groups: []string{"staff"}},
	})
	s.want(201, "POST", "/v1/orgs", config{"slug": "acme"}, nil)
	s.settings = config{"groups": config{"own": "owner", "staff": "deployer"}}
	s.realSSO(s.idp, "acme", s.settings)
	s.ann, s.bob = s.cliLogin(s.visitor(), s.idp, "acme", "ann"), s.cliLogin(s.visitor(), s.idp, "acme", "bob")
	s.want(201, "POST", "/v1/apps", config{"name": "shop", "org_slug": "acme"}, nil, bearer(s.ann.Token)...)
	s.early = s.make("deploy", s.ann)
	s.set("required", "")
	return s
}

// set changes the mode and what tokens of programs need, as ann.
func (s *shut) set(mode, services string) {
	s.t.Helper()
	s.want(200, "PUT", "/v1/orgs/acme/sso", s.body(mode, services), nil, bearer(s.ann.Token)...)
}

func (s *shut) body(mode, services string) config {
	return config{
		"issuer": s.idp.Issuer, "client_id": s.idp.ClientID, "scopes": []string{"groups"}, "domains": []string{"example.com"},
		"groups": s.settings["groups"], "mode": mode, "service_tokens": services,
	}
}

func (s *shut) make(kind string, by controller.CLIToken) string {
	s.t.Helper()
	body := config{"kind": kind}
	if kind == "deploy" {
		body["app"] = "shop"
	}
	var out controller.Token
	s.want(201, "POST", "/v1/orgs/acme/tokens", body, &out, bearer(by.Token)...)
	return out.Token
}

func (s *shut) ticket(text string) []byte {
	s.t.Helper()
	all, err := token.Tickets(text, thirdParty)
	if err != nil || len(all) != 1 {
		s.t.Fatal(len(all), err)
	}
	return all[0]
}

// discharge brings a ticket with a session's secret.
func (s *shut) discharge(code int, text, secret string) string {
	s.t.Helper()
	var out struct{ Discharge, Error string }
	s.want(code, "POST", dischargeP, config{"ticket": s.ticket(text)}, &out, bearer(secret)...)
	if (code == 201) != strings.HasPrefix(out.Discharge, "fm2_") || (code == 201) != (out.Error == "") {
		s.t.Errorf("%d: answered %+v", code, out)
	}
	return out.Discharge
}

// use reads the app with tokens, and returns the code and the answer.
func (s *shut) use(list ...string) (int, string) {
	a := s.do("GET", "/v1/apps/shop", nil, with(strings.Join(list, ","))...)
	return a.code, string(a.body)
}

func (s *shut) expect(what string, code int, word string, list ...string) {
	s.t.Helper()
	if got, said := s.use(list...); got != code || !strings.Contains(said, word) {
		s.t.Errorf("%s: %d %s, want %d and %q", what, got, said, code, word)
	}
}

// TestDischarges: a token of an organization that requires single sign-on is good with a
// discharge, for a live session of its user by that single sign-on, and not otherwise.
func TestDischarges(t *testing.T) {
	s := newShut(t)
	s.expect("a token of before it was required", 403, "make the token again", s.early)
	text, other := s.make("deploy", s.ann), s.make("org", s.ann)
	before := s.refusals(token.NoDischarge)
	s.expect("without a discharge", 401, "bulkhead tokens discharge", text)
	s.expect("without a discharge", 401, `"no_discharge"`, text)
	if n := s.refusals(token.NoDischarge); n != before+2 {
		t.Errorf("%d refusals counted, want %d", n, before+2)
	}
	d := s.discharge(201, text, s.ann.Session)
	s.expect("discharged", 200, "shop", text, d)
	s.expect("discharged and narrowed", 200, "shop", narrow(t, text, act("r")), d)
	base, _ := url.Parse("https://api." + domain)
	api, shop := &machinesapi.Client{HTTP: s.transport(), BaseURL: base}, "shop"
	for list, ok := range map[string]bool{text + "," + d: true, text: false, s.early: false} {
		_, err := api.Authorize(t.Context(), "FlyV1 "+list, &machinesapi.Access{AppName: &shop, Action: resset.ActionRead})
		if (err == nil) != ok {
			t.Errorf("asked by another service: %v, want %v", err, ok)
		}
	}
	if resp, said := s.atRegistry("GET", "/v2/shop/tags/list", text+","+d, nil); resp.StatusCode != 404 { // nothing pushed yet
		t.Errorf("the registry: %d %s", resp.StatusCode, said)
	}
	if resp, _ := s.atRegistry("GET", "/v2/shop/tags/list", text, nil); resp.StatusCode != 401 {
		t.Errorf("the registry without a discharge: %d", resp.StatusCode)
	}

	// Of another ticket, of another's session, of none, too old, of one's own making.
	s.expect("with another token's discharge", 401, "no_discharge", other, d)
	s.discharge(403, text, s.bob.Session)
	s.discharge(401, text, "not-a-session")
	s.expect("expired", 401, "discharge_expired", text, s.ctl.OldDischarge(t, s.ticket(text), s.ann.Session, 11*time.Minute))
	s.expect("still good", 200, "", text, s.ctl.OldDischarge(t, s.ticket(text), s.ann.Session, 9*time.Minute))
	s.expect("for a session of another's", 401, "session", text, s.ctl.OldDischarge(t, s.ticket(text), s.bob.Session, 0))
	own := macaroon.NewEncryptionKey()
	sum := sha256.Sum256([]byte(s.ann.Session))
	c, err := macaroon.NewCaveat3P(own, thirdParty)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := token.Discharge(token.Party{Location: thirdParty, Key: own}, c.Ticket, func([]macaroon.Caveat) ([]macaroon.Caveat, error) {
		return []macaroon.Caveat{&token.Session{ID: hex.EncodeToString(sum[:])}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.expect("a third party of one's own, with a live session", 403, "sso_required", narrow(t, s.early, c), forged)
	s.expect("one's own caveat of a live session", 403, "sso_required", narrow(t, s.early, &token.Session{ID: hex.EncodeToString(sum[:])}))
	s.expect("a good token lends nothing to another", 403, "", narrow(t, text, &macaroon.ValidityWindow{NotAfter: time.Now().Unix() + 60}, &token.AppNames{Names: []string{"none"}}), d, s.early)
	for name, ticket := range map[string][]byte{"none": nil, "not one": []byte("x"), "changed": append([]byte{1}, s.ticket(text)[1:]...)} {
		if a := s.do("POST", dischargeP, config{"ticket": ticket}, bearer(s.ann.Session)...); a.code != 400 || !strings.Contains(string(a.body), "ticket_bad") {
			t.Errorf("ticket: %s: %d %s", name, a.code, a.body)
		}
	}
	s.want(413, "POST", dischargeP, config{"ticket": make([]byte, 9<<10)}, nil, bearer(s.ann.Session)...)

	// The end of the session, of the token, of the membership, of single sign-on: at once.
	again := s.cliLogin(s.visitor(), s.idp, "acme", "ann")
	d2 := s.discharge(201, text, again.Session)
	s.expect("by another session of the same user", 200, "", text, d2)
	s.want(200, "DELETE", "/v1/sessions/current", nil, nil, bearer(again.Token)...)
	ended := s.refusals(token.SessionEnded)
	s.expect("after its session", 401, "session", text, d2)
	if n := s.refusals(token.SessionEnded); n != ended+1 {
		t.Errorf("%d refusals counted, want %d", n, ended+1)
	}
	s.expect("by the session that goes on", 200, "", text, d)
	s.discharge(401, text, again.Session)
	bobs := s.make("deploy", s.bob)
	bd := s.discharge(201, bobs, s.bob.Session)
	s.expect("the other's", 200, "", bobs, bd)
	s.want(200, "DELETE", "/v1/orgs/acme/members/bob@example.com", nil, nil, bearer(s.ann.Token)...)
	s.expect("of a removed member", 401, "", bobs, bd)
	s.discharge(403, bobs, s.bob.Session) // its token went with the membership

	metrics := string(s.want(200, "GET", "/metrics?role=controller", nil, nil).body)
	for _, word := range []string{"ok", "session_other", "session_ended", "ticket_bad", "ticket_over"} {
		if !strings.Contains(metrics, `outcome="`+word+`",method="discharge"`) && !strings.Contains(metrics, `method="discharge",outcome="`+word+`"`) {
			t.Errorf("%s is not counted", word)
		}
	}
	for _, want := range []string{"discharged|ann@example.com", "discharged|bob@example.com", "sign_in_refused: session_other|bob@example.com", "mode: required, service_tokens: refused|ann@example.com"} {
		await.True(s.t, "the audit log says "+want, func() bool {
			var log struct {
				Records []struct{ Record audit.Record }
			}
			s.want(200, "GET", "/v1/orgs/acme/audit?limit=200", nil, &log, bearer(s.ann.Token)...)
			for _, r := range log.Records {
				if r.Record.Detail+"|"+r.Record.Name == want {
					return true
				}
			}
			return false
		})
	}
	s.want(200, "DELETE", "/v1/orgs/acme/sso", nil, nil, bearer(s.ann.Token)...)
	s.expect("after single sign-on", 401, "session", text, d)
	// To another service, too, a login for one organization says nothing of its user's others.
	var current struct{ Tokens []controller.CurrentToken }
	s.want(200, "GET", "/v1/tokens/current", nil, &current)
	s.ctl.BindToken(t.Context(), current.Tokens[0].TokenID, "acme")
	for slug, ok := range map[string]bool{"acme": true, "personal": false} {
		_, err := api.Authorize(t.Context(), "FlyV1 "+s.token, &machinesapi.Access{OrgSlug: &slug, Action: resset.ActionRead})
		if (err == nil) != ok {
			t.Errorf("asked by another service about %s: %v, want %v", slug, err, ok)
		}
	}
	if strings.Contains(s.logs.String(), d[:60]) || strings.Contains(s.logs.String(), s.ann.Session) {
		t.Error("a discharge or a session's secret is in the log")
	}
}

// TestServiceTokens: owners may let tokens of programs be without a session, and take it back.
func TestServiceTokens(t *testing.T) {
	s := newShut(t)
	s.want(400, "PUT", "/v1/orgs/acme/sso", s.body("required", "yes"), nil, bearer(s.ann.Token)...)
	s.settings["groups"] = config{"own": "admin", "staff": "admin"} // ann stays what she is until she comes again
	s.set("required", "")
	admin := s.cliLogin(s.visitor(), s.idp, "acme", "bob")
	s.refused(403, "owner", "PUT", "/v1/orgs/acme/sso", s.body("required", "allowed"), bearer(admin.Token)...)
	bound := s.make("deploy", s.ann)
	s.set("required", "allowed")
	s.expect("a deploy token", 200, "", s.make("deploy", s.ann))
	s.expect("one of before", 200, "", s.early)
	s.expect("one that was made to need a session", 401, "no_discharge", bound)
	s.expect("a token of an organization", 401, "no_discharge", s.make("org", s.ann))
	s.want(200, "PUT", "/v1/orgs/acme/sso", s.body("required", "allowed"), nil, bearer(admin.Token)...) // stays
	s.want(200, "PUT", "/v1/orgs/acme/sso", s.body("required", ""), nil, bearer(admin.Token)...)
	s.expect("after it was taken back", 403, "sso_required", s.early)
}

// TestLibraryClientDischarges: the macaroon library's own client has tokens discharged, over
// TLS: with the session's secret, and through a browser.
func TestLibraryClientDischarges(t *testing.T) {
	s := newShut(t)
	text := s.make("deploy", s.ann)
	web := tp.WithHTTP(&http.Client{Transport: s.transport()})
	direct := tp.NewClient(flyio.LocationPermission, web, tp.WithBearerAuthentication(thirdParty, s.ann.Session))
	if needs, err := direct.NeedsDischarge("FlyV1 " + text); err != nil || !needs {
		t.Fatal(needs, err)
	}
	got, err := direct.FetchDischargeTokens(t.Context(), "FlyV1 "+text)
	if err != nil {
		t.Fatal(err)
	}
	s.expect("by its session", 200, "shop", strings.TrimPrefix(got, "FlyV1 "))

	browser := func(person, decision string) func(context.Context, string) error {
		return func(_ context.Context, page string) error {
			v := s.visitor()
			path := strings.TrimPrefix(page, apiURL)
			v.get(303, path)
			v.signIn(s.idp, "acme", person, path, 303)
			if v.at != path {
				t.Fatalf("signed in, and led to %s", v.at)
			}
			if decision == "" { // somebody else's token
				v.get(403, path)
				v.says("session_other")
				return errors.New("not mine")
			}
			v.get(200, path)
			v.says("acme", "deploy", "shop", "192.0.2.7")
			v.post(200, path, "decision", decision)
			v.get(404, path)
			return nil
		}
	}
	fetch := func(person, decision string) (string, error) {
		s.ctl.ForgetLimits()
		c := tp.NewClient(flyio.LocationPermission, web, tp.WithUserURLCallback(browser(person, decision)),
			tp.WithPollingBackoff(func(time.Duration) time.Duration { return 10 * time.Millisecond }))
		return c.FetchDischargeTokens(t.Context(), text)
	}
	if got, err = fetch("ann", "approve"); err != nil {
		t.Fatal(err)
	}
	s.expect("by a browser", 200, "shop", got)
	if _, err := fetch("ann", "deny"); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("denied: %v", err)
	}
	if _, err := fetch("bob", ""); err == nil {
		t.Error("another user discharged it")
	}
	// Polled before anybody decided, and under the page's name.
	var begun struct {
		UserInteractive struct {
			PollURL string `json:"poll_url"`
			UserURL string `json:"user_url"`
		} `json:"user_interactive"`
	}
	s.want(201, "POST", dischargeP, config{"ticket": s.ticket(text)}, &begun, "Authorization", "")
	s.want(202, "GET", strings.TrimPrefix(begun.UserInteractive.PollURL, apiURL), nil, nil, "Authorization", "")
	s.want(404, "GET", dischargeP+"/poll?id="+begun.UserInteractive.UserURL[strings.LastIndex(begun.UserInteractive.UserURL, "/")+1:], nil, nil, "Authorization", "")
	s.want(404, "GET", strings.TrimPrefix(strings.Replace(begun.UserInteractive.PollURL, dischargeP+"/poll?id=", "/3p/", 1), apiURL), nil, nil, "Authorization", "")
}
