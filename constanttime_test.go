package bulkhead_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// openComparisons are the comparisons of something that is called a secret which need
// no constant time, with the reason. Key: file, then the expression as it is printed.
var openComparisons = map[string]string{
	"sso/sso.go: p.cfg.ClientSecret == cfg.ClientSecret": "both are the organization's own setting, from the store: is it still the same",
	"controller/directory/live.go: f.Token != rec.ID":    "ids, which are no secrets",
	"controller/access/authorize.go: a.What == OwnToken": "a kind of thing, not a token",
	"token/ticket.go: t.Token == v.ID":                   "ids, which are no secrets",
	"worker/steps.go: a.rec.HasSecrets != secretive":     "whether there are any, not what they are",
	"worker/steps.go: a.rec.Secrets != version":          "the version's number",
}

// noSecrets are names that sound like a secret's and are none, with the reason.
var noSecrets = map[string]string{
	"StartNonce":    "counts a user's words about a Machine; whoever sees the Machine knows it",
	"RestartNonce":  "as StartNonce",
	"ServiceTokens": "a setting of single sign-on: allowed or refused",
}

// TestSecretsAreComparedInConstantTime: no ==, !=, bytes.Equal or the like, and no
// switch, looks at a value that by its name is a secret or made of one, in any program.
// Such values are compared by crypto/subtle or crypto/hmac, which take the same time
// wherever the first difference is.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	files, found := 0, map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && (slices.Contains([]string{"build", "testdata", "world", "fixture", "fakeplatform", "examples"}, d.Name()) ||
			strings.HasSuffix(d.Name(), "test") || strings.HasPrefix(d.Name(), ".") && path != "."): // what only tests link
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go"):
			return nil
		}
		files++
		comparisons, err := secretComparisons(path)
		for _, c := range comparisons {
			key := path + ": " + c.text
			found[key] = true
			if openComparisons[key] == "" {
				t.Errorf("%s:%d compares %s in a time that tells where they differ: use subtle.ConstantTimeCompare or hmac.Equal, or, where nothing depends on it, say why in openComparisons", path, c.line, c.text)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for key := range openComparisons {
		if !found[key] {
			t.Errorf("openComparisons has %q, which no file has any more", key)
		}
	}
	if files < 200 {
		t.Errorf("only %d files were read", files)
	}
}

// TestSecretComparisonsAreFound is the control: of a file with every kind of fault, each
// is found, and nothing else.
func TestSecretComparisonsAreFound(t *testing.T) {
	got, err := secretComparisons("testdata/comparisons/comparisons.go")
	if err != nil {
		t.Fatal(err)
	}
	var lines, want []int
	for _, c := range got {
		lines = append(lines, c.line)
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "testdata/comparisons/comparisons.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range f.Comments {
		if strings.TrimSpace(g.Text()) == "fault" {
			want = append(want, fset.Position(g.Pos()).Line)
		}
	}
	slices.Sort(lines)
	if !slices.Equal(lines, want) || len(want) < 12 {
		t.Errorf("found in lines %v, want %v", lines, want)
	}
}

type comparison struct {
	line int
	text string
}

// secretComparisons finds the comparisons of secrets in a file.
func secretComparisons(path string) ([]comparison, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var out []comparison
	add := func(n ast.Node) {
		var b bytes.Buffer
		printer.Fprint(&b, fset, n)
		out = append(out, comparison{fset.Position(n.Pos()).Line, b.String()})
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if (n.Op == token.EQL || n.Op == token.NEQ) && (secretExpr(n.X) && !known(n.Y) || secretExpr(n.Y) && !known(n.X)) {
				add(n)
			}
		case *ast.CallExpr:
			if comparer(n.Fun) && slices.ContainsFunc(n.Args, secretExpr) && !slices.ContainsFunc(n.Args, known) {
				add(n)
			}
		case *ast.SwitchStmt:
			if n.Tag == nil || !secretExpr(n.Tag) {
				return true
			}
			for _, s := range n.Body.List {
				for _, e := range s.(*ast.CaseClause).List {
					if !known(e) {
						add(e)
					}
				}
			}
		}
		return true
	})
	return out, nil
}

