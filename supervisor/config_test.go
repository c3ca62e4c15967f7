package supervisor

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestReadConfig(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", ""},
		{"all right", "domain = \"a.example\"\nhttps_addr = \":8443\"\n", ""},
		{"a list", "nameservers = [\"9.9.9.9\", \"2620:fe::fe\"]\n", ""},
		{"a list of numbers", "nameservers = [9]\n", ": nameservers: entry 9 must be text in quotes"},
		{"no list", "nameservers = 9\n", ": nameservers: the value must be a list of texts"},
		{"a list of ranges", "denied_ranges = [\"192.0.2.0/24\", \"2001:db8::1\"]\n", ""},
		{"no list of ranges", "denied_ranges = 9\n", ": denied_ranges: the value must be a list of texts"},
		{"unknown field", "domain = \"a.example\"\n  colour = 1\n", `:2:3: there is no field "colour"; "bulkheadd up --help" lists them`},
		{"unknown table", "[edge]\nport = 1\n", `:1:2: there is no field "edge"`},
		{"wrong type", "data_dir = \"/d\"\ndomain = 5\n", ":2:10: "},
		{"syntax", "domain = \"a\n", ":1:"},
		{"twice", "domain = \"a\"\ndomain = \"b\"\n", ":2:1: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "c.toml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadConfig(file, false)
			if c.want == "" {
				if err != nil || strings.Contains(c.text, "nameservers") && got.Nameservers != "9.9.9.9,2620:fe::fe" ||
					strings.Contains(c.text, "denied_ranges") && got.DeniedRanges != "192.0.2.0/24,2001:db8::1" {
					t.Errorf("%+v: %v", got, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), file+c.want) {
				t.Errorf("got %v, want %s%s", err, file, c.want)
			}
		})
	}
	missing := filepath.Join(t.TempDir(), "none.toml")
	if _, err := ReadConfig(missing, true); err != nil {
		t.Error(err)
	}
	if _, err := ReadConfig(missing, false); err == nil {
		t.Error("a missing file that was asked for is no error")
	}
	open := filepath.Join(t.TempDir(), "open.toml")
	if err := errors.Join(os.WriteFile(open, nil, 0o644), os.Chmod(open, 0o646)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(open, false); err == nil || !strings.Contains(err.Error(), "every user can write the configuration file") {
		t.Errorf("a file that every user can write: %v", err)
	}
}

func TestComplete(t *testing.T) {
	long := "/run/" + strings.Repeat("x", 80)
	for _, c := range []struct {
		name string
		in   Config
		want string // part of the error; "" for none
	}{
		{"defaults", Config{}, ""},
		{"everything", Config{DataDir: "/srv/b", Domain: "Apps.Example.COM.", HTTPAddr: "127.0.0.1:8080", HTTPSAddr: "[::1]:8443", ClusterAddr: ":7000",
			Region: "ams", Node: "n1", RunDir: "/run/x", LibDir: "/opt/b", ReadyFile: "/tmp/r.json", LogFormat: "text", IdleAfter: "5m", RateLimits: "token=5/10 object=off"}, ""},
		{"free ports", Config{HTTPAddr: "127.0.0.1:0", HTTPSAddr: "127.0.0.1:0"}, ""},
		{"domain with a space", Config{Domain: "a b"}, `domain "a b" is not a DNS name: bad label "a b"`},
		{"domain with an empty label", Config{Domain: "a..b"}, "is not a DNS name"},
		{"domain is an address", Config{Domain: "10.0.0.1"}, "is an address"},
		{"domain too long", Config{Domain: strings.Repeat("abcdefghi.", 19) + "example"}, "longer than 180"},
		{"address without port", Config{HTTPSAddr: "127.0.0.1"}, `https_addr "127.0.0.1": it must be host:port`},
		{"address with a name", Config{HTTPAddr: "localhost:80"}, `http_addr "localhost:80": host "localhost" is not an IP address`},
		{"port too high", Config{HTTPAddr: ":70000"}, "not between 0 and 65535"},
		{"port a word", Config{ClusterAddr: ":http"}, "not between 0 and 65535"},
		{"same address twice", Config{HTTPAddr: ":443"}, "http_addr and https_addr are both :443"},
		{"region", Config{Region: "Amsterdam 1"}, "region"},
		{"node", Config{Node: "under_score"}, "node: "},
		{"data directory is /", Config{DataDir: "/"}, "data_dir"},
		{"data directory with a space", Config{DataDir: "/srv/my data"}, "data_dir"},
		{"data directory with a colon", Config{DataDir: "/srv/a:b"}, "data_dir"},
		{"run directory too long", Config{RunDir: long}, "has 85 bytes"},
		{"private issuers are no networks", Config{SSOPrivateIssuers: "10.0.0.0/8, idp"}, "sso_private_issuers: \"idp\" must be a network"},
		{"no number of users", Config{SSOUsers: "many"}, "sso_users \"many\" must be a number"},
		{"a rate that there is not", Config{RateLimits: "tokens=1/1"}, "rate_limits: \"tokens=1/1\" is not one of"},
		{"a rate without a burst", Config{RateLimits: "token=1"}, "such as token=1000/3000"},
		{"no limit for strangers", Config{RateLimits: "failure=off"}, "or token=off for token, object, read and deletion"},
		{"idle time is no duration", Config{IdleAfter: "soon"}, "idle_after \"soon\" must be a duration"},
		{"idle time too short", Config{IdleAfter: "10ms"}, "of at least 1s"},
		{"name servers", Config{Nameservers: "9.9.9.9, 2620:fe::fe"}, ""},
		{"a private name server", Config{Nameservers: "10.0.0.2"}, "nameservers: machines cannot reach 10.0.0.2"},
		{"a denied range", Config{DeniedRanges: "192.0.2.0/24, 2001:db8::1"}, ""},
		{"a denied range that is none", Config{DeniedRanges: "wat"}, "denied_ranges: \"wat\" is neither a network"},
		{"log format", Config{LogFormat: "xml"}, "neither json nor text"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.in.Complete()
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.DataDir == "" || got.RunDir == "" || got.LibDir == "" || got.Domain != strings.ToLower(strings.TrimSuffix(got.Domain, ".")) {
				t.Errorf("incomplete: %+v", got)
			}
		})
	}
	if d := runDirFor(DefaultDataDir); d != "/run/bulkhead" {
		t.Error(d)
	}
	if d := runDirFor("/srv/b"); !regexp.MustCompile(`^/run/bulkhead-[0-9a-f]{8}$`).MatchString(d) {
		t.Error(d)
	}
	for range 100 {
		if tag := tagFor("/srv/b"); !regexp.MustCompile(`^[a-z][0-9a-z]{0,3}$`).MatchString(tag) {
			t.Error(tag)
		}
	}
}

