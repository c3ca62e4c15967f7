package controller_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/controller"
	"bulkhead/sso/ssotest"
)

// TestLoginForOneOrganization: whose provider may have vouched for anybody. It neither sees nor
// ends nor joins what is its user's elsewhere.
func TestLoginForOneOrganization(t *testing.T) {
	p := newPeople(t)
	e := p.e
	wide, bound := e.token, e.claim(e.mint(""), "admin")
	ids := func(token string) (out []string) {
		var all struct{ Tokens []controller.Token }
		e.want(200, "GET", "/v1/tokens", nil, &all, bearer(token)...)
		for _, tok := range all.Tokens {
			out = append(out, string(tok.ID))
		}
		return out
	}
	var self controller.Self
	e.want(200, "GET", "/v1/user", nil, &self, bearer(bound)...)
	if n := len(ids(bound)); n != 2 {
		t.Fatalf("control: %d tokens", n)
	}
	e.ctl.BindToken(t.Context(), self.Token.ID, "personal")
	if got := ids(bound); len(got) != 1 || got[0] != string(self.Token.ID) {
		t.Errorf("it sees the tokens %v", got)
	}
	e.want(200, "GET", "/v1/user", nil, &self, bearer(wide)...)
	if a := e.do("DELETE", "/v1/tokens/"+string(self.Token.ID), nil, bearer(bound)...); a.code != 403 {
		t.Errorf("it ends another login: %d %s", a.code, a.body)
	}

	session := e.ctl.AddSession(t.Context(), "admin", "")
	sessions := func(token string) string {
		a := e.do("GET", "/v1/sessions", nil, bearer(token)...)
		return string(a.body)
	}
	if !strings.Contains(sessions(wide), session) {
		t.Fatal("control: the session is not seen")
	}
	if strings.Contains(sessions(bound), session) {
		t.Error("it sees a session for everything")
	}
	e.want(404, "DELETE", "/v1/sessions/"+session, nil, nil, bearer(bound)...)
	e.want(200, "DELETE", "/v1/sessions/all", nil, nil, bearer(bound)...)
	if !strings.Contains(sessions(wide), session) {
		t.Error("it ended a session for everything")
	}

	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/other/invitations", config{"role": "admin"}, &inv, bearer(p.tokens["stranger"])...)
	e.want(403, "POST", "/v1/invitations/accept", config{"token": inv.Token}, nil, bearer(bound)...)
	e.want(200, "POST", "/v1/invitations/accept", config{"token": inv.Token}, nil, bearer(wide)...)
	e.want(200, "GET", "/v1/audit/key", nil, nil, bearer(bound)...) // what is everybody's stays
}

