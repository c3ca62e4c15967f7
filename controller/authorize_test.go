package controller_test

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/controller"
	"bulkhead/fault"
)

// Who may call an endpoint, as letters: Owner, Admin, Deployer, Viewer and aUditor of the
// organization, M a Machine on itself, P operators of the cluster alone, * every user
// whoever they are, C the bearer of a claim. For endpoints of an app the same roles given
// for that app alone may the same, but for owner, which there is not.
var mayCall = map[string]string{
	"GET /healthz": "*M", "GET /metrics": "P", "GET /v1/orgs/{org}/metrics": "OADV", "POST /v1/platform/tokens": "P",
	"POST /v1/claim": "C", "GET /v1/user": "*", "POST /v1/invitations/accept": "*",
	"GET /v1/users": "P", "PATCH /v1/users/{user}": "P", "DELETE /v1/users/{user}": "P",

	"GET /v1/orgs": "*", "POST /v1/orgs": "P", "GET /v1/orgs/{org}": "OADVU", "DELETE /v1/orgs/{org}": "O",
	"GET /v1/orgs/{org}/members": "OADVU", "PUT /v1/orgs/{org}/members/{user}": "OA", "DELETE /v1/orgs/{org}/members/{user}": "OA",
	"GET /v1/orgs/{org}/invitations": "OADVU", "POST /v1/orgs/{org}/invitations": "OA", "DELETE /v1/orgs/{org}/invitations/{invitation}": "OA",
	"GET /v1/orgs/{org}/machines": "OADVU",

	"GET /v1/apps": "*M", "POST /v1/apps": "*", // of an app only what else is allowed is listed, and made
	"GET /v1/apps/{app}": "OADVU", "DELETE /v1/apps/{app}": "OA", "GET /v1/apps/{app}/ip_assignments": "OADVU",
	"GET /v1/apps/{app}/logs": "OADV", "GET /v1/apps/{app}/machines": "OADVU", "POST /v1/apps/{app}/machines": "OAD",

	"GET /m": "OADVUM", "POST /m": "OAD", "DELETE /m": "OAD",
	"POST /m/start": "OADM", "POST /m/stop": "OADM", "POST /m/suspend": "OADM", "POST /m/restart": "OADM", "POST /m/signal": "OADM",
	"POST /m/cordon": "OADM", "POST /m/uncordon": "OADM",
	"GET /m/wait": "OADVUM", "GET /m/events": "OADVUM", "GET /m/versions": "OADVUM", "GET /m/memory": "OADVUM", "GET /m/ports": "OADVUM",
	"POST /m/exec": "OAD", "POST /m/exec/stream": "OAD", "GET /m/ps": "OAD", "GET /m/logs": "OADV",
	"GET /m/lease": "OADVUM", "POST /m/lease": "OAD", "DELETE /m/lease": "OAD",
	"GET /m/metadata": "OADVUM", "PUT /m/metadata": "OADM", "PATCH /m/metadata": "OADM",
	"GET /m/metadata/{key}": "OADVUM", "POST /m/metadata/{key}": "OADM", "DELETE /m/metadata/{key}": "OADM",

	"GET /v1/apps/{app}/secrets": "OADV", "POST /v1/apps/{app}/secrets": "OAD",
	"GET /v1/apps/{app}/secrets/{secret}": "OADV", "POST /v1/apps/{app}/secrets/{secret}": "OAD", "DELETE /v1/apps/{app}/secrets/{secret}": "OAD",
	"GET /v1/apps/{app}/secretkeys": "OADV", "GET /v1/apps/{app}/secretkeys/{secret}": "OADV",
	"POST /v1/apps/{app}/secretkeys/{secret}": "OAD", "DELETE /v1/apps/{app}/secretkeys/{secret}": "OA",
	"POST /v1/apps/{app}/secretkeys/{secret}/generate": "OAD",
	"POST /v1/apps/{app}/secretkeys/{secret}/encrypt":  "OAD", "POST /v1/apps/{app}/secretkeys/{secret}/decrypt": "OAD",
	"POST /v1/apps/{app}/secretkeys/{secret}/sign": "OAD", "POST /v1/apps/{app}/secretkeys/{secret}/verify": "OAD",

	"GET /v1/orgs/{org}/sso": "OAU", "PUT /v1/orgs/{org}/sso": "OA", "DELETE /v1/orgs/{org}/sso": "OAP",
	"GET /v1/sessions": "*", "DELETE /v1/sessions/{session}": "*",
	"GET /v1/passkeys": "*", "POST /v1/passkeys": "*", "DELETE /v1/passkeys/{passkey}": "*", // with the token of a login
	"PATCH /v1/orgs/{org}":      "OA",
	"GET /v1/orgs/{org}/tokens": "OADVU", "POST /v1/orgs/{org}/tokens": "OADVU", "DELETE /v1/orgs/{org}/tokens/{token}": "OADVU", // of the caller's own
	"POST /v1/apps/{app}/deploy_token": "OADVU",                                                              // which may what its user may
	"GET /v1/tokens":                   "*", "GET /v1/tokens/current": "*", "DELETE /v1/tokens/{token}": "*", // of the caller's own, or asked again
	"GET /v1/platform/token_keys": "P", "POST /v1/platform/token_keys": "P", "DELETE /v1/platform/token_keys/{key}": "P",
	"GET /v1/orgs/{org}/audit": "OAU", "GET /v1/platform/audit": "P", "GET /v1/audit/key": "*", "GET /v1/audit/log/{path...}": "*",

	"POST /v1/tokens/oidc": "M", "GET /v1/platform/issuer": "P", "POST /v1/platform/issuer/rotate": "P",
	"GET /v1/platform/nodes": "P", "DELETE /v1/platform/nodes/{node}": "P", "POST /v1/platform/nodes/{node}/readmit": "P",
	"POST /v1/platform/join_tokens": "P",
	"GET /v1/platform/domains":      "P", "PUT /v1/platform/domains/{domain}": "P", "DELETE /v1/platform/domains/{domain}": "P",
	"GET /v1/platform/regions": "*M", "POST /v1/platform/placements": "*M",
}

