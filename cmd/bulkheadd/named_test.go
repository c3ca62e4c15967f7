package main

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// callRE is a call of bulkheadd in a message, quoted or in parentheses, or in a document.
var callRE = regexp.MustCompile("(?:\\\\\"|\\(|`|^    )bulkheadd ([a-z][^\"\\\\)`#\n]*)")

// TestNamedCommandsExist checks every call of bulkheadd that messages and documents name:
// its help knows the command, the action and the flags.
func TestNamedCommandsExist(t *testing.T) {
	help := map[string]string{}
	n := 0
	check := func(at, call string) {
		words := strings.Fields(call)
		if words[0] == "runs" || words[0] == "starts" {
			return // prose
		}
		n++
		if _, known := help[words[0]]; !known {
			stdout, stderr, code := bulkheadd(t, 0, words[0], "--help")
			if code != 0 {
				t.Errorf("%s: bulkheadd %s: %s", at, words[0], stderr)
			}
			help[words[0]] = stdout
		}
		for _, w := range words[1:] {
			flag, _, _ := strings.Cut(w, "=")
			action := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(w) && w == words[1]
			if (action || strings.HasPrefix(w, "-") && w != "--help") && !strings.Contains(help[words[0]], flag) {
				t.Errorf("%s: bulkheadd %s: the help of %s has no %q", at, call, words[0], flag)
			}
		}
	}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "build" || d.Name() == ".git") {
			return cmp.Or(err, fs.SkipDir)
		}
		ext := filepath.Ext(path)
		if d.IsDir() || ext != ".go" && ext != ".md" || strings.HasSuffix(path, "_test.go") || d.Name() == "tried.md" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if ext == ".go" && strings.HasPrefix(strings.TrimSpace(line), "//") {
				continue
			}
			for _, m := range callRE.FindAllStringSubmatch(strings.TrimSuffix(line, "\n"), -1) {
				check(strings.TrimPrefix(path, "../../"), m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 40 {
		t.Errorf("only %d calls were found", n)
	}
}
