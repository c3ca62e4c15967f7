package world_test

import (
	"bufio"
	"context"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/world"
)

// saidRE is a command in what bulkhead prints: quoted, or at the end of a line.
var saidRE = regexp.MustCompile(`"(bulkheadd? [^"]+)"|: (bulkhead [^"\n]+)\n`)

// mistake is something that a user does wrong, and the commands that bulkhead says help.
type mistake struct {
	name string
	env  []string
	args string
	code int
	says string // a part of what it prints
	// words stand for what a hint leaves open, such as IMAGE.
	words map[string]string
	// more is given to a command of a hint that names it without its arguments.
	more map[string]string
	// Where the hint is in words: again does what they say, and the same command then works
	// with the arguments of added.
	again func(t *testing.T)
	added string
}

// hints makes mistakes on a running platform, and does what the hints say: each command in
// them exits with 0 in the state in which it was printed. The app "site" has one Machine.
func hints(t *testing.T, w *world.World, env []string, image string) {
	nobody := append(slices.Clone(env), "BULKHEAD_CONFIG="+filepath.Join(t.TempDir(), "own.json"))
	with := func(extra string) []string { return append(slices.Clone(env), extra) }
	h := &hinted{w: w, env: env, nobody: nobody}
	for _, app := range []string{"hint-bare", "hint-lease"} {
		h.must(t, "apps", "create", app)
	}
	h.must(t, "deploy", "--app", "hint-lease", "--image", image, "--settle", "0s")
	var leased []world.Machine
	w.Must("GET", "/apps/hint-lease/machines", nil, &leased)
	machine := leased[0].ID
	lease := "/apps/hint-lease/machines/" + machine + "/lease"
	var taken struct{ Data struct{ Nonce string } }
	w.Must("POST", lease+"?ttl=600", map[string]any{}, &taken)

	img := map[string]string{"IMAGE": image}
	invite := map[string]string{"bulkhead orgs invite": " personal viewer"}
	for _, m := range []mistake{
		{name: "not logged in", env: nobody, args: "apps list", code: 4, says: "not logged in", more: invite},
		{name: "no such cluster", env: with("BULKHEAD_CONFIG=/nowhere/c.json"), args: "apps list --cluster x", code: 3,
			says: "there is no cluster", more: invite},
		{name: "half an environment", env: with("BULKHEAD_URL=" + w.Ready.APIURL), args: "apps list", code: 2,
			says: "BULKHEAD_URL is set"},
		{name: "no pin", env: env, args: "login " + w.Ready.APIURL + " --token x", code: 2, says: "missing --pin"},
		{name: "no token", env: env, args: "login " + w.Ready.APIURL + " --pin " + w.Ready.Pin, code: 2,
			says: "missing --token"},
		{name: "a bad token", env: with("BULKHEAD_TOKEN=fm2_bad"), args: "apps list", code: 4, says: "Authenticate"},
		{name: "another pin", env: with("BULKHEAD_PIN=" + strings.Repeat("A", 43)), args: "apps list", code: 4,
			says: "another key"},
		{name: "a taken name", env: env, args: "apps create hint-bare", code: 5, says: "choose another name", words: img},
		{name: "no such app", env: env, args: "status --app zulu", code: 3, says: "there is no app",
			words: map[string]string{"NAME": "zulu"}},
		{name: "no such Machine", env: env, args: "machine status 00000000000000 --app site", code: 3,
			says: "there is no Machine"},
		{name: "no command", env: env, args: "machine exec --app site", code: 2, says: "missing COMMAND",
			words: map[string]string{"COMMAND": "/staticgo echo hi"}},
		{name: "no image", env: env, args: "deploy --app hint-bare", code: 2, says: "nothing to deploy", words: img},
		{name: "no variable to set", env: env, args: "env set A=b --app zulu", code: 3, says: "no Machine that a deploy made",
			words: map[string]string{"IMAGE": image, "NAME=VALUE": "A=b"}},
		{name: "no such secret", env: env, args: "secrets unset NOPE --app site", code: 3, says: "no secret NOPE"},
		{name: "no such variable", env: env, args: "env unset NOPE --app site", code: 3,
			says: "no environment variable NOPE"},
		{name: "a staged secret", env: env, args: "secrets set A=b --app zulu --stage", code: 0, says: "staged"},
		{name: "no such token", env: env, args: "tokens revoke x", code: 2, says: "bulkhead tokens list"},
		{name: "no such node", env: env, args: "node remove nope", code: 3, says: "bulkhead node list"},
		{name: "no such login", env: env, args: "logout nope", code: 3, says: "bulkhead clusters list"},
		{name: "an unknown command", env: env, args: "machin list", code: 2, says: "did you mean"},
		{name: "an unknown flag", env: env, args: "apps list --colour", code: 2, says: "unknown flag"},
		{name: "a lease of somebody else", env: env, args: "machine stop --app hint-lease --signal SIGKILL", code: 5,
			says: "another deploy may hold it", again: func(t *testing.T) { release(t, w, lease, taken.Data.Nonce) }},
		{name: "too much memory", env: env, args: "deploy --app hint-bare --settle 0s --memory 262144 --image " + image,
			code: 5,
			says: "ask for less memory with --memory", added: "--memory 256"},
		{name: "a running Machine", env: env, args: "machine destroy --app zulu MACHINE", code: 5,
			says:  "stop it first, or add --force",
			added: "--force"},
	} {
		t.Run(m.name, func(t *testing.T) { h.try(t, m) })
	}
	for _, app := range []string{"hint-bare", "hint-lease", "zulu"} {
		h.must(t, "apps", "destroy", app, "--yes")
	}
}

