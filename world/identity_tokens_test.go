package world

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// identityTokens follows a token through the command line: made for an app, narrowed
// offline, used, used for what it is not good for, and revoked by its id.
func identityTokens(t *testing.T, w *World) {
	w.MustCLI("apps", "create", "tokened")
	w.MustCLI("apps", "create", "untokened")
	defer w.MustCLI("apps", "destroy", "tokened", "--yes")
	defer w.MustCLI("apps", "destroy", "untokened", "--yes")
	with := func(token string, args ...string) (string, error) {
		out, errs, code := w.CLIWith([]string{"BULKHEAD_TOKEN=" + token}, args...)
		if code != 0 {
			return out, fmt.Errorf("exit code %d: %s", code, errs)
		}
		return out, nil
	}
	var made struct{ ID, Token, Organization string }
	if err := json.Unmarshal([]byte(w.MustCLI("tokens", "create", "deploy", "--app", "tokened", "--name", "CI", "--expiry", "1h", "--json")), &made); err != nil || !strings.HasPrefix(made.Token, "fm2_") {
		t.Fatalf("made %+v: %v", made, err)
	}
	narrow, err := with(made.Token, "tokens", "attenuate", "--token", "current", "--readonly", "--expiry", "10m")
	if err != nil {
		t.Fatal(err)
	}
	narrow = strings.TrimSpace(narrow)
	if words, err := with(narrow, "tokens", "debug", "--token", "current"); err != nil || !strings.Contains(words, made.ID) || !strings.Contains(words, "only read") {
		t.Errorf("described as %s (%v)", words, err)
	}
	for _, c := range []struct {
		token, refused string
		args           []string
	}{
		{made.Token, "", []string{"status", "--app", "tokened"}},
		{narrow, "", []string{"status", "--app", "tokened"}},
		{made.Token, "", []string{"secrets", "set", "A=1", "--app", "tokened"}},
		{narrow, "forbids", []string{"secrets", "set", "A=2", "--app", "tokened"}},
		{made.Token, "forbids", []string{"status", "--app", "untokened"}},
		{made.Token, "forbids", []string{"apps", "create", "third"}},
		{made.Token, "forbids", []string{"tokens", "create", "org", "--org", made.Organization}},
		{made.Token[:len(made.Token)-8], "token validation error", []string{"status", "--app", "tokened"}},
	} {
		out, err := with(c.token, c.args...)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("bulkhead %s: %s%v, want %q", strings.Join(c.args, " "), out, err, c.refused)
		}
	}
	if list := w.MustCLI("tokens", "list"); !strings.Contains(list, made.ID) || strings.Contains(list, "fm2_") {
		t.Errorf("listed: %s", list)
	}
	w.MustCLI("tokens", "revoke", made.ID)
	for _, token := range []string{made.Token, narrow} {
		if out, err := with(token, "status", "--app", "tokened"); err == nil || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("a revoked token: %s%v", out, err)
		}
	}
}
