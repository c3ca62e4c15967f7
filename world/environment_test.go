package world_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bulkhead/world"
)

// credentials find in a text what opens something: keys and tokens by their form,
// variables by their name, and what the key files of one installation hold.
type credentials struct{ values [][]byte }

var (
	formOfCredential = regexp.MustCompile(`-----BEGIN|\bbh_[A-Za-z0-9]|\bfm[12][ra]?_[A-Za-z0-9]|FlyV1 |Bearer |Basic [A-Za-z0-9]`)
	nameOfCredential = regexp.MustCompile(`(?i)^[A-Z0-9_]*(KEY|TOKEN|SECRET|PASS|CRED|AUTH)[A-Z0-9_]*=.`)
)

// credentialsOf reads what lies closed below a data directory and is small enough to be a key.
func credentialsOf(t *testing.T, dir string, more ...string) credentials {
	var c credentials
	for _, m := range more {
		c.values = append(c.values, []byte(m))
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		fi, err := d.Info()
		if err != nil || fi.Mode().Perm()&0o077 != 0 || fi.Size() < 16 || fi.Size() > 16<<10 {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		if !strings.HasSuffix(path, ".pem") && !strings.HasSuffix(path, ".key") && !strings.Contains(path, "key") {
			return nil
		}
		for line := range bytes.Lines(b) {
			if line = bytes.TrimSpace(line); len(line) >= 16 && !bytes.HasPrefix(line, []byte("-----")) {
				c.values = append(c.values, line)
			}
		}
		return nil
	})
	if len(c.values) < 3+len(more) {
		t.Errorf("only %d lines of keys were found in %s", len(c.values), dir)
	}
	return c
}

// in returns what is wrong with a list of variables or arguments.
func (c credentials) in(list string) (found []string) {
	for _, v := range strings.FieldsFunc(list, func(r rune) bool { return r == 0 || r == '\n' }) {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case formOfCredential.MatchString(v):
			found = append(found, name+" has the form of a credential")
		case nameOfCredential.MatchString(v):
			found = append(found, name+" has the name of a credential")
		}
		for _, value := range c.values {
			if strings.Contains(v, string(value)) {
				found = append(found, name+" holds a key of the installation")
				break
			}
		}
	}
	return found
}

// noCredentials looks at environment and arguments of every process of a platform, and
// at the environment that an app finds in its Machine.
func noCredentials(t *testing.T, w *world.World, app, machine string) {
	c := credentialsOf(t, w.DataDir, w.Ready.Token)
	for _, planted := range []string{"A=1\x00CLUSTER_KEY=0123", "PATH=/bin\x00X=" + string(c.values[len(c.values)-1]), "x\x00T=fm2_abc"} {
		if len(c.in(planted)) != 1 {
			t.Fatalf("what is planted in %.40q is not found, or more than it: %v", planted, c.in(planted))
		}
	}
	looked := map[string]int{}
	for _, p := range w.Processes() {
		kind := kindOf(p.PID)
		if _, ours := confinements[kind]; !ours {
			continue // bulkheadd has what it was started with
		}
		for _, file := range []string{"environ", "cmdline"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID, file))
			if err != nil {
				continue
			}
			for _, why := range c.in(string(b)) {
				t.Errorf("%s (%d), %s: %s", kind, p.PID, file, why)
			}
		}
		looked[kind]++
	}
	for kind := range confinements {
		if looked[kind] == 0 {
			t.Errorf("no process of kind %s was looked at", kind)
		}
	}
	r := w.Exec(app, machine, "/bin/busybox", "env")
	if !strings.Contains(r.Stdout, "FLY_MACHINE_ID=") {
		t.Errorf("the app's environment cannot be seen: %+v", r)
	}
	for _, why := range c.in(r.Stdout) {
		t.Errorf("inside the machine: %s", why)
	}
	t.Logf("looked at %v, for %d lines of keys", looked, len(c.values))
}
