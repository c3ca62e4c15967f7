package cli

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var updateDocs = flag.Bool("update", false, "write docs/cli.md anew")

const docsPath = "../docs/cli.md"

// TestDocs holds docs/cli.md against the commands there are.
func TestDocs(t *testing.T) {
	got := markdown()
	if *updateDocs {
		if err := os.MkdirAll("../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(docsPath, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatalf("%v; \"go test ./cli -run TestDocs -update\" writes it", err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("docs/cli.md is not what the commands say; \"go test ./cli -run TestDocs -update\" writes it anew:\n%s", d)
	}
}

// markdown renders every command.
func markdown() string {
	s := &session{ui: &ui{}, env: Env{Getenv: func(string) string { return "" }}}
	root := s.rootCommand()
	var b strings.Builder
	b.WriteString(`# The command line

<!-- Made from the commands by "go test ./cli -run TestDocs -update"; edit cli/, not this file. -->

`)
	fmt.Fprintf(&b, "%s\n\n", strings.ReplaceAll(strings.SplitN(root.Long, "\n\n", 2)[0], "\n", " "))
	b.WriteString(`## Output

Results go to standard output; progress, warnings and hints go to standard error.
An error is one line, ` + "`bulkhead: error: …`" + `, and where there is a next step a second
one, ` + "`hint: …`" + `. With ` + "`--json`" + ` a result is one JSON document on standard output, or one
per line for logs, and so is an error: ` + "`{\"error\", \"kind\", \"hint\", \"details\"}`" + `. Only a
terminal gets moving progress.

## Exit codes

| Code | Meaning |
|---|---|
`)
	for _, l := range strings.Split(exitCodeHelp, "\n") {
		if f := strings.Fields(l); strings.HasPrefix(l, "  ") && len(f) > 1 {
			fmt.Fprintf(&b, "| %s | %s |\n", f[0], strings.Join(f[1:], " "))
		}
	}
	b.WriteString("\n`bulkhead machine exec` exits with the code of the command it ran, 128+N when signal N ended it.\n\n")
	b.WriteString(`## Environment

| Variable | Meaning |
|---|---|
| ` + "`BULKHEAD_URL`, `BULKHEAD_PIN`, `BULKHEAD_TOKEN`" + ` | the cluster to speak to, in place of the stored one; for CI. Pin and token alone replace the stored ones |
| ` + "`BULKHEAD_CONFIG`" + ` | the configuration file, as ` + "`--config`" + ` |
| ` + "`BULKHEAD_PROXY`" + ` | the proxy, as ` + "`--proxy`" + `; HTTP_PROXY and HTTPS_PROXY are not looked at |
| ` + "`BROWSER`" + ` | the program that ` + "`bulkhead open`" + ` runs |

## Global flags

`)
	flagTable(&b, root.PersistentFlags())
	b.WriteString("\n## Commands\n")
	commands(&b, root)
	return b.String()
}

func commands(b *strings.Builder, c *cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.Hidden || sub.Name() == "help" {
			continue
		}
		if sub.HasSubCommands() {
			commands(b, sub)
			continue
		}
		fmt.Fprintf(b, "\n### %s\n\n", sub.CommandPath())
		text := sub.Long
		if text == "" {
			text = sub.Short + "."
		}
		fmt.Fprintf(b, "```\n%s\n```\n\n", sub.UseLine())
		b.WriteString(indented(text) + "\n")
		if sub.Example != "" {
			fmt.Fprintf(b, "\n```\n%s\n```\n", unindent(sub.Example))
		}
		if sub.LocalNonPersistentFlags().HasAvailableFlags() {
			b.WriteString("\n")
			flagTable(b, sub.LocalNonPersistentFlags())
		}
	}
}

// indented turns indented lines into code blocks, as they are meant.
func indented(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "  ") {
			lines[i] = "  " + l
		}
	}
	return strings.Join(lines, "\n")
}

func unindent(s string) string {
	return strings.TrimPrefix(strings.ReplaceAll(s, "\n  ", "\n"), "  ")
}

func flagTable(b *strings.Builder, fs *pflag.FlagSet) {
	b.WriteString("| Flag | Meaning |\n|---|---|\n")
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		usage := strings.ReplaceAll(f.Usage, "|", "\\|")
		if t := f.Value.Type(); t != "bool" && f.DefValue != "" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", name, usage)
	})
}

// TestEveryCommandIsDescribed: what has no description helps nobody.
func TestEveryCommandIsDescribed(t *testing.T) {
	s := &session{ui: &ui{}, env: Env{Getenv: func(string) string { return "" }}}
	var walk func(*cobra.Command)
	n := 0
	walk = func(c *cobra.Command) {
		n++
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short description %q", c.CommandPath(), c.Short)
		}
		if c.Args == nil && c.Name() != "help" {
			t.Errorf("%s does not check its arguments", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s is not described", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(s.rootCommand())
	if n < 25 {
		t.Errorf("only %d commands were looked at", n)
	}
}
