package controller_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/superfly/fly-go/flaps"
	"github.com/superfly/fly-go/tokens"
	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/flyio/machinesapi"
	"github.com/superfly/macaroon/resset"

	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/token"
)

func with(text string) []string { return []string{"Authorization", "FlyV1 " + text} }

// make makes a token as e's user, or another's.
func (e *env) makeToken(body config, header ...string) controller.Token {
	e.t.Helper()
	var out controller.Token
	e.want(201, "POST", "/v1/orgs/personal/tokens", body, &out, header...)
	return out
}

func narrow(t *testing.T, text string, caveats ...macaroon.Caveat) string {
	t.Helper()
	s, err := token.Attenuate(text, caveats...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func act(letters string) *resset.Action { a := resset.ActionFromString(letters); return &a }

// TestTokenKinds holds what each kind of token may, over HTTP, against a table; every cell
// of it, allowed and refused.
func TestTokenKinds(t *testing.T) {
	e := newEnv(t)
	e.app("hello")
	e.app("other")
	m := e.launch("hello", image())
	on := "/v1/apps/hello/machines/" + m.ID
	calls := []struct {
		method, path string
		body         any
		may          string // kinds, by letter
	}{
		{"GET", "/v1/apps/hello", nil, "LODRXSI"},
		{"GET", "/v1/apps/other", nil, "LOR"},
		{"GET", "/v1/orgs/personal/machines", nil, "LORW"},
		{"GET", on, nil, "LODRXSI"},
		{"POST", on + "/metadata/k", config{"value": "v"}, "LOD"},
		{"POST", on + "/exec", config{"command": []string{"ls", "-l"}}, "LODX"},
		{"POST", on + "/exec", config{"cmd": "ls"}, "LODX"},
		{"POST", on + "/exec", config{"command": []string{"rm"}}, "LOD"},
		{"GET", on + "/ps", nil, "LODRXSI"},
		{"POST", on + "/signal", config{"signal": "SIGUSR1"}, "LOD"},
		{"GET", "/v1/orgs/personal", nil, "LORW"},
		{"GET", "/v1/orgs/personal/members", nil, "LOR"},
		{"PUT", "/v1/orgs/personal/members/admin", config{"role": "owner"}, "L"},
		{"PATCH", "/v1/orgs/personal", config{"token_max_expiry": ""}, "L"},
		{"POST", "/v1/orgs/personal/tokens", config{"kind": "readonly"}, "L"},
		{"POST", "/v1/apps/hello/deploy_token", nil, "L"},
		{"GET", "/v1/tokens", nil, "L"},
		{"GET", "/v1/users", nil, "L"},
		{"POST", "/v1/platform/token_keys", nil, "L"},
		{"GET", "/metrics", nil, "LP"},
		{"GET", "/v1/orgs/personal/metrics", nil, "LM"},
		{"GET", "/v1/apps", nil, "LODRXSWI"},
		{"POST", "/v1/platform/tokens", config{"kind": "metrics"}, "L"},
		{"GET", "/v1/platform/regions", nil, "LODRXSWI"},
		{"GET", "/v1/user", nil, "LODRXSWI"},
		{"GET", "/v1/tokens/current", nil, "LODRXSWI"},
		{"POST", "/v1/apps", config{"app_name": "made", "org_slug": "personal"}, "LO"},
	}
	kinds := map[string]string{"L": e.token}
	for letter, body := range map[string]config{
		"O": {"kind": "org"}, "D": {"kind": "deploy", "app": "hello"}, "R": {"kind": "readonly"}, "I": {"kind": "readonly", "app": "hello"},
		"X": {"kind": "machine-exec", "app": "hello", "commands": [][]string{{"ls"}}}, "S": {"kind": "ssh", "app": "hello"}, "W": {"kind": "wireguard"}, "M": {"kind": "metrics"},
	} {
		made := e.makeToken(body)
		if made.User != "admin" || made.Org != "personal" || string(made.Kind) != body["kind"] || made.Token == "" {
			t.Errorf("made %+v", made)
		}
		kinds[letter] = made.Token
	}
	var platform struct{ Token string }
	e.want(201, "POST", "/v1/platform/tokens", config{"kind": "metrics"}, &platform)
	kinds["P"] = platform.Token
	cells := 0
	for _, c := range calls {
		for letter, text := range kinds {
			a := e.do(c.method, c.path, c.body, with(text)...)
			if allowed := a.code < 300; allowed != strings.Contains(c.may, letter) || !allowed && a.code != 403 {
				t.Errorf("%s %s by %s: %d %s", c.method, c.path, letter, a.code, a.body)
			}
			if c.method+c.path == "POST/v1/apps" && a.code < 300 {
				e.want(202, "DELETE", "/v1/apps/made", nil, nil)
				e.awaitNoApp("made")
			}
			cells++
		}
	}
	t.Logf("%d cells", cells)
	for _, bad := range []config{
		{}, {"kind": "login"}, {"kind": "king"}, {"kind": "deploy"}, {"kind": "org", "app": "hello"}, {"kind": "org", "commands": [][]string{{"ls"}}}, {"kind": "ssh"},
		{"kind": "org", "name": strings.Repeat("x", 129)},
	} {
		e.want(400, "POST", "/v1/orgs/personal/tokens", bad, nil)
	}
	e.want(400, "POST", "/v1/orgs/personal/tokens", config{"kind": "metrics", "app": "hello"}, nil)
	for _, kind := range []string{"", "org", "readonly", "wireguard", "login"} {
		e.want(400, "POST", "/v1/platform/tokens", config{"kind": kind}, nil)
	}
	e.want(404, "POST", "/v1/orgs/personal/tokens", config{"kind": "deploy", "app": "none"}, nil)
	// What was shown once is nowhere else.
	var listed struct{ Tokens []controller.Token }
	a := e.want(200, "GET", "/v1/orgs/personal/tokens", nil, &listed)
	state := must2(e.ctl.StoredBytes(t.Context()))
	if !strings.Contains(state, `"kind":"machine-exec"`) {
		t.Error("control: the records of tokens are not in what is searched")
	}
	for letter, text := range kinds {
		for one := range strings.SplitSeq(text, ",") {
			if strings.Contains(string(a.body)+e.logs.String()+state, one[:60]) {
				t.Errorf("the token of kind %s is in a list, in the log or in the store", letter)
			}
		}
	}
	if len(listed.Tokens) != 10 { // eight, and two that were made in the table
		t.Errorf("%d tokens listed", len(listed.Tokens))
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestTokenGivesNoMoreThanItsMaker: a token has its user's rights of the moment, and the
// caveats of the token that it was made with.
func TestTokenGivesNoMoreThanItsMaker(t *testing.T) {
	p := newPeople(t)
	e := p.e
	deploy := func(by string) string {
		var out struct{ Token string }
		e.want(200, "POST", "/v1/apps/shop/deploy_token", config{"expiry": "1h"}, &out, with(by)...)
		return out.Token
	}
	change := func(code int, text string) {
		t.Helper()
		e.want(code, "POST", "/v1/apps/shop/secrets/A", config{"value": "v"}, nil, with(text)...)
	}
	viewers, appDeployers := deploy(p.tokens["V"]), deploy(p.tokens["d"])
	change(403, viewers)
	e.want(200, "GET", "/v1/apps/shop", nil, nil, with(viewers)...)
	change(201, appDeployers)
	e.want(403, "GET", "/v1/apps/blog", nil, nil, with(appDeployers)...)
	e.want(403, "POST", "/v1/apps/blog/deploy_token", nil, nil, with(p.tokens["d"])...)
	e.want(403, "POST", "/v1/apps/shop/deploy_token", nil, nil, with(p.tokens["stranger"])...)

	// A narrowed login hands on what it was narrowed to, and nothing undoes it.
	owner := p.tokens["O"]
	readonly := narrow(t, owner, act("rc"))
	change(403, deploy(readonly))
	elsewhere := narrow(t, owner, &token.FromAddress{Networks: []string{"10.0.0.0/8"}})
	e.want(403, "GET", "/v1/apps/shop", nil, nil, with(elsewhere)...)
	here := deploy(narrow(t, owner, &token.FromAddress{Networks: []string{"192.0.2.0/24"}}))
	change(201, here)
	soon := narrow(t, owner, &macaroon.ValidityWindow{NotAfter: time.Now().Add(time.Hour).Unix()})
	var made controller.Token
	e.want(201, "POST", "/v1/orgs/acme/tokens", config{"kind": "org", "expiry": "700h"}, &made, with(soon)...)
	if end, err := time.Parse(time.RFC3339Nano, made.ExpiresAt); err != nil || end.After(time.Now().Add(time.Hour)) {
		t.Errorf("a token made with one that ends in an hour ends at %s", made.ExpiresAt)
	}
	third, _ := macaroon.NewCaveat3P(macaroon.NewEncryptionKey(), "https://elsewhere.example")
	e.want(401, "POST", "/v1/orgs/acme/tokens", config{"kind": "org"}, nil, with(narrow(t, owner, third))...)
	// Another's token in the header does not help, and two users' are nobody's.
	e.want(403, "POST", "/v1/orgs/acme/tokens", config{"kind": "org"}, nil, with(here)...)
	e.want(401, "GET", "/v1/apps/shop", nil, nil, with(viewers+","+here)...)
	e.want(200, "GET", "/v1/apps/shop", nil, nil, with(here+","+deploy(owner))...)

	// The role is asked at every use.
	as := with(owner)
	e.want(200, "PUT", "/v1/orgs/acme/members/app-deployer", config{"apps": config{"shop": "viewer"}}, nil, as...)
	change(403, appDeployers)
	e.want(200, "DELETE", "/v1/orgs/acme/members/app-deployer", nil, nil, as...)
	e.want(401, "GET", "/v1/apps/shop", nil, nil, with(appDeployers)...)
}

// TestTokenBadInputOverHTTP: each bad token gets its code, its text and its count.
func TestTokenBadInputOverHTTP(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.app("hello")
	good := e.makeToken(config{"kind": "deploy", "app": "hello"}).Token
	third, _ := macaroon.NewCaveat3P(macaroon.NewEncryptionKey(), "https://elsewhere.example")
	needs := narrow(t, good, third)
	other, _ := macaroon.NewCaveat3P(macaroon.NewEncryptionKey(), "https://elsewhere.example")
	_, d, err := macaroon.DischargeTicket(macaroon.NewEncryptionKey(), "https://elsewhere.example", other.Ticket)
	if err == nil || d != nil {
		t.Fatal("discharged with any key")
	}
	foreign, err := token.NewKeys([]token.Key{token.NewKey()})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := foreign.Mint(key.NewTokenID(), time.Now(), time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := must2(base64.StdEncoding.DecodeString(strings.TrimPrefix(good, token.Prefix)))
	raw[len(raw)-1] ^= 1
	flipped := token.Prefix + base64.StdEncoding.EncodeToString(raw)
	revoked := e.makeToken(config{"kind": "deploy", "app": "hello"})
	e.want(200, "DELETE", "/v1/tokens/"+string(revoked.ID), nil, nil)
	for _, c := range []struct {
		name, text string
		code       int
		why        token.Reason
	}{
		{"malformed", "fm2_!", 401, token.Malformed},
		{"of another kind", "fo1_abc", 401, token.Malformed},
		{"truncated", good[:len(good)-30], 401, token.Malformed},
		{"over-long", strings.Repeat(good+",", 60) + good, 401, token.TooLong},
		{"changed", flipped, 401, token.BadSignature},
		{"made elsewhere", elsewhere, 401, token.UnknownKey},
		{"expired", narrow(t, good, &macaroon.ValidityWindow{NotAfter: time.Now().Add(-time.Minute).Unix()}), 401, token.Expired},
		{"not yet valid", narrow(t, good, &macaroon.ValidityWindow{NotBefore: time.Now().Add(time.Hour).Unix(), NotAfter: time.Now().Add(2 * time.Hour).Unix()}), 401, token.NotYetValid},
		{"without its discharge", needs, 401, token.NoDischarge},
		{"revoked", revoked.Token, 401, token.Revoked},
		{"of a session that is over", narrow(t, good, &token.Session{ID: "s"}), 401, token.SessionEnded},
		{"an unknown caveat", narrow(t, good, &macaroon.UnregisteredCaveat{Type: 1 << 50, RawMsgpack: []byte{0x90}}), 403, token.UnknownCaveat},
		{"a caveat that forbids it", narrow(t, good, &flyio.Machines{Machines: resset.New(resset.ActionAll, "x")}), 403, token.Prohibited},
		{"from elsewhere", narrow(t, good, &token.FromAddress{Networks: []string{"10.0.0.0/8"}}), 403, token.Prohibited},
	} {
		before := e.refusals(c.why)
		a := e.do("GET", "/v1/apps/hello", nil, with(c.text)...)
		var body struct{ Error string }
		json.Unmarshal(a.body, &body)
		if a.code != c.code || (c.code == 401) != strings.HasPrefix(body.Error, "Authenticate: token validation error") {
			t.Errorf("%s: %d %s", c.name, a.code, a.body)
		}
		if strings.Contains(string(a.body), "fm2_") && c.why != token.Malformed {
			t.Errorf("%s: the answer repeats the token: %s", c.name, a.body)
		}
		if n := e.refusals(c.why) - before; n != 1 {
			t.Errorf("%s: counted %d times as %s", c.name, n, c.why)
		}
		if resp, body := e.atRegistry("GET", "/v2/hello/tags/list", c.text, nil); resp.StatusCode != c.code {
			t.Errorf("%s, at the registry: %d %s", c.name, resp.StatusCode, body)
		}
	}
	before := e.refusals(token.Missing)
	e.want(401, "GET", "/v1/apps/hello", nil, nil, "Authorization", "")
	if e.refusals(token.Missing) != before+1 {
		t.Error("a missing token is not counted")
	}
	if strings.Contains(e.logs.String(), good[:60]) {
		t.Error("the token is in the log")
	}
}

// refusals reads the count of refused tokens.
func (e *env) refusals(why token.Reason) int {
	e.t.Helper()
	a := e.do("GET", "/metrics?role=controller", nil)
	for line := range strings.Lines(string(a.body)) {
		if strings.HasPrefix(line, "bulkhead_tokens_refused_total{") && strings.Contains(line, `reason="`+string(why)+`"`) {
			n, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
			if err != nil {
				e.t.Fatal(err)
			}
			return int(n)
		}
	}
	return 0
}

// TestRevocationEndsWhatIsOpen: a token that is revoked, by its id and by who does not hold
// it, is refused when that is answered, and so are those narrowed from it; what it has open
// ends with a reason.
func TestRevocationEndsWhatIsOpen(t *testing.T) {
	e := newEnv(t)
	e.app("hello")
	m := e.launch("hello", image())
	ends := map[string]func(text string) (ended <-chan string){
		"logs": func(text string) <-chan string { return e.follow(t, "/v1/apps/hello/logs?follow=true", text) },
		"wait": func(text string) <-chan string {
			return e.follow(t, "/v1/apps/hello/machines/"+m.ID+"/wait?state=stopped", text)
		},
		"exec": func(text string) <-chan string { return e.sleep(t, "/v1/apps/hello/machines/"+m.ID+"/exec", text) },
		"exec stream": func(text string) <-chan string {
			return e.sleepStream(t, "/v1/apps/hello/machines/"+m.ID+"/exec/stream", text)
		},
		"upload": func(text string) <-chan string { return e.upload(t, text) },
	}
	for name, open := range ends {
		for _, how := range []string{"revoked", "key withdrawn", "expired"} {
			if how != "revoked" && name != "logs" {
				continue
			}
			made := e.makeToken(config{"kind": "deploy", "app": "hello"})
			text := made.Token
			if how == "expired" {
				text = narrow(t, text, &macaroon.ValidityWindow{NotAfter: time.Now().Add(2 * time.Second).Unix()})
			}
			ended := open(text)
			start := time.Now()
			switch how {
			case "revoked":
				e.want(200, "DELETE", "/v1/orgs/personal/tokens/"+string(made.ID), nil, nil)
				e.want(401, "GET", "/v1/apps/hello", nil, nil, with(narrow(t, text, act("r")))...)
			case "key withdrawn":
				e.want(201, "POST", "/v1/platform/token_keys", nil, nil)
				e.token = e.claim(e.mint(""), "admin") // with the new key
				e.want(412, "DELETE", "/v1/platform/token_keys/"+made.Key, nil, nil)
				e.want(200, "DELETE", "/v1/platform/token_keys/"+made.Key+"?force=true", nil, nil)
				e.want(401, "GET", "/v1/apps/hello", nil, nil, with(text)...)
			}
			select {
			case said := <-ended:
				if !strings.Contains(said, "token validation error") {
					t.Errorf("%s, %s: ended with %q", name, how, said)
				}
				t.Logf("%s, %s: ended after %s", name, how, time.Since(start).Round(time.Millisecond))
			case <-time.After(40 * time.Second):
				t.Errorf("%s, %s: still open", name, how)
			}
		}
	}
	e.want(404, "DELETE", "/v1/tokens/t_0000000000000000", nil, nil)
	e.want(400, "DELETE", "/v1/tokens/x", nil, nil)
	// A token ends itself, whatever its caveats are.
	self := e.makeToken(config{"kind": "readonly"})
	e.want(200, "DELETE", "/v1/tokens/"+string(self.ID), nil, nil, with(self.Token)...)
	e.want(401, "GET", "/v1/user", nil, nil, with(self.Token)...)
}

// follow opens a request that lasts, and tells the last of its answer when it ends.
func (e *env) follow(t *testing.T, path, text string) <-chan string {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://api."+domain+path, nil)
	req.Header.Set("Authorization", "FlyV1 "+text)
	started, ended := make(chan struct{}, 1), make(chan string, 1)
	client := &http.Client{Transport: e.transport()}
	go func() {
		resp, err := client.Do(req)
		if err != nil {
			ended <- err.Error()
			return
		}
		defer resp.Body.Close()
		last := ""
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if s := lines.Text(); s != "" {
				last = s
			}
			select {
			case started <- struct{}{}:
			default:
			}
		}
		ended <- last
	}()
	if strings.Contains(path, "/wait") {
		await.True(e.t, "the wait is open", func() bool { return e.ctl.OpenRequests() > 0 })
	} else {
		<-started
	}
	return ended
}

// sleep runs a command that does not end by itself, and tells the answer.
func (e *env) sleep(t *testing.T, path, text string) <-chan string {
	before, ended := e.ctl.OpenRequests(), make(chan string, 1)
	go func() { ended <- string(e.do("POST", path, config{"command": []string{"sleep"}}, with(text)...).body) }()
	await.True(e.t, "the command runs", func() bool { return e.ctl.OpenRequests() > before })
	return ended
}

// atRegistry makes a request of the registry as docker does: the token is the password.
func (e *env) atRegistry(method, path, text string, body io.Reader) (*http.Response, string) {
	req, err := http.NewRequest(method, "https://registry."+domain+path, body)
	if err != nil {
		panic(err)
	}
	req.SetBasicAuth("x", text)
	resp, err := (&http.Client{Transport: e.transport()}).Do(req)
	if err != nil {
		return &http.Response{}, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp, string(b)
}

// upload pushes a blob slowly, and tells what the registry says when it ends.
func (e *env) upload(t *testing.T, text string) <-chan string {
	resp, said := e.atRegistry("POST", "/v2/hello/blobs/uploads/", text, nil)
	if resp.StatusCode != 202 {
		t.Fatalf("upload: %d %s", resp.StatusCode, said)
	}
	r, w := io.Pipe()
	ended := make(chan string, 1)
	go func() {
		_, said := e.atRegistry("PATCH", resp.Header.Get("Location"), text, r)
		ended <- said
	}()
	if _, err := w.Write(make([]byte, 64<<10)); err != nil { // taken: the request is under way
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return ended
}

// TestTokenExpiry: 30 days by default, a year at most, less where the organization says so,
// also for tokens that there are.
func TestTokenExpiry(t *testing.T) {
	e := newEnvWithoutWorker(t)
	life := func(body config) time.Duration {
		t.Helper()
		made := e.makeToken(body)
		end, err := time.Parse(time.RFC3339Nano, made.ExpiresAt)
		if err != nil {
			t.Fatal(err)
		}
		return time.Until(end).Round(time.Minute)
	}
	refused := func(expiry string) {
		t.Helper()
		e.want(400, "POST", "/v1/orgs/personal/tokens", config{"kind": "org", "expiry": expiry}, nil)
	}
	if got := life(config{"kind": "org"}); got != 720*time.Hour {
		t.Errorf("by default %s", got)
	}
	if got := life(config{"kind": "org", "expiry": "8760h"}); got != 8760*time.Hour {
		t.Errorf("a year is %s", got)
	}
	for _, bad := range []string{"8761h", "175200h", "0s", "-1h", "59s", "never", "1y", "9999999999h"} {
		refused(bad)
	}
	for _, bad := range []config{{}, {"token_max_expiry": "9000h"}, {"token_default_expiry": "x"}, {"token_default_expiry": "48h", "token_max_expiry": "24h"}} {
		e.want(400, "PATCH", "/v1/orgs/personal", bad, nil)
	}
	old := e.makeToken(config{"kind": "readonly", "expiry": "1000h"})
	var o controller.Organization
	e.want(200, "PATCH", "/v1/orgs/personal", config{"token_default_expiry": "24h", "token_max_expiry": "48h"}, &o)
	if o.TokenDefault != "24h0m0s" || o.TokenMax != "48h0m0s" {
		t.Errorf("%+v", o)
	}
	if got := life(config{"kind": "org"}); got != 24*time.Hour {
		t.Errorf("by default %s", got)
	}
	refused("49h")
	e.want(200, "GET", "/v1/orgs/personal", nil, nil, with(old.Token)...)
	// The bound holds for tokens that there are.
	fresh := e.makeToken(config{"kind": "readonly", "expiry": "1h"})
	e.want(200, "PATCH", "/v1/orgs/personal", config{"token_default_expiry": "1m", "token_max_expiry": "1m"}, nil)
	e.ctl.AgeToken(t.Context(), fresh.ID, 2*time.Minute)
	e.want(401, "GET", "/v1/orgs/personal", nil, nil, with(fresh.Token)...)
	e.want(200, "PATCH", "/v1/orgs/personal", config{"token_default_expiry": "", "token_max_expiry": ""}, nil)
	e.want(200, "GET", "/v1/orgs/personal", nil, nil, with(fresh.Token)...)
	if n := e.ctl.SweepTokens(t.Context()); n != 0 {
		t.Errorf("%d tokens were swept that live", n)
	}
	e.ctl.AgeToken(t.Context(), fresh.ID, 3*time.Hour)
	if n := e.ctl.SweepTokens(t.Context()); n != 1 {
		t.Errorf("%d tokens were swept, of one that is over", n)
	}
}

// TestRootKeysRotate: a new key makes tokens, the old one is good for its own, also after
// a restart, and goes with the last of them.
func TestRootKeysRotate(t *testing.T) {
	e := newEnvWithoutWorker(t)
	keys := func() (ks []controller.RootKey) {
		var out struct{ Keys []controller.RootKey }
		e.want(200, "GET", "/v1/platform/token_keys", nil, &out)
		return out.Keys
	}
	first := keys()
	if len(first) != 1 || !first[0].Makes || first[0].Tokens != 1 {
		t.Fatalf("%+v", first)
	}
	old := e.makeToken(config{"kind": "readonly"})
	var next controller.RootKey
	e.want(201, "POST", "/v1/platform/token_keys", nil, &next)
	fresh := e.makeToken(config{"kind": "readonly"})
	if old.Key != first[0].ID || fresh.Key != next.ID {
		t.Errorf("made with %s and %s", old.Key, fresh.Key)
	}
	e.want(409, "DELETE", "/v1/platform/token_keys/"+next.ID, nil, nil)
	e.want(404, "DELETE", "/v1/platform/token_keys/0000000000000000", nil, nil)
	e.stop()
	e.startController()
	e.login()
	for _, text := range []string{old.Token, fresh.Token, e.token} {
		e.want(200, "GET", "/v1/user", nil, nil, with(text)...)
	}
	if state := strings.Join(must2(e.ctl.Keys(t.Context())), "\n"); !strings.Contains(state, "/tokenkey/"+next.ID) {
		t.Error("control: the root key is not where it is looked for")
	}
	e.token = e.claim(e.mint(""), "admin")
	e.want(200, "DELETE", "/v1/tokens/"+string(old.ID), nil, nil)
	var mine struct{ Tokens []controller.Token }
	e.want(200, "GET", "/v1/tokens", nil, &mine)
	for _, tok := range mine.Tokens {
		if tok.Key == first[0].ID {
			e.want(200, "DELETE", "/v1/tokens/"+string(tok.ID), nil, nil)
		}
	}
	e.want(201, "POST", "/v1/platform/token_keys", nil, nil)
	if ks := keys(); len(ks) != 2 || slices.ContainsFunc(ks, func(k controller.RootKey) bool { return k.ID == first[0].ID }) {
		t.Errorf("the old key is still there: %+v", ks)
	}
}

// TestFlyClientsUnderstandOurTokens: the macaroon library's own client verifies and
// authorizes with us, and fly-go works with a token of ours.
func TestFlyClientsUnderstandOurTokens(t *testing.T) {
	e := newEnv(t)
	e.app("hello")
	e.app("other")
	m, foreign := e.launch("hello", image()), e.launch("other", image())
	text := e.makeToken(config{"kind": "deploy", "app": "hello"}).Token
	base, _ := url.Parse("https://api." + domain)
	api := &machinesapi.Client{HTTP: e.transport(), BaseURL: base}
	ctx := t.Context()

	b, err := flyio.ParseBundle("FlyV1 " + text)
	if err != nil {
		t.Fatal(err)
	}
	sets, err := b.Verify(ctx, api)
	if err != nil || len(sets) != 1 {
		t.Fatalf("%d verified: %v", len(sets), err)
	}
	if apps := flyio.AppScope(sets[0]); len(apps) != 1 {
		t.Errorf("the client sees the apps %v", apps)
	}
	ptr := func(s string) *string { return &s }
	for _, c := range []struct {
		name string
		a    machinesapi.Access
		ok   bool
	}{
		{"read the app", machinesapi.Access{AppName: ptr("hello"), Action: resset.ActionRead}, true},
		{"all of the app", machinesapi.Access{OrgSlug: ptr("personal"), AppName: ptr("hello"), Action: resset.ActionAll}, true},
		{"its Machine", machinesapi.Access{MachineID: ptr(m.ID), Action: resset.ActionControl}, true},
		{"its Machine and the app", machinesapi.Access{AppName: ptr("hello"), MachineID: ptr(m.ID), Action: resset.ActionControl}, true},
		{"another app's Machine as the app's", machinesapi.Access{AppName: ptr("hello"), MachineID: ptr(foreign.ID), Action: resset.ActionControl}, false},
		{"a made-up Machine as the app's", machinesapi.Access{AppName: ptr("hello"), MachineID: ptr("d8d9014f123456"), Action: resset.ActionControl}, false},
		{"a command", machinesapi.Access{MachineID: ptr(m.ID), Command: []string{"ls"}, Action: resset.ActionControl}, true},
		{"its images", machinesapi.Access{AppName: ptr("hello"), AppFeature: ptr("images"), Action: resset.ActionWrite}, true},
		{"nothing of the app", machinesapi.Access{AppName: ptr("hello")}, true},
		{"another app", machinesapi.Access{AppName: ptr("other"), Action: resset.ActionRead}, false},
		{"the organization", machinesapi.Access{OrgSlug: ptr("personal"), Action: resset.ActionRead}, false},
		{"members", machinesapi.Access{OrgSlug: ptr("personal"), OrgFeature: ptr("membership"), Action: resset.ActionWrite}, false},
		{"another organization", machinesapi.Access{OrgSlug: ptr("none"), Action: resset.ActionRead}, false},
		{"the app of another organization", machinesapi.Access{OrgSlug: ptr("none"), AppName: ptr("hello"), Action: resset.ActionRead}, false},
		{"nothing at all", machinesapi.Access{Action: resset.ActionRead}, false},
		{"a feature that there is not", machinesapi.Access{AppName: ptr("hello"), AppFeature: ptr("x"), Action: resset.ActionRead}, false},
		{"a Machine feature without one", machinesapi.Access{AppName: ptr("hello"), MachineFeature: ptr("oidc"), Action: resset.ActionRead}, false},
		{"a volume", machinesapi.Access{AppName: ptr("hello"), VolumeID: ptr("vol_x"), Action: resset.ActionRead}, false},
	} {
		got, err := api.Authorize(ctx, "FlyV1 "+text, &c.a)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil && (got.OrgID == nil || *got.OrgID != 1 || c.a.AppName != nil && got.AppID == nil) {
			t.Errorf("%s: answered %+v", c.name, got)
		}
	}
	bad, _ := flyio.ParseBundle("FlyV1 " + narrow(t, text, &macaroon.ValidityWindow{NotAfter: 1}))
	if _, err := bad.Verify(ctx, api); err == nil || !strings.Contains(fmt.Sprint(err, bad.Error()), "token validation error") {
		t.Errorf("an expired token: %v", err)
	}
	for _, c := range []string{"x", "rx", "**", "R"} {
		e.want(400, "POST", "/v1/tokens/authorize", config{"header": text, "access": config{"app_name": "hello", "action": c}}, nil)
	}
	e.want(400, "POST", "/v1/tokens/authorize", config{"header": text}, nil)
	e.want(401, "POST", "/v1/tokens/authorize", config{"access": config{"app_name": "hello", "action": "r"}}, nil)
	e.want(413, "POST", "/v1/tokens/authenticate", strings.Repeat("x", 70<<10), nil)

	// Caveats hold together with roles: as the owner, who is no member of another.
	if _, err := api.Authorize(ctx, "FlyV1 "+e.token, &machinesapi.Access{OrgSlug: ptr("personal"), OrgFeature: ptr("membership"), Action: resset.ActionWrite}); err != nil {
		t.Errorf("the owner's login: %v", err)
	}
	var current struct{ Tokens []controller.CurrentToken }
	e.want(200, "GET", "/v1/tokens/current", nil, &current, with(text)...)
	if len(current.Tokens) != 1 || current.Tokens[0].OrgSlug != "personal" || !slices.Equal(current.Tokens[0].Apps, []string{"hello"}) || current.Tokens[0].User != "admin" {
		t.Errorf("current: %+v", current)
	}

	t.Setenv("FLY_FLAPS_BASE_URL", "https://api."+domain)
	f, err := flaps.NewWithOptions(ctx, flaps.NewClientOpts{Tokens: tokens.Parse(text), Transport: &schemes{e.c.RoundTripper(e.transport()), t}, UserAgent: "bulkhead-test"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Get(ctx, "hello", m.ID); err != nil || got.ID != m.ID {
		t.Errorf("fly-go: %v", err)
	}
	if _, err := f.Get(ctx, "other", m.ID); err == nil {
		t.Error("fly-go got a Machine of another app")
	}
}

// schemes checks the scheme that a client sends a token with.
type schemes struct {
	http.RoundTripper
	t *testing.T
}

func (s *schemes) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(r.Header.Get("Authorization"), "FlyV1 fm2_") {
		s.t.Errorf("fly-go sends %.10q", r.Header.Get("Authorization"))
	}
	return s.RoundTripper.RoundTrip(r)
}
