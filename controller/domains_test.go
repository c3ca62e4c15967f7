package controller_test

import (
	"strings"
	"testing"

	"bulkhead/controller"
	"bulkhead/sso/ssotest"
)

// TestWhoVouchesForADomain: an organization whose admins run their own provider makes nobody
// of the name of an address that is not theirs, by single sign-on or by invitation, in lists
// or in the audit log; the one to which the domain was granted does, at the same provider
// too; and each domain is one organization's.
func TestWhoVouchesForADomain(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.Role.SSOUsers = 2 })
	idp := ssotest.Start(t, callback)
	idp.SetAccounts(map[string]ssotest.Account{
		"s-eve": {Email: "ceo@example.com", Verified: true, Groups: []string{"ops"}},
		"s-ceo": {Email: "ceo@example.com", Verified: true, Groups: []string{"staff"}},
		"s-two": {Email: "two@example.com", Verified: true, Groups: []string{"staff"}},
		"s-few": {Email: "few@example.com", Verified: true, Groups: []string{"staff"}},
	})
	for _, org := range []string{"evil", "bigfirm"} {
		e.want(201, "POST", "/v1/orgs", config{"slug": org}, nil)
	}
	e.realSSO(idp, "evil", nil)
	e.realSSO(idp, "bigfirm", nil)

	grant := "/v1/platform/domains/example.com"
	e.want(200, "DELETE", grant, nil, nil) // realSSO's
	e.refused(404, "evil2", "PUT", grant, config{"organization": "evil2"})
	for _, bad := range []string{"com", "Example.com", "*.example.com", "a@example.com"} {
		e.refused(400, "e-mail domain", "PUT", "/v1/platform/domains/"+bad, config{"organization": "bigfirm"})
	}
	e.want(200, "PUT", grant, config{"organization": "bigfirm"}, nil)
	e.refused(409, "withdraw it first", "PUT", grant, config{"organization": "evil"})

	eve := e.cliLogin(e.visitor(), idp, "evil", "s-eve")
	if eve.User != "ceo@example.com@evil" {
		t.Errorf("another organization's provider makes %q", eve.User)
	}
	ceo := e.cliLogin(e.visitor(), idp, "bigfirm", "s-ceo")
	if ceo.User != "ceo@example.com" {
		t.Errorf("the domain's own makes %q", ceo.User)
	}
	var all struct{ Users []controller.User }
	e.want(200, "GET", "/v1/users", nil, &all)
	for _, u := range all.Users {
		if (u.Name == "ceo@example.com" || u.Email == "ceo@example.com") && u.Org != "bigfirm" || u.Name == eve.User && u.Org != "evil" {
			t.Errorf("the list has %+v", u)
		}
	}
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/evil/invitations", config{"role": "viewer"}, &inv, bearer(eve.Token)...)
	var page controller.AuditPage
	e.want(200, "GET", "/v1/orgs/evil/audit", nil, &page)
	seen := false
	for _, r := range page.Records {
		if strings.Contains(string(r.Record), `"name":"ceo@example.com"`) {
			t.Errorf("the audit log has %s", r.Record)
		}
		seen = seen || strings.Contains(string(r.Record), `"ceo@example.com@evil"`)
	}
	if !seen {
		t.Error("the audit log does not name who invited")
	}
	for name, code := range map[string]int{"cfo@example.com": 403, "cfo@other.example": 403, "cfo@bigfirm": 403, "cfo@example.com@bigfirm": 403, "sso-0123456789abcdef": 400, "u_0123456789abcdef": 400, "root": 400} {
		if a := e.do("POST", "/v1/claim", config{"name": name}, bearer(inv.Token)...); a.code != code {
			t.Errorf("an invitation of another organization makes %s: %d %s", name, a.code, a.body)
		}
	}
	e.claim(inv.Token, "mallory")
	e.want(201, "POST", "/v1/orgs/bigfirm/invitations", config{"role": "viewer"}, &inv)
	cfo := e.claim(inv.Token, "cfo@example.com")
	e.want(200, "DELETE", "/v1/users/cfo@example.com", nil, nil) // it counts as one that bigfirm made
	e.want(401, "GET", "/v1/user", nil, nil, bearer(cfo)...)

	// A provider makes so many users and no more; who is one already comes in.
	e.cliLogin(e.visitor(), idp, "bigfirm", "s-two")
	v := e.visitor()
	v.signIn(idp, "bigfirm", "s-few", "/device", 429)
	v.says("sso_users", "bulkhead users remove")
	if m := string(e.want(200, "GET", "/metrics?role=controller", nil, nil).body); !strings.Contains(m, `outcome="sso_users"`) {
		t.Error("the refusal is not counted")
	}
	e.cliLogin(e.visitor(), idp, "bigfirm", "s-ceo")
	e.want(200, "DELETE", "/v1/users/two@example.com", nil, nil)
	e.cliLogin(e.visitor(), idp, "bigfirm", "s-few")

	// What was withdrawn makes no more names, and those that there are stay.
	e.want(200, "DELETE", grant, nil, nil)
	e.want(404, "DELETE", grant, nil, nil)
	e.want(200, "DELETE", "/v1/users/few@example.com", nil, nil)
	if few := e.cliLogin(e.visitor(), idp, "bigfirm", "s-few"); few.User != "few@example.com@bigfirm" {
		t.Errorf("without the grant: %q", few.User)
	}
	if again := e.cliLogin(e.visitor(), idp, "bigfirm", "s-ceo"); again.User != ceo.User {
		t.Errorf("who was there before is %q", again.User)
	}
}

// TestInvitationsMakeSoManyUsers: an organization's admin makes no more users and open
// invitations than sso_users, whoever is invited; one who is gone makes room again.
func TestInvitationsMakeSoManyUsers(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.Role.SSOUsers = 2 })
	for _, org := range []string{"evil", "other"} {
		e.want(201, "POST", "/v1/orgs", config{"slug": org}, nil)
	}
	const path = "/v1/orgs/evil/invitations"
	var one, two struct{ ID, Token string }
	e.want(201, "POST", path, config{"role": "admin"}, &one)
	e.want(201, "POST", path, config{"role": "viewer"}, &two)
	e.refused(429, "open invitations", "POST", path, config{"role": "viewer"})
	admin := e.claim(one.Token, "eve")
	e.refused(429, "sso_users", "POST", path, config{"role": "viewer"})
	e.want(200, "DELETE", path+"/"+two.ID, nil, nil, bearer(admin)...)
	e.want(201, "POST", path, config{"role": "viewer"}, &two, bearer(admin)...)
	e.claim(two.Token, "eve2")
	if a := e.do("POST", path, config{"role": "viewer"}, bearer(admin)...); a.code != 429 {
		t.Errorf("a third user is invited: %d %s", a.code, a.body)
	}
	var elsewhere struct{ Token string }
	e.want(201, "POST", "/v1/orgs/other/invitations", config{"role": "viewer"}, &elsewhere)
	e.claim(elsewhere.Token, "ann")
	e.want(200, "DELETE", "/v1/users/eve2", nil, nil)
	e.want(201, "POST", path, config{"role": "viewer"}, nil, bearer(admin)...)
}
