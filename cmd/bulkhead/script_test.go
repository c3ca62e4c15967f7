package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"bulkhead/cli"
	"bulkhead/cmd/bulkhead/internal/fakeplatform"
	"bulkhead/internal/await"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"bulkhead": func() { os.Exit(cli.Main()) },
	})
}

// TestScripts runs every script of testdata against a platform of its own. In a
// script, $URL, $PIN, $TOKEN, $HOST (host:port of the API) and $REGISTRY describe
// the platform; see commands for what a script can do besides running bulkhead.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds:                commands,
		Condition: func(cond string) (bool, error) {
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

type platformKey struct{}

func platform(ts *testscript.TestScript) *fakeplatform.Platform {
	return ts.Value(platformKey{}).(*fakeplatform.Platform)
}

func setup(env *testscript.Env) error {
	p, err := fakeplatform.Start()
	if err != nil {
		return err
	}
	env.Defer(p.Close)
	env.Values[platformKey{}] = p
	host := "api." + fakeplatform.Domain + ":" + p.Port
	env.Setenv("URL", p.URL())
	env.Setenv("HOST", host)
	env.Setenv("CLUSTER", fakeplatform.Domain+":"+p.Port)
	env.Setenv("REGISTRY", "registry."+fakeplatform.Domain+":"+p.Port)
	env.Setenv("PIN", p.Pin)
	env.Setenv("TOKEN", fakeplatform.Token)
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, ".xdg"))
	env.Setenv("CONFIG", filepath.Join(env.WorkDir, ".xdg", "bulkhead", "config.json"))
	// A proxy in the environment must not be used: nothing listens there.
	env.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	env.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	// Under the race detector a program sleeps for a second before it ends: not each command.
	env.Setenv("GORACE", "atexit_sleep_ms=10")
	return nil
}

// commands are what scripts can do besides running programs.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	// login logs in, as most scripts begin.
	"login": func(ts *testscript.TestScript, neg bool, args []string) {
		ts.Check(ts.Exec("bulkhead", "login", ts.Getenv("URL"), "--pin", ts.Getenv("PIN"), "--token", ts.Getenv("TOKEN")))
	},
	// code N PROGRAM ARG... runs a program and wants exit code N.
	"code": func(ts *testscript.TestScript, neg bool, args []string) {
		want, err := strconv.Atoi(args[0])
		ts.Check(err)
		err = ts.Exec(args[1], args[2:]...)
		got := 0
		if err != nil {
			m := regexp.MustCompile(`exit status (\d+)`).FindStringSubmatch(err.Error())
			if m == nil {
				ts.Fatalf("%v", err)
			}
			got, _ = strconv.Atoi(m[1])
		}
		if got != want {
			ts.Fatalf("exit code %d, not %d", got, want)
		}
	},
	// mode OCTAL PATH wants a file mode.
	"mode": func(ts *testscript.TestScript, neg bool, args []string) {
		st, err := os.Stat(ts.MkAbs(args[1]))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, not %s", args[1], got, args[0])
		}
	},
	// mkimage KIND PATH [ARCH...] makes an image; see images_test.go.
	"mkimage": func(ts *testscript.TestScript, neg bool, args []string) {
		ts.Check(makeImage(args[0], ts.MkAbs(args[1]), args[2:]))
	},
	// machines APP FILE writes the JSON of an app's Machines to a file.
	"machines": func(ts *testscript.TestScript, neg bool, args []string) {
		b, err := platform(ts).Machines(args[0])
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), b, 0o600))
	},
	// configs APP FILE writes only what the Machines run.
	"configs": func(ts *testscript.TestScript, neg bool, args []string) {
		b, err := platform(ts).Machines(args[0])
		ts.Check(err)
		var ms []struct {
			Config json.RawMessage `json:"config"`
		}
		ts.Check(json.Unmarshal(b, &ms))
		var out bytes.Buffer
		for _, m := range ms {
			ts.Check(json.Indent(&out, m.Config, "", "  "))
			out.WriteByte('\n')
		}
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), out.Bytes(), 0o600))
	},
	// count APP N wants N Machines of an app.
	"count": func(ts *testscript.TestScript, neg bool, args []string) {
		b, err := platform(ts).Machines(args[0])
		ts.Check(err)
		if got := strconv.Itoa(bytes.Count(b, []byte(`"instance_id"`))); got != args[1] {
			ts.Fatalf("app %s has %s Machines, not %s", args[0], got, args[1])
		}
	},
	// lease APP makes somebody else lease an app's Machines.
	"lease": func(ts *testscript.TestScript, neg bool, args []string) {
		ts.Check(platform(ts).LeaseAll(args[0]))
	},
	// unleased APP wants that no lease is left.
	"unleased": func(ts *testscript.TestScript, neg bool, args []string) {
		if n := platform(ts).Leased(args[0]); n != 0 {
			ts.Fatalf("%d Machines of %s are still leased", n, args[0])
		}
	},
	// log APP LINE makes an app write a line.
	"log": func(ts *testscript.TestScript, neg bool, args []string) {
		line, err := strconv.Unquote(`"` + args[1] + `"`)
		ts.Check(err)
		ts.Check(platform(ts).Log(args[0], line))
	},
	// arch ARCH... sets what the platform's hosts run.
	"arch": func(ts *testscript.TestScript, neg bool, args []string) {
		platform(ts).SetArchitectures(args...)
	},
	// uploads N wants that N blobs were uploaded since the last look.
	"uploads": func(ts *testscript.TestScript, neg bool, args []string) {
		if got := strconv.Itoa(platform(ts).Uploads()); got != args[0] {
			ts.Fatalf("%s blobs were uploaded, not %s", got, args[0])
		}
	},
	// requests wants that no request reached the platform since the last look (with
	// !), or prints those that did.
	"requests": func(ts *testscript.TestScript, neg bool, args []string) {
		rs := platform(ts).Requests()
		if neg && len(rs) > 0 {
			ts.Fatalf("the platform was asked: %s", strings.Join(rs, ", "))
		}
	},
	// down ends the platform.
	"down": func(ts *testscript.TestScript, neg bool, args []string) { platform(ts).Close() },
	// starting APP waits until a Machine of an app is starting.
	"starting": func(ts *testscript.TestScript, neg bool, args []string) {
		await.True(ts, "a Machine of "+args[0]+" is starting", func() bool {
			b, err := platform(ts).Machines(args[0])
			return err == nil && bytes.Contains(b, []byte(`"state": "starting"`))
		})
	},
	// interrupt FILE sends Ctrl-C to the process whose id FILE holds.
	"interrupt": func(ts *testscript.TestScript, neg bool, args []string) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		ts.Check(err)
		n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
		ts.Check(err)
		p, err := os.FindProcess(n)
		ts.Check(err)
		ts.Check(p.Signal(os.Interrupt))
	},
	// contains-status APP TEXT waits until "bulkhead status" of an app prints a text.
	"contains-status": func(ts *testscript.TestScript, neg bool, args []string) {
		await.True(ts, "the status of "+args[0]+" contains "+args[1], func() bool {
			ts.Check(ts.Exec("bulkhead", "status", "--app", args[0]))
			return strings.Contains(ts.ReadFile("stdout"), args[1])
		})
	},
	// contains FILE TEXT waits until a file that is being written has a text.
	"contains": func(ts *testscript.TestScript, neg bool, args []string) {
		await.True(ts, args[0]+" contains "+args[1], func() bool {
			b, err := os.ReadFile(ts.MkAbs(args[0]))
			return err == nil && bytes.Contains(b, []byte(args[1]))
		})
	},
}