func TestFlagsWinOverFile(t *testing.T) {
	got := Config{Domain: "flag.example"}.Over(Config{Domain: "file.example", Region: "ams"})
	if got.Domain != "flag.example" || got.Region != "ams" {
		t.Errorf("%+v", got)
	}
}

// TestFieldsAreDocumented holds the struct, the table behind --help, and the
// example file against each other.
func TestFieldsAreDocumented(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	commented := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.TypeSpec); ok && s.Name.Name == "Config" {
			for _, fd := range s.Type.(*ast.StructType).Fields.List {
				commented[fd.Names[0].Name] = strings.HasPrefix(fd.Doc.Text(), fd.Names[0].Name+" ")
			}
		}
		return true
	})
	example, err := os.ReadFile("../packaging/bulkhead.toml")
	if err != nil {
		t.Fatal(err)
	}
	var fromExample map[string]any
	if err := toml.Unmarshal(example, &fromExample); err != nil {
		t.Fatal(err)
	}
	ty := reflect.TypeFor[Config]()
	if ty.NumField() != len(Fields) || len(fromExample) != len(Fields) {
		t.Errorf("%d fields, %d in the table, %d in the example", ty.NumField(), len(Fields), len(fromExample))
	}
	for i := range ty.NumField() {
		sf, doc := ty.Field(i), Fields[i]
		name := sf.Tag.Get("toml")
		if !commented[sf.Name] {
			t.Errorf("%s has no comment that starts with its name", sf.Name)
		}
		var c Config
		*doc.Value(&c) = "x"
		if doc.Name != name || doc.Flag != strings.ReplaceAll(name, "_", "-") || reflect.ValueOf(c).Field(i).String() != "x" || doc.Doc == "" || doc.Default == "" {
			t.Errorf("the table's row %d is not %s: %+v", i, name, doc)
		}
		if _, ok := fromExample[name]; !ok {
			t.Errorf("%s is not in the example", name)
		}
		if !regexp.MustCompile(`(?m)^#[^\n]*\n` + name + ` = `).Match(example) {
			t.Errorf("%s has no comment in the example", name)
		}
	}
	installed := filepath.Join(t.TempDir(), "bulkhead.toml") // the checkout may be another user's
	if err := os.WriteFile(installed, example, 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(installed, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := (Config{}).Complete(); got != want {
		t.Errorf("the example gives %+v, the defaults are %+v", got, want)
	}
}

// TestRenderLine is the text form of the log.
func TestRenderLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain words": "plain words",
		"":            "",
		`{"broken`:    `{"broken`,
		`{"time":"x","level":"WARN","msg":"it is late","role":"edge","node":"n","b":2,"a":"x y"}`: `x WARN  edge       it is late a="x y" b=2`,
	} {
		if got := string(renderLine([]byte(in))); got != want {
			t.Errorf("%s\ngot  %q\nwant %q", in, got, want)
		}
	}
}