// TestTokensTellNothingOfOthers: what the holder of a token writes into it, or asks about it, tells
// of no organization, app or user that the token's user has nothing to do with.
func TestTokensTellNothingOfOthers(t *testing.T) {
	p := newPeople(t)
	e := p.e
	var apps []uint64
	for n := range uint64(20) {
		apps = append(apps, n+1)
	}
	current := func(letter string, org uint64) string {
		text := narrow(t, p.tokens[letter], &flyio.Organization{ID: org, Mask: resset.ActionAll}, &flyio.Apps{Apps: resset.New(resset.ActionAll, apps...)})
		return string(e.do("GET", "/v1/tokens/current", nil, with(text)...).body)
	}
	told := 0
	for org := range uint64(6) {
		for letter, others := range map[string][]string{"stranger": {"acme", "shop", "blog"}, "O": {"other", "else"}, "v": {"blog", "other"}} {
			body := current(letter, org)
			for _, s := range others {
				if strings.Contains(body, `"`+s+`"`) {
					t.Errorf("%s, with organization %d written into the token, is told of %s: %s", letter, org, s, body)
				}
			}
			told += strings.Count(body, `"shop"`)
		}
	}
	if told != 2 { // to O and to v
		t.Errorf("control: the app shop is told of %d times", told)
	}

	ask := func(access config) string {
		a := e.do("POST", "/v1/tokens/authorize", config{"header": p.tokens["stranger"], "access": access}, "Authorization", "")
		return strings.ReplaceAll(string(a.body), "nonesuch", "acme")
	}
	for _, more := range []config{{}, {"action": "w"}, {"org_feature": "nothing"}} {
		here, nowhere := config{"org_slug": "acme", "action": "r"}, config{"org_slug": "nonesuch", "action": "r"}
		for k, v := range more {
			here[k], nowhere[k] = v, v
		}
		if a, b := ask(here), ask(nowhere); a != b {
			t.Errorf("an organization of others is told from none: %s %s", a, b)
		}
	}
	if a, b := ask(config{"app_name": "shop", "org_slug": "acme", "action": "r"}), ask(config{"app_name": "shop", "org_slug": "other", "action": "r"}); a != b {
		t.Errorf("whose an app is: %s %s", a, b)
	}

	for _, method := range []string{"PUT", "DELETE"} {
		a := e.do(method, "/v1/orgs/acme/members/stranger", config{"role": "viewer"}, bearer(p.tokens["A"])...)
		b := e.do(method, "/v1/orgs/acme/members/nobody", config{"role": "viewer"}, bearer(p.tokens["A"])...)
		if a.code != 404 || strings.ReplaceAll(string(a.body), "stranger", "nobody") != string(b.body) {
			t.Errorf("a user who is no member is told from none: %s %s", a.body, b.body)
		}
	}

	// A token for one organization does not say in which others its user is.
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/acme/invitations", config{"role": "deployer"}, &inv, bearer(p.tokens["A"])...)
	e.want(200, "POST", "/v1/invitations/accept", config{"token": inv.Token}, nil, bearer(p.tokens["stranger"])...)
	var made struct{ Token string }
	e.want(201, "POST", "/v1/orgs/other/tokens", config{"kind": "readonly"}, &made, bearer(p.tokens["stranger"])...)
	if a := e.do("POST", "/v1/apps", config{"name": "mine"}, with(made.Token)...); a.code != 403 || strings.Contains(string(a.body), "acme") {
		t.Errorf("a token for one organization: %d %s", a.code, a.body)
	}
	e.refused(400, "acme, other", "POST", "/v1/apps", config{"name": "mine"}, bearer(p.tokens["stranger"])...)
}

