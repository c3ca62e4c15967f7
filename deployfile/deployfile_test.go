package deployfile

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead/machine"
)

// TestExamples reads every fly.toml of testdata/good, holds its Machine configs
// against the golden file beside it, and against the platform's own rules.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("testdata/good/*.toml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			type result struct {
				Warnings []string                   `json:"warnings,omitempty"`
				Strategy string                     `json:"strategy"`
				Wait     string                     `json:"wait"`
				Groups   map[string]*machine.Config `json:"groups"`
			}
			got := result{Strategy: f.Strategy(), Wait: f.WaitTimeout().String(), Groups: map[string]*machine.Config{}}
			for _, w := range f.Warnings {
				got.Warnings = append(got.Warnings, strings.TrimPrefix(w.String(), path+":"))
			}
			for _, g := range f.Groups() {
				c, err := f.MachineConfig(g, "registry.example.com/app:1", nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Validate(); err != nil {
					t.Errorf("group %s: the platform refuses what was built: %v", g, err)
				}
				got.Groups[g] = c
			}
			b, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(path, ".toml")+".golden", append(b, '\n'))
		})
	}
}

// golden compares b with a file, or writes it when BULKHEAD_UPDATE is set.
func golden(t *testing.T, path string, b []byte) {
	t.Helper()
	if os.Getenv("BULKHEAD_UPDATE") != "" {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (BULKHEAD_UPDATE=1 go test ./deployfile writes it)", err)
	}
	if d := cmp.Diff(string(want), string(b)); d != "" {
		t.Errorf("%s differs (BULKHEAD_UPDATE=1 go test ./deployfile writes it anew):\n%s", path, d)
	}
}

