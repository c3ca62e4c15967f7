package bulkhead_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameThingsThatExist: every test that the documents name as a proof is
// there, and so is every file that ARCHITECTURE.md leads a newcomer to.
func TestDocsNameThingsThatExist(t *testing.T) {
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+|Benchmark\w+|Fuzz\w+)\(`)
	subtest := regexp.MustCompile(`t\.Run\("(Test\w+)"`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == "build" {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, "_test.go") && filepath.Dir(path) != "sandbox/sandboxtest" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, re := range []*regexp.Regexp{declared, subtest} {
			for _, m := range re.FindAllStringSubmatch(string(b), -1) {
				tests[m[1]] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	docs, _ := filepath.Glob("docs/*.md")
	internals, _ := filepath.Glob("docs/internals/*.md")
	docs = append(docs, internals...)
	docs = append(docs, "README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md")
	named := 0
	for _, doc := range docs {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z]\\w+)[`/]").FindAllStringSubmatch(string(b), -1) {
			named++
			if !tests[name[1]] {
				t.Errorf("%s names %s, which no package has", doc, name[1])
			}
		}
	}
	architecture, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`([a-z][\\w/-]*/[\\w./-]*)`").FindAllStringSubmatch(string(architecture), -1) {
		named++
		if _, err := os.Stat(m[1]); err != nil {
			t.Errorf("ARCHITECTURE.md leads to %s: %v", m[1], err)
		}
	}
	if named < 40 {
		t.Errorf("only %d names were found in the documents: the patterns do not match what is written", named)
	}
}

// TestThreatModel: it can be read by the program that holds it against the tests, and
// each claim has tests that exist. That they pass is for make test to say at its end.
func TestThreatModel(t *testing.T) {
	if out := run(t, "go", "run", "./internal/claims", "-list", "-failures"); !strings.Contains(out, " 0 with tests that do not exist") {
		t.Error(out)
	}
}
