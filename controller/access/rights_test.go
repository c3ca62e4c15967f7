package access

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"bulkhead/controller/record"
)

var updateRights = flag.Bool("update", false, "write the table of rights into docs/people.md anew")

// TestRightsAreDocumented holds the table in docs/people.md against the rights there are.
func TestRightsAreDocumented(t *testing.T) {
	const path, from, to = "../../docs/people.md", "-update\" -->\n", "<!-- end of rights -->"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), from)
	table, tail, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := rightsTable()
	if *updateRights {
		if err := os.WriteFile(path, []byte(head+from+want+to+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if table != want {
		t.Errorf("the table of rights in %s is not what the code says; go test ./controller/access -run TestRightsAreDocumented -update writes it anew", path)
	}
	if strings.Count(want, "\n") < 20 {
		t.Errorf("a table of %d lines", strings.Count(want, "\n"))
	}
}

// rightsTable is the table of rights for docs/people.md.
func rightsTable() string {
	var b strings.Builder
	line := func(w Kind) {
		fmt.Fprintf(&b, "| %s |", w)
		for _, r := range record.Roles {
			var acts []string
			for _, a := range []Action{Read, Create, Write, Delete, Control} {
				if slices.Contains(rights[w][a], r) {
					acts = append(acts, string(a))
				}
			}
			fmt.Fprintf(&b, " %s |", strings.Join(acts, ", "))
		}
		b.WriteString("\n")
	}
	const head = "| Thing | owner | admin | deployer | viewer | auditor |\n|---|---|---|---|---|---|\n"
	b.WriteString("\nOf an app:\n\n" + head)
	for _, w := range ofApp {
		line(w)
	}
	b.WriteString("\nOf an organization:\n\n" + head)
	var rest []Kind
	for w := range rights {
		if !slices.Contains(ofApp, w) {
			rest = append(rest, w)
		}
	}
	slices.Sort(rest)
	for _, w := range rest {
		line(w)
	}
	b.WriteString("\n")
	return b.String()
}
