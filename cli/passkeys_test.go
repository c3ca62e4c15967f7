package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/client"
)

// TestPasskeyCommands: what they ask of the server, print, and have a browser open; a page
// of another server's is opened by nobody.
func TestPasskeyCommands(t *testing.T) {
	var asked []string
	var page string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.RequestURI())
		switch r.Method {
		case "POST":
			var in struct{ Name string }
			json.NewDecoder(r.Body).Decode(&in)
			w.WriteHeader(201)
			fmt.Fprintf(w, `{"url": %q, "name": %q, "expires_at": "2026-01-01T00:00:00Z"}`, page, in.Name)
		case "GET":
			fmt.Fprint(w, `{"passkeys": [{"id": "0123456789abcdef", "name": "ring", "synced": false, "created_at": "x", "suspect_at": "y"}]}`)
		default:
			fmt.Fprint(w, `{"ok": true}`)
		}
	}))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	base := "https://api.x.localhost:" + port
	dir := t.TempDir()
	opened, browser := filepath.Join(dir, "opened"), filepath.Join(dir, "browser")
	if err := os.WriteFile(browser, []byte("#!/bin/sh\necho \"$1\" >>"+opened+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) (string, string) {
		t.Helper()
		env := map[string]string{"BULKHEAD_URL": base, "BULKHEAD_PIN": client.PinOf(srv.Certificate()), "BULKHEAD_TOKEN": "t", "BROWSER": browser}
		var out, errs bytes.Buffer
		args = append([]string{"auth", "passkey"}, args...)
		if code := Run(t.Context(), Env{Args: args, Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return env[k] }}); code != want {
			t.Errorf("bulkhead %s: exit code %d, want %d: %s", strings.Join(args, " "), code, want, errs.String())
		}
		return out.String(), errs.String()
	}
	page = base + "/passkeys/add#secret"
	if out, _ := run(0, "add", "--name", "ring", "--no-browser", "--json"); !strings.Contains(out, page) || !strings.Contains(out, `"ring"`) {
		t.Errorf("add: %s", out)
	}
	page = "https://api.evil.example/passkeys/add#secret"
	if out, errs := run(1, "add"); out != "" || !strings.Contains(errs, "not its own") {
		t.Errorf("another server's page: %s %s", out, errs)
	}
	if _, err := os.Stat(opened); err == nil {
		t.Error("a browser was opened")
	}
	if out, _ := run(0, "list"); !strings.Contains(out, "0123456789abcdef") || !strings.Contains(out, "REFUSED") {
		t.Errorf("list: %s", out)
	}
	run(0, "remove", "ring")
	run(0, "remove", "ring", "--force")
	want := "POST /v1/passkeys, POST /v1/passkeys, GET /v1/passkeys, DELETE /v1/passkeys/ring, DELETE /v1/passkeys/ring?force=true"
	if got := strings.Join(asked, ", "); got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
}