// TestRemovedMemberLeftNoWayBack: invitations of somebody who may invite no more are good no
// more, and the sessions of a membership that ended do not live again with the next.
func TestRemovedMemberLeftNoWayBack(t *testing.T) {
	p := newPeople(t)
	e, owner := p.e, bearer(p.tokens["O"])
	invite := func(by string, role string) string {
		var inv struct{ Token string }
		e.want(201, "POST", "/v1/orgs/acme/invitations", config{"role": role}, &inv, bearer(p.tokens[by])...)
		return inv.Token
	}
	accept := func(code int, token string) {
		t.Helper()
		e.want(code, "POST", "/v1/invitations/accept", config{"token": token}, nil, bearer(p.tokens["stranger"])...)
	}
	mine, theirs := invite("A", "admin"), invite("O", "viewer")
	e.want(200, "PUT", "/v1/orgs/acme/members/the-admin", config{"role": "viewer"}, nil, owner...)
	accept(404, mine)
	e.want(200, "PUT", "/v1/orgs/acme/members/the-admin", config{"role": "admin"}, nil, owner...)
	e.want(200, "DELETE", "/v1/orgs/acme/members/the-admin", nil, nil, owner...)
	accept(404, mine)
	e.want(401, "POST", "/v1/claim", config{"name": "way-back"}, nil, bearer(mine)...)
	var left struct{ Invitations []controller.Invitation }
	e.want(200, "GET", "/v1/orgs/acme/invitations", nil, &left, owner...)
	if len(left.Invitations) != 1 {
		t.Errorf("invitations that are listed: %+v", left.Invitations)
	}
	if err := e.ctl.CollectOnce(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(strings.Join(must2(e.ctl.Keys(t.Context())), "\n"), "/claim/"); n != 1 {
		t.Errorf("%d invitations are kept, want the owner's", n)
	}
	accept(200, theirs)

	l := ssotest.StartLiar(t)
	e.want(200, "PUT", "/v1/orgs/acme/sso", config{"issuer": l.URL, "client_id": l.ClientID, "client_secret": l.Secret, "domains": []string{"example.com"}, "role": "viewer"}, nil, owner...)
	session, other := e.ctl.AddSession(t.Context(), "stranger", "acme"), e.ctl.AddSession(t.Context(), "stranger", "")
	seen := func() string {
		return string(e.do("GET", "/v1/sessions", nil, bearer(p.tokens["stranger"])...).body)
	}
	if s := seen(); !strings.Contains(s, session) || !strings.Contains(s, other) {
		t.Fatalf("control: %s", s)
	}
	e.want(200, "DELETE", "/v1/orgs/acme/members/stranger", nil, nil, owner...)
	accept(200, invite("O", "viewer"))
	if s := seen(); strings.Contains(s, session) || !strings.Contains(s, other) {
		t.Errorf("after a new membership: %s", s)
	}
}

// TestANewOrganizationReadsNoOlderRecords: one that gets the name of one that was removed is
// told nothing of it.
func TestANewOrganizationReadsNoOlderRecords(t *testing.T) {
	p := newPeople(t)
	e := p.e
	old, owner := bearer(p.tokens["stranger"]), bearer(p.tokens["P"])
	records := func(header []string) string {
		var page controller.AuditPage
		e.want(200, "GET", "/v1/orgs/other/audit?after=0", nil, &page, header...)
		var out []string
		for _, r := range page.Records {
			out = append(out, string(r.Record))
		}
		return strings.Join(out, "\n")
	}
	e.want(201, "POST", "/v1/orgs/other/tokens", config{"kind": "readonly"}, nil, old...)
	if !strings.Contains(records(old), `"stranger"`) {
		t.Fatalf("control: the record of a token is not there: %s", records(old))
	}
	e.want(202, "DELETE", "/v1/apps/else", nil, nil, old...)
	e.awaitNoApp("else")
	e.want(200, "DELETE", "/v1/orgs/other", nil, nil, old...)
	<-time.After(2 * time.Millisecond) // times of records are in milliseconds
	e.want(201, "POST", "/v1/orgs", config{"slug": "other"}, nil, owner...)
	e.want(201, "POST", "/v1/orgs/other/tokens", config{"kind": "readonly"}, nil, owner...)
	got := records(owner)
	if strings.Contains(got, "stranger") || !strings.Contains(got, `"operator"`) {
		t.Errorf("its records are: %s", got)
	}
}

// TestABodyThatComesLateIsForTheAppItWasAllowedFor: while it is on its way the app goes, and
// another organization's gets the name.
func TestABodyThatComesLateIsForTheAppItWasAllowedFor(t *testing.T) {
	p := newPeople(t)
	e := p.e
	tr := e.transport()
	tr.ExpectContinueTimeout = 20 * time.Second
	defer tr.CloseIdleConnections()
	late := func(path string, body config, meanwhile func()) int {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		reading, begun := make(chan struct{}), sync.Once{}
		rd, wr := io.Pipe()
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
			begun.Do(func() { close(reading) })
			return nil
		}})
		req, err := http.NewRequestWithContext(ctx, "POST", "https://api."+domain+path, rd)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+p.tokens["stranger"])
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Expect", "100-continue") // the server says so when the handler reads
		go func() {
			select {
			case <-reading:
				meanwhile()
				wr.Write(b)
				wr.Close()
			case <-t.Context().Done():
				wr.CloseWithError(t.Context().Err())
			}
		}()
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	owners := map[bool][]string{true: bearer(p.tokens["stranger"]), false: bearer(p.tokens["O"])}
	for path, body := range map[string]config{
		"/v1/apps/else/secrets":  {"values": config{"KEY": "of-the-stranger"}},
		"/v1/apps/else/machines": {"config": image()},
	} {
		if code := late(path, body, func() {}); code >= 300 {
			t.Errorf("control: %s, in time: %d", path, code)
		}
		moved := func() {
			e.want(202, "DELETE", "/v1/apps/else", nil, nil, owners[true]...)
			e.awaitNoApp("else")
			e.want(201, "POST", "/v1/apps", config{"name": "else", "org_slug": "acme"}, nil, owners[false]...)
		}
		if code := late(path, body, moved); code != 404 {
			t.Errorf("%s, for an app that became another's: %d", path, code)
		}
		if a := e.do("GET", path, nil, owners[false]...); strings.Contains(string(a.body), "KEY") || strings.Contains(string(a.body), "instance_id") {
			t.Errorf("the other's app has it: %s", a.body)
		}
		e.want(202, "DELETE", "/v1/apps/else?force=true", nil, nil, owners[false]...)
		e.awaitNoApp("else")
		e.want(201, "POST", "/v1/apps", config{"name": "else", "org_slug": "other"}, nil, owners[true]...)
	}
}