// rowOf finds an endpoint's row; /m stands for a Machine's path.
func rowOf(pattern string) (string, bool) {
	row, ok := mayCall[strings.Replace(pattern, "/v1/apps/{app}/machines/{machine}", "/m", 1)]
	return row, ok
}

// people are the callers of the tables: in organization "acme", which has the apps "shop"
// and "blog"; in organization "other", with the app "else"; and an operator in neither.
type people struct {
	tokens map[string]string // by letter; for the app "shop" alone the letter in lower case
	e      *env
}

func newPeople(t *testing.T) *people {
	e := newEnv(t)
	p := &people{tokens: map[string]string{}, e: e}
	e.want(201, "POST", "/v1/orgs", config{"slug": "acme"}, nil)
	e.want(201, "POST", "/v1/orgs", config{"slug": "other"}, nil)
	for app, org := range map[string]string{"shop": "acme", "blog": "acme", "else": "other"} {
		e.want(201, "POST", "/v1/apps", config{"name": app, "org_slug": org}, nil)
	}
	for letter, role := range map[string]string{"O": "owner", "A": "admin", "D": "deployer", "V": "viewer", "U": "auditor"} {
		p.tokens[letter] = p.join("acme", config{"role": role}, "the-"+role)
		if role != "owner" {
			p.tokens[strings.ToLower(letter)] = p.join("acme", config{"apps": config{"shop": role}}, "app-"+role)
		}
	}
	p.tokens["stranger"] = p.join("other", config{"role": "owner"}, "stranger")
	p.tokens["P"] = e.claim(e.mint(""), "operator")
	for _, org := range []string{"acme", "other"} { // who made them is a member no more
		e.want(200, "DELETE", "/v1/orgs/"+org+"/members/admin", nil, nil)
	}
	return p
}

// join invites a user and accepts, and returns the user's token.
func (p *people) join(org string, body config, name string) string {
	p.e.t.Helper()
	var inv struct{ Token string }
	p.e.want(201, "POST", "/v1/orgs/"+org+"/invitations", body, &inv)
	return p.e.claim(inv.Token, name)
}

