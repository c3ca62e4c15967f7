package controller_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"bulkhead/controller"
)

// tooMany makes a request that must be refused because there were too many.
func (e *env) tooMany(method, path string, header ...string) {
	e.t.Helper()
	a := e.want(429, method, path, nil, nil, header...)
	var out struct{ Error string }
	wait, err := strconv.Atoi(a.header.Get("Retry-After"))
	if json.Unmarshal(a.body, &out) != nil || !strings.HasPrefix(out.Error, "too many") || err != nil || wait < 1 || wait > 1000 {
		e.t.Errorf("%s %s: %s, Retry-After %q", method, path, a.body, a.header.Get("Retry-After"))
	}
}

// limited is a controller whose limits do not come back while a test runs.
func limited(t *testing.T, rates string) *env {
	return newEnvWith(t, func(c *controller.Config) { c.Role.RateLimits = rates })
}

// TestRateLimits: beyond its rate, which for an object is a quarter of what all callers
// have, a call is refused in the API's form with the time to wait, and does nothing;
// other tokens, other objects and other kinds of calls go on.
func TestRateLimits(t *testing.T) {
	e := limited(t, "token=0.01/40 object=0.01/12 read=0.01/20 deletion=0.01/1")
	second := []string{"Authorization", "Bearer " + e.claim(e.mint(""), "second")}
	for _, a := range []string{"a", "b", "c"} {
		e.app(a)
	}
	for range 5 {
		e.want(200, "GET", "/v1/apps/a", nil, nil)
	}
	e.tooMany("GET", "/v1/apps/a")
	e.want(200, "GET", "/v1/apps/b", nil, nil)
	e.want(200, "GET", "/v1/apps/a", nil, nil, second...)
	const machine = "/v1/apps/a/machines/0123456789abcd/start"
	for range 3 {
		e.want(404, "POST", machine, nil, nil)
	}
	e.tooMany("POST", machine)
	e.want(404, "POST", strings.Replace(machine, "start", "stop", 1), nil, nil)
	e.want(404, "POST", strings.Replace(machine, "abcd", "abce", 1), nil, nil)
	e.want(202, "DELETE", "/v1/apps/b", nil, nil)
	e.tooMany("DELETE", "/v1/apps/c")
	e.want(200, "GET", "/v1/apps/c", nil, nil) // it is there
	var code int
	for range 60 {
		if code = e.do("GET", "/v1/platform/regions", nil).code; code != 200 {
			break
		}
	}
	e.tooMany("GET", "/v1/platform/regions")
	e.want(200, "GET", "/v1/platform/regions", nil, nil, second...)
	client := &http.Client{Transport: e.transport()}
	req, _ := http.NewRequest("GET", "https://registry."+domain+"/v2/", nil)
	req.SetBasicAuth("x", e.token)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the registry answers %d", resp.StatusCode)
	}
	page := string(e.want(200, "GET", "/metrics?role=controller", nil, nil, second...).body)
	for _, limit := range []string{"token", "object_share", "read_share", "deletion"} {
		if !strings.Contains(page, fmt.Sprintf("bulkhead_api_limited_total{limit=%q", limit)) && !strings.Contains(page, fmt.Sprintf("limit=%q", limit)) {
			t.Errorf("the metrics do not count limit %s", limit)
		}
	}
}