// comparers compare their arguments byte by byte and stop at the first difference.
var comparers = []string{"bytes.Equal", "bytes.Compare", "bytes.EqualFold", "bytes.HasPrefix", "strings.EqualFold", "strings.Compare", "strings.HasPrefix", "slices.Equal", "slices.Contains", "slices.Index", "reflect.DeepEqual", "cmp.Compare"}

func comparer(fun ast.Expr) bool {
	s, ok := fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := s.X.(*ast.Ident)
	return ok && slices.Contains(comparers, fmt.Sprintf("%s.%s", pkg.Name, s.Sel.Name))
}

// known reports whether an expression is nil or written down in the program: comparing
// with it tells nothing.
func known(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return true
	case *ast.Ident:
		return e.Name == "nil" || e.Name == "true" || e.Name == "false" || strings.HasSuffix(e.Name, "Prefix")
	case *ast.ParenExpr:
		return known(e.X)
	case *ast.CallExpr: // []byte("…")
		return len(e.Args) == 1 && conversion(e.Fun) && known(e.Args[0])
	}
	return false
}

func conversion(fun ast.Expr) bool {
	switch f := fun.(type) {
	case *ast.ArrayType:
		return true
	case *ast.Ident:
		return f.Name == "string"
	}
	return false
}

// secretExpr reports whether an expression is a secret by its name.
func secretExpr(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return secretName(e.Name)
	case *ast.SelectorExpr:
		return secretName(e.Sel.Name)
	case *ast.ParenExpr:
		return secretExpr(e.X)
	case *ast.StarExpr:
		return secretExpr(e.X)
	case *ast.SliceExpr:
		return secretExpr(e.X)
	case *ast.IndexExpr:
		return secretExpr(e.X)
	case *ast.CallExpr:
		if conversion(e.Fun) {
			return len(e.Args) == 1 && secretExpr(e.Args[0])
		}
		return secretExpr(e.Fun)
	}
	return false
}

// Words of names. A name is a secret's if its last word is one of nouns, or one of
// digests with a noun before it: tokenHash, but not tokenKind.
var (
	nouns   = []string{"token", "secret", "nonce", "mac", "hmac", "signature", "password", "passphrase", "cookie", "challenge", "verifier", "proof", "credential", "otp", "csrf", "tail", "bearer"}
	digests = []string{"hash", "digest", "sum", "sha", "code", "bytes", "value", "raw", "text", "string"}
)

func secretName(name string) bool {
	words := splitWords(name)
	if len(words) == 0 || slices.Contains([]string{"err", "what", "kind"}, words[0]) || noSecrets[strings.TrimPrefix(name, "Get")] != "" {
		return false
	}
	noun := func(w string) bool {
		return slices.Contains(nouns, w) || slices.Contains(nouns, strings.TrimSuffix(w, "s"))
	}
	last := words[len(words)-1]
	return noun(last) || slices.Contains(digests, last) && slices.ContainsFunc(words, noun)
}

// splitWords splits camelCase and snake_case into lower-case words, digits left out.
func splitWords(name string) (words []string) {
	start := 0
	runes := []rune(name)
	flush := func(end int) {
		if w := strings.ToLower(strings.Trim(string(runes[start:end]), "_0123456789")); w != "" {
			words = append(words, w)
		}
		start = end
	}
	for i := 1; i < len(runes); i++ {
		switch upper := unicode.IsUpper(runes[i]); {
		case runes[i] == '_', upper && !unicode.IsUpper(runes[i-1]):
			flush(i)
		case upper && i+1 < len(runes) && unicode.IsLower(runes[i+1]):
			flush(i)
		}
	}
	flush(len(runes))
	return words
}
