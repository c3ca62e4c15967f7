package supervisor

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// TestRolesAreNotDumped: a role's program has the limit with which the kernel makes no core
// dump, whatever the limit of who started bulkheadd.
func TestRolesAreNotDumped(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_CORE, &before) })
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		t.Fatal(err)
	}
	arg, err := json.Marshal(stage{Parent: os.Getpid(), NoFile: 1024, KeepCaps: wardenCaps, Args: []string{"/bin/sh", "-c", "cat /proc/self/limits"}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", StageCommand, string(arg))
	cmd.Env = []string{"LISTEN_FDS=0", "PATH=/bin:/usr/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !regexp.MustCompile(`(?m)^Max core file size +1 +1 `).Match(out) {
		t.Errorf("the role's limits: %s", out)
	}
}
