package main

import (
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, in, shown, total string
		bad                    bool
	}{
		{"good", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"skip","Package":"p","Test":"B"}
{"Action":"pass","Package":"p","Elapsed":1.25}
{"Action":"skip","Package":"no/tests","Elapsed":0}
`, "pass p (1.2 s)\n", "skipped p B\nin 1 packages\ntests: 1 passed, 0 failed, 1 skipped\n", false},
		{"bad", `{"Action":"output","Package":"p","Test":"A","Output":"why\n"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p","Elapsed":2}
`, "why\nfail p (2.0 s)\n", "FAILED  p A\nin 1 packages, of which 1 failed\ntests: 0 passed, 1 failed, 0 skipped\n", true},
		{"build", `{"ImportPath":"p [p.test]","Action":"build-output","Output":"x.go:1: no\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}
`, "x.go:1: no\nfail p (0.0 s)\n", "in 1 packages, of which 1 failed\ntests: 0 passed, 0 failed, 0 skipped\n", true},
		{"words", "FAIL	./... [setup failed]\n", "FAIL	./... [setup failed]\n", "in 0 packages, of which 0 failed\ntests: 0 passed, 0 failed, 0 skipped\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n counts
			var shown, total strings.Builder
			if err := n.read(strings.NewReader(c.in), &shown); err != nil {
				t.Fatal(err)
			}
			n.print(&total)
			if shown.String() != c.shown || total.String() != c.total || (n.failed > 0 || n.failedPkgs > 0 || n.broken) != c.bad {
				t.Errorf("shown %q\ntotal %q\n%+v", shown.String(), total.String(), n)
			}
		})
	}
}
