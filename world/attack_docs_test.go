package world_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/world"
)

var updateAttacks = flag.Bool("update-attacks", false, "rewrite the section \"Attacks\" of docs/isolation.md from the tables")

const attacksHead, attacksNext = "## Attacks\n", "\n## From outside\n"

// TestAttackTableIsDocumented keeps the section "Attacks" of docs/isolation.md equal to
// the tables. With -update-attacks it writes it.
func TestAttackTableIsDocumented(t *testing.T) {
	path := filepath.Join(world.Root(), "docs", "isolation.md")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), attacksHead)
	old, after, ok2 := strings.Cut(rest, attacksNext)
	if !ok || !ok2 {
		t.Fatalf("%s has no section between %q and %q", path, attacksHead, attacksNext)
	}
	if want := attackDocs(); old != want {
		if !*updateAttacks {
			t.Fatalf("%s is not as the tables: run go test ./world -run %s -update-attacks", path, t.Name())
		}
		if err := os.WriteFile(path, []byte(before+attacksHead+want+attacksNext+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	names := map[string]bool{}
	for _, r := range attackTable {
		if names[r.name] {
			t.Errorf("attack %s has two rows", r.name)
		}
		names[r.name] = true
		if r.want != refused && r.want != contained || r.class == "" {
			t.Errorf("row %+v is not whole", r)
		}
		if r.want == contained && containedBy[r.name] == "" {
			t.Errorf("attack %s is let do something, and nothing says why that is all right", r.name)
		}
	}
}

// attackDocs is the section, without its heading.
func attackDocs() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
The program `+"`fixture/attack`"+` makes %d attacks, in Machines of three kinds: a plain image as root, the same as user 65534, and a hostile image (links to
the host in the places where Bulkhead writes, setuid copies of itself, a hostile environment) with more memory and processors. `+"`TestAttacks`"+` compares each
result with this table, fails for one without a row, and then looks at the host: bait file, bait process and kernel settings are as they were. The bait, open to everybody on
the host, is a file, three sockets, a TCP service on all addresses, a process, shared memory and a line in the kernel's log, each holding one secret.

`+"`TestAttacksSucceedUnconfined`"+` is the control: the same program as root in a chroot on the host. "Unconfined" says how it does there: *reaches* the secret or the
host, *succeeds*, is *tried* (that depends on the host's kernel), or is not run (it would harm the host). What a sandbox that was taken could send on its link is tried without gVisor in
`+"`TestSpoofing`, `TestNeighboursCannotBePoisoned`, `TestNobodyLearnsWhoElseIsThere`, `TestRouterAndHostAreClosed`, `TestEgress` and `TestNetworksAreApart`"+`.

| Attack | In a Machine | Unconfined |
|---|---|---|
`, len(attackTable))
	words := map[string]string{refused: "refused", contained: "contained", reached: "reaches", tried: "tried", "": "–"}
	class := ""
	for _, r := range attackTable {
		if r.class != class {
			class = r.class
			fmt.Fprintf(&b, "| **%s** | | |\n", class)
		}
		machine := words[r.want]
		if r.want == contained {
			machine += ": " + containedBy[r.name]
		}
		if r.asUser != "" {
			machine += "; refused to other users than root"
		}
		unconfined := words[r.control]
		if r.control == succeeds {
			unconfined = "succeeds"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.name, machine, unconfined)
	}
	b.WriteString("\n`TestFloodsTroubleNobodyElse`: one Machine floods, while a neighbour is asked 50 times a second through the edge and the API after each: all answer.\n\n| Flood | |\n|---|---|\n")
	for _, f := range floodTable {
		fmt.Fprintf(&b, "| %s | %s |\n", f.kind, f.note)
	}
	b.WriteString("\n`TestCheckerInsideAMachine` has amicontained 0.4.9 judge a Machine: 13 capabilities, which mean something inside only, and every system call blocked that mounts, loads, reboots or sets\n" +
		"clocks; its control is root of a user namespace on the host. kdigger 1.5.1, run once by hand, saw the same 13 capabilities; CDK and botb could not be had from the module proxy.\n")
	return b.String()
}
