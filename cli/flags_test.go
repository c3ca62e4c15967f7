package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// TestEveryFlagIsRead: a flag that is accepted and that nothing reads promises what does
// not happen. Each variable that a flag is bound to is read elsewhere.
func TestEveryFlagIsRead(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			f, err := parser.ParseFile(fset, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
	}
	// fields counts x.name anywhere in the package but where a flag is bound.
	fields := map[string]int{}
	bound := map[*ast.SelectorExpr]bool{}
	each := func(n ast.Node, fn func(*ast.CallExpr, ast.Expr)) {
		ast.Inspect(n, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok || len(c.Args) < 3 {
				return true
			}
			sel, ok := c.Fun.(*ast.SelectorExpr)
			if !ok || !strings.HasSuffix(strings.TrimSuffix(sel.Sel.Name, "P"), "Var") {
				return true
			}
			if u, ok := c.Args[0].(*ast.UnaryExpr); ok && u.Op == token.AND {
				fn(c, u.X)
			}
			return true
		})
	}
	for _, f := range files {
		each(f, func(_ *ast.CallExpr, x ast.Expr) {
			if s, ok := x.(*ast.SelectorExpr); ok {
				bound[s] = true
			}
		})
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && !bound[s] {
				fields[s.Sel.Name]++
			}
			return true
		})
	}
	n := 0
	for _, f := range files {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			each(fn, func(c *ast.CallExpr, x ast.Expr) {
				n++
				reads := 0
				switch x := x.(type) {
				case *ast.SelectorExpr:
					reads = fields[x.Sel.Name]
				case *ast.Ident:
					reads = -2 // its declaration, and where the flag is bound
					ast.Inspect(fn, func(n ast.Node) bool {
						if id, ok := n.(*ast.Ident); ok && id.Name == x.Name {
							reads++
						}
						return true
					})
				}
				if reads < 1 {
					t.Errorf("%s: nothing reads the flag that is bound here", fset.Position(c.Pos()))
				}
			})
		}
	}
	if n < 60 {
		t.Errorf("only %d flags were looked at", n)
	}
}
