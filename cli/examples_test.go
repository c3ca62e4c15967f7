package cli

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var (
	// exampleRE is a call of bulkhead in a document or a help text: to the end of the line,
	// of the inline code or of the quoted text.
	exampleRE = regexp.MustCompile("(?m)(?:^|[`\"$(| ])bulkhead ([a-z][^`\n]*)")
	inlineRE  = regexp.MustCompile("`bulkhead ([^`\n]+)`")
)

// TestExamplesParse checks every call of bulkhead that documents and messages show: the command
// exists, has the flags, and takes the arguments.
func TestExamplesParse(t *testing.T) {
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil || len(docs) < 10 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	n := 0
	for _, path := range append(docs, "../README.md", "../CHANGELOG.md", "../SECURITY.md") {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fenced := false
		for i, line := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				fenced = !fenced
				continue
			}
			var calls []string
			if fenced || strings.HasPrefix(line, "    ") || strings.HasPrefix(line, "\t") {
				for _, m := range exampleRE.FindAllStringSubmatch(line, -1) {
					calls = append(calls, m[1])
				}
			} else {
				for _, m := range inlineRE.FindAllStringSubmatch(line, -1) {
					calls = append(calls, m[1])
				}
			}
			for _, call := range calls {
				n++
				if why := parses(call); why != "" {
					t.Errorf("%s:%d: bulkhead %s: %s", strings.TrimPrefix(path, "../"), i+1, call, why)
				}
			}
		}
	}
	n += sourceCalls(t)
	if n < 200 {
		t.Errorf("only %d calls were found", n)
	}
}

// quotedRE is a call in a message of the program, in quotes or at its end.
var quotedRE = regexp.MustCompile(`\\"bulkhead ([a-z][^"\\]*)\\"|: bulkhead ([a-z][^"\\]*)"`)

// sourceCalls checks the calls that messages of the program name.
func sourceCalls(t *testing.T) (n int) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == "build" {
			return cmp.Or(err, fs.SkipDir)
		}
		if d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(strings.TrimSpace(line), "//") {
				continue
			}
			for _, m := range quotedRE.FindAllStringSubmatch(line, -1) {
				n++
				if why := parses(strings.ReplaceAll(m[1]+m[2], "%s", "x")); why != "" {
					t.Errorf("%s:%d: bulkhead %s: %s", strings.TrimPrefix(path, "../"), i+1, m[1]+m[2], why)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// parses says what is wrong with a call of bulkhead as a document shows it, "" for nothing.
func parses(call string) string {
	if i := strings.IndexAny(call, "#<>;)"); i >= 0 {
		call = call[:i]
	}
	call, _, _ = strings.Cut(call, " | ")
	args := exampleWords(call)
	variants := [][]string{{}}
	for _, w := range args {
		// "log|verify" stands for one of several words.
		var next [][]string
		for _, alt := range strings.Split(w, "|") {
			for _, v := range variants {
				next = append(next, append(append([]string{}, v...), alt))
			}
		}
		variants = next
	}
	for _, v := range variants {
		s := &session{ui: &ui{}, env: Env{Getenv: func(string) string { return "" }}}
		if why := parsesAs(s.rootCommand(), v); why != "" {
			return why
		}
	}
	return ""
}

func parsesAs(root *cobra.Command, args []string) string {
	c, rest, err := root.Find(args)
	if err != nil {
		return err.Error()
	}
	if c.HasSubCommands() {
		if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && rest[0] != "…" && rest[0] != "..." {
			return "there is no command " + rest[0]
		}
		return ""
	}
	// Whether it takes the arguments is not asked where some are left out.
	partial := false
	var clean []string
	for i, w := range rest {
		w = strings.Trim(w, "[]")
		dots := w == "…" || w == "..." || w == "\\"
		switch {
		case dots && w != "\\" && i > 0 && strings.HasPrefix(rest[i-1], "--"):
			clean = append(clean, "x") // the value of a flag
		case dots || w == "flags":
			partial = true
		default:
			clean = append(clean, w)
		}
	}
	c.InheritedFlags() // adds the global ones
	c.Flags().VisitAll(func(*pflag.Flag) {})
	if err := c.ParseFlags(clean); errors.Is(err, pflag.ErrHelp) {
		return ""
	} else if err != nil {
		return err.Error()
	}
	if partial || c.Args == nil || len(c.Flags().Args()) == 0 {
		return ""
	}
	if err := c.Args(c, c.Flags().Args()); err != nil {
		return err.Error()
	}
	return ""
}

// exampleWords splits a call at blanks, as far as quotes go.
func exampleWords(s string) []string {
	var out []string
	var w strings.Builder
	quote, in := rune(0), false
	for _, r := range s {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			w.WriteRune(r)
		case r == '"' || r == '\'':
			quote, in = r, true
		case r == ' ':
			if in {
				out = append(out, w.String())
				w.Reset()
				in = false
			}
		default:
			w.WriteRune(r)
			in = true
		}
	}
	if in {
		out = append(out, w.String())
	}
	return out
}
