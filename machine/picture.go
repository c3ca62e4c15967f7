package machine

import (
	"fmt"
	"strings"
)

// Picture draws the transition table as a Mermaid state diagram with a table of
// deadlines: the content of docs/machine-states.md.
func Picture() string {
	var b strings.Builder
	b.WriteString("# The states of a Machine\n\n")
	b.WriteString("Drawn from the table in `machine/transitions.go` by its test (`go test ./machine -update`); do not edit.\n\n")
	b.WriteString("```mermaid\nstateDiagram-v2\n    [*] --> created\n")
	labels := map[[2]State][]string{}
	var order [][2]State
	for _, r := range rules {
		k := [2]State{r.From, r.To}
		if labels[k] == nil {
			order = append(order, k)
		}
		labels[k] = append(labels[k], string(r.On))
	}
	for _, k := range order {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", k[0], k[1], strings.Join(labels[k], ", "))
	}
	b.WriteString("    destroyed --> [*]\n```\n\n")
	b.WriteString("A Machine leaves a passing state by itself; when it has not after the time given here, `timeout` moves it on.\n\n")
	b.WriteString("| Passing state | at most |\n|---|---|\n")
	for _, s := range States() {
		if Passing(s) {
			fmt.Fprintf(&b, "| `%s` | %v |\n", s, Deadline(s))
		}
	}
	b.WriteString("\n`suspended` and `replacing` are not reached by this version: suspend falls back to stop.\n")
	return b.String()
}
