package supervisor

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestRolesInheritNothingElse: a descriptor that whoever started bulkheadd left open
// reaches no role, and so no Machine's shim.
func TestRolesInheritNothingElse(t *testing.T) {
	arg, err := json.Marshal(stage{Parent: os.Getpid(), NoFile: 1024, KeepCaps: wardenCaps, Args: []string{"/bin/sh", "-c", "for f in /proc/$$/fd/*; do readlink $f; done; true"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var files []*os.File
	for _, name := range []string{"named", "stray"} {
		f, err := os.Create(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	cmd := exec.Command("/proc/self/exe", StageCommand, string(arg))
	cmd.Env, cmd.ExtraFiles = []string{"LISTEN_FDS=1", "PATH=/bin:/usr/bin"}, files
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(string(out), dir+"/named\n") {
		t.Errorf("the role lacks the file that it was given: %s", out)
	}
	if strings.Contains(string(out), dir+"/stray\n") {
		t.Errorf("the role has a file that it was not given: %s", out)
	}
}