// TestEveryEndpointByRole decides every endpoint for every role, in its own organization
// and in another's, for an app of its own and another, and holds that against the table.
// An endpoint without a row fails.
func TestEveryEndpointByRole(t *testing.T) {
	p := newPeople(t)
	cells, refusedOverHTTP := 0, 0
	seen := map[string]bool{}
	for _, pattern := range p.e.ctl.Endpoints() {
		row, ok := rowOf(pattern)
		if !ok {
			if !unsupported(p.e, pattern, "shop") {
				t.Errorf("%s has no row: say who may call it", pattern)
			}
			continue
		}
		seen[strings.Replace(pattern, "/v1/apps/{app}/machines/{machine}", "/m", 1)] = true
		check := func(who, by, app, org string, want bool) {
			t.Helper()
			cells++
			path := map[string]string{"app": "", "org": org, "machine": "01234567890123"}
			if strings.Contains(pattern, "{app}") {
				path["app"] = app
			}
			if !strings.Contains(pattern, "{org}") {
				delete(path, "org")
			}
			if !strings.Contains(pattern, "{machine}") {
				delete(path, "machine")
			}
			err := p.e.ctl.MayCall(pattern, by, path)
			if (err == nil) != want || err != nil && !fault.Is(err, fault.Denied) {
				t.Errorf("%s by %s on app %q of organization %q: allowed %v, want %v (%v)", pattern, who, app, org, err == nil, want, err)
			}
			if want || strings.Contains(by, ":") || by == "claim" {
				return
			}
			refusedOverHTTP++
			method, url, _ := strings.Cut(pattern, " ")
			url = strings.NewReplacer("{app}", app, "{org}", org, "{machine}", "01234567890123", "{key}", "k", "{user}", "the-owner", "{invitation}", "c_0000000000000000", "{node}", "n9", "{token}", "t_0000000000000000", "{secret}", "S").Replace(url)
			if a := p.e.do(method, url, nil, "Authorization", "Bearer "+by); a.code != 403 {
				t.Errorf("%s %s by %s: %d %s, want 403", method, url, who, a.code, a.body)
			}
		}
		anybody, ofApp := strings.Contains(row, "*"), strings.Contains(pattern, "{app}")
		scoped := ofApp || strings.Contains(pattern, "{org}")
		for _, letter := range []string{"O", "A", "D", "V", "U"} {
			token := p.tokens[letter]
			check("role "+letter, token, "shop", "acme", anybody || strings.Contains(row, letter))
			if scoped {
				check("role "+letter+" elsewhere", token, "else", "other", anybody)
			}
			low := p.tokens[strings.ToLower(letter)]
			if low == "" {
				continue
			}
			sees := pattern == "GET /v1/orgs/{org}" || strings.Contains(pattern, "/v1/orgs/{org}/tokens")
			check("role "+letter+" for shop", low, "shop", "acme", anybody || sees || ofApp && strings.Contains(row, letter))
			if ofApp {
				check("role "+letter+" for shop on blog", low, "blog", "acme", false)
			}
		}
		check("a stranger", p.tokens["stranger"], "shop", "acme", anybody)
		check("an operator", p.tokens["P"], "shop", "acme", anybody || strings.Contains(row, "P"))
		check("a claim", "claim", "shop", "acme", strings.Contains(row, "C"))
		check("itself", "machine:shop/01234567890123", "shop", "acme", strings.Contains(row, "M"))
		if strings.Contains(pattern, "{machine}") {
			check("another machine of the app", "machine:shop/01234567890124", "shop", "acme", false)
			check("a machine of that id of another app", "machine:blog/01234567890123", "shop", "acme", false)
		}
	}
	for row := range mayCall {
		if !seen[row] {
			t.Errorf("%s has a row and is no endpoint", row)
		}
	}
	t.Logf("%d cells, %d of them refused over HTTP too", cells, refusedOverHTTP)
}

