package controller_test

import (
	"crypto/sha256"
	"encoding/base64"
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"bulkhead/controller"
	"bulkhead/sso/ssotest"
)

const (
	apiURL   = "https://api." + domain + ":8443"
	callback = apiURL + "/sso/callback"
)

// visitor is a person with a browser: cookies, and the last page.
type visitor struct {
	t    testing.TB
	http *http.Client
	at   string
	page string
	head http.Header
	// Site is what the browser says of who began a request.
	site string
}

// hosts sends requests for the API to its socket, and the others to the network.
type hosts struct{ api http.RoundTripper }

func (h hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.Host, "api.") {
		return h.api.RoundTrip(r)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (e *env) visitor() *visitor {
	e.t.Helper()
	tr := e.transport()
	e.t.Cleanup(tr.CloseIdleConnections)
	return &visitor{t: e.t, http: ssotest.Browser(e.t, hosts{tr}), site: "same-origin"}
}

// do makes one request and returns its code; where it leads is in at.
func (v *visitor) do(method, path string, form url.Values) int {
	v.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	if strings.HasPrefix(path, "/") {
		path = apiURL + path
	}
	req, err := http.NewRequest(method, path, body)
	if err != nil {
		v.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if v.site != "" {
			req.Header.Set("Sec-Fetch-Site", v.site)
		}
	}
	resp, err := v.http.Do(req)
	if err != nil {
		v.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	v.page, v.head, v.at = string(b), resp.Header, ""
	if loc, err := resp.Location(); err == nil {
		v.at = strings.TrimPrefix(loc.String(), apiURL)
	}
	return resp.StatusCode
}

func (v *visitor) get(code int, path string) {
	v.t.Helper()
	if got := v.do("GET", path, nil); got != code {
		v.t.Fatalf("GET %s: %d, want %d: %s", path, got, code, v.page)
	}
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]*)"`)

// post sends a form with the token of the page that the visitor is on.
func (v *visitor) post(code int, path string, kv ...string) {
	v.t.Helper()
	form := url.Values{}
	if m := csrfField.FindStringSubmatch(v.page); m != nil {
		form.Set("csrf", m[1])
	}
	for i := 0; i < len(kv); i += 2 {
		form.Set(kv[i], kv[i+1])
	}
	if got := v.do("POST", path, form); got != code {
		v.t.Fatalf("POST %s: %d, want %d: %s", path, got, code, v.page)
	}
}

var toProvider = regexp.MustCompile(`id="to" href="([^"]*)"`)

// leave goes from the login page to an organization's provider, and returns the address there.
func (v *visitor) leave(org, next string) string {
	v.t.Helper()
	v.get(200, "/login?org="+org+"&next="+next)
	v.post(200, "/login/sso", "org", org, "next", next)
	m := toProvider.FindStringSubmatch(v.page)
	if m == nil {
		v.t.Fatalf("no way to the provider: %s", v.page)
	}
	return html.UnescapeString(m[1])
}

// signIn signs in at the real provider and ends where next leads, or with a code.
func (v *visitor) signIn(idp *ssotest.IDP, org, subject, next string, code int) {
	v.t.Helper()
	to := v.leave(org, next)
	v.get(code, idp.SignIn(ssotest.Browser(v.t, nil), to, subject, callback))
}

// says fails unless the page says all of it.
func (v *visitor) says(words ...string) {
	v.t.Helper()
	for _, w := range words {
		if !strings.Contains(v.page, w) {
			v.t.Errorf("the page does not say %q: %s", w, v.page)
		}
	}
}

// terminal is a CLI that logs in.
type terminal struct {
	e      *env
	secret string
	controller.CLISession
}

func (e *env) terminal(in controller.CLIStart) *terminal {
	e.t.Helper()
	c := &terminal{e: e, secret: "the CLI's own secret, of 32 bytes"}
	sum := sha256.Sum256([]byte(c.secret))
	in.Challenge = base64.RawURLEncoding.EncodeToString(sum[:])
	e.want(201, "POST", "/v1/cli_sessions", in, &c.CLISession, "Authorization", "")
	return c
}

func (c *terminal) poll(code int) controller.CLIToken {
	c.e.t.Helper()
	var out controller.CLIToken
	c.e.want(code, "POST", "/v1/cli_sessions/"+c.ID+"/poll", config{"secret": c.secret}, &out, "Authorization", "")
	return out
}

func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

// login is a whole CLI login of a visitor who is signed in, or signs in on the way.
func (e *env) cliLogin(v *visitor, idp *ssotest.IDP, org, subject string) controller.CLIToken {
	e.t.Helper()
	c := e.terminal(controller.CLIStart{Name: "laptop", Org: org})
	path := strings.TrimPrefix(c.AuthURL, apiURL)
	v.signIn(idp, org, subject, path, 303)
	if v.at != path {
		e.t.Fatalf("signed in, and led to %s", v.at)
	}
	v.get(200, path)
	v.post(200, path, "decision", "approve")
	return c.poll(200)
}

// realSSO configures an organization for the real provider, and has it vouch for the domain of
// its accounts, unless another does.
func (e *env) realSSO(idp *ssotest.IDP, org string, change config) {
	e.t.Helper()
	body := config{
		"issuer": idp.Issuer, "client_id": idp.ClientID, "client_secret": idp.Secret, "scopes": []string{"groups"},
		"domains": []string{"example.com"}, "groups": config{"ops": "admin", "staff": "viewer"},
	}
	for k, v := range change {
		body[k] = v
	}
	e.want(200, "PUT", "/v1/orgs/"+org+"/sso", body, nil)
	if a := e.do("PUT", "/v1/platform/domains/example.com", config{"organization": org}); a.code != 200 && a.code != 409 {
		e.t.Fatalf("grant: %d %s", a.code, a.body)
	}
}
