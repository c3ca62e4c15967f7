package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDeadPackages: every test that runs when its package dies is named and counted, with
// what it wrote and what killed it. A package that fails without a failing test counts too.
func TestDeadPackages(t *testing.T) {
	cmd := exec.Command("go", "test", "-json", "-count=1", "./...")
	cmd.Dir = "testdata/module"
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("the seeded faults do not fail")
	}
	var n counts
	var shown, total strings.Builder
	if err := n.read(strings.NewReader(string(out)), &shown); err != nil {
		t.Fatal(err)
	}
	n.print(&total)
	lines := strings.Split(strings.TrimSpace(total.String()), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "        ") }) // reports
	failed := []string{
		"FAILED  crashing/broken: it does not build",
		"FAILED  crashing/counter TestCountsLate: running when its package died: panic: sync: negative WaitGroup counter",
		"FAILED  crashing/exits TestExits: running when its package died",
		"FAILED  crashing/itself TestPanicsItself",
		"FAILED  crashing/main: the package failed, and none of its tests",
		"FAILED  crashing/parallel TestPanics/inside: running when its package died: panic: a seeded panic",
		"FAILED  crashing/parallel TestPanics: running when its package died: panic: a seeded panic",
		"FAILED  crashing/parallel TestRunsInParallel: running when its package died: panic: a seeded panic",
	}
	var got []string
	if len(lines) > len(failed) {
		got = slices.Sorted(slices.Values(lines[len(lines)-1-len(failed) : len(lines)-1]))
	}
	if !slices.Equal(got, failed) || lines[len(lines)-1] != "tests: 2 passed, 8 failed, 0 skipped" {
		t.Errorf("the summary is\n%s", total.String())
	}
	for _, want := range []string{
		"broken_test.go:6", "what the test that runs in parallel wrote", "what the test that panics wrote", "counter.TestCountsLate",
		"panic: a seeded panic", "panic: a panic of the test's own", "a fault outside of every test",
		"--- running when crashing/parallel died: TestRunsInParallel\n", "--- running when crashing/exits died: TestExits\n",
	} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("%q is not in what is shown:\n%s", want, shown.String())
		}
	}
}

// TestRead reads what go test says in the other cases.
func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, in, shown, total string
	}{
		{"good", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"skip","Package":"p","Test":"B"}
{"Action":"pass","Package":"p","Elapsed":1.25}
{"Action":"skip","Package":"no/tests","Elapsed":0}
`, "pass p (1.2 s)\n", "     1.2  p\nskipped p B\ntests: 1 passed, 0 failed, 1 skipped\n"},
		{"bad", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"why\n"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p","Elapsed":2}
{"Action":"pass","Package":"q","Elapsed":3}
`, "why\nfail p (2.0 s)\npass q (3.0 s)\n", "     3.0  q\n     2.0  p\nFAILED  p A\ntests: 0 passed, 1 failed, 0 skipped\n"},
		{"buried", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:1: one\n    a_test.go:2: two\n"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:3: why\n        and what else\n"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:4: last\n    world.go:9: a program wrote\n        much\n"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p","Elapsed":2}
`, "    a_test.go:1: one\n    a_test.go:2: two\n    a_test.go:3: why\n        and what else\n    a_test.go:4: last\n" +
			"    world.go:9: a program wrote\n        much\nfail p (2.0 s)\n",
			"     2.0  p\nFAILED  p A\n        a_test.go:2: two\n        a_test.go:3: why and what else\n        a_test.go:4: last\n" +
				"tests: 0 passed, 1 failed, 0 skipped\n"},
		{"setup", "FAIL	./... [setup failed]\n", "FAIL	./... [setup failed]\n", "FAILED  FAIL	./... [setup failed]\ntests: 0 passed, 1 failed, 0 skipped\n"},
		{"cut off", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"pause","Package":"p","Test":"A"}
`, "--- paused when p died: A\nfail p (0.0 s)\n", "     0.0  p\nFAILED  p A: paused when its package died\ntests: 0 passed, 1 failed, 0 skipped\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n counts
			var shown, total strings.Builder
			if err := n.read(strings.NewReader(c.in), &shown); err != nil {
				t.Fatal(err)
			}
			n.print(&total)
			_, counted, _ := strings.Cut(total.String(), ":\n") // below the heading
			if shown.String() != c.shown || counted != c.total {
				t.Errorf("shown %q\ntotal %q\n%+v", shown.String(), total.String(), n)
			}
		})
	}
}

// TestTotal adds up files, and a step that is no test.
func TestTotal(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, f := range files {
		if err := os.WriteFile(f, []byte(`{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Elapsed":1}
`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "testsum")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(program, append([]string{"-total"}, files...)...).Output()
	want := "the slowest of 1 packages, in seconds:\n     2.0  p\ntests: 2 passed, 0 failed, 0 skipped\n"
	if err != nil || string(out) != want {
		t.Errorf("%v %q", err, out)
	}
	out, err = exec.Command(program, append([]string{"-total", "-also", "claims: one is not shown"}, files...)...).Output()
	if err == nil || !strings.HasSuffix(string(out), "\nFAILED  claims: one is not shown\ntests: 2 passed, 1 failed, 0 skipped\n") {
		t.Errorf("%v %q", err, out)
	}
}