// TestRefused: every mistake is named with its line and column.
func TestRefused(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"UTF-16", "\xff\xfea\x00p\x00p\x00", "f: the file is in UTF-16; save it as UTF-8"},
		{"a byte order mark counts for no column", "\xef\xbb\xbfapp = 3", "f:1:1: app must be a string"},
		{"syntax", "app = \"a\"\nenv = [", "f:2:7: not TOML: "},
		{"twice", "app = \"a\"\napp = \"b\"", "f:2:1: not TOML: "},
		{"unknown top key", "app = \"a\"\n  regoin = 1", `f:2:3: unknown key "regoin" at the top level`},
		{"unknown with a near one", "prymary_region = \"x\"", `f:1:1: unknown key "prymary_region" at the top level; did you mean "primary_region"?`},
		{"dash for underscore", "[http_service]\ninternal-port = 1", `did you mean "internal_port"?`},
		{"unknown section", "[htp_service]\na = 1", `f:1:2: unknown key "htp_service" at the top level; did you mean "http_service"?`},
		{"unknown list", "[[volumes]]\na = 1", `f:1:3: unknown key "volumes" at the top level`},
		{"unknown in a list", "[[services]]\ninternal_port = 1\n[[services]]\ninternal_port = 2\nbogus = 3", `f:5:1: unknown key "bogus" in [services[1]]`},
		{"unknown in a list in a list", "[[services]]\ninternal_port = 1\n[[services.ports]]\nport = 80\nhandlers = [\"http\"]\n[[services.ports]]\nprot = 443", `f:7:1: unknown key "prot" in [services[0].ports[1]]; did you mean "port"?`},
		{"unknown inline", "[http_service]\nconcurrency = { typ = \"requests\" }", `f:2:17: unknown key "typ" in [http_service.concurrency]; did you mean "type"?`},
		{"unknown inline in a list", "[[services]]\ninternal_port = 1\nports = [\n { port = 80, handlers = [\"http\"] },\n { port = 443, handler = [\"http\"] },\n]", `f:5:16: unknown key "handler" in [services[0].ports[1]]`},
		{"dotted", "http_service.force_http = true", `f:1:14: unknown key "force_http" in [http_service]; did you mean "force_https"?`},
		{"word for a number", "[http_service]\ninternal_port = \"http\"", "f:2:1: http_service.internal_port must be a whole number, not a string"},
		{"fraction for a number", "[http_service]\ninternal_port = 80.5", "must be a whole number, not a fraction"},
		{"number for a string", "app = 3", "f:1:1: app must be a string, not a whole number"},
		{"number for a boolean", "[http_service]\nforce_https = 1", "must be true or false, not a whole number"},
		{"number for a list", "[http_service]\nprocesses = 1", "must be a list of strings, not a whole number"},
		{"string for a table", "http_service = \"x\"", "http_service must be a table, not a string"},
		{"string for a list of tables", "vm = \"x\"", "vm must be a list of tables, not a string"},
		{"list for env", "[env]\nA = [1]", "f:2:1: env.A must be a string, not a list"},
		{"date", "app = 2026-01-01", "not a date"},
		{"app name", "app = \"My App\"", `f:1:1: app name "My App" must be`},
		{"duration", "kill_timeout = \"soon\"", `f:1:1: kill_timeout is "soon"; it must be a duration`},
		{"long kill", "kill_timeout = 301", "it must be at most 300s"},
		{"stop mode", "[http_service]\nauto_stop_machines = \"sleep\"", `is "sleep"; it must be "off", "stop", "suspend" or a boolean`},
		{"share", "[deploy]\nmax_unavailable = 1.5", "f:2:1: deploy.max_unavailable is 1.5; it must be"},
		{"FLY env", "[env]\nFLY_APP = \"x\"", `f:2:1: the name "FLY_APP" is refused`},
		{"port", "[[services]]\ninternal_port = 0", "f:2:1: internal_port is 0; it must be 1 to 65535"},
		{"group", "[processes]\nweb = \"x\"\n[http_service]\nprocesses = [\"wbe\"]", `f:4:1: there is no process group "wbe" in [processes]; there is web`},
		{"group name", "[processes]\nfly_app_console = \"x\"", `cannot be the name of a process group`},
		{"quote", "[processes]\nweb = \"say 'hi\"", `f:2:1: the command of process group "web" has a quote that is not closed`},
		{"restart", "[[restart]]\npolicy = \"sometimes\"", `f:2:1: restart policy is "sometimes"`},
		{"size", "[[vm]]\nsize = \"huge\"", `f:1:3: size is "huge"; use shared-cpu-1x`},
		{"memory", "[[vm]]\nmemory = \"lots\"", `memory is "lots"; it must be a size`},
		{"memory of nothing", "[[vm]]\nmemory = 1", "memory_mb is 1; it must be 128 to"},
		{"one vm table", "[vm]\nsize = \"huge\"", `f:1:2: size is "huge"`},
		{"file", "[[files]]\nguest_path = \"a\"\nraw_value = \"x\"", `f:2:1: guest_path is "a"; it must be an absolute path`},
		{"file of nothing", "[[files]]\nguest_path = \"/a\"", "f:1:3: a file needs exactly one of"},
		{"strategy", "[deploy]\nstrategy = \"bluegreen\"", `f:2:1: strategy "bluegreen" needs health checks`},
		{"strategy unknown", "[deploy]\nstrategy = \"yolo\"", "must be one of rolling, immediate, canary"},
		{"mounts", "[mounts]\nsource = \"d\"\ndestination = \"/d\"", "f:1:2: mounts is not supported yet: Bulkhead has no volumes"},
		{"statics", "[[statics]]\nguest_path = \"/p\"\nurl_prefix = \"/\"", "statics is not supported yet"},
		{"release command", "[deploy]\nrelease_command = \"migrate\"", "f:2:1: deploy.release_command is not supported yet: run it with"},
		{"udp", "[[services]]\nprotocol = \"udp\"\ninternal_port = 53", "services[0].protocol is not supported yet"},
		{"raw tcp", "[[services]]\ninternal_port = 53\n[[services.ports]]\nport = 5432", "f:4:1: services[0].ports[0].port is not supported yet: the edge listens on 80 and 443 alone"},
		{"no http handler", "[[services]]\ninternal_port = 53\n[[services.ports]]\nport = 443\nhandlers = [\"tls\"]", "so \"http\" must be among the handlers"},
		{"gpu", "[[vm]]\ngpu_kind = \"a10\"", "vm[0].gpu_kind is not supported yet"},
		{"file of two", "[[files]]\nguest_path = \"/a\"\nsecret_name = \"S\"\nraw_value = \"x\"", "f:1:3: a file needs exactly one of"},
		{"headers", "[http_service.http_options.response.headers]\nA = \"b\"", "http_options.response is not supported yet"},
		{"tls", "[http_service.tls_options]\nversions = [\"TLSv1.3\"]", "f:2:1: http_service.tls_options.versions is not supported yet"},
		{"consul", "[experimental]\nenable_consul = true", "experimental.enable_consul is not supported yet"},
		{"signal", "kill_signal = \"SIGWHAT\"", `f:1:1: kill_signal is not acceptable: signal "SIGWHAT" is not known`},
		{"env name", "[env]\n\"MY VAR\" = \"x\"", `f:2:1: env has the name "MY VAR"`},
		{"concurrency type", "[http_service.concurrency]\ntype = \"donuts\"", `f:2:1: http_service.concurrency.type is "donuts"`},
		{"concurrency above", "[[services]]\ninternal_port = 1\nconcurrency = \"30,20\"", `f:3:1: services[0].concurrency.soft_limit is 30, above hard_limit 20`},
		{"concurrency pair", "[[services]]\ninternal_port = 1\nconcurrency = \"many\"", `f:3:1: services[0].concurrency is "many"; it must be a table, or`},
		{"guest path", "[[files]]\nguest_path = \"/etc/../x\"\nraw_value = \"a\"", `f:2:1: files[0].guest_path is "/etc/../x"`},
		{"guest path twice", "[[files]]\nguest_path = \"/a\"\nraw_value = \"a\"\n[[files]]\nguest_path = \"/a\"\nraw_value = \"b\"", `f:5:1: files[1].guest_path "/a" is that of files[0] too`},
		{"secret name", "[[files]]\nguest_path = \"/a\"\nsecret_name = \"a b\"", `f:3:1: files[0].secret_name "a b" is not the name of a secret`},
		{"retries", "[[restart]]\npolicy = \"always\"\nretries = 100000000", `f:3:1: restart[0].retries is 100000000`},
		{"min machines", "[http_service]\nmin_machines_running = -1", `f:2:1: http_service.min_machines_running is -1`},
		{"much memory", "[[vm]]\nmemory = \"9999gb\"", `f:1:3: memory_mb is`},
		{"no memory", "[[vm]]\nmemory = \"0.1kb\"", `f:1:3: memory is "0.1kb"; it must be at least`},
		{"unknown with a value", "[experimental]\nfoo = true", `f:2:1: unknown key "foo" in [experimental]`},
		{"moved section", "[[compute]]\nsize = \"huge\"", `f:1:3: size is "huge"`},
		{"merged section", "[[env]]\nA = \"1\"\n[[env]]\nB = [1]", `f:4:1: env.B must be a string, not a list`},
		{"machine checks", "[[http_service.machine_checks]]\ncommand = [\"x\"]", "http_service.machine_checks is not supported yet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tc.doc))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v", err)
			}
			if !slices.ContainsFunc(e.Notes, func(n Note) bool { return strings.Contains(n.String(), tc.want) }) {
				t.Errorf("got %v\nwant %s", e.Notes, tc.want)
			}
		})
	}
}

