package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// attacker is a threat model around the rows of one table of claims.
func attacker(rows string) string {
	return "## " + attackers + "\n\n### Somebody\n\n| Claim | How | Test |\n|---|---|---|\n" + rows +
		"\n| Still possible | What bounds it |\n|---|---|\n| this | that |\n"
}

// TestRefusedModels: what is not read as a claim is said, never passed over.
func TestRefusedModels(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "# empty\n", "there is no claim"},
		{"no test", attacker("| It cannot | it is held | trust us |\n"), `the claim "It cannot" names no test`},
		{"a test without backticks", attacker("| It cannot | it is held | TestX |\n"), "names no test"},
		{"a benchmark is no test", attacker("| It cannot | it is held | `BenchmarkX` |\n"), "names no test"},
		{"open and tested", attacker("| It cannot | it is held | `TestX`, open until later |\n| B | c | open until `TestX` passes |\n"), "has tests and is open"},
		{"a cell missing", attacker("| It cannot | `TestX` |\n"), "2 cells, must have 3"},
		{"an empty cell", attacker("| It cannot | | `TestX` |\n"), "a cell is empty"},
		{"an unknown table", attacker("| It cannot | how | `TestX` |\n") + "\n| Statement | How | Test |\n|---|---|---|\n| a | b | `TestX` |\n", `begins with the column "Statement"`},
		{"other columns", attacker("") + "\n| Claim | Test | How |\n|---|---|---|\n| a | b | `TestX` |\n", "the columns are"},
		{"open in prose", attacker("| It cannot | how | `TestX` |\n") + "\nThe rest is **open**.\n", "stands in prose"},
		{"no claim about an attacker", "## " + attackers + "\n\n### Somebody\n\n| Still possible | What bounds it |\n|---|---|\n| a | b |\n", `has no table "Claim`},
		{"nothing left to an attacker", "## " + attackers + "\n\n### Somebody\n\n| Claim | How | Test |\n|---|---|---|\n| a | b | `TestX` |\n", `has no table "Still possible`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse("model.md", c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "model.md:") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	rows, err := parse("model.md", attacker("| a `x\\|y` and `p|q` | b | `TestX`, `TestY/a part` |\n| c | d | **open** until e |\n"))
	if err != nil || len(rows) != 3 || rows[0].text != "a `x|y` and `p|q`" || strings.Join(rows[0].tests, ",") != "TestX,TestY/a part" || rows[1].until != "e" || rows[2].kind != remains {
		t.Errorf("%+v %v", rows, err)
	}
}

// TestSeededClaims is the control: of claims on tests of a module that has a passing
// test, a failing one, a skipped one and so on, only those that are proven pass.
func TestSeededClaims(t *testing.T) {
	module, err := filepath.Abs("testdata/module")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "test", "-C", module, "-json", "-count=1", "./...").Output()
	if err == nil {
		t.Fatal("the seeded faults do not fail")
	}
	results := filepath.Join(t.TempDir(), "results.json")
	if err := os.WriteFile(results, out, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		test, outcome string
		proven        bool
	}{
		{"`TestPasses`", "pass", true},
		{"`TestInside`", "pass", true},
		{"`TestPasses/a part`", "pass", true},
		{"`TestPasses/another part`", "did not run", false},
		{"`TestPasses`, `TestFails`", "fail", false},
		{"`TestIsSkipped`", "skip", false},
		{"`TestSkipsAPart`", "skip", false},
		{"`TestSkipsAPart/shown`", "pass", true},
		{"`TestNowhere`", "no such test", false},
		{"`TestTwice`", "fail", false},
		{"`TestEndsTheProcess`", "fail", false},
	} {
		t.Run(c.test, func(t *testing.T) {
			model := filepath.Join(t.TempDir(), "model.md")
			os.WriteFile(model, []byte(attacker("| It cannot | it is held | "+c.test+" |\n")), 0o600)
			var out strings.Builder
			err := run([]string{module}, model, true, false, false, []string{results}, &out)
			if (err == nil) != c.proven || !strings.Contains(out.String(), "    "+c.outcome) {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
}

// TestExactlyTheseTests runs one proven and one failing claim for themselves.
func TestExactlyTheseTests(t *testing.T) {
	where, err := findTests("testdata/module")
	if err != nil {
		t.Fatal(err)
	}
	got := newResults()
	if err := runTests(where, []string{"TestInside", "TestIsSkipped"}, got); err != nil {
		t.Fatal(err)
	}
	if a := got.outcome["seeded/a"]; a["TestPasses"] != "pass" || a["TestPasses/TestInside"] != "pass" || a["TestIsSkipped"] != "skip" || a["TestFails"] != "" || got.outcome["seeded/b"] != nil {
		t.Errorf("%v", got.outcome)
	}
}

// TestWorseRunCounts: a test that passed once and failed once has failed, and one that
// began and never ended has not passed.
func TestWorseRunCounts(t *testing.T) {
	got := newResults()
	err := got.read(strings.NewReader(`{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
go: words
`))
	if err != nil || got.of(place{pkg: "p", name: "TestA"}) != "fail" || got.of(place{pkg: "p", name: "TestB"}) != "did not end" || got.of(place{pkg: "p", name: "TestC"}) != "did not run" {
		t.Errorf("%v %v", got.outcome, err)
	}
}
