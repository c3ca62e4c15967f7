package controller_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"bulkhead/controller"
	"bulkhead/pki"
	"bulkhead/role"
)

func TestNothingAnswersWithoutAToken(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	other := "bh_" + strings.Repeat("A", 43)
	for _, path := range []string{"/healthz", "/metrics", "/v1/apps", "/v1/apps/web", "/v1/apps/web/machines/" + m.ID, "/v1/platform/regions", "/v1/tokens/current", "/", "/nothing", "//x"} {
		for _, auth := range []string{"", "Bearer", "Bearer ", "Bearer x", "Bearer " + other, "FlyV1 " + other, "Basic " + e.token, e.token, "Bearer " + e.token + "x", "Bearer " + e.token[:len(e.token)-1]} {
			a := e.do("GET", path, nil, "Authorization", auth)
			if a.code != 401 || !strings.Contains(string(a.body), "Authenticate: token validation error") {
				t.Errorf("GET %s with %q: %d %s", path, auth, a.code, a.body)
			}
		}
	}
	for _, auth := range []string{"Bearer " + e.token, "bearer " + e.token, "FlyV1 " + e.token} {
		e.want(200, "GET", "/v1/apps", nil, nil, "Authorization", auth)
	}
	if strings.Contains(e.logs.String(), e.token) || strings.Contains(e.logs.String(), other) {
		t.Error("a token is in the log")
	}
}

// TestInstallationTokenForcesANamedUser follows the token that an installation prints: it
// is good for becoming a user, once, and for nothing else.
func TestInstallationTokenForcesANamedUser(t *testing.T) {
	e := newEnv(t)
	if code, b := e.admin("POST", "/token?if_none=1"); code != 409 {
		t.Errorf("if_none with a user: %d %s", code, b)
	}
	old := e.mint("")
	once := e.mint("")
	if !strings.HasPrefix(once, "bh_c_installation.") {
		t.Errorf("token %q", once)
	}
	for _, call := range []string{"GET /v1/apps", "POST /v1/apps", "GET /v1/user", "GET /v1/platform/nodes", "GET /healthz", "POST /v1/tokens/oidc"} {
		method, path, _ := strings.Cut(call, " ")
		if a := e.do(method, path, nil, "Authorization", "Bearer "+once); a.code != 403 || !strings.Contains(string(a.body), "become a named user") {
			t.Errorf("%s with the installation's token: %d %s", call, a.code, a.body)
		}
	}
	e.want(401, "POST", "/v1/claim", map[string]string{"name": "eve"}, nil, "Authorization", "Bearer "+old)
	for _, name := range []string{"", "Eve", "-", "e v", strings.Repeat("x", 129), "a/b", "a\x00"} {
		e.want(400, "POST", "/v1/claim", map[string]string{"name": name}, nil, "Authorization", "Bearer "+once)
	}
	second := e.claim(once, "second")
	e.want(401, "POST", "/v1/claim", map[string]string{"name": "third"}, nil, "Authorization", "Bearer "+once)
	e.want(403, "POST", "/v1/claim", map[string]string{"name": "third"}, nil, "Authorization", "Bearer "+second)
	var self controller.Self
	e.want(200, "GET", "/v1/user", nil, &self, "Authorization", "Bearer "+second)
	if self.Name != "second" || !*self.Operator || len(self.Organizations) != 1 || self.Organizations[0].Role != "owner" || self.Token.Kind != "login" {
		t.Errorf("self: %+v", self)
	}
	if code, _ := e.admin("GET", "/token"); code == 200 {
		t.Error("a token can be read")
	}
	for _, secret := range []string{old, once, second} {
		if strings.Contains(e.logs.String(), secret) {
			t.Error("a token is in the log")
		}
	}
}

