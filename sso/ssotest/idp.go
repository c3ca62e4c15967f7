// Package ssotest starts identity providers for tests: a real one (IDP: npm's
// oidc-provider) and one that lies (Liar).
package ssotest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Loopback is what an operator allows who runs a provider on the same host.
var Loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// IDP is a running oidc-provider.
type IDP struct {
	Issuer   string
	ClientID string
	Secret   string

	t        testing.TB
	accounts string
}

// Account is what the provider says about a person.
type Account struct {
	Email    string   `json:"email,omitempty"`
	Verified bool     `json:"email_verified"`
	Name     string   `json:"name,omitempty"`
	Groups   []string `json:"groups,omitempty"`
}

// moduleRoot finds the directory of go.mod above the test's. The file name that the compiler
// records does not show it: -trimpath shortens that.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
	}
	t.Fatalf("no go.mod above %s", dir)
	return ""
}

// Start starts a provider with one client, which may come back to the redirect
// addresses. It fails the test when the provider is not installed: scripts/setup-tests does that.
func Start(t testing.TB, redirects ...string) *IDP {
	t.Helper()
	root := moduleRoot(t)
	dir, modules := filepath.Join(root, "fixture", "idp"), filepath.Join(root, "build", "idp", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "oidc-provider")); err != nil {
		t.Fatalf("the tests' identity provider is not installed: %v; \"make setup-tests\" installs it", err)
	}
	p := &IDP{t: t, ClientID: "bulkhead", Secret: "a-secret-of-the-client-for-tests", accounts: filepath.Join(t.TempDir(), "accounts.json")}
	p.SetAccounts(nil)
	clients := filepath.Join(t.TempDir(), "clients.json")
	write(t, clients, []map[string]any{{
		"client_id": p.ClientID, "client_secret": p.Secret, "redirect_uris": redirects, "response_types": []string{"code"},
		"grant_types": []string{"authorization_code"}, "id_token_signed_response_alg": "ES256",
	}})
	cmd := exec.Command("node", filepath.Join(dir, "server.mjs"), modules, p.accounts, clients)
	cmd.Env = append(os.Environ(), "NODE_ENV=development", "DEBUG=")
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe() // it ends when this is closed, also by our death
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the identity provider: %v; \"make setup-tests\" installs node", err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	first := make(chan string, 1)
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			if rest, ok := strings.CutPrefix(s.Text(), "listening "); ok {
				first <- rest
			}
		}
		close(first)
	}()
	select {
	case p.Issuer = <-first:
	case <-time.After(60 * time.Second):
	}
	if p.Issuer == "" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("the identity provider does not come up: %s", said.String())
	}
	return p
}

// SetAccounts says whom the provider knows, by subject, from now on.
func (p *IDP) SetAccounts(a map[string]Account) {
	p.t.Helper()
	write(p.t, p.accounts, a)
}

func write(t testing.TB, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Browser returns a client that keeps cookies and follows no redirect by itself.
func Browser(t testing.TB, transport http.RoundTripper) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, Transport: transport, Timeout: 60 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

var (
	formAction = regexp.MustCompile(`action="([^"]+)"`)
	promptName = regexp.MustCompile(`name="prompt" value="([^"]+)"`)
)

// SignIn goes to where a relying party sends the browser and signs in there as subject,
// clicking through the provider's own pages, until the provider sends the browser to an
// address that starts with back. It returns that address.
func (p *IDP) SignIn(b *http.Client, to, subject, back string) string {
	p.t.Helper()
	req, _ := http.NewRequest("GET", to, nil)
	for range 12 {
		resp, err := b.Do(req)
		if err != nil {
			p.t.Fatalf("the provider's %s: %v", req.URL, err)
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		if loc, err := resp.Location(); err == nil {
			if strings.HasPrefix(loc.String(), back) {
				return loc.String()
			}
			req, _ = http.NewRequest("GET", loc.String(), nil)
			continue
		}
		action, prompt := formAction.FindSubmatch(body), promptName.FindSubmatch(body)
		if action == nil || prompt == nil {
			p.t.Fatalf("the provider's %s: %d %s", req.URL, resp.StatusCode, body)
		}
		target, err := req.URL.Parse(html.UnescapeString(string(action[1])))
		if err != nil {
			p.t.Fatal(err)
		}
		form := url.Values{"prompt": {string(prompt[1])}, "login": {subject}, "password": {"any"}}
		req, _ = http.NewRequest("POST", target.String(), strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	p.t.Fatal("the provider's pages lead nowhere")
	return ""
}