// release ends a lease.
func release(t *testing.T, w *world.World, path, nonce string) {
	t.Helper()
	req, err := http.NewRequest("DELETE", w.Ready.APIURL+"/v1"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Ready.Token)
	req.Header.Set("fly-machine-lease-nonce", nonce)
	resp, err := w.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("the lease could not be given back: %d", resp.StatusCode)
	}
}

// hinted does what hints say.
type hinted struct {
	w      *world.World
	env    []string // of a user who is logged in
	nobody []string // of one who is not
	users  int
}

func (h *hinted) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := h.w.CLIWith(h.env, args...)
	if code != 0 {
		t.Errorf("bulkhead %s exits with %d: %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out + errs
}

// try makes a mistake, and then does what was printed.
func (h *hinted) try(t *testing.T, m mistake) {
	if strings.Contains(m.args, "MACHINE") {
		var ms []world.Machine
		h.w.Must("GET", "/apps/zulu/machines", nil, &ms)
		m.args = strings.ReplaceAll(m.args, "MACHINE", ms[0].ID)
	}
	out, errs, code := h.w.CLIWith(m.env, strings.Fields(m.args)...)
	said := out + errs
	if code != m.code || !strings.Contains(said, m.says) {
		t.Fatalf("bulkhead %s: exit code %d, %s", m.args, code, said)
	}
	if strings.Contains(said, "deploying") || strings.Contains(said, "bulkheadd up") {
		t.Errorf("a hint that is not true here: %s", said)
	}
	if m.again != nil || m.added != "" {
		if m.again != nil {
			m.again(t)
		}
		words := strings.Fields(m.args + " " + m.added)
		if words[0] == "deploy" {
			words = append(words, "--settle", "0s")
		}
		h.must(t, words...)
		return
	}
	if i := strings.LastIndex(said, "\nhint: "); i >= 0 {
		said = said[i:] // what is wrong is not what helps
	}
	found := saidRE.FindAllStringSubmatch(said, -1)
	if len(found) == 0 {
		t.Fatalf("no command is named: %s", said)
	}
	for _, f := range found {
		line := f[1] + f[2]
		line += m.more[line]
		for word, with := range m.words {
			line = strings.ReplaceAll(line, word, with)
		}
		h.follow(t, line)
	}
}

// follow runs a command that was named: one of bulkheadd on the server, as root.
func (h *hinted) follow(t *testing.T, line string) {
	t.Helper()
	words := strings.Fields(line)
	if len(words) > 1 && words[1] == "deploy" {
		words = append(words, "--settle", "0s") // what it waits for is tried elsewhere
	}
	switch {
	case line == "bulkhead auth login":
		h.beginLogin(t)
		return
	case words[0] == "bulkhead":
		line = h.must(t, words[1:]...)
	default:
		out, err := exec.Command(filepath.Join(h.w.Bin, words[0]), append(words[1:], "--data-dir",
			h.w.DataDir)...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v %s", line, err, out)
		}
		line = string(out)
	}
	// A login line that it prints is good.
	if _, login, ok := strings.Cut(line, "bulkhead login "); ok && strings.Contains(login, "--token bh_") {
		login, _, _ = strings.Cut(login, "\n")
		h.users++
		who := append(slices.Clone(h.nobody), "USER=hint"+strconv.Itoa(h.users))
		if out, errs, code := h.w.CLIWith(who, append([]string{"login"}, strings.Fields(login)...)...); code != 0 {
			t.Errorf("the line that was printed: %d %s%s", code, out, errs)
		}
	}
}

// beginLogin begins a login by browser, and wants the page that it names to be there.
func (h *hinted) beginLogin(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := h.w.CLICommand(ctx, h.env, "auth", "login", "--no-browser")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, rerr := bufio.NewReader(stderr).ReadString('\n')
	cancel()
	cmd.Wait() // it was killed
	page, ok := strings.CutPrefix(strings.TrimSpace(line), "open ")
	if !ok {
		t.Fatalf("bulkhead auth login prints %q, %v", line, rerr)
	}
	resp, err := h.w.Client().Get(page)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 400 {
		t.Errorf("the page %s answers %d", page, resp.StatusCode)
	}
}