func TestPublicTLS(t *testing.T) {
	e := newEnvWithoutWorker(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := e.dialAPI(ctx, "api."+domain+":443", &tls.Config{RootCAs: e.roots, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	st := conn.ConnectionState()
	if st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != "h2" || pki.Pin(st.PeerCertificates[0]) != e.pin {
		t.Errorf("version %x, protocol %q, pin %s, want %s", st.Version, st.NegotiatedProtocol, pki.Pin(st.PeerCertificates[0]), e.pin)
	}
	conn.Close()
	if _, err := e.dialAPI(ctx, "api."+domain+":443", &tls.Config{RootCAs: e.roots, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	raw, err := net.Dial("unix", e.socks[role.SocketAPI])
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(40 * time.Second))
	if err := tls.Client(raw, &tls.Config{RootCAs: e.roots, ServerName: "api." + domain}).Handshake(); err == nil {
		t.Error("a connection without a PROXY header was accepted")
	}
	old := e.pin
	e.stop()
	e.startController()
	e.login()
	if e.pin != old {
		t.Errorf("the pin changed at a restart from %s to %s", old, e.pin)
	}
	e.get("/v1/apps", nil)
	h1 := e.transport()
	h1.ForceAttemptHTTP2 = false
	h1.DialTLSContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
		return e.dialAPI(ctx, addr, &tls.Config{RootCAs: e.roots, NextProtos: []string{"http/1.1"}})
	}
	e.client = &http.Client{Transport: h1}
	e.get("/v1/apps", nil)
	a := e.do("GET", "/v1/apps", nil, "Host", "x")
	if a.code != 200 || !strings.Contains(e.logs.String(), "192.0.2.7") {
		t.Errorf("the client's address from the PROXY header is not in the log")
	}
}

func TestBadRequests(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	base := "/v1/apps/web/machines/" + m.ID
	for _, tc := range []struct {
		code                   int
		method, path, sentence string
		body                   any
	}{
		{404, "GET", "/v1/nothing", "no such endpoint", nil},
		{404, "PATCH", "/v1/apps", "no such endpoint", nil},
		{404, "GET", "/v1/apps/nope", `app \"nope\" not found`, nil},
		{404, "GET", "/v1/apps/nope/machines", `app \"nope\" not found`, nil},
		{404, "GET", "/v1/apps/nope/machines/" + m.ID, `app \"nope\" not found`, nil},
		{404, "GET", "/v1/apps/web/machines/00000000000000", "machine 00000000000000 not found", nil},
		{404, "GET", "/v1/apps/web/machines/x", "machine x not found", nil},
		{404, "GET", "/v1/apps/Not%20A%20Name/machines/" + m.ID, `app \"Not A Name\" not found`, nil},
		{404, "GET", "/v1/apps?org_slug=zzz", "organization", nil},
		{422, "POST", "/v1/apps", "app name", map[string]any{"name": "Bad Name"}},
		{422, "POST", "/v1/apps", "reserved", map[string]any{"name": "registry"}},
		{422, "POST", "/v1/apps", "Name has already been taken", map[string]any{"name": "web"}},
		{400, "POST", "/v1/apps", "network", map[string]any{"name": "x", "network": "9 lives"}},
		{400, "POST", "/v1/apps", "JSON", "{"},
		{400, "POST", "/v1/apps", "name cannot be a number", `{"name": 7}`},
		{413, "POST", "/v1/apps", "larger than 256 KiB", `{"name": "` + strings.Repeat("x", 5<<20) + `"}`},
		{400, "POST", "/v1/apps/web/machines", "config is missing", "{}"},
		{400, "POST", "/v1/apps/web/machines", "config.image", config{"config": config{}}},
		{400, "POST", "/v1/apps/web/machines", "region", config{"config": image(), "region": "moon"}},
		{400, "POST", "/v1/apps/web/machines", "machine name", config{"config": image(), "name": "a b"}},
		{400, "POST", "/v1/apps/web/machines", "cache_drive", config{"config": config{"image": "x", "cache_drive": config{"size_mb": 1}}}},
		{400, "POST", "/v1/apps/web/machines", "volumes", config{"config": config{"image": "x", "mounts": []config{{"volume": "v"}}}}},
		{400, "POST", "/v1/apps/web/machines", "lease", config{"config": image(), "lease_ttl": -5}},
		{409, "POST", "/v1/apps/web/machines", "unique machine name violation", config{"config": image(), "name": m.Name}},
		{422, "POST", "/v1/apps/web/machines", "push it first", config{"config": config{"image": "registry." + domain + "/web:none"}}},
		{422, "POST", "/v1/apps/web/machines", "belongs to no app", config{"config": config{"image": "registry." + domain + "/other:1"}}},
		{400, "GET", base + "/wait?state=happy", "cannot be waited for", nil},
		{400, "GET", base + "/wait?timeout=soon", "timeout", nil},
		{400, "GET", base + "/wait?version=x", "ULID", nil},
		{400, "GET", base + "/events?limit=none", "limit", nil},
		{400, "POST", base + "/stop", "signal", config{"signal": "SIGNOPE"}},
		{400, "POST", base + "/stop", "timeout", config{"timeout": "10h"}},
		{400, "POST", base + "/signal", "signal is missing", config{}},
		{400, "POST", base + "/exec", "command is missing", config{}},
		{400, "POST", base + "/exec", "quotation", config{"cmd": `echo "x`}},
		{400, "POST", base + "/exec", "timeout", config{"cmd": "x", "timeout": 100000}},
		{400, "POST", base + "/lease?ttl=0", "ttl", nil},
		{400, "DELETE", base + "?force=maybe", "force", nil},
		{400, "PUT", base + "/metadata", "metadata is missing", config{}},
		{501, "GET", "/v1/apps/web/volumes", "not supported", nil},
		{501, "GET", "/v1/apps/web/certificates/a.example", "not supported", nil},
		{501, "POST", "/v1/apps/web/ip_assignments", "not supported", config{}},
		{501, "POST", "/v1/tokens/kms", "not supported", nil},
		{501, "PUT", base + "/memory", "not supported", config{"limit_mb": 512}},
	} {
		e.refused(tc.code, tc.sentence, tc.method, tc.path, tc.body)
	}
	if n := len(e.worker.machines); n != 1 {
		t.Errorf("refused requests left %d machines", n-1)
	}
}
