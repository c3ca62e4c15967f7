package controller_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/audit"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/role"
	"bulkhead/workload"
)

// inside is a connection from inside a Machine, as its worker carries it.
type inside struct {
	stream grpc.BidiStreamingClient[internalpb.MachineBytes, internalpb.MachineBytes]
	id     string
	rest   []byte
	cancel context.CancelFunc
}

func (i *inside) Write(b []byte) (int, error) {
	m := &internalpb.MachineBytes{Data: b, MachineId: i.id}
	i.id = ""
	return len(b), i.stream.Send(m)
}

func (i *inside) Read(b []byte) (int, error) {
	for len(i.rest) == 0 {
		m, err := i.stream.Recv()
		if err != nil {
			return 0, err
		}
		i.rest = m.GetData()
	}
	n := copy(b, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}

// inside connects as a Machine, with a worker of a node.
func (e *env) inside(n key.Node, id string) *inside {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	e.t.Cleanup(cancel)
	s, err := internalpb.NewControllerClient(e.dial(role.Worker, n)).MachineAPI(ctx)
	if err != nil {
		e.t.Fatal(err)
	}
	return &inside{stream: s, id: id, cancel: cancel}
}

// ask makes one request over a connection.
func (i *inside) ask(method, path, body string, header ...string) (*http.Response, string, error) {
	req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	for h := 0; h < len(header); h += 2 {
		req.Header.Set(header[h], header[h+1])
	}
	var raw bytes.Buffer
	if err := req.Write(&raw); err != nil {
		return nil, "", err
	}
	if _, err := i.Write(raw.Bytes()); err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(i), req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// asMachine makes one request from inside a Machine and wants a code.
func (e *env) asMachine(code int, id, method, path, body string, header ...string) string {
	e.t.Helper()
	c := e.inside(node, id)
	defer c.cancel()
	resp, out, err := c.ask(method, path, body, header...)
	if err != nil {
		e.t.Fatalf("%s %s from inside: %v", method, path, err)
	}
	if resp.StatusCode != code {
		e.t.Fatalf("%s %s from inside: %d %s, want %d", method, path, resp.StatusCode, out, code)
	}
	return out
}

const issuerOf = "https://api." + domain + ":8443/oidc/"

// verify checks a token as somebody else's service does: over TLS, from the issuer's
// address alone.
func (e *env) verify(org, aud, token string) (*oidc.IDToken, error) {
	ctx := oidc.ClientContext(context.Background(), &http.Client{Transport: e.transport(), Timeout: time.Minute})
	p, err := oidc.NewProvider(ctx, issuerOf+org)
	if err != nil {
		return nil, err
	}
	return p.Verifier(&oidc.Config{ClientID: aud}).Verify(ctx, token)
}

// TestIdentityToken: a Machine gets a token without a secret, and a real verifier takes
// it; a worker gets none for a Machine that is not its own.
func TestIdentityToken(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())

	token := e.asMachine(200, m.ID, "POST", "/v1/tokens/oidc", `{"aud":"sts.amazonaws.com"}`)
	got, err := e.verify("personal", "sts.amazonaws.com", token)
	if err != nil {
		t.Fatalf("%v: %s", err, token)
	}
	var c workload.Claims
	if err := got.Claims(&c); err != nil {
		t.Fatal(err)
	}
	// Its organization reads of it, and that it was given.
	var page controller.AuditPage
	e.want(200, "GET", "/v1/orgs/personal/audit?action="+url.QueryEscape("POST /v1/tokens/oidc"), nil, &page)
	if len(page.Records) != 1 || !strings.Contains(string(page.Records[0].Record), `"machine":"`+m.ID+`"`) || !strings.Contains(string(page.Records[0].Record), `"result":"ok"`) {
		t.Errorf("its records: %v", page.Records)
	}
	app := e.do("GET", "/v1/apps/web", nil)
	var shown struct{ ID string }
	json.Unmarshal([]byte(app.body), &shown)
	want := workload.Claims{
		AppID: shown.ID, AppName: "web", Image: "docker.example/library/app:1", ImageDigest: string(m.ImageRef.Digest), MachineID: m.ID, MachineName: m.Name,
		MachineVersion: m.InstanceID, OrgID: "1", OrgName: "personal", Region: "local",
	}
	if c != want {
		t.Errorf("claims\n%+v, want\n%+v", c, want)
	}
	if got.Subject != "personal:web:"+m.Name || got.Issuer != issuerOf+"personal" {
		t.Errorf("subject %q of %q", got.Subject, got.Issuer)
	}
	if _, err := e.verify("other", "sts.amazonaws.com", token); err == nil {
		t.Error("it is taken for another organization's")
	}
	if _, err := e.verify("personal", "vault", token); err == nil {
		t.Error("it is taken for another audience's")
	}

	// The default audience, and any Host; bodies that are none.
	plain := e.asMachine(200, m.ID, "POST", "/v1/tokens/oidc", "")
	if _, err := e.verify("personal", "https://"+domain+"/personal", plain); err != nil {
		t.Error(err)
	}
	tagged, err := e.verify("personal", "x", e.asMachine(200, m.ID, "POST", "/v1/tokens/oidc", `{"aud":"x","aws_principal_tags":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := tagged.Claims(&c); err != nil || c.AWSTags == nil || c.AWSTags.Principal["machine_id"][0] != m.ID {
		t.Errorf("tags: %+v, %v", c.AWSTags, err)
	}
	for _, bad := range []string{`{"aud":5}`, `{"aud":"a\u0000b"}`, `[]`, `{`, `{"aud":"` + strings.Repeat("x", 600) + `"}`} {
		e.asMachine(400, m.ID, "POST", "/v1/tokens/oidc", bad)
	}
	if strings.Contains(e.logs.String(), token) || strings.Contains(e.logs.String(), plain) {
		t.Error("a token is in the log")
	}

	made := e.find("personal", "a token's record", func(r audit.Record) bool { return r.Detail == "aud=sts.amazonaws.com" })
	if made.Action != "POST /v1/tokens/oidc" || made.Machine != m.ID || made.App != "web" || made.Name != "machine "+m.ID || made.Result != audit.OK {
		t.Errorf("%+v", made)
	}

	// A stolen worker speaks for its own Machines alone; nobody else speaks for any.
	for what, in := range map[string]struct {
		n  key.Node
		id string
	}{"another node": {"n2", m.ID}, "no such machine": {node, "00000000000000"}, "no machine": {node, ""}, "a path": {node, "../web"}} {
		if _, _, err := e.inside(in.n, in.id).ask("POST", "/v1/tokens/oidc", ""); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v, want Denied", what, err)
		}
	}
	rec := e.find("", "another node's worker", func(r audit.Record) bool { return r.Name == "worker of node n2" })
	if rec.Action != "speak for a machine" || rec.Result != audit.Refused || rec.Target != "machine="+m.ID {
		t.Errorf("%+v", rec)
	}
	s, err := internalpb.NewControllerClient(e.dial(role.Edge, node)).MachineAPI(t.Context())
	if err == nil {
		s.Send(&internalpb.MachineBytes{MachineId: m.ID})
		_, err = s.Recv()
	}
	if !fault.Is(err, fault.Denied) {
		t.Errorf("an edge speaks for a machine: %v", err)
	}
	// A person has no machine to get a token about.
	e.refused(403, "machines alone", "POST", "/v1/tokens/oidc", nil)

	// One that is destroyed is nobody any more.
	e.want(200, "DELETE", "/v1/apps/web/machines/"+m.ID+"?force=true", nil, nil)
	if resp, out, err := e.inside(node, m.ID).ask("POST", "/v1/tokens/oidc", ""); err == nil && resp.StatusCode == 200 {
		t.Errorf("a destroyed machine gets a token: %s", out)
	}
}

// TestMachineActsOnItselfAlone makes every call that there is from inside a Machine, about
// itself, about another Machine of its app, and about another app's, with the token of an
// owner in its hands: what the table does not give it is refused.
func TestMachineActsOnItselfAlone(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.app("other")
	self, sibling, stranger := e.launch("web", image()), e.launch("web", image()), e.launch("other", image())
	cells, allowed := 0, 0
	for _, pattern := range e.ctl.Endpoints() {
		row, ok := rowOf(pattern)
		if !ok {
			continue // not supported: says so to everybody
		}
		method, url, _ := strings.Cut(pattern, " ")
		try := func(what, app, id string, may bool) {
			t.Helper()
			cells++
			path := strings.NewReplacer("{app}", app, "{machine}", id, "{org}", "personal", "{key}", "k", "{user}", "admin", "{invitation}", "c_0000000000000000", "{node}", "n9", "{secret}", "S").Replace(url)
			c := e.inside(node, self.ID)
			defer c.cancel()
			resp, out, err := c.ask(method, path, "", "Authorization", "Bearer "+e.token)
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			if (resp.StatusCode != 403) != may {
				t.Errorf("%s %s, about %s: %d %s, allowed should be %v", method, path, what, resp.StatusCode, out, may)
			}
			if may {
				allowed++
			}
		}
		if !strings.Contains(pattern, "{machine}") || method == "GET" && !strings.HasSuffix(pattern, "/wait") { // what changes it is tried below
			try("itself", "web", self.ID, strings.Contains(row, "M"))
		} else if !strings.Contains(row, "M") {
			try("itself", "web", self.ID, false)
		}
		if strings.Contains(pattern, "{machine}") {
			try("another machine of its app", "web", sibling.ID, false)
			try("another app's machine", "other", stranger.ID, false)
			try("its own id in another app", "other", self.ID, false)
		}
	}
	t.Logf("%d calls, %d of them allowed", cells, allowed)
	if cells < 100 || allowed < 5 {
		t.Error("too few: this tests nothing")
	}
	for _, pattern := range e.ctl.PublicEndpoints() { // which are for people
		method, path, _ := strings.Cut(pattern, " ")
		e.asMachine(403, self.ID, method, strings.NewReplacer("{id}", "x", "{file}", "x", "{org}", "personal").Replace(path), "")
	}
	path := "/v1/apps/web/machines/" + self.ID
	e.asMachine(204, self.ID, "POST", path+"/metadata/k", `{"value":"v"}`)
	if got := e.asMachine(200, self.ID, "GET", "/v1/apps", ""); strings.Contains(got, "web") || strings.Contains(got, "other") {
		t.Errorf("a machine lists apps: %s", got)
	}
	// With no token at all, and with one that is none.
	e.asMachine(200, self.ID, "GET", path, "")
	e.asMachine(200, self.ID, "GET", path, "", "Authorization", "Bearer nonsense", "Host", "whatever.example")
	e.asMachine(200, self.ID, "POST", path+"/stop", "")
	e.wait("web", self.ID, "stopped")
}

// TestMachineConnectionsAreBounded: whatever a worker says, a Machine has so many and no
// more; those that end give their place back.
func TestMachineConnectionsAreBounded(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	path := "/v1/apps/web/machines/" + m.ID
	var held []*inside
	var refused error
	for range 17 {
		c := e.inside(node, m.ID)
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\n", path); err != nil { // half a request
			t.Fatal(err)
		}
		if md, _ := c.stream.Header(); md == nil {
			_, refused = c.stream.Recv()
			continue
		}
		held = append(held, c)
	}
	if len(held) != 16 || !fault.Is(refused, fault.TooMany) {
		t.Errorf("%d connections, then %v", len(held), refused)
	}
	for _, c := range held {
		c.cancel()
	}
	await.True(t, "a place is free again", func() bool {
		c := e.inside(node, m.ID)
		defer c.cancel()
		_, _, err := c.ask("GET", path, "")
		return err == nil
	})
}

// TestMachineChangesAreBounded: a Machine that asks for tokens without end, each with a
// record in the audit log, is held up; it still sees itself, and its neighbour goes on.
func TestMachineChangesAreBounded(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m, neighbour := e.launch("web", image()), e.launch("web", image())
	c, given := e.inside(node, m.ID), 0
	for range 500 {
		resp, out, err := c.ask("POST", "/v1/tokens/oidc", "")
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == 429 {
			if resp.Header.Get("Retry-After") == "" {
				t.Error("it is not told when to come again")
			}
			break
		} else if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, out)
		}
		given++
	}
	if given < 50 || given == 500 {
		t.Errorf("%d tokens were given", given)
	}
	e.asMachine(429, m.ID, "POST", "/v1/apps/web/machines/"+m.ID+"/metadata/k", `{"value":"v"}`)
	e.asMachine(200, m.ID, "GET", "/v1/apps/web/machines/"+m.ID, "")
	e.asMachine(200, neighbour.ID, "POST", "/v1/tokens/oidc", "")
}

// TestMachineSendsGarbage: what is no request is refused, and the API goes on.
func TestMachineSendsGarbage(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	for what, bytes := range map[string]string{
		"noise":             "\x00\xff\x16\x03\x01 not http\r\n\r\n",
		"a preface of h2":   "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"two lengths":       "POST /v1/tokens/oidc HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"length and chunks": "POST /v1/tokens/oidc HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
		"a long header":     "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 100<<10) + "\r\n\r\n",
		"no host":           "GET /v1/apps HTTP/1.1\r\n\r\n",
	} {
		c := e.inside(node, m.ID)
		for rest := []byte(bytes); len(rest) > 0; {
			n, err := c.Write(rest[:min(len(rest), 16<<10)])
			if err != nil {
				break // it has hung up already
			}
			rest = rest[n:]
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && resp.StatusCode < 400 {
			t.Errorf("%s: %d", what, resp.StatusCode)
		}
		c.cancel()
	}
	e.asMachine(200, m.ID, "GET", "/v1/apps/web/machines/"+m.ID, "")
	e.get("/healthz", nil)
}

// TestIssuerRotation rotates by hand while tokens are made and verified all the time,
// over a restart too; and once because the keys are compromised, after which no token of
// the old ones is good.
func TestIssuerRotation(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	old := e.asMachine(200, m.ID, "POST", "/v1/tokens/oidc", `{"aud":"x"}`)
	var stop = make(chan struct{})
	var wg sync.WaitGroup
	count := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			c := e.inside(node, m.ID)
			_, token, err := c.ask("POST", "/v1/tokens/oidc", `{"aud":"x"}`)
			c.cancel()
			if err == nil {
				_, err = e.verify("personal", "x", token)
			}
			if err != nil {
				t.Error(err)
				return
			}
			count++
		}
	})
	type issuer struct {
		Issuer string
		Keys   []struct{ ID, State string }
	}
	var is issuer
	e.want(200, "GET", "/v1/platform/issuer", nil, &is)
	if len(is.Keys) != 1 || is.Keys[0].State != "current" || is.Issuer != issuerOf+"{org}" {
		t.Errorf("at first: %+v", is)
	}
	for range 2 { // the one that waits is replaced
		e.want(200, "POST", "/v1/platform/issuer/rotate", nil, &is)
		if len(is.Keys) != 2 || is.Keys[0].State != "next" || is.Keys[1].State != "current" {
			t.Errorf("rotated: %+v", is)
		}
	}
	close(stop)
	wg.Wait()
	if count == 0 {
		t.Error("no token was made meanwhile")
	}
	e.stop()
	e.startController()
	e.login()
	e.connectWorker()
	if _, err := e.verify("personal", "x", old); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	e.want(200, "POST", "/v1/platform/issuer/rotate", config{"compromised": true}, &is)
	if len(is.Keys) != 1 || is.Keys[0].State != "current" {
		t.Errorf("compromised: %+v", is)
	}
	if _, err := e.verify("personal", "x", old); err == nil {
		t.Error("a token of a key that was given up is good")
	}
	if _, err := e.verify("personal", "x", e.asMachine(200, m.ID, "POST", "/v1/tokens/oidc", `{"aud":"x"}`)); err != nil {
		t.Error(err)
	}
	t.Logf("%d tokens were made and verified during the rotations", count)
}

// TestIssuerDocuments are for everybody, may be kept, and say nothing of which
// organizations there are.
func TestIssuerDocuments(t *testing.T) {
	e := newEnvWithoutWorker(t)
	client := &http.Client{Transport: e.transport(), Timeout: time.Minute}
	fetch := func(path string) (*http.Response, string) {
		t.Helper()
		resp, err := client.Get("https://api." + domain + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp, string(b)
	}
	for _, doc := range []string{"openid-configuration", "jwks"} {
		resp, is := fetch("/oidc/personal/.well-known/" + doc)
		if resp.StatusCode != 200 || resp.Header.Get("Cache-Control") != "public, max-age=300" || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v", doc, resp.StatusCode, resp.Header)
		}
		if _, isNot := fetch("/oidc/nobody/.well-known/" + doc); strings.ReplaceAll(isNot, "nobody", "personal") != is {
			t.Errorf("%s tells an organization that is from one that is not", doc)
		}
		for _, private := range []string{`"d":`, `"p":`, "PRIVATE"} {
			if strings.Contains(is, private) {
				t.Errorf("%s holds %s", doc, private)
			}
		}
	}
	for path, code := range map[string]int{"/oidc/": 401, "/oidc/personal": 401, "/oidc/personal/.well-known/other": 401, "/oidc/..%2f/.well-known/jwks": 404, "/oidc/A/.well-known/jwks": 404} {
		if resp, body := fetch(path); resp.StatusCode != code {
			t.Errorf("%s: %d %s, want %d", path, resp.StatusCode, body, code)
		}
	}
	if resp, err := client.Post("https://api."+domain+"/oidc/personal/.well-known/jwks", "text/plain", nil); err != nil || resp.StatusCode < 400 {
		t.Errorf("a POST: %v %v", resp, err)
	}
}