// TestRemovedMemberIsOutAtOnce ends memberships and users and uses their tokens after.
func TestRemovedMemberIsOutAtOnce(t *testing.T) {
	p := newPeople(t)
	e, owner := p.e, []string{"Authorization", "Bearer " + p.tokens["O"]}
	as := func(letter string) []string { return []string{"Authorization", "Bearer " + p.tokens[letter]} }

	e.want(200, "GET", "/v1/apps/shop", nil, nil, as("D")...)
	e.want(200, "DELETE", "/v1/orgs/acme/members/the-deployer", nil, nil, owner...)
	e.want(403, "GET", "/v1/apps/shop", nil, nil, as("D")...)
	e.want(404, "DELETE", "/v1/orgs/acme/members/the-deployer", nil, nil, owner...)

	// A role that is made less is less at once; one may not raise oneself, nor touch owners.
	e.want(403, "PUT", "/v1/orgs/acme/members/the-admin", config{"role": "owner"}, nil, as("A")...)
	e.want(403, "PUT", "/v1/orgs/acme/members/the-owner", config{"role": "viewer"}, nil, as("A")...)
	e.want(403, "DELETE", "/v1/orgs/acme/members/the-owner", nil, nil, as("A")...)
	e.want(403, "POST", "/v1/orgs/acme/invitations", config{"role": "owner"}, nil, as("A")...)
	e.want(200, "PUT", "/v1/orgs/acme/members/app-admin", config{"role": "viewer"}, nil, as("A")...)
	e.want(403, "DELETE", "/v1/apps/shop", nil, nil, as("a")...)
	e.want(200, "GET", "/v1/apps/blog", nil, nil, as("a")...)

	// The last owner stays, and so does the last operator.
	e.want(409, "DELETE", "/v1/orgs/acme/members/the-owner", nil, nil, owner...)
	e.want(409, "PUT", "/v1/orgs/acme/members/the-owner", config{"role": "admin"}, nil, owner...)
	e.want(200, "PATCH", "/v1/users/admin", config{"operator": false}, nil)
	e.want(403, "GET", "/v1/users", nil, nil)
	e.want(409, "PATCH", "/v1/users/operator", config{"operator": false}, nil, as("P")...)
	e.want(409, "DELETE", "/v1/users/operator", nil, nil, as("P")...)
	e.want(409, "DELETE", "/v1/users/the-owner", nil, nil, as("P")...)

	// A user who is removed is nobody.
	e.want(200, "GET", "/v1/user", nil, nil, as("V")...)
	e.want(200, "DELETE", "/v1/users/the-viewer", nil, nil, as("P")...)
	e.want(401, "GET", "/v1/user", nil, nil, as("V")...)
	if keys, err := e.ctl.Keys(t.Context()); err != nil || strings.Contains(strings.Join(keys, " "), "/username/the-viewer") {
		t.Errorf("the name of a removed user is kept: %v", err)
	}
}

// TestInvitations accepts, takes back and misuses invitations.
func TestInvitations(t *testing.T) {
	p := newPeople(t)
	e := p.e
	as := func(letter string) []string { return []string{"Authorization", "Bearer " + p.tokens[letter]} }
	invite := func(body config) (id, token string) {
		var inv struct{ ID, Token string }
		e.want(201, "POST", "/v1/orgs/acme/invitations", body, &inv, as("A")...)
		return inv.ID, inv.Token
	}
	for _, bad := range []config{
		{}, {"role": "king"}, {"apps": config{"shop": "owner"}}, {"role": "viewer", "expiry": "1s"}, {"role": "viewer", "expiry": "999999h"},
		{"role": "viewer", "expiry": "soon"}, {"role": "viewer", "name": "A B"},
	} {
		e.want(400, "POST", "/v1/orgs/acme/invitations", bad, nil, as("A")...)
	}
	e.want(404, "POST", "/v1/orgs/acme/invitations", config{"apps": config{"else": "viewer"}}, nil, as("A")...)

	id, token := invite(config{"role": "viewer", "name": "carol"})
	e.want(403, "POST", "/v1/claim", config{"name": "mallory"}, nil, "Authorization", "Bearer "+token)
	e.want(422, "POST", "/v1/claim", config{"name": "the-viewer"}, nil, "Authorization", "Bearer "+must(invite(config{"role": "viewer"})))
	e.want(200, "DELETE", "/v1/orgs/acme/invitations/"+id, nil, nil, as("A")...)
	e.want(401, "POST", "/v1/claim", config{"name": "carol"}, nil, "Authorization", "Bearer "+token)

	// A user of the cluster accepts one, once, and only what was written into it.
	_, token = invite(config{"role": "viewer", "apps": config{"shop": "deployer"}})
	e.want(403, "GET", "/v1/apps/shop", nil, nil, as("stranger")...)
	e.want(200, "POST", "/v1/invitations/accept", config{"token": token}, nil, as("stranger")...)
	e.want(404, "POST", "/v1/invitations/accept", config{"token": token}, nil, as("stranger")...)
	e.want(200, "GET", "/v1/apps/shop", nil, nil, as("stranger")...)
	e.want(403, "DELETE", "/v1/apps/shop", nil, nil, as("stranger")...)
	e.want(400, "POST", "/v1/invitations/accept", config{"token": p.tokens["V"]}, nil, as("stranger")...)
	e.want(400, "POST", "/v1/invitations/accept", config{"token": e.mint("")}, nil, as("stranger")...)
	if strings.Contains(e.logs.String(), token) {
		t.Error("an invitation's token is in the log")
	}
}

