package controller_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"bulkhead/controller"
)

// raw sends bytes over a TLS connection to the API and returns the first answer.
func (e *env) raw(t *testing.T, request string) (int, string) {
	t.Helper()
	c, err := e.dialAPI(bounded(t), "api."+domain+":443", &tls.Config{RootCAs: e.roots, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	go io.WriteString(c, request) // the answer may come before the end
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(b)
}

// TestBadInput sends what no client should, over HTTP/1.1 and HTTP/2: each request has
// the code that it should and the API's form of an error, and none changes anything.
func TestBadInput(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", web())
	before := e.do("GET", "/v1/apps?org_slug=personal", nil).body
	machineBefore := string(e.do("GET", "/v1/apps/web/machines/"+m.ID+"/versions", nil).body)

	nested := func(open string, n int) string { return `{"name":"x","x":` + strings.Repeat(open, n) }
	type row struct {
		code               int
		what, method, path string
		header             []string
		body               string
	}
	rows := []row{
		{400, "objects inside each other", "POST", "/v1/apps", nil, nested(`{"a":`, 20_000)},
		{400, "arrays inside each other", "POST", "/v1/apps", nil, nested(`[`, 100_000)},
		{400, "more elements than are taken", "POST", "/v1/apps", nil, `{"name":"x","x":[` + strings.Repeat("1,", 110_000) + `1]}`},
		{400, "one name twice", "POST", "/v1/apps", nil, `{"name":"x1","org_slug":"personal","name":"x2"}`},
		{400, "one name twice, escaped", "POST", "/v1/apps", nil, `{"name":"x1","org_slug":"personal","n\u0061me":"x2"}`},
		{413, "a large body", "POST", "/v1/apps", nil, `{"name":"` + strings.Repeat("x", 300<<10) + `"}`},
		{413, "a larger body where files may be", "POST", "/v1/apps/web/machines", nil, `{"name":"` + strings.Repeat("x", 5<<20) + `"}`},
		{400, "a body that is cut short", "POST", "/v1/apps", nil, `{"name":"x"`},
		{400, "two bodies", "POST", "/v1/apps", nil, `{"name":"x1","org_slug":"personal"}{"name":"x2"}`},
		{400, "a byte order mark", "POST", "/v1/apps", nil, "\ufeff" + `{"name":"x1","org_slug":"personal"}`},
		{400, "text in UTF-16", "POST", "/v1/apps", nil, "{\x00\"\x00n\x00"},
		{415, "a form", "POST", "/v1/apps", []string{"Content-Type", "multipart/form-data; boundary=x"}, `{"name":"x1","org_slug":"personal"}`},
		{415, "a form of parts", "POST", "/v1/apps", []string{"Content-Type", "multipart/form-data; boundary=x"}, `{"name":"x1","org_slug":"personal"}`},
		{415, "plain text", "POST", "/v1/apps", []string{"Content-Type", "text/plain"}, `{"name":"x1","org_slug":"personal"}`},
		{415, "packed", "POST", "/v1/apps", []string{"Content-Encoding", "gzip"}, "\x1f\x8b\x08"},
		{414, "a long path", "GET", "/v1/apps/" + strings.Repeat("x", 9000), nil, ""},
		{414, "a long query", "GET", "/v1/apps?x=" + strings.Repeat("x", 9000), nil, ""},
		{400, "many parameters", "GET", "/v1/apps?" + strings.Repeat("x&", 200), nil, ""},
		{400, "a query that is malformed", "GET", "/v1/apps?x=%zz", nil, ""},
		{400, "a query with semicolons", "GET", "/v1/apps?org_slug=personal;x=y", nil, ""},
		{431, "a large header", "GET", "/v1/apps", []string{"X-Large", strings.Repeat("x", 50<<10)}, ""},
		{400, "a path that goes up", "DELETE", "/v1/apps/x/../web", nil, ""},
		{400, "a path that goes up, escaped", "DELETE", "/v1/apps/x/%2e%2e/web", nil, ""},
		{400, "a path with an empty part", "DELETE", "/v1//apps/web", nil, ""},
		{400, "a path with a line's end", "DELETE", "/v1/apps/web%0d%0aX:y", nil, ""},
		{400, "a path with NUL", "DELETE", "/v1/apps/web%00", nil, ""},
		{404, "a name with a slash", "DELETE", "/v1/apps/web%2Fmachines", nil, ""},
		{404, "a name with a backslash", "DELETE", "/v1/apps/web%5C..", nil, ""},
		{404, "a name in capitals", "DELETE", "/v1/apps/WEB", nil, ""},
		{404, "a name with a letter that looks alike", "DELETE", "/v1/apps/w%D0%B5b", nil, ""},
		{404, "a name in wide letters", "DELETE", "/v1/apps/%EF%BD%97eb", nil, ""},
		{404, "a name with a dot behind", "DELETE", "/v1/apps/web.", nil, ""},
		{404, "a name with a space behind", "DELETE", "/v1/apps/web%20", nil, ""},
		{404, "a machine's id in capitals", "DELETE", "/v1/apps/web/machines/" + strings.ToUpper(m.ID) + "A?force=true", nil, ""},
		{404, "a machine's id that goes up", "DELETE", "/v1/apps/web/machines/..%2F" + m.ID + "?force=true", nil, ""},
		{404, "a machine of another app", "DELETE", "/v1/apps/other/machines/" + m.ID + "?force=true", nil, ""},
		{404, "a path in capitals", "DELETE", "/V1/apps/web", nil, ""},
		{422, "a new app in capitals", "POST", "/v1/apps", nil, `{"name":"WEB2","org_slug":"personal"}`},
		{422, "a new app with a letter that looks alike", "POST", "/v1/apps", nil, `{"name":"wеb","org_slug":"personal"}`},
		{200, "a method that another overrides", "GET", "/v1/apps/web", []string{"X-HTTP-Method-Override", "DELETE", "X-Method-Override", "DELETE", "X-HTTP-Method", "DELETE"}, ""},
		{200, "a method in the query", "GET", "/v1/apps/web?_method=DELETE", nil, ""},
		{200, "another address in a header", "GET", "/v1/apps/web", []string{"X-Original-URL", "/v1/apps/nope", "X-Rewrite-URL", "/v1/apps/nope", "X-Forwarded-Host", "evil.example"}, ""},
	}
	for _, method := range []string{"TRACE", "BREW", "PROPFIND"} {
		rows = append(rows, row{404, "the method " + method, method, "/v1/apps/web/x", nil, ""})
	}
	h1 := e.transportFor("http/1.1")
	defer h1.CloseIdleConnections()
	clients := map[int]*http.Client{1: {Transport: h1}, 2: e.client}
	refused := 0
	for major, client := range clients {
		for _, r := range rows {
			req, err := http.NewRequest(r.method, "https://api."+domain+r.path, strings.NewReader(r.body))
			if err != nil {
				t.Fatalf("%s: %v", r.what, err)
			}
			req.Header.Set("Authorization", "Bearer "+e.token)
			for i := 0; i+1 < len(r.header); i += 2 {
				req.Header.Set(r.header[i], r.header[i+1])
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Errorf("HTTP/%d, %s: %v", major, r.what, err)
				continue
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			var out struct{ Error string }
			if resp.ProtoMajor != major || resp.StatusCode != r.code || r.code >= 400 && (json.Unmarshal(b, &out) != nil || out.Error == "" || len(b) > 2000) {
				t.Errorf("HTTP/%d, %s: %d %.300q, want %d", resp.ProtoMajor, r.what, resp.StatusCode, b, r.code)
			}
			refused++
		}
	}

	// What no library sends.
	auth := "Authorization: Bearer " + e.token + "\r\n"
	host := "Host: api." + domain + "\r\n"
	for _, r := range []struct {
		code          int // 0: the connection may end without an answer
		what, request string
	}{
		{400, "two tokens", "GET /v1/apps HTTP/1.1\r\n" + host + auth + "Authorization: Bearer x\r\n\r\n"},
		{400, "two lease nonces", "DELETE /v1/apps/web HTTP/1.1\r\n" + host + auth + "Fly-Machine-Lease-Nonce: a\r\nfly-machine-lease-nonce: b\r\n\r\n"},
		{400, "two hosts", "GET /v1/apps HTTP/1.1\r\n" + host + host + auth + "\r\n"},
		{400, "two lengths", "POST /v1/apps HTTP/1.1\r\n" + host + auth + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "},
		{431, "many headers", "GET /v1/apps HTTP/1.1\r\n" + host + auth + strings.Repeat("A: b\r\n", 200) + "\r\n"},
		{431, "more header than is read", "GET /v1/apps HTTP/1.1\r\n" + host + auth + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 100) + "\r\n"},
		{400, "a header with NUL", "GET /v1/apps HTTP/1.1\r\n" + host + auth + "X: a\x00b\r\n\r\n"},
		{400, "a header with a bare end of line", "GET /v1/apps HTTP/1.1\r\n" + host + "Authorization: Bearer x\r y\r\n\r\n"},
		{400, "no host", "GET /v1/apps HTTP/1.1\r\n" + auth + "\r\n"},
		{401, "another host", "DELETE /v1/apps/web HTTP/1.1\r\nHost: evil.example\r\n" + auth + "\r\n"},
		{200, "a host with a dot behind, which is the same name", "GET /v1/apps/web HTTP/1.1\r\nHost: api." + domain + ".\r\n" + auth + "\r\n"},
		{401, "a host with two dots behind", "DELETE /v1/apps/web HTTP/1.1\r\nHost: api." + domain + "..\r\n" + auth + "\r\n"},
		{400, "a host with a user", "DELETE /v1/apps/web HTTP/1.1\r\nHost: x@api." + domain + "\r\n" + auth + "\r\n"},
		{401, "an absolute target of another host", "DELETE http://evil.example/v1/apps/web HTTP/1.1\r\n" + host + auth + "\r\n"},
		{200, "an absolute target of this host", "GET https://api." + domain + "/v1/apps/web HTTP/1.1\r\nHost: evil.example\r\n" + auth + "\r\n"},
		{400, "a target with a space", "DELETE /v1/apps/web HTTP/1.1 HTTP/1.1\r\n" + host + auth + "\r\n"},
		{0, "a tunnel", "CONNECT api." + domain + ":443 HTTP/1.1\r\n" + host + auth + "\r\n"},
		{200, "the asterisk, which net/http answers itself", "OPTIONS * HTTP/1.1\r\n" + host + auth + "\r\n"},
		{400, "no version", "GET /v1/apps\r\n\r\n"},
		{0, "another version", "GET /v1/apps HTTP/3.0\r\n" + host + auth + "\r\n"},
		{501, "an unknown encoding", "POST /v1/apps HTTP/1.1\r\n" + host + auth + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"},
		{401, "the scheme is missing", "GET /v1/apps HTTP/1.1\r\n" + host + "Authorization: " + e.token + "\r\n\r\n"},
		{401, "another scheme", "GET /v1/apps HTTP/1.1\r\n" + host + "Authorization: Token " + e.token + "\r\n\r\n"},
		{401, "a token in the query", "GET /v1/apps?access_token=" + e.token + "&token=" + e.token + " HTTP/1.1\r\n" + host + "\r\n"},
		{401, "a token in a cookie", "GET /v1/apps HTTP/1.1\r\n" + host + "Cookie: token=" + e.token + "; Authorization=" + e.token + "\r\n\r\n"},
		{401, "a token for a proxy", "GET /v1/apps HTTP/1.1\r\n" + host + "Proxy-Authorization: Bearer " + e.token + "\r\nX-Authorization: Bearer " + e.token + "\r\n\r\n"},
	} {
		code, body := e.raw(t, r.request)
		if code != r.code && r.code != 0 || code/100 == 2 && r.code != 200 || code >= 500 && r.code != 0 && r.code < 500 {
			t.Errorf("%s: %d %.300q, want %d", r.what, code, body, r.code)
		}
		refused++
	}
	t.Logf("%d requests were refused or did nothing", refused)

	if after := e.do("GET", "/v1/apps?org_slug=personal", nil).body; string(after) != string(before) {
		t.Errorf("the apps were %s, and are %s", before, after)
	}
	if after := string(e.do("GET", "/v1/apps/web/machines/"+m.ID+"/versions", nil).body); after != machineBefore {
		t.Errorf("the machine was %s, and is %s", machineBefore, after)
	}
	if got := e.machine("web", m.ID); got.State != "started" {
		t.Errorf("the machine is %s", got.State)
	}
}

// TestSlowBodies: who begins a request and does not go on with it loses the connection,
// or gets an answer, in bounded time; and nothing happens.
func TestSlowBodies(t *testing.T) {
	e := newEnvWith(t, func(c *controller.Config) { c.BodyLimit = 300 * time.Millisecond })
	start := time.Now()
	code, body := e.raw(t, fmt.Sprintf("POST /v1/apps HTTP/1.1\r\nHost: api.%s\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{\"name\":", domain, e.token))
	if code != 408 || !strings.Contains(body, "did not come within") {
		t.Errorf("%d %s after %v", code, body, time.Since(start))
	}
	e.want(404, "GET", "/v1/apps/x", nil, nil)
}
