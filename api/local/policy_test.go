package local_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bulkhead/api/local"
	"bulkhead/api/local/localtest"
	"bulkhead/pki"
	"bulkhead/role"
)

// TestEveryLocalCallHasCells fails when a call or a role is added, or one may more than
// before, without it being said in the table of cells, which other tests try on the sockets.
// Controls: a row and a role that are new.
func TestEveryLocalCallHasCells(t *testing.T) {
	if got := localtest.Missing(); len(got) != 0 {
		t.Errorf("in api/local/localtest: %q", got)
	}
	for _, r := range local.Policy {
		if len(r.May) == 0 || r.What == "" {
			t.Errorf("%s %s: say who may, and what it comes to", r.Socket, r.Call)
		}
		for _, who := range r.May {
			if who != local.Root && !slices.Contains(role.All, who) || who == role.Warden {
				t.Errorf("%s %s: %q is no caller", r.Socket, r.Call, who)
			}
		}
	}
	policy, roles := local.Policy, role.All
	defer func() { local.Policy, role.All = policy, roles }()
	local.Policy = append(slices.Clone(policy), local.Row{Socket: role.SocketAdmin, Call: "POST /new", May: []string{local.Root}})
	if got := localtest.Missing(); len(got) != 1 || !strings.Contains(got[0], "POST /new has no cells") {
		t.Errorf("control: a new row: %q", got)
	}
	local.Policy, role.All = policy, append(slices.Clone(roles), "gateway")
	if got := localtest.Missing(); len(got) != 1 || !strings.Contains(got[0], "gateway") {
		t.Errorf("control: a new role: %q", got)
	}
	local.Policy, role.All = policy[1:], roles
	if got := localtest.Missing(); len(got) != 1 || !strings.Contains(got[0], "has cells and 0 rows") {
		t.Errorf("control: a row that is gone: %q", got)
	}
}

// TestAllRoles: role.All has every name of a role that package role has.
func TestAllRoles(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../../role/role.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST || !strings.HasPrefix(g.Doc.Text(), "Names of the roles.") {
			continue
		}
		for _, s := range g.Specs {
			for _, v := range s.(*ast.ValueSpec).Values {
				name, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, name)
			}
		}
	}
	if len(names) < 4 || !slices.Equal(names, role.All) {
		t.Errorf("the constants are %q, and role.All is %q", names, role.All)
	}
}

// TestPeers: to a listener each kind of caller is who it says.
func TestPeers(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peers := localtest.Peers(t, local.Users{role.Controller: 901, role.Worker: 902, role.Edge: 903, role.Warden: 0}, 900)
	for _, p := range peers {
		c, err := p.Dial(path)
		if err != nil {
			t.Fatalf("%s: %v", p.Name, err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := pki.PeerCred(s); err != nil || got.UID != p.UID || got.GID != p.Groups[0] {
			t.Errorf("%s is seen as %+v, %v; want user %d", p.Name, got, err, p.UID)
		}
		c.Close()
		s.Close()
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		c, err := p.Dial(path)
		if (err == nil) != (p.UID == 0) || err != nil && !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s opens a socket of root's alone: %v", p.Name, err)
		}
		if err == nil {
			c.Close()
		}
	}
	if len(peers) != 11 {
		t.Errorf("%d kinds of callers", len(peers))
	}
}

// TestCallers: who a user id is. Nobody is a role because two are, or because the
// configuration says that root is one.
func TestCallers(t *testing.T) {
	u := local.Users{role.Controller: 901, role.Worker: 902, role.Edge: 903, role.Warden: 0}
	for uid, want := range map[uint32]string{0: local.Root, 901: role.Controller, 902: role.Worker, 903: role.Edge, 904: "", 65534: "", 1<<32 - 1: ""} {
		if got := u.Caller(uid); got != want {
			t.Errorf("user %d is %q, want %q", uid, got, want)
		}
	}
	shared := local.Users{role.Worker: 902, role.Edge: 902}
	rootly := local.Users{role.Worker: 0}
	for _, c := range []struct {
		u   local.Users
		uid uint32
	}{{shared, 902}, {rootly, 0}, {nil, 902}, {u, 904}} {
		if c.u.Admit(role.SocketWarden, c.uid) == nil || c.u.Check(role.SocketWarden, "start", c.uid) == nil || c.u.Admit(role.SocketEnroll, c.uid) == nil {
			t.Errorf("user %d of %v is let through", c.uid, c.u)
		}
	}
	for _, call := range []string{"", "START", "start ", "POST /token"} {
		if u.Check(role.SocketWarden, call, 902) == nil {
			t.Errorf("a call %q without a row is let through", call)
		}
	}
	if u.Check("", "", 0) == nil || u.Admit("nothing", 0) == nil || u.Check(role.SocketAdmin, "POST /nothing", 0) == nil {
		t.Error("root may call what has no row")
	}
	if err := u.Check(role.SocketWarden, "start", 902); err != nil {
		t.Errorf("control: %v", err)
	}
}