func must(_, token string) string { return token }

// TestStrangersClaimsCostTheStoreNothing sends one-time tokens that there are not, and that
// are wrong: none reaches the store.
func TestStrangersClaimsCostTheStoreNothing(t *testing.T) {
	e := newEnvWithoutWorker(t)
	var asked atomic.Int64
	e.stop()
	e.opened = func(c *controller.Controller) {
		c.OnGet(func(k string) {
			if strings.HasPrefix(k, "/claim/") {
				asked.Add(1)
			}
		})
	}
	e.startController()
	e.login()
	good := e.mint("")
	asked.Store(0)
	for _, token := range []string{"bh_c_installation.guess", "bh_c_0123456789abcdef.guess", good + "x"} {
		e.want(401, "POST", "/v1/claim", config{"name": "mallory"}, nil, bearer(token)...)
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("wrong one-time tokens asked the store %d times", n)
	}
	e.claim(good, "carol")
	if asked.Load() == 0 {
		t.Error("control: a one-time token is spent without the store")
	}
}

// TestNoInvitationOutlivesItsOrganization: one that is made while the organization goes would be good
// for another of its name.
func TestNoInvitationOutlivesItsOrganization(t *testing.T) {
	p := newPeople(t)
	e := p.e
	if err := e.ctl.MarkOrg(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	e.want(404, "POST", "/v1/orgs/other/invitations", config{"role": "owner"}, nil, bearer(p.tokens["stranger"])...)
}

// TestExpiredIsForgotten collects a year later: invitations and tokens that are good no
// more go, and nobody else's.
func TestExpiredIsForgotten(t *testing.T) {
	p := newPeople(t)
	e := p.e
	count := func(prefix string) (n int) {
		keys, err := e.ctl.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if strings.HasPrefix(k, prefix) {
				n++
			}
		}
		return n
	}
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/acme/invitations", config{"role": "viewer", "expiry": "1m"}, &inv, "Authorization", "Bearer "+p.tokens["O"])
	tokens, members := count("/token/"), count("/member/")
	collect := func() {
		t.Helper()
		if err := e.ctl.CollectOnce(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	collect()
	if count("/claim/") != 1 || count("/token/") != tokens || count("/member/") != members {
		t.Fatal("what is good was collected")
	}
	defer controller.Ahead(366 * 24 * time.Hour)()
	e.want(401, "GET", "/v1/user", nil, nil)
	e.want(401, "POST", "/v1/claim", config{"name": "late"}, nil, "Authorization", "Bearer "+inv.Token)
	collect()
	if count("/claim/") != 0 || count("/token/") != 0 || count("/member/") != members {
		t.Errorf("left: %d claims, %d tokens, %d of %d members", count("/claim/"), count("/token/"), count("/member/"), members)
	}
}

// TestOrganizations makes and removes them, and keeps one's apps from another's members.
func TestOrganizations(t *testing.T) {
	p := newPeople(t)
	e := p.e
	as := func(letter string) []string { return []string{"Authorization", "Bearer " + p.tokens[letter]} }
	names := func(letter, query string) string {
		var out struct{ Apps []struct{ Name string } }
		e.want(200, "GET", "/v1/apps"+query, nil, &out, as(letter)...)
		var all []string
		for _, a := range out.Apps {
			all = append(all, a.Name)
		}
		return strings.Join(all, " ")
	}
	for _, tc := range []struct{ letter, query, want string }{
		{"O", "", "blog shop"}, {"v", "", "shop"}, {"v", "?org_slug=acme", "shop"}, {"stranger", "", "else"}, {"P", "", ""},
	} {
		if got := names(tc.letter, tc.query); got != tc.want {
			t.Errorf("apps of %s%s: %q, want %q", tc.letter, tc.query, got, tc.want)
		}
	}
	e.want(403, "GET", "/v1/apps?org_slug=acme", nil, nil, as("stranger")...)
	e.want(403, "POST", "/v1/apps", config{"name": "mine", "org_slug": "acme"}, nil, as("stranger")...)
	e.want(403, "POST", "/v1/apps", config{"name": "mine", "org_slug": "acme"}, nil, as("V")...)
	e.want(403, "POST", "/v1/apps", config{"name": "mine"}, nil, as("v")...)
	e.want(422, "POST", "/v1/apps", config{"name": "shop", "org_slug": "other"}, nil, as("stranger")...)
	e.want(403, "POST", "/v1/apps/shop/machines", config{"config": image()}, nil, as("stranger")...)

	e.want(400, "POST", "/v1/orgs", config{"slug": "No Slug"}, nil, as("P")...)
	e.want(422, "POST", "/v1/orgs", config{"slug": "acme"}, nil, as("P")...)
	e.want(409, "DELETE", "/v1/orgs/acme", nil, nil, as("O")...)
	e.want(201, "POST", "/v1/apps", config{"name": "later", "org_slug": "acme"}, nil, as("O")...) // the mark is gone
	for _, app := range []string{"shop", "blog", "later"} {
		e.want(202, "DELETE", "/v1/apps/"+app, nil, nil, as("O")...)
	}
	e.want(200, "DELETE", "/v1/orgs/acme", nil, nil, as("O")...)
	e.want(403, "GET", "/v1/orgs/acme", nil, nil, as("O")...)
	keys, err := e.ctl.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if strings.Contains(k, "/acme") && !strings.HasPrefix(k, "/network/") {
			t.Errorf("a deleted organization leaves %s", k)
		}
	}
}

// TestDeletionsCutOffAreFinished leaves an organization marked, as a kill does, and a
// token of a membership that is gone.
func TestDeletionsCutOffAreFinished(t *testing.T) {
	p := newPeople(t)
	e := p.e
	for _, org := range []string{"acme", "other"} {
		if err := e.ctl.MarkOrg(t.Context(), org); err != nil {
			t.Fatal(err)
		}
	}
	e.want(404, "POST", "/v1/apps", config{"name": "new", "org_slug": "acme"}, nil, "Authorization", "Bearer "+p.tokens["O"])
	e.want(202, "DELETE", "/v1/apps/else", nil, nil, "Authorization", "Bearer "+p.tokens["stranger"])
	e.awaitNoApp("else")
	if err := e.ctl.CollectOnce(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	keys, err := e.ctl.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := " " + strings.Join(keys, " ") + " "
	if strings.Contains(all, "/org/other ") || strings.Contains(all, "/member/other/") {
		t.Error("the deletion of an organization without apps is not finished")
	}
	// One that has apps is as it was.
	e.want(201, "POST", "/v1/apps", config{"name": "new", "org_slug": "acme"}, nil, "Authorization", "Bearer "+p.tokens["O"])
}

// TestMembersDoNotSayWhoOperates: whoever may read an organization's members learns nothing
// about who operates the cluster.
func TestMembersDoNotSayWhoOperates(t *testing.T) {
	e := newEnv(t)
	a := e.want(200, "GET", "/v1/orgs/personal/members", nil, nil)
	if !bytes.Contains(a.body, []byte(`"name":"admin"`)) || bytes.Contains(a.body, []byte("operator")) {
		t.Errorf("the members: %s", a.body)
	}
}
