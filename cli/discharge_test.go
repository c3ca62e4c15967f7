package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/client"
	"bulkhead/key"
	"bulkhead/token"
)

// TestDischargesByItself: commands fetch the discharge that a token needs with the session of
// the login, keep it where only the user reads it, and fetch another when it is too old, by
// their own clock or by the server's.
func TestDischargesByItself(t *testing.T) {
	ring, err := token.NewKeys([]token.Key{token.NewKey()})
	if err != nil {
		t.Fatal(err)
	}
	const session = "the-session-of-the-login"
	var at string           // of the third party
	var ahead time.Duration // how much the server's clock is ahead
	given, over := 0, false
	answer := func(w http.ResponseWriter, code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(body)
	}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now, bearer := time.Now().Add(ahead), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if r.URL.Path == "/aaa/v1/.well-known/macfly/3p" {
			var in struct{ Ticket []byte }
			json.NewDecoder(r.Body).Decode(&in)
			tk, err := ring.OpenTicket(at, in.Ticket)
			if err != nil || bearer != session || over {
				answer(w, 401, map[string]string{"error": "this session is over", "status": "session_ended"})
				return
			}
			d, err := tk.Discharge("s1", now.Add(-time.Minute), now.Add(10*time.Minute))
			if err != nil {
				t.Error(err)
			}
			given++
			answer(w, 201, map[string]string{"discharge": d})
			return
		}
		b, err := token.Parse(bearer)
		if err == nil {
			_, err = ring.Verify(b, now)
		}
		if err != nil {
			answer(w, 401, map[string]string{"error": "Authenticate: token validation error: " + err.Error(), "status": string(token.ReasonOf(err))})
			return
		}
		answer(w, 200, map[string]any{"name": "ann"})
	}))
	defer srv.Close()
	url := "https://api.x.localhost:" + srv.URL[strings.LastIndexByte(srv.URL, ':')+1:]
	at = url + "/aaa/v1"
	id := key.NewTokenID()
	text, err := ring.Mint(id, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), nil, ring.NeedsSession(at, token.ForSession{Org: 1, User: "u_1", Token: id}))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	kept := filepath.Join(dir, "config.discharges.json")
	store := func(secret string) {
		t.Helper()
		c := &configFile{Default: "x", Clusters: map[string]clusterConfig{"x": {URL: url, Pin: client.PinOf(srv.Certificate()), Token: text, Session: secret}}}
		if err := writeConfig(config, c); err != nil {
			t.Fatal(err)
		}
	}
	run := func(code, fetched int, says string, args ...string) string {
		t.Helper()
		before := given
		var out, errs bytes.Buffer
		got := Run(context.Background(), Env{
			Args: append(args, "--config", config), Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" },
		})
		if got != code || given-before != fetched || !strings.Contains(errs.String()+out.String(), says) {
			t.Errorf("bulkhead %v: exit code %d, %d fetched, want %d and %d and %q\n%s%s", args, got, given-before, code, fetched, says, errs.String(), out.String())
		}
		return strings.TrimSpace(out.String())
	}
	store(session)
	run(0, 1, "ann", "auth", "whoami")
	run(0, 0, "ann", "auth", "whoami") // kept
	if st, err := os.Stat(kept); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("discharges are kept with %v %v", st, err)
	}
	if err := os.Chmod(kept, 0o644); err != nil {
		t.Fatal(err)
	}
	run(0, 1, "ann", "auth", "whoami") // others could read it
	if st, err := os.Stat(kept); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("discharges are kept with %v %v", st, err)
	}
	ahead = 11 * time.Minute
	run(0, 1, "ann", "auth", "whoami") // the server finds it too old
	run(0, 0, "ann", "auth", "whoami")
	ahead = 0
	os.WriteFile(kept, []byte("not JSON"), 0o600)
	list := run(0, 1, "good until", "tokens", "discharge", "--token", "-")
	b, err := token.Parse(list)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := ring.Verify(b, time.Now()); err != nil || v[0].For == nil {
		t.Errorf("what \"tokens discharge\" prints: %v", err)
	}
	run(0, 0, "ann", "auth", "whoami")
	// An old one, by the own clock.
	var names map[string]string
	raw, err := os.ReadFile(kept)
	if err != nil || json.Unmarshal(raw, &names) != nil || len(names) != 1 {
		t.Fatalf("%s: %v", raw, err)
	}
	for name := range names {
		names[name] = endedDischarge(t, ring, at, text)
	}
	raw, _ = json.Marshal(names)
	if err := os.WriteFile(kept, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	run(0, 1, "ann", "auth", "whoami")
	over = true
	os.Remove(kept)
	run(ExitUnauthorized, 0, "bulkhead auth login --org", "auth", "whoami")
	over = false
	store("")
	run(ExitUnauthorized, 0, "bulkhead auth login --org", "auth", "whoami")
	run(ExitUsage, 0, "no session", "tokens", "discharge", "--token", "current")
}

// endedDischarge is a discharge that has just ended.
func endedDischarge(t *testing.T, ring *token.Keys, at, text string) string {
	t.Helper()
	tickets, err := token.Tickets(text, at)
	if err != nil {
		t.Fatal(err)
	}
	tk, err := ring.OpenTicket(at, tickets[0])
	if err != nil {
		t.Fatal(err)
	}
	d, err := tk.Discharge("s1", time.Now().Add(-time.Hour), time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return d
}
