package world

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
)

// identitySecrets sets, uses, rotates and unsets secrets of a running Machine, and then
// looks for their values everywhere that outlives a process: the data directory with etcd
// and journal, the runtime directory, every log, the configs of Machines, and, for those
// that are used no more, the memory of the roles.
func identitySecrets(t *testing.T, w *World) {
	first, second, unseen := planted("first"), planted("second"), planted("unseen")
	firstFile, secondFile := planted("first-file")+"\x00", planted("second-file")
	inBase64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	w.CreateApp("vault", "")
	defer w.MustCLI("apps", "destroy", "vault", "--yes")
	image := w.Push("vault", fixture.StaticGo(t))
	w.Must("POST", "/apps/vault/secrets", map[string]any{"values": map[string]any{"TOKEN": first, "GREETING": "secret", "UNSEEN": unseen, "KEY_FILE": inBase64(firstFile), "BIG": strings.Repeat("b", 60<<10)}}, nil)
	m := w.Run("vault", Config{
		"image": image, "env": map[string]any{"GREETING": "plain"}, "services": HTTPService(8080),
		"files": []any{
			map[string]any{"guest_path": "/srv/tls/key", "secret_name": "KEY_FILE", "mode": 0o444},
			map[string]any{"guest_path": "/srv/tls/roots", "secret_name": "KEY_FILE", "mode": 0o400},
		},
	})
	has := func(name, want string) {
		t.Helper()
		w.Eventually(30*time.Second, func() string {
			if got := variable(w, "vault", name); got != want {
				return fmt.Sprintf("%s is %.80q", name, got)
			}
			return ""
		})
		if want == "" {
			return
		}
		if out := w.Exec("vault", m.ID, "/staticgo", "env", name).Stdout; strings.TrimSpace(out) != name+"="+want {
			t.Errorf("a command finds %.80q", out)
		}
	}
	hasFile := func(want string) {
		t.Helper()
		if _, got, err := w.Get("vault", "/file?path=/srv/tls/key"); got != want || err != nil {
			t.Errorf("the file holds %.80q, %v", got, err)
		}
	}
	has("TOKEN", first)
	has("GREETING", "secret")
	hasFile(firstFile)
	if code, body, err := w.Get("vault", "/file?path=/srv/tls/roots"); code != 404 || !strings.Contains(body, "permission denied") {
		t.Errorf("a user reads root's file: %d %.80q, %v", code, body, err)
	}
	for _, p := range w.Processes() {
		lookAt(t, p.PID, first)
	}
	status := func(want string) {
		t.Helper()
		w.Eventually(20*time.Second, func() string {
			var list struct {
				Secrets []struct{ Name, Status string }
			}
			w.Must("GET", "/apps/vault/secrets", nil, &list)
			for _, s := range list.Secrets {
				if s.Name == "TOKEN" && s.Status != want {
					return "TOKEN is " + s.Status + ", want " + want
				}
			}
			return ""
		})
	}
	status("deployed")

	// Staged: nothing changes until the next start.
	w.MustCLI("secrets", "set", "--app", "vault", "TOKEN="+second, "KEY_FILE="+inBase64(secondFile), "--stage")
	status("staged")
	has("TOKEN", first)
	hasFile(firstFile)
	if out := w.MustCLI("secrets", "deploy", "--app", "vault", "--json"); !strings.Contains(out, m.ID) {
		t.Errorf("secrets deploy says %s", out)
	}
	has("TOKEN", second)
	hasFile(secondFile)
	status("deployed")

	everywhere(t, w, first, second, unseen, firstFile, secondFile)

	// The worker is killed and the controller held up: the Machine starts again with what
	// it had.
	w.Freeze("controller")
	func() {
		defer w.Thaw("controller")
		w.Kill("worker")
		before := sandboxPIDs(w)
		w.Get("vault", "/exit?code=3")
		w.Eventually(60*time.Second, func() string {
			if got := variable(w, "vault", "TOKEN"); got != second || len(sandboxPIDs(w)) == 0 || slices.Equal(before, sandboxPIDs(w)) {
				return fmt.Sprintf("TOKEN is %.80q", got)
			}
			return ""
		})
		hasFile(secondFile)
	}()

	// The cluster key is replaced under way, and what was wrapped with it opens all the same.
	keyFile := filepath.Join(w.DataDir, "cluster-key", "cluster.key")
	before, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(w.Bin, "bulkheadd"), "secrets", "rotate-key", "--data-dir", w.DataDir).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("the cluster key is")) {
		t.Fatalf("rotate-key: %v\n%s", err, out)
	}
	if after, err := os.ReadFile(keyFile); err != nil || bytes.Equal(before, after) || bytes.Count(after, []byte("\nbulkhead-cluster-key")) != 1 {
		t.Errorf("the key file was not replaced: %v", err)
	}
	w.MustCLI("secrets", "unset", "--app", "vault", "TOKEN")
	if out := w.MustCLI("secrets", "list", "--app", "vault"); strings.Contains(out, "TOKEN") || !strings.Contains(out, "GREETING") || !strings.Contains(out, "deployed") {
		t.Errorf("secrets list says %s", out)
	}
	has("TOKEN", "")
	w.Must("POST", "/apps/vault/machines/"+m.ID+"/stop", nil, nil)
	w.Wait("vault", m.ID, "stopped", 30*time.Second)
	everywhere(t, w, first, second, unseen, firstFile, secondFile)
	// What is freed is overwritten soon (secret.Forget), but in the edge, through which the app
	// has printed it.
	heldBy(t, w, forms(unseen), "?bulkhead-edge")
	for _, role := range []string{"controller", "worker", "warden"} {
		for _, p := range []string{"environ", "cmdline"} {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", w.Role(role), p))
			if bytes.Contains(b, []byte(second)) {
				t.Errorf("the %s of the %s holds it", p, role)
			}
		}
	}
}

