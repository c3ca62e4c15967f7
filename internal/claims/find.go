package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// place is where a test is: the package, and the test function that runs it, which
// is another one for a subtest.
type place struct {
	module string // directory of the module
	pkg    string // import path
	top    string // name of the function
	name   string // as the results have it: top, or top/sub
}

// places maps the name of a test, as documents write it, to where it is.
type places map[string][]place

// findTests lists the tests of all packages of some modules: functions TestX, and
// subtests that a test function starts under a literal name that begins with Test.
func findTests(modules ...string) (places, error) {
	found := places{}
	for _, module := range modules {
		cmd := exec.Command("go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "./...")
		cmd.Dir = module
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("go list in %s: %w\n%s", module, err, stderr.String())
		}
		dec := json.NewDecoder(bytes.NewReader(out))
		for {
			var p struct {
				ImportPath, Dir           string
				TestGoFiles, XTestGoFiles []string
			}
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, err
			}
			for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
				if err := found.add(place{module: module, pkg: p.ImportPath}, filepath.Join(p.Dir, name)); err != nil {
					return nil, err
				}
			}
		}
	}
	return found, nil
}

// add reads the tests of one file.
func (f places) add(at place, file string) error {
	src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, d := range src.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") || fn.Name.Name == "TestMain" || fn.Body == nil {
			continue
		}
		at.top, at.name = fn.Name.Name, fn.Name.Name
		f[at.top] = append(f[at.top], at)
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if sub, ok := subtest(n); ok && strings.HasPrefix(sub, "Test") {
				s := at
				s.name = at.top + "/" + sub
				f[sub] = append(f[sub], s)
			}
			return true
		})
	}
	return nil
}

// subtest returns the literal name of a call x.Run("name", ...).
func subtest(n ast.Node) (string, bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 2 {
		return "", false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Run" {
		return "", false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	name, err := strconv.Unquote(lit.Value)
	return name, err == nil
}

// of returns the places of a test. The name of a subtest may be written after a
// slash; whether there is one, the results say.
func (f places) of(test string) (out []place) {
	top, sub, is := strings.Cut(test, "/")
	out = slices.Clone(f[top])
	if is {
		for i := range out {
			out[i].name += "/" + sub
		}
	}
	return out
}
