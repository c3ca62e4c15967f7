package cli

import (
	"strings"
	"testing"
)

// TestDotenv reads what people keep in .env files, and refuses the rest without showing a
// value.
func TestDotenv(t *testing.T) {
	got, err := parseDotenv("# a comment\n\nA=1\nexport B = two words \nC='as $it is \\n'\nD=\"line\\none \\\"q\\\" \\\\\"\nE=\nF=a=b#c\nG=\"\"\"\nfirst\nsecond\"\"\"\nH=\"\"\"one\"\"\"\r\n")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"A": "1", "B": "two words", "C": `as $it is \n`, "D": "line\none \"q\" \\", "E": "", "F": "a=b#c", "G": "first\nsecond", "H": "one"}
	for name, v := range want {
		if got[name] == nil || *got[name] != v {
			t.Errorf("%s is %v, want %q", name, got[name], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d values, want %d", len(got), len(want))
	}
	for text, said := range map[string]string{
		"hunter2": "line 1 is not", "A=1\n=hunter2": "line 2 is not", "A='hunter2": "begins with a quote", `A="hunter2`: "begins with a quote",
		"A=\"\"\"hunter2\n": "does not end", "A=hunter2\nA=hunter2": "given twice",
	} {
		_, err := parseDotenv(text)
		if err == nil || !strings.Contains(err.Error(), said) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestDotenvForms: comments, quotes and lines as every dotenv library reads them.
func TestDotenvForms(t *testing.T) {
	for text, want := range map[string]string{
		"A=value # a comment":              "value",
		"A=\"with spaces\" # after":        "with spaces",
		"A='it is' # c":                    "it is",
		"A=pa#ss":                          "pa#ss",
		"A=\"a # b\"":                      "a # b",
		"A= # only a comment":              "",
		"A=#no blank":                      "#no blank",
		"A=\t'x'\t#c":                      "x",
		"  export\tA=1":                    "1",
		"\ufeffA=1":                        "1",
		"A=1\rB=2":                         "1",
		"A='first\nsecond # in it'\nB=2":   "first\nsecond # in it",
		"A=\"first\nsecond\\tx\"\nB=2":     "first\nsecond\tx",
		"A=`say \"it's\"`":                 `say "it's"`,
		"A=\"\\$HOME \\z\"":                `$HOME \z`,
		"A=$HOME":                          "$HOME",
		"A={\"a\": \"b\"}":                 `{"a": "b"}`,
		"# x\n   # y\n\nA=\"p\"\n# z\nC=1": "p",
	} {
		got, err := parseDotenv(text)
		if err != nil || got["A"] == nil || *got["A"] != want {
			t.Errorf("%q: %v, %v; want %q", text, got["A"], err, want)
		}
		if strings.Contains(text, "B=2") && (got["B"] == nil || *got["B"] != "2") {
			t.Errorf("%q: B is lost", text)
		}
	}
	for text, said := range map[string]string{
		"A='x'hunter2": "line 1: more follows", "B=1\nA=\"x\ny\"\nC": "line 4 is not", "A=1\n\nA B=hunter2": "line 3 is not", "A='hunter2\nB='x'": "line 1",
	} {
		if _, err := parseDotenv(text); err == nil || !strings.Contains(err.Error(), said) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestSecretArgs: values from arguments and from standard input; errors show none.
func TestSecretArgs(t *testing.T) {
	s := &session{env: Env{Stdin: strings.NewReader("from stdin\n")}}
	got, err := s.secretArgs([]string{"A=x=y", "B=-"})
	if err != nil || *got["A"] != "x=y" || *got["B"] != "from stdin" {
		t.Fatalf("%v, %v", got, err)
	}
	for _, args := range [][]string{{"hunter2"}, {"=hunter2"}, {"A=hunter2", "A=hunter2"}, {"A=-", "B=-"}} {
		s := &session{env: Env{Stdin: strings.NewReader("hunter2")}}
		if _, err := s.secretArgs(args); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", args, err)
		}
	}
}
