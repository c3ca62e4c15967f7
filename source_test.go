package bulkhead_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// programSource parses every Go file that a program of the platform may be built of.
func programSource(t *testing.T, visit func(path string, fset *token.FileSet, f *ast.File)) {
	t.Helper()
	files := 0
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch name := d.Name(); {
			case name == "build", name == "testdata", name == "fixture", name == "examples", name == "internal" && path == "internal",
				name == "world", strings.HasSuffix(name, "test"), strings.HasPrefix(name, ".") && path != ".":
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files++
		visit(path, fset, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Errorf("only %d files were read", files)
	}
}

// stringsOf calls visit with every string literal below a node.
func stringsOf(n ast.Node, visit func(at token.Pos, s string)) {
	ast.Inspect(n, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				visit(lit.Pos(), s)
			}
		}
		return true
	})
}

// foreignHost finds the hosts of addresses in a text that are not the caller's own
// choice: not a placeholder, not a name of the platform, not reserved for examples.
func foreignHosts(text string) (hosts []string) {
	for _, m := range addresses.FindAllStringSubmatch(text, -1) {
		host := strings.TrimRight(m[1], ".")
		if strings.Contains(host, ".") && !reserved.MatchString(host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

var (
	addresses = regexp.MustCompile(`(?:https?|wss?|tcp|udp)://([A-Za-z0-9.-]+)`)
	reserved  = regexp.MustCompile(`(^|\.)(example|example\.com|localhost|test|invalid)$|^127\.`)
)

// locations are identifiers that look like addresses, and that nothing connects to.
var locations = map[string]string{
	"api.fly.io":     "the location that clients of the Machines API expect in a macaroon",
	"auth.fly.io":    "the same, of an authentication",
	"oidc.fly.io":    "the issuer that the claims of the reference have",
	"aws.amazon.com": "the name of a claim in identity tokens (session tags)",
}

// TestProgramsNameNoEndpoint: no program has an address of anybody's in it. It sends
// nothing home, and asks nobody but whom its operator and its users name.
func TestProgramsNameNoEndpoint(t *testing.T) {
	if got := foreignHosts("get https://dl.vendor.io/x and http://app.example.com, https://api.bulkhead.localhost:8443/"); !slices.Equal(got, []string{"dl.vendor.io"}) {
		t.Fatalf("a planted address is not found, or too much is: %v", got)
	}
	seen := 0
	programSource(t, func(path string, fset *token.FileSet, f *ast.File) {
		stringsOf(f, func(at token.Pos, s string) {
			seen++
			for _, host := range foreignHosts(s) {
				if locations[host] == "" {
					t.Errorf("%s names %s: a program connects to no address of its own choosing; if nothing connects to it, say so in locations", fset.Position(at), host)
				}
			}
		})
	})
	t.Logf("%d texts were read", seen)
}

// mounts returns what a file does with mounts that may hand the kernel a file system
// that somebody else made, and how many calls of mount it has.
func mounts(f *ast.File) (wrong map[token.Pos]string, calls int) {
	wrong = map[token.Pos]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			switch n.Sel.Name {
			case "Fsopen", "Fspick", "FsconfigCreate", "SYS_MOUNT", "SYS_FSOPEN", "LOOP_SET_FD", "LOOP_CONFIGURE", "LOOP_CTL_GET_FREE":
				wrong[n.Pos()] = n.Sel.Name
			}
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Mount" || len(n.Args) != 5 {
				return true
			}
			calls++
			kind, ok := n.Args[2].(*ast.BasicLit)
			if !ok {
				wrong[n.Pos()] = "a kind that is not written there"
				return true
			}
			switch kind.Value {
			case `""`, `"tmpfs"`, `"proc"`: // "" binds, or changes how what is mounted spreads
			default:
				wrong[n.Pos()] = kind.Value
			}
		}
		return true
	})
	return wrong, calls
}

// TestImagesAreNeverMounted: the host's kernel is never given a file system that
// somebody else made. What is mounted are the kernel's own, and what is there already.
func TestImagesAreNeverMounted(t *testing.T) {
	seeded, err := parser.ParseFile(token.NewFileSet(), "seeded.go", `package p
func f() { unix.Mount("image", at, "erofs", 0, ""); unix.Mount(a, b, kind, 0, ""); unix.Fsopen("ext4", 0); unix.Mount(a, b, "", unix.MS_BIND, "") }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if wrong, calls := mounts(seeded); len(wrong) != 3 || calls != 3 {
		t.Fatalf("of three planted mounts and one that is fine, %d calls and %v are found", calls, wrong)
	}
	calls := 0
	programSource(t, func(path string, fset *token.FileSet, f *ast.File) {
		wrong, n := mounts(f)
		calls += n
		for at, what := range wrong {
			t.Errorf("%s: %s: only tmpfs, proc and what is there already may be mounted", fset.Position(at), what)
		}
	})
	if calls < 5 {
		t.Errorf("only %d calls of mount were found: the pattern does not match what is written", calls)
	}
}
