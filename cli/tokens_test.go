package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/key"
	"bulkhead/token"
)

// TestTokensOffline narrows and describes tokens where no server is, and holds what comes out
// against the ring that made them.
func TestTokensOffline(t *testing.T) {
	ring, err := token.NewKeys([]token.Key{token.NewKey()})
	if err != nil {
		t.Fatal(err)
	}
	id := key.NewTokenID()
	text, err := ring.Mint(id, time.Now().Add(-time.Minute), time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	run := func(want int, stdin string, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		code := Run(context.Background(), Env{
			Args: args, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, ConfigDir: t.TempDir(),
			Getenv: func(v string) string { return map[string]string{"BULKHEAD_TOKEN": text}[v] },
		})
		if code != want || code != 0 && strings.Contains(errs.String(), text) {
			t.Errorf("bulkhead %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, errs.String())
		}
		said = errs.String()
		return strings.TrimSpace(out.String())
	}
	at := time.Now()
	ask := func(text, app, machine, letters, from string, command []string) bool {
		t.Helper()
		b, err := token.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		v, err := ring.Verify(b, at)
		if err != nil {
			return false
		}
		org, number := uint64(1), uint64(2)
		a := &token.Access{Access: flyio.Access{OrgID: &org, AppID: &number, Machine: &machine, Action: resset.ActionFromString(letters), Command: command}, AppName: app, At: at}
		a.From, _ = netip.ParseAddr(from)
		return v[0].Allows(a) == nil
	}
	const m, other = "01234567890123", "01234567890124"
	for _, c := range []struct {
		args    []string
		yes, no func(text string) bool
	}{
		{[]string{"--readonly"}, func(s string) bool { return ask(s, "a", m, "r", "", nil) }, func(s string) bool { return ask(s, "a", m, "w", "", nil) }},
		{[]string{"--action", "rC"}, func(s string) bool { return ask(s, "a", m, "C", "", nil) }, func(s string) bool { return ask(s, "a", m, "d", "", nil) }},
		{[]string{"--app", "shop"}, func(s string) bool { return ask(s, "shop", m, "w", "", nil) }, func(s string) bool { return ask(s, "blog", m, "w", "", nil) }},
		{[]string{"--machine", m}, func(s string) bool { return ask(s, "a", m, "C", "", nil) }, func(s string) bool { return ask(s, "a", other, "C", "", nil) }},
		{[]string{"--from-address", "10.0.0.0/8", "--from-address", "192.0.2.1"}, func(s string) bool { return ask(s, "a", m, "r", "192.0.2.1", nil) }, func(s string) bool { return ask(s, "a", m, "r", "192.0.2.2", nil) }},
		{[]string{"--command", "ls -l"}, func(s string) bool { return ask(s, "a", m, "C", "", []string{"ls", "-l", "/"}) }, func(s string) bool { return ask(s, "a", m, "C", "", []string{"ls", "/"}) }},
		{[]string{"--command", "ls -l", "--exact"}, func(s string) bool { return ask(s, "a", m, "C", "", []string{"ls", "-l"}) }, func(s string) bool { return ask(s, "a", m, "C", "", []string{"ls", "-l", "/"}) }},
		{[]string{"--expiry", "10s"}, func(s string) bool { return ask(s, "a", m, "w", "", nil) }, func(s string) bool {
			at = at.Add(11 * time.Second)
			defer func() { at = at.Add(-11 * time.Second) }()
			return ask(s, "a", m, "w", "", nil)
		}},
	} {
		narrow := run(0, "", append([]string{"tokens", "attenuate", "--token", "current"}, c.args...)...)
		if want := "narrowed token " + string(id) + ", which BULKHEAD_TOKEN holds\n"; said != want {
			t.Errorf("%v: said %q, want %q", c.args, said, want)
		}
		if !c.yes(narrow) {
			t.Errorf("%v: what is left is refused", c.args)
		}
		if c.no(narrow) || !c.no(text) {
			t.Errorf("%v: what was taken: narrow %v, before %v", c.args, c.no(narrow), c.no(text))
		}
		if words := run(0, narrow, "tokens", "debug", "--token", "-"); !strings.Contains(words, string(id)) || strings.Count(words, "\n- ") != 2 {
			t.Errorf("%v: described as\n%s", c.args, words)
		}
		var all []token.Description
		if err := json.Unmarshal([]byte(run(0, "", "tokens", "debug", "--token", narrow, "--json")), &all); err != nil || len(all) != 1 || all[0].ID != id {
			t.Errorf("%v: %v %+v", c.args, err, all)
		}
	}
	if narrow := run(0, "", "tokens", "create", "readonly", "--from-existing"); !ask(narrow, "a", m, "r", "", nil) || ask(narrow, "a", m, "w", "", nil) {
		t.Error("readonly of the token in use may more, or less")
	}
	// A token on standard input is never passed over for the one in use.
	piped, err := ring.Mint(key.NewTokenID(), time.Now().Add(-time.Minute), time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"attenuate", "--readonly"}, {"debug"}} {
		if out := run(2, piped, append([]string{"tokens"}, args...)...); out != "" || !strings.Contains(said, "no --token given") {
			t.Errorf("%v with a token on standard input printed %s%s", args, out, said)
		}
	}
	for _, args := range [][]string{
		{"attenuate", "--token", "current"}, {"attenuate", "--action", "x"}, {"attenuate", "--expiry", "-1h"}, {"attenuate", "--from-address", "nowhere"}, {"attenuate", "--machine", "x"},
		{"attenuate", "--app", "A B"}, {"attenuate", "--readonly", "--token", "fm2_x"}, {"debug", "--token", "bh_x"}, {"create"}, {"create", "king"}, {"create", "org", "--from-existing"}, {"revoke"},
	} {
		run(2, "", append([]string{"tokens"}, args...)...)
	}
}