// TestNobodyIsLockedOutOfAnObject: a deployer with any number of tokens asks to stop a
// Machine as often as it is let. That is not more than the object's limit, and its owner
// still stops it; a viewer, who may not, takes nothing of it, nor does somebody who names
// the Machine under an app of his own.
func TestNobodyIsLockedOutOfAnObject(t *testing.T) {
	e := limited(t, "token=off object=0.01/64")
	e.want(201, "POST", "/v1/orgs", config{"slug": "acme"}, nil)
	e.want(201, "POST", "/v1/orgs", config{"slug": "other"}, nil)
	const owners, stop = "/v1/apps/web/machines/0123456789abcd/stop", "/machines/0123456789abcd/stop"
	for app, org := range map[string]string{"web": "acme", "mine": "other"} {
		e.want(201, "POST", "/v1/apps", config{"name": app, "org_slug": org}, nil)
	}
	member := func(org, role, name string) string {
		var inv struct{ Token string }
		e.want(201, "POST", "/v1/orgs/"+org+"/invitations", config{"role": role}, &inv)
		return e.claim(inv.Token, name)
	}
	as := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	flood := func(path string, code int, token string) (n int) {
		for refused := 0; refused < 2 && n < 200; {
			switch a := e.do("POST", path, nil, as(token)...); a.code {
			case code:
				n++
			case 429:
				refused++
			default:
				t.Fatalf("%d %s", a.code, a.body)
			}
		}
		return n
	}
	viewer, stranger := member("acme", "viewer", "vera"), member("other", "owner", "steve")
	if n := flood(owners, 403, viewer); n != 200 {
		t.Errorf("a viewer was refused %d times, and then differently", n)
	}
	if n := flood("/v1/apps/mine"+stop, 404, stranger); n != 16 {
		t.Errorf("the stranger was let %d times", n)
	}
	mallory := member("acme", "deployer", "mallory")
	if n := flood(owners, 404, mallory); n != 16 {
		t.Errorf("one token was let %d times of 64, want a quarter", n)
	}
	n := 16
	for i := range 5 {
		var tok controller.Token
		e.want(201, "POST", "/v1/orgs/acme/tokens", config{"kind": "org", "name": fmt.Sprint("more", i)}, &tok, as(mallory)...)
		n += flood(owners, 404, tok.Token)
	}
	if n != 48 {
		t.Errorf("six tokens of one user were let %d times of 64, want all but a quarter", n)
	}
	for range 3 {
		e.want(404, "POST", owners, nil, nil) // its owner: there is no such Machine, which is what the others heard
	}
	page := string(e.want(200, "GET", "/metrics?role=controller", nil, nil).body)
	for _, limit := range []string{`limit="object"`, `limit="object_share"`} {
		if !strings.Contains(page, limit) {
			t.Errorf("the metrics do not count %s", limit)
		}
	}
}

// TestFailedAuthentication: an address that sends bad tokens, and bad tokens that claim
// to be one that there is, are slowed down; whoever has a good one is not, though he
// shares the address, or is the one whose token it claims to be.
func TestFailedAuthentication(t *testing.T) {
	e := limited(t, "failure=0.01/10 guess=0.01/4 token=off")
	bad := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	for i := range 10 {
		e.want(401, "GET", "/v1/apps", nil, nil, bad(fmt.Sprintf("bh_%016x.x", i))...)
	}
	e.tooMany("GET", "/v1/apps", bad("bh_00000000000000ff.x")...)
	e.tooMany("GET", "/v1/apps", bad("")...)
	e.want(200, "GET", "/v1/apps?org_slug=personal", nil, nil) // a neighbour with a good token

	// Guesses at one token, from many addresses.
	last := len(e.token) - 4
	other := "A"
	if e.token[last] == 'A' {
		other = "B"
	}
	wrong := e.token[:last] + other + e.token[last+1:]
	from := func(last byte, want int) {
		t.Helper()
		e.from = last
		e.client.CloseIdleConnections()
		if want == 429 {
			e.tooMany("GET", "/v1/apps", bad(wrong)...)
		} else {
			e.want(want, "GET", "/v1/apps", nil, nil, bad(wrong)...)
		}
	}
	for i := range byte(4) {
		from(100+i, 401)
	}
	from(110, 429)
	e.want(401, "GET", "/v1/apps", nil, nil, bad("bh_00000000000000aa.x")...) // the address itself may
	e.want(200, "GET", "/v1/apps?org_slug=personal", nil, nil)                // its holder is not locked out
	page := string(e.do("GET", "/metrics?role=controller", nil).body)
	for _, want := range []string{"bulkhead_api_authentication_failures_total", `limit="authentication"`} {
		if !strings.Contains(page, want) {
			t.Errorf("the metrics do not have %s", want)
		}
	}
}
