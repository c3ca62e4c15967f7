package bulkhead_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers is the import policy: a package may import packages of the layers above
// it in this list, and those named with it on its own line after ":". It states
// the policy; it is not to be edited to make a build pass.
const layers = `
	# Vocabulary: what everything is called. No I/O.
	fault, privnet
	key: fault
	machine: key
	grant
	failpoint

	# Mechanisms: each does one thing and knows no role.
	coredump
	handover
	limit
	notice
	room
	boltcheck
	doctor/posture
	doctor
	role, pki, secret, workload, token, api/internalpb, logs, registry, sandbox, sso, passkey
	image/wire, image/confine, image/erofs, image/platform
	image/tree
	image/unpack, image
	api/execstream
	api/rpc: api/internalpb pki role
	api/local: role
	audit
	audit/auditlog
	image/imagetest, secret/secrettest, sso/ssotest, passkey/passkeytest, pki/pkitest, api/local/localtest, registry/registrytest, sandbox/fake, sandbox/sandboxtest, store

	# Ports' adapters.
	store/etcd, store/fake, store/storetest: store
	warden/wire
	warden/router, warden/cgroup, warden/runsc, warden/started, warden/client: warden/wire warden/cgroup

	# Roles never import each other: they meet in api, in the warden's client, and in
	# the router namespace that the warden makes and the supervisor starts the edge in.
	controller/schedule, controller/flapstest
	controller/record
	controller/directory
	controller/access
	controller
	worker
	warden
	edge/sni, edge/upstream
	edge/route
	edge
	supervisor

	# The terminal.
	deployfile
	client
	cli
`

// banned are modules that a program must not link, with the reason. "*" is every
// program of the root module.
var banned = []struct{ program, module, reason string }{
	{"*", "gvisor.dev/gvisor", "gVisor's pins and its attack surface stay in the sandbox's own module"},
	{"bulkhead-edge", "go.etcd.io/etcd", "a lost edge must hold no code that opens the cluster's store"},
	{"bulkhead-worker", "go.etcd.io/etcd", "only the controller talks to etcd"},
	{"bulkhead-warden", "go.etcd.io/etcd", "only the controller talks to etcd"},
	{"bulkhead-warden", "github.com/google/go-containerregistry", "the warden is root and parses nothing that a tenant wrote"},
	{"bulkhead-warden", "github.com/erofs/go-erofs", "the warden is root and parses nothing that a tenant wrote"},
	{"bulkhead-warden", "google.golang.org/grpc", "the warden has no network"},
	{"bulkhead-warden", "net/http", "the warden has no network"},
	{"bulkhead-shim", "net", "one shim lives beside every Machine: it stays tiny"},
	{"bulkhead-shim", "encoding/json", "one shim lives beside every Machine: it stays tiny"},
	{"bulkhead-unpack", "net/http", "what reads hostile layers has nothing to talk to"},
	{"bulkhead-unpack", "google.golang.org/grpc", "what reads hostile layers has nothing to talk to"},
	{"bulkhead", "go.etcd.io/etcd", "the CLI is a client"},
	{"bulkhead", "github.com/transparency-dev/tessera/storage", "the CLI checks logs and writes none, on Windows too"},
	{"bulkhead", "google.golang.org/grpc", "the CLI speaks the public API only"},
	{"bulkhead", "github.com/vishvananda/netlink", "the CLI runs on macOS and Windows too"},
}

// TestImportPolicy holds every import between packages of this module against layers.
func TestImportPolicy(t *testing.T) {
	allowed := parseLayers(t)
	for pkg, imports := range internalImports(t) {
		if pkg == "bulkhead" || strings.HasPrefix(pkg, "cmd/") || pkg == "world" || strings.HasPrefix(pkg, "world/") || strings.HasPrefix(pkg, "fixture") || strings.HasPrefix(pkg, "examples/") || strings.HasPrefix(pkg, "internal/") || strings.HasSuffix(pkg, "/testapp") || strings.HasPrefix(pkg, "bench") {
			continue // programs and tests wire everything
		}
		may, ok := allowed[pkg]
		if !ok {
			t.Errorf("package %s has no place in the import policy", pkg)
			continue
		}
		for _, imp := range imports {
			if !slices.Contains(may, imp) {
				t.Errorf("%s imports %s: the policy does not allow it", pkg, imp)
			}
		}
	}
}

// TestBannedDependencies holds the programs' whole dependency lists against banned.
func TestBannedDependencies(t *testing.T) {
	out := run(t, "go", "list", "-f", "{{.ImportPath}}", "./cmd/...")
	checked := 0
	for _, pkg := range strings.Fields(out) {
		program := filepath.Base(pkg)
		deps := strings.Fields(run(t, "go", "list", "-deps", pkg))
		for _, b := range banned {
			if b.program != program && b.program != "*" {
				continue
			}
			checked++
			for _, d := range deps {
				if d == b.module || strings.HasPrefix(d, b.module+"/") && strings.Contains(b.module, ".") {
					t.Errorf("%s links %s: %s", program, d, b.reason)
				}
			}
		}
	}
	if checked < len(banned) {
		t.Errorf("%d rules checked, %d written: a program was renamed away", checked, len(banned))
	}
}

// TestEveryExportedNameIsDocumented also wants one comment per package.
func TestEveryExportedNameIsDocumented(t *testing.T) {
	fset := token.NewFileSet()
	documented := map[string]bool{}
	names := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || f.Doc != nil
		if f.Name.Name == "main" {
			return nil
		}
		for _, decl := range f.Decls {
			for _, name := range undocumented(decl) {
				t.Errorf("%s: %s is exported and has no comment", fset.Position(decl.Pos()), name)
			}
			names++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package in %s has no package comment", dir)
		}
	}
	if names == 0 {
		t.Error("nothing was read")
	}
}

// undocumented returns the exported names of a declaration that lack a comment.
func undocumented(decl ast.Decl) (names []string) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || receiverExported(d)) {
			names = append(names, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					names = append(names, s.Name.Name)
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	return names
}

func receiverExported(d *ast.FuncDecl) bool {
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// parseLayers reads layers into what each package may import.
func parseLayers(t *testing.T) map[string][]string {
	allowed := map[string][]string{}
	var above []string
	for line := range strings.Lines(layers) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		left, extra, _ := strings.Cut(line, ":")
		var here []string
		for pkg := range strings.SplitSeq(left, ",") {
			pkg = strings.TrimSpace(pkg)
			if allowed[pkg] != nil {
				t.Fatalf("%s stands twice in the policy", pkg)
			}
			allowed[pkg] = append(slices.Clone(above), strings.Fields(extra)...)
			here = append(here, pkg)
		}
		if !roles(here) {
			above = append(above, here...)
		}
	}
	return allowed
}

// roles reports whether a line of the policy is one of the roles, which nothing
// but programs and tests imports.
func roles(pkgs []string) bool {
	for _, p := range pkgs {
		switch p {
		case "controller", "worker", "warden", "edge", "supervisor":
			return true
		}
	}
	return false
}

// internalImports lists, for each package of the module, the packages of the
// module that it imports, tests left out.
func internalImports(t *testing.T) map[string][]string {
	out := run(t, "go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...")
	m := map[string][]string{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		pkg := strings.TrimPrefix(f[0], "bulkhead/")
		m[pkg] = nil
		for _, imp := range f[1:] {
			if rest, ok := strings.CutPrefix(imp, "bulkhead/"); ok {
				m[pkg] = append(m[pkg], rest)
			}
		}
	}
	return m
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("%s %v: %w\n%s", name, args, err, stderr.String()))
	}
	return string(out)
}
