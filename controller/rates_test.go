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

// TestRateLimits: beyond its rate a call is refused in the API's form with the time to
// wait, and does nothing; other tokens, other objects and other kinds of calls go on.
func TestRateLimits(t *testing.T) {
	e := limited(t, "token=0.01/40 object=0.01/3 read=0.01/5 deletion=0.01/1")
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
	for _, limit := range []string{"token", "object", "read", "deletion"} {
		if !strings.Contains(page, fmt.Sprintf("bulkhead_api_limited_total{limit=%q", limit)) && !strings.Contains(page, fmt.Sprintf("limit=%q", limit)) {
			t.Errorf("the metrics do not count limit %s", limit)
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
	wrong := e.token[:last] + strings.Map(func(c rune) rune { return c ^ 1 }, e.token[last:last+1]) + e.token[last+1:]
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
