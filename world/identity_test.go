package world

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestIdentity runs what concerns who may do what on one platform. Each part leaves the
// platform as it found it.
func TestIdentity(t *testing.T) {
	unlimitedCores(t)
	far := newFarHost(t)
	// Later flags count. The API has to answer on loopback, for the CLI, and over the cable.
	cluster := net.JoinHostPort(far.Host, strconv.Itoa(freePort(t)))
	w := Start(t, "--https-addr", ":"+strconv.Itoa(freePort(t)), "--cluster-addr", cluster)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *World)
	}{
		{"People", identityPeople},
		{"Secrets", identitySecrets},
		{"Dumps", identityDumps},
		{"Tokens", identityTokens},
		{"Audit", identityAudit},
		{"Workload", identityWorkload},
		{"Sockets", identitySockets},
		{"Join", func(t *testing.T, w *World) { identityJoin(t, w, far) }},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, w.In(t)) })
	}
}

// identityPeople follows people through the command line: the line that an installation
// prints, an invitation, a role that changes, a membership that ends.
func identityPeople(t *testing.T, w *World) {
	dir := t.TempDir()
	as := func(who string) []string {
		return []string{"BULKHEAD_URL=", "BULKHEAD_PIN=", "BULKHEAD_TOKEN=", "USER=" + who, "BULKHEAD_CONFIG=" + filepath.Join(dir, who+".json")}
	}
	run := func(who, want string, args ...string) string {
		t.Helper()
		out, errs, code := w.CLIWith(as(who), args...)
		if (code == 0) != (want == "") || !strings.Contains(errs, want) {
			t.Fatalf("bulkhead %s as %s: exit code %d, want %q\n%s%s", strings.Join(args, " "), who, code, want, out, errs)
		}
		return out
	}
	out, errs, code := w.CLI("orgs", "create", "acme", "--name", "Acme GmbH")
	if code != 0 {
		t.Fatalf("orgs create: %s%s", out, errs)
	}
	w.MustCLI("apps", "create", "shop", "--org", "acme")
	w.MustCLI("apps", "create", "blog", "--org", "acme")
	// line is what an invitation prints, to be run as it is; one for a user names them.
	line := func(args ...string) []string {
		l := strings.Fields(w.MustCLI(append([]string{"orgs", "invite", "acme"}, args...)...))
		named := slices.Contains(args, "--user")
		if len(l) != 7 && !named || len(l) != 9 && named || l[0] != "bulkhead" || l[1] != "login" {
			t.Fatalf("an invitation's line: %q", l)
		}
		return l[1:]
	}
	carol := line("viewer", "--user", "carol")
	run("mallory", "this invitation is for \"carol\"", append(slices.Clone(carol[:6]), "--as", "mallory")...)
	run("carol", "", carol...)
	run("carol", "does not accept this token", carol...)
	dave := line("shop=deployer")
	run("dave", "", append(dave, "--as", "dave.example")...)

	if got := run("dave", "", "apps", "list"); strings.Contains(got, "blog") || !strings.Contains(got, "shop") {
		t.Errorf("dave, who has to do with shop alone, sees: %s", got)
	}
	run("carol", "may not delete", "apps", "destroy", "shop", "--yes")
	run("dave", "may not delete", "apps", "destroy", "shop", "--yes")
	run("carol", "may not", "orgs", "invite", "acme", "owner")
	run("carol", "takes an operator", "node", "list")
	w.MustCLI("orgs", "role", "acme", "carol", "admin")
	run("carol", "", "apps", "destroy", "shop", "--yes")
	w.MustCLI("orgs", "remove", "acme", "carol")
	run("carol", "or there is no such organization", "apps", "list", "--org", "acme")
	var members []struct{ User struct{ Name string } }
	if err := json.Unmarshal([]byte(w.MustCLI("orgs", "members", "acme", "--json")), &members); err != nil || len(members) != 2 {
		t.Errorf("members: %+v %v", members, err)
	}
	for _, who := range []string{"carol", "dave"} {
		b, err := os.ReadFile(filepath.Join(dir, who+".json"))
		if err != nil || strings.Contains(string(b), "bh_") {
			t.Errorf("the configuration of %s keeps a one-time token: %v", who, err)
		}
	}
	for _, args := range [][]string{{"apps", "destroy", "blog", "--yes"}, {"orgs", "delete", "acme"}, {"users", "remove", "carol"}, {"users", "remove", "dave.example"}} {
		w.MustCLI(args...)
	}
	run("carol", "token validation error", "orgs", "list")
}
