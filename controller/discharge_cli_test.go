package controller_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	proxyproto "github.com/pires/go-proxyproto"

	"bulkhead/cli"
	"bulkhead/role"
)

// tunnel is an HTTP proxy that leads every connection to the API's socket, as the edge does.
func (e *env) tunnel() string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := net.Dial("unix", e.socks[role.SocketAPI])
		if r.Method != http.MethodConnect || err != nil {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		defer raw.Close()
		src, dst := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 4242}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
		if _, err := proxyproto.HeaderProxyFromAddrs(2, src, dst).WriteTo(raw); err != nil {
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(raw, rw); raw.Close() }()
		io.Copy(conn, raw)
	}))
	e.t.Cleanup(srv.Close)
	return srv.URL
}

// TestCommandsDischarge: the command itself, against this controller: it makes a token where
// single sign-on is required, uses it with the login's session, and not without; an owner lets
// programs be without one.
func TestCommandsDischarge(t *testing.T) {
	s := newShut(t)
	proxy, config := s.tunnel(), filepath.Join(t.TempDir(), "config.json")
	b, _ := json.Marshal(map[string]any{"default": "c", "clusters": map[string]any{
		"c": map[string]string{"url": apiURL, "pin": s.pin, "token": s.ann.Token, "session": s.ann.Session},
		"n": map[string]string{"url": apiURL, "pin": s.pin, "token": s.ann.Token},
	}})
	if err := os.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(code int, says, token string, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		got := cli.Run(t.Context(), cli.Env{
			Args: append(args, "--config", config, "--proxy", proxy), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
			Getenv: func(v string) string { return map[string]string{"BULKHEAD_TOKEN": token}[v] },
		})
		if got != code || !strings.Contains(out.String()+errs.String(), says) {
			t.Errorf("bulkhead %v: exit code %d, want %d and %q\n%s%s", args, got, code, says, out.String(), errs.String())
		}
		return strings.TrimSpace(out.String())
	}
	text := run(0, "requires single sign-on", "", "tokens", "create", "deploy", "--app", "shop")
	run(0, "", text, "secrets", "list", "--app", "shop")
	run(cli.ExitUnauthorized, "bulkhead auth login --org", text, "secrets", "list", "--app", "shop", "--cluster", "n")
	list := run(0, "good until", text, "tokens", "discharge", "--token", "current")
	s.expect("what it prints", 200, "shop", list)
	run(0, "allowed", "", "orgs", "sso", "set", "acme", "--service-tokens", "allowed")
	free := run(0, "", "", "tokens", "create", "deploy", "--app", "shop")
	run(0, "", free, "secrets", "list", "--app", "shop", "--cluster", "n")
	run(0, "refused", "", "orgs", "sso", "set", "acme", "--service-tokens", "refused")
	run(cli.ExitUnauthorized, "requires single sign-on", free, "secrets", "list", "--app", "shop", "--cluster", "n")
	run(0, "", "", "auth", "logout")
	s.expect("after the logout", 401, "session", list)
}