// TestAllMistakesAtOnce: they come in the order of the file.
func TestAllMistakesAtOnce(t *testing.T) {
	_, err := Parse("f", []byte("zzz = 1\n[http_service]\naaa = 1\ninternal_port = true\n"))
	var e *Error
	if !errors.As(err, &e) || len(e.Notes) != 3 {
		t.Fatalf("%v", err)
	}
	for i, n := range e.Notes {
		if n.Pos.Line != []int{1, 3, 4}[i] {
			t.Errorf("note %d: %s", i, n)
		}
	}
}

// TestEveryKeyIsKnown reads a file that has every key of the grammar: none may be
// called unknown. What is not supported yet may be refused by name.
func TestEveryKeyIsKnown(t *testing.T) {
	b, err := os.ReadFile("testdata/every-key.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse("f", b)
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v", err)
	}
	for _, n := range e.Notes {
		if !strings.Contains(n.Msg, "is not supported yet") {
			t.Errorf("%s", n)
		}
		if n.Pos.Line == 0 {
			t.Errorf("no position: %s", n)
		}
	}
}

func TestUpdateKeepsWhatTheFileDoesNotSay(t *testing.T) {
	f, err := Parse("f", []byte("app = \"a\"\n[env]\nA = \"new\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	old := &machine.Config{
		Image: "old", Env: map[string]string{"A": "old", "B": "old"},
		Guest:    &machine.Guest{CPUKind: "shared", CPUs: 2, MemoryMB: 1024},
		Metadata: map[string]string{"mine": "kept", "fly_process_group": "app", "fly_platform_version": "v2"},
		Services: HTTPServices(1, true), Restart: &machine.Restart{Policy: "always"},
	}
	before := old.Clone()
	c, err := f.MachineConfig("app", "new", old)
	if err != nil {
		t.Fatal(err)
	}
	if c.Image != "new" || c.Guest.MemoryMB != 1024 || c.Metadata["mine"] != "kept" {
		t.Errorf("%+v", c)
	}
	if c.Env["A"] != "new" || c.Env["B"] != "" || c.Services != nil || c.Restart != nil {
		t.Errorf("what the file leaves out is not gone: %+v", c)
	}
	if d := cmp.Diff(before, old); d != "" {
		t.Errorf("the old config was changed: %s", d)
	}
}

// TestFormsOfFlysClient: what Fly's client takes is taken, with the meaning it has there.
// testdata/good/fly-v1.toml is a whole file.
func TestFormsOfFlysClient(t *testing.T) {
	for doc, want := range map[string]string{
		"processes = []":      `{"app":{}}`,
		`processes = ["web"]`: `{"web":{}}`,
		"[[processes]]\na = \"x\"\n[[processes]]\nb = \"y\"":                                   `{"a":{"init":{"cmd":["x"]}},"b":{"init":{"cmd":["y"]}}}`,
		"[[env]]\nA = 1\n[[env]]\nB = 2026-01-02\nC = 2026-01-02T03:04:05Z\nD = 1.5\nE = true": `{"app":{"env":{"A":"1","B":"2026-01-02","C":"2026-01-02T03:04:05Z","D":"1.5","E":"true"}}}`,
		"[experimental]\ncmd = \"a 'b c'\"\nexec = [\"d\"]":                                    `{"app":{"init":{"exec":["d"],"cmd":["a","b c"]}}}`,
		"[experimental]\nkill_timeout = 7":                                                     `{"app":{"stop_config":{"timeout":"7s"}}}`,
		"kill_timeout = \"\"":                                                                  `{"app":{}}`,
		"[[compute]]\nmemory = \"1.5gb\"\ncpus = \"2\"":                                        `{"app":{"guest":{"cpu_kind":"shared","cpus":2,"memory_mb":1536}}}`,
		"[vm]\nmemory_mb = 512.0":                                                              `{"app":{"guest":{"cpu_kind":"shared","cpus":1,"memory_mb":512}}}`,
		"[vm]\nmemory = \"512 MiB\"":                                                           `{"app":{"guest":{"cpu_kind":"shared","cpus":1,"memory_mb":512}}}`,
		"[vm]\nmemory = \"524288kb\"":                                                          `{"app":{"guest":{"cpu_kind":"shared","cpus":1,"memory_mb":512}}}`,
		"[[services]]\ninternal_port = 1\n[[services.ports]]\nport = 443\nhandlers = [\"tls\", \"http\"]\ntls_options = { alpn = [\"h2\", \"http/1.1\"], versions = [\"TLSv1.2\", \"TLSv1.3\"], default_self_signed = false }": `{"app":{"services":[{"protocol":"tcp","internal_port":1,"ports":[{"port":443,"handlers":["tls","http"]}],"autostart":true}]}}`,
		"[mounts]":                              `{"app":{}}`,
		"[build]":                               `{"app":{}}`,
		"wobble = false\n[deploy]\nwibble = []": `{"app":{}}`,
		"[[restart]]\nretries = 3":              `{"app":{"restart":{"policy":"on-failure","max_retries":3}}}`,
		"[[restart]]\npolicy = \"always\"\n[[restart]]\npolicy = \"never\"\nprocesses = [\"app\"]":                                                                                                                  `{"app":{"restart":{"policy":"no"}}}`,
		"[processes]\na = \"x\"\nb = \"y\"\n[[restart]]\npolicy = \"always\"\nprocesses = [\"b\"]":                                                                                                                  `{"a":{"init":{"cmd":["x"]}},"b":{"init":{"cmd":["y"]},"restart":{"policy":"always"}}}`,
		"[service]\ninternal_port = \"80\"\nconcurrency = \"12,23\"\n[[service.port]]\nport = \"443\"\nhandlers = \"http\"\n[[service.http_checks]]\ninterval = 10000\nheaders = [{ name = \"A\", value = \"b\" }]": `{"app":{"services":[{"protocol":"tcp","internal_port":80,"ports":[{"port":443,"handlers":["http"]}],"autostart":true,"concurrency":{"type":"requests","soft_limit":12,"hard_limit":23}}]}}`,
	} {
		f, err := Parse("f", []byte(doc))
		if err != nil {
			t.Errorf("%s\nis refused: %v", doc, err)
			continue
		}
		got := map[string]*machine.Config{}
		for _, g := range f.Groups() {
			c, err := f.MachineConfig(g, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			delete(c.Env, "FLY_PROCESS_GROUP")
			c.Metadata = nil
			got[g] = c
		}
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.ReplaceAll(string(b), `"image":"",`, ""); strings.ReplaceAll(s, `"image":""`, "") != want {
			t.Errorf("%s\nis   %s\nwant %s", doc, b, want)
		}
	}
}

// TestLocalFilesStayInTheFolder: a deploy file of a cloned repository reads no other file
// of the computer, unless its user allows it.
func TestLocalFilesStayInTheFolder(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "repo")
	secret := filepath.Join(top, "id_rsa")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "sub"), 0o755),
		os.WriteFile(secret, []byte("key"), 0o600),
		os.WriteFile(filepath.Join(dir, "sub", "in"), []byte("in"), 0o600),
		os.Symlink(secret, filepath.Join(dir, "link")),
		os.Symlink(top, filepath.Join(dir, "up")),
		os.Symlink("sub/in", filepath.Join(dir, "inner")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, inside := range map[string]bool{
		"sub/in": true, "./sub/../sub/in": true, "inner": true, filepath.Join(dir, "sub", "in"): true,
		"../id_rsa": false, secret: false, "link": false, "up/id_rsa": false, "sub/../../id_rsa": false,
	} {
		f, err := Parse(filepath.Join(dir, "fly.toml"), []byte("[[files]]\nguest_path = \"/x\"\nlocal_path = \""+name+"\"\n"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.MachineConfig("app", "x", nil)
		switch {
		case inside && err != nil:
			t.Errorf("%s: %v", name, err)
		case !inside && !errors.Is(err, ErrOutside):
			t.Errorf("%s is read, or refused with %v", name, err)
		case !inside && !strings.Contains(err.Error(), "fly.toml:3:1: local_path"):
			t.Errorf("%s: %v", name, err)
		}
		f.AllowOutside = true
		if _, err := f.MachineConfig("app", "x", nil); err != nil {
			t.Errorf("%s with AllowOutside: %v", name, err)
		}
	}
	f, err := Parse(filepath.Join(dir, "fly.toml"), []byte("[[files]]\nguest_path = \"/x\"\nlocal_path = \"sub\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.MachineConfig("app", "x", nil); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a folder: %v", err)
	}
}

func TestMaxUnavailable(t *testing.T) {
	for _, tc := range []struct {
		value string
		n     int
		want  int
	}{{"", 1, 1}, {"", 3, 1}, {"", 10, 3}, {"0.5", 4, 2}, {"1", 5, 1}, {"3", 5, 3}, {"9", 5, 5}, {"0.01", 5, 1}} {
		doc := ""
		if tc.value != "" {
			doc = "[deploy]\nmax_unavailable = " + tc.value
		}
		f, err := Parse("f", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if got := f.MaxUnavailable(tc.n); got != tc.want {
			t.Errorf("max_unavailable %s of %d: %d, want %d", tc.value, tc.n, got, tc.want)
		}
	}
}

func TestDurations(t *testing.T) {
	for doc, want := range map[string]time.Duration{
		"": 5 * time.Minute, "wait_timeout = 90": 90 * time.Second, "wait_timeout = \"90\"": 90 * time.Second, "wait_timeout = \"2m\"": 2 * time.Minute,
	} {
		f, err := Parse("f", []byte("[deploy]\n"+doc))
		if err != nil {
			t.Fatal(err)
		}
		if f.WaitTimeout() != want {
			t.Errorf("%s: %s", doc, f.WaitTimeout())
		}
	}
}

func TestWords(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"a  b\tc\n", []string{"a", "b", "c"}},
		{`sh -c "echo \"$HOME\" \n"`, []string{"sh", "-c", `echo "$HOME" \n`}},
		{`a'b c'd ""`, []string{"ab cd", ""}},
		{`'it is' # a comment`, []string{"it is"}},
		{`a#b`, []string{"a#b"}},
		{`a\ b`, []string{"a b"}},
	} {
		got, err := words(tc.in)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%q: %q, %v", tc.in, got, err)
		}
	}
	for _, bad := range []string{`"a`, `'a`, `a\`} {
		if _, err := words(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if Find(dir) != "" {
		t.Error("found a file where there is none")
	}
	for _, name := range []string{"fly.toml", "bulkhead.toml"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := Find(dir); got != filepath.Join(dir, name) {
			t.Errorf("found %s", got)
		}
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, make([]byte, MaxSize+1), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, big, filepath.Join(dir, "none.toml")} {
		if _, err := Load(p); err == nil {
			t.Errorf("%s was read", p)
		}
	}
}

// FuzzParse: no document makes the reader panic, and what it accepts can be built.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/good/*.toml")
	for _, p := range append(files, "testdata/every-key.toml") {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("a.b.c = {d = [{e = 1}, {e.f = 2}]}\n[[a.x]]\n[a.x.y]\nz = []"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse("f", b)
		if err != nil {
			return
		}
		for _, g := range d.Groups() {
			for i := range d.Files {
				d.Files[i].LocalPath = "" // the fuzzer is not to read this computer
			}
			if _, err := d.MachineConfig(g, "x", nil); err != nil {
				t.Fatalf("accepted, but not built: %v", err)
			}
		}
	})
}
