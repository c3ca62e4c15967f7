package bulkhead_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestCheckSkips: what "make check" leaves out exists, has a reason, and takes no test of
// another package with it, since go test skips by name.
func TestCheckSkips(t *testing.T) {
	list, err := os.ReadFile("scripts/check-skips.txt")
	if err != nil {
		t.Fatal(err)
	}
	type skip struct{ pkg, test string }
	var skips []skip
	whole := map[string]bool{}
	for _, line := range strings.Split(string(list), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(fields) != 3 || !slices.Contains([]string{"root", "setup", "long"}, fields[2]) {
			t.Errorf("%q is not a package, a test and a reason", line)
			continue
		}
		skips = append(skips, skip{fields[0], fields[1]})
		whole[fields[0]] = whole[fields[0]] || fields[1] == "*"
	}
	packages := map[string][]string{} // test → packages that have one of that name
	out, err := exec.Command("git", "ls-files", "*_test.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	for path := range strings.Lines(string(out)) {
		path = strings.TrimSpace(path)
		pkg := filepath.Dir(path)
		if strings.Contains(path, "testdata/") || whole[pkg] {
			continue
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllSubmatch(source, -1) {
			test := string(bytes.TrimSpace(m[1]))
			packages[test] = append(packages[test], pkg)
		}
	}
	for _, s := range skips {
		switch has := packages[s.test]; {
		case s.test == "*":
			if _, err := os.Stat(s.pkg); err != nil {
				t.Errorf("%s is left out and is not there", s.pkg)
			}
		case !slices.Equal(has, []string{s.pkg}):
			t.Errorf("%s of %s is left out, and the packages with a test of that name are %v", s.test, s.pkg, has)
		}
	}
}
