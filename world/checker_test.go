package world_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// mustBeBlocked are system calls that it must find refused in a Machine.
var mustBeBlocked = []string{
	"ACCT", "ADJTIMEX", "BPF", "CLOCK_SETTIME", "DELETE_MODULE", "FINIT_MODULE", "INIT_MODULE", "IOPL", "IOPERM", "KCMP", "KEXEC_LOAD", "KEXEC_FILE_LOAD",
	"LOOKUP_DCOOKIE", "MOUNT", "UMOUNT2", "PIVOT_ROOT", "QUOTACTL", "REBOOT", "SETHOSTNAME", "SETDOMAINNAME", "SETTIMEOFDAY", "SWAPON", "SWAPOFF",
}

// TestCheckerInsideAMachine has amicontained judge a Machine, and, as the control, what
// root of a user namespace on the host may do.
func TestCheckerInsideAMachine(t *testing.T) {
	t.Parallel()
	program := fixture.Tool(t, fixture.AmIContained)
	w := world.Shared(t)
	w.CreateApp("checker", "")
	image := fixture.Attack(t, fixture.File{Path: "/amicontained", Body: program, Mode: 0o755})
	m := w.Run("checker", world.Config{"image": w.Push("checker", image), "init": map[string]any{"exec": []string{"/attack", "wait", "x", "{}"}}})
	r := w.Exec("checker", m.ID, "/amicontained")
	if r.ExitCode != 0 {
		t.Fatalf("amicontained: %+v", r)
	}
	caps, blocked := verdict(t, r.Stdout)
	want := []string{"audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "mknod", "net_bind_service", "setfcap", "setgid", "setpcap", "setuid", "sys_chroot"}
	if slices.Sort(caps); !slices.Equal(caps, want) {
		t.Errorf("it finds the capabilities %q, want %q", caps, want)
	}
	for _, call := range mustBeBlocked {
		if !slices.Contains(blocked, call) {
			t.Errorf("it finds system call %s open", call)
		}
	}
	if strings.Contains(strings.ToLower(r.Stdout), "docker.sock found") {
		t.Errorf("it finds an engine's socket:\n%s", r.Stdout)
	}

	path := filepath.Join(t.TempDir(), "amicontained")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := judgeOutside(t, path)
	_, outside := verdict(t, out)
	for _, call := range []string{"MOUNT", "UMOUNT2", "PIVOT_ROOT", "SETHOSTNAME", "SETDOMAINNAME"} {
		if slices.Contains(outside, call) {
			t.Errorf("the control (%v): it finds %s blocked outside of a Machine, too: its verdict means nothing:\n%s", err, call, out)
		}
	}
	t.Logf("blocked system calls: %d in a Machine, %d in the control", len(blocked), len(outside))
}

// judgeOutside runs amicontained as root of a user namespace, where it can harm
// nothing. It tries every system call, among them some that stop the process that
// makes them, or its session, for good: several try it, each in a session of its own,
// and the first that comes to an end is heard.
func judgeOutside(t *testing.T, path string) (out string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	type verdict struct {
		out []byte
		err error
	}
	const tries = 4
	ended := make(chan verdict, tries)
	for range tries {
		cmd := exec.CommandContext(ctx, "unshare", "--user", "--map-root-user", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child=KILL", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = time.Second
		go func() {
			b, err := cmd.CombinedOutput()
			ended <- verdict{b, err}
		}()
	}
	for range tries {
		v := <-ended
		if out, err = string(v.out), v.err; err == nil {
			break
		}
	}
	return out, err
}

// verdict reads what amicontained says: the bounding set and the blocked system calls.
func verdict(t *testing.T, out string) (caps, blocked []string) {
	t.Helper()
	c := regexp.MustCompile(`BOUNDING -> (.*)`).FindStringSubmatch(out)
	b := regexp.MustCompile(`Blocked [Ss]yscalls \(\d+\):\s+(.*)`).FindStringSubmatch(out)
	if len(c) != 2 {
		t.Fatalf("amicontained says nothing of capabilities:\n%s", out)
	}
	if len(b) == 2 {
		blocked = strings.Fields(b[1])
	}
	return strings.Fields(c[1]), blocked
}