// variable asks the app for a variable of its environment.
func variable(w *World, app, name string) string {
	_, body, err := w.Get(app, "/env")
	vars := map[string]string{}
	if err == nil {
		err = json.Unmarshal([]byte(body), &vars)
	}
	if err != nil {
		return err.Error()
	}
	return vars[name]
}

// sandboxPIDs are the shims that run.
func sandboxPIDs(w *World) (out []int) {
	for _, p := range w.Processes() {
		if p.Name == "bulkhead-shim" {
			out = append(out, p.PID)
		}
	}
	slices.Sort(out)
	return out
}

// planted makes a value with a core that is the same in JSON, whatever is escaped.
func planted(name string) string {
	b := make([]byte, 12)
	rand.Read(b)
	return "planted-" + name + "-\"" + core + hex.EncodeToString(b) + "\"-<end>"
}

// core begins the part of a planted value that is looked for.
const core = "c0ffee"

// forms are what a planted value could have leaked as: as it is or in JSON, in base64 at
// any offset, in hexadecimal digits.
func forms(v string) [][]byte {
	v = v[strings.Index(v, core):]
	v = v[:strings.IndexByte(v, '"')]
	out := [][]byte{[]byte(v), []byte(hex.EncodeToString([]byte(v))), []byte(strings.ToUpper(hex.EncodeToString([]byte(v))))}
	for shift := range 3 {
		enc := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + v))
		out = append(out, []byte(enc[4:len(enc)-4]))
	}
	return out
}

// everywhere greps everything on disk and in the runtime directory, and the log. Its
// control is a file planted for each form: the same grep finds them all.
func everywhere(t *testing.T, w *World, values ...string) {
	t.Helper()
	var control []string
	for i, f := range forms(values[0]) {
		path := filepath.Join(w.DataDir, "worker", fmt.Sprintf("planted-%d", i))
		if err := os.WriteFile(path, append([]byte("before "), f...), 0o600); err != nil {
			t.Fatal(err)
		}
		control = append(control, path)
	}
	found, files := grep(w, values)
	for _, path := range control {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(found)
	if !slices.Equal(found, control) || files < 40 {
		t.Errorf("of %d files these hold a secret, and only those planted may: %v", files, found)
	}
	log := []byte(w.Log())
	for _, v := range values {
		for _, f := range forms(v) {
			if bytes.Contains(log, f) {
				t.Errorf("the log holds a secret as %.12s…", f)
			}
		}
	}
	t.Logf("%d files and %d bytes of log hold none of %d values", files-len(control), len(log), len(values))
}

// grep lists the files that hold one of the values in any form.
func grep(w *World, values []string) (found []string, files int) {
	var patterns [][]byte
	for _, v := range values {
		patterns = append(patterns, forms(v)...)
	}
	for _, dir := range []string{w.DataDir, w.RunDir()} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return nil // gone meanwhile
			}
			files++
			if slices.ContainsFunc(patterns, func(p []byte) bool { return bytes.Contains(b, p) }) {
				found = append(found, path)
			}
			return nil
		})
	}
	return found, files
}

// lookAt finds nothing of a value in what others may read of a process.
func lookAt(t *testing.T, pid int, value string) {
	t.Helper()
	for _, p := range []string{"environ", "cmdline"} {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, p))
		if bytes.Contains(b, []byte(value)) {
			t.Errorf("/proc/%d/%s holds a secret", pid, p)
		}
	}
}
