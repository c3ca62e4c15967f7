package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"bulkhead/fixture"
)

// identityWorkload asks for an identity token with curl inside real Machines, verifies it
// as another service does, and has one Machine try to be what it is not.
func identityWorkload(t *testing.T, w *World) {
	w.CreateApp("robots", "")
	image := w.Push("robots", fixture.Curl(t))
	a, b := w.Run("robots", Config{"image": image}), w.Run("robots", Config{"image": image, "env": map[string]any{"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/robots"}})
	defer w.Must("DELETE", "/apps/robots?force=true", nil, nil)
	curl := func(m Machine, args ...string) string {
		t.Helper()
		r := w.Exec("robots", m.ID, append([]string{"curl", "-sS", "--max-time", "30", "--unix-socket", "/.fly/api"}, args...)...)
		if r.ExitCode != 0 {
			t.Fatalf("curl %s: code %d, %s%s", strings.Join(args, " "), r.ExitCode, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	code := func(m Machine, args ...string) string {
		t.Helper()
		return curl(m, append([]string{"-o", "/dev/null", "-w", "%{http_code}"}, args...)...)
	}

	token := curl(a, "http://localhost/v1/tokens/oidc", "-d", `{"aud":"sts.amazonaws.com"}`)
	verify := func(token string) (*oidc.IDToken, error) {
		ctx, cancel := context.WithTimeout(oidc.ClientContext(context.Background(), &http.Client{Transport: w.Client().Transport}), 30*time.Second)
		defer cancel()
		p, err := oidc.NewProvider(ctx, w.URL("api", "")+"/oidc/personal")
		if err != nil {
			return nil, err
		}
		return p.Verifier(&oidc.Config{ClientID: "sts.amazonaws.com"}).Verify(ctx, token)
	}
	got, err := verify(token)
	if err != nil {
		t.Fatalf("%v: %s", err, token)
	}
	var itself struct{ Name string }
	if err := json.Unmarshal([]byte(curl(a, "http://x/v1/apps/robots/machines/"+a.ID)), &itself); err != nil {
		t.Fatal(err)
	}
	if want := "personal:robots:" + itself.Name; got.Subject != want {
		t.Errorf("the token is about %q, want %q", got.Subject, want)
	}

	// With AWS_ROLE_ARN there is a file that holds a token like that, whatever root in the
	// Machine does to it; without, there is none.
	shell := func(m Machine, script string) string {
		t.Helper()
		r := w.Exec("robots", m.ID, "/bin/busybox", "sh", "-c", script)
		return r.Stdout + r.Stderr
	}
	if got, err := verify(shell(b, "cat $AWS_WEB_IDENTITY_TOKEN_FILE")); err != nil || got.Subject == "personal:robots:"+itself.Name || !strings.HasPrefix(got.Subject, "personal:robots:") {
		t.Errorf("the token's file: %+v, %v", got, err)
	}
	const attack = "f=/.fly/oidc_token; rm -f $f; echo x >$f; mv $f /tmp/x; umount $f; chmod 0 $f; cat $f $f | tr -cd . | wc -c; echo $AWS_ROLE_SESSION_NAME"
	if got := strings.Fields(shell(b, "exec 2>/dev/null; "+attack)); len(got) != 2 || got[0] != "4" || got[1] != b.ID {
		t.Errorf("after attacks on the token's file: %q", got)
	}
	if got := shell(a, "cat /.fly/oidc_token; echo $AWS_WEB_IDENTITY_TOKEN_FILE"); !strings.Contains(got, "No such file") || strings.Contains(got, "oidc_token\n/") {
		t.Errorf("a machine without a role: %q", got)
	}

	// It acts on itself alone, with an operator's token in its hands too.
	bearer := "Authorization: Bearer " + w.Ready.Token
	machine := "http://anything.example/v1/apps/robots/machines/"
	if got := code(a, machine+a.ID); got != "200" {
		t.Errorf("itself: %s", got)
	}
	var tries []string
	var script strings.Builder
	for what, args := range map[string][]string{
		"another machine": {machine + b.ID}, "its app's machines": {strings.TrimSuffix(machine, "/")}, "stopping another": {"-XPOST", machine + b.ID + "/stop"},
		"a command in itself": {"-XPOST", machine + a.ID + "/exec", "-d", `{"command":["id"]}`}, "secrets": {"http://x/v1/apps/robots/secrets"},
		"the nodes": {"http://x/v1/platform/nodes"}, "the app's end": {"-XDELETE", "http://x/v1/apps/robots"},
	} {
		for _, h := range []string{"X-None: 1", bearer} {
			tries = append(tries, fmt.Sprintf("%s, with %q", what, strings.SplitN(h, " ", 2)[0]))
			fmt.Fprintf(&script, "curl -s --max-time 30 --unix-socket /.fly/api -o /dev/null -w '%%{http_code} ' -H '%s' '%s'\n", h, strings.Join(args, "' '"))
		}
	}
	answers := strings.Fields(w.Exec("robots", a.ID, "/bin/busybox", "sh", "-c", script.String()).Stdout)
	if len(answers) != len(tries) {
		t.Fatalf("%d answers to %d tries", len(answers), len(tries))
	}
	for i, got := range answers {
		if got != "403" {
			t.Errorf("%s: %s, want 403", tries[i], got)
		}
	}

	// A worker that is started anew: the Machine runs on, and its socket works again.
	w.Kill("worker")
	w.Eventually(60*time.Second, func() string {
		status, body := w.APIRaw("POST", "/apps/robots/machines/"+b.ID+"/exec", map[string]any{"command": []string{"curl", "-sS", "--max-time", "10", "--unix-socket", "/.fly/api", machine + b.ID}, "timeout": 20})
		var r ExecResult
		var m Machine
		if json.Unmarshal(body, &r) != nil || json.Unmarshal([]byte(r.Stdout), &m) != nil || m.ID != b.ID {
			return fmt.Sprintf("after the worker's restart: %d %s", status, body)
		}
		return ""
	})
	// Suspending itself is the last thing that it does.
	w.APIRaw("POST", "/apps/robots/machines/"+a.ID+"/exec", map[string]any{"command": []string{"curl", "-sS", "--unix-socket", "/.fly/api", "-XPOST", machine + a.ID + "/suspend"}, "timeout": 20})
	w.Wait("robots", a.ID, "stopped", 60*time.Second)
}
