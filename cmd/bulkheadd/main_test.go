package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bulkhead/doctor"
	"bulkhead/supervisor"
)

// TestMain makes this program also bulkheadd.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "as-bulkheadd" {
		os.Args = append(os.Args[:1], os.Args[2:]...)
		main()
	}
	os.Exit(m.Run())
}

// bulkheadd runs bulkheadd in a process of its own, as root or as nobody.
func bulkheadd(t *testing.T, uid uint32, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"as-bulkheadd"}, args...)...)
	cmd.Dir = "/"
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func TestCommandLine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("bulkheadd is tested as root: sudo make test")
	}
	bad := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(bad, []byte("domain = \"a.example\"\ncolour = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	for _, c := range []struct {
		name           string
		uid            uint32
		args           []string
		stdout, stderr string // parts
		code           int
	}{
		{"nothing", 0, nil, "", "Usage:", 2},
		{"help", 0, []string{"--help"}, "bulkheadd token", "", 0},
		{"version", 0, []string{"version"}, "bulkheadd devel", "", 0},
		{"unknown command", 0, []string{"fly"}, "", `there is no command "fly"`, 2},
		{"unknown flag", 0, []string{"up", "--colour=1"}, "", `"bulkheadd up --help" lists the flags`, 2},
		{"empty value", 0, []string{"up", "--domain", ""}, "", "--domain is empty; give a value, or leave it out", 2},
		{"argument", 0, []string{"up", "now"}, "", `up takes no argument, but got "now"`, 2},
		{"up as nobody", nobody, []string{"up"}, "", "bulkheadd up must run as root", 1},
		{"down as nobody", nobody, []string{"down"}, "", "bulkheadd down must run as root", 1},
		{"token as nobody", nobody, []string{"token"}, "", "bulkheadd token must run as root", 1},
		{"doctor as nobody", nobody, []string{"doctor"}, "", "bulkheadd doctor must run as root", 1},
		{"doctor of nothing", 0, []string{"doctor", "--data-dir", "/nowhere"}, "", "/nowhere holds no installation", 1},
		{"doctor with an argument", 0, []string{"doctor", "now"}, "", `doctor takes no argument, but got "now"`, 2},
		{"doctor with an unknown flag", 0, []string{"doctor", "--cure"}, "", `"bulkheadd doctor --help" lists the flags`, 2},
		{"help of doctor", 0, []string{"doctor", "--help"}, "--strict", "", 0},
		{"stranger by hand", 0, []string{doctor.StrangerCommand, "0"}, "", "for the doctor's own use", 1},
		{"config missing", 0, []string{"up", "--config", "/nowhere.toml"}, "", "the configuration file cannot be read: open /nowhere.toml: no such file or directory", 2},
		{"config with an unknown field", 0, []string{"up", "--config", bad}, "", bad + `:2:1: there is no field "colour"`, 2},
		{"bad value", 0, []string{"up", "--https-addr", "8443"}, "", `https_addr "8443": it must be host:port`, 2},
		{"token of nothing", 0, []string{"token", "--data-dir", "/nowhere"}, "", "/nowhere holds no installation", 1},
		{"down of nothing", 0, []string{"down", "--data-dir", "/nowhere"}, "", "there is no data directory /nowhere", 1},
		{"stage by hand", 0, []string{supervisor.StageCommand}, "", "for bulkheadd's own use", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := bulkheadd(t, c.uid, c.args...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d\nstdout %q\nstderr %q\nwant %+v", code, stdout, stderr, c)
			}
		})
	}
}

// TestHelpShowsEveryField of the configuration.
func TestHelpShowsEveryField(t *testing.T) {
	stdout, _, _ := bulkheadd(t, 0, "up", "--help")
	for _, f := range supervisor.Fields {
		for _, part := range []string{"--" + f.Flag + " ", "(field " + f.Name + ")", f.Doc, "(default " + f.Default + ")"} {
			if !strings.Contains(stdout, part) {
				t.Errorf("%s: help lacks %q", f.Name, part)
			}
		}
	}
	stdout, _, _ = bulkheadd(t, 0, "token", "--help")
	if !strings.Contains(stdout, "--data-dir") || strings.Contains(stdout, "--domain") {
		t.Errorf("help of token:\n%s", stdout)
	}
}

// TestUnit has systemd check its unit, with programs that exist.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Fatal("systemd-analyze is missing: run make setup, or apt-get install systemd")
	}
	b, err := os.ReadFile("../../packaging/bulkhead.service")
	if err != nil {
		t.Fatal(err)
	}
	check := func(unit string) (string, error) {
		file := filepath.Join(t.TempDir(), "bulkhead.service")
		if err := os.WriteFile(file, []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", file).CombinedOutput()
		return string(out), err
	}
	unit := strings.ReplaceAll(string(b), "/usr/local/lib/bulkhead/bulkheadd", "/bin/true")
	if out, err := check(unit); err != nil || strings.Contains(out, "bulkhead.service") {
		t.Errorf("%v\n%s", err, out)
	}
	// The control: a field that does not exist is reported.
	if out, _ := check(strings.Replace(unit, "KillMode=", "KilMode=", 1)); !strings.Contains(out, "KilMode") {
		t.Errorf("systemd-analyze does not see a wrong field:\n%s", out)
	}
	for _, line := range []string{"Type=notify", "KillMode=process", "Restart=always", "ExecStart=/usr/local/lib/bulkhead/bulkheadd up",
		"ExecReload=/usr/local/lib/bulkhead/bulkheadd restart", "FileDescriptorStoreMax=8"} {
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("the unit lacks %s", line)
		}
	}
}

// TestALostTokenIsAnError: a token that nobody can read is not reported as made.
func TestALostTokenIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := show(full, "a line"); err == nil || !strings.Contains(err.Error(), "no space left on device; run it again") {
		t.Errorf("on a full disk: %v", err)
	}
}
