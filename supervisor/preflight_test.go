package supervisor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/warden/cgroup"
)

// TestPreflight: this host has everything, and to find out is quick and leaves
// nothing behind.
func TestPreflight(t *testing.T) {
	began := time.Now()
	if err := preflight(context.Background(), hostProbes); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v", time.Since(began))
	for _, p := range hostProbes {
		began := time.Now()
		if err := p.try(context.Background()); err != nil {
			t.Error(err)
		}
		t.Logf("%s: %v", p.name, time.Since(began))
	}
	tree, err := cgroup.Detect("bulkhead-probe-look")
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Destroy(context.Background())
	if left, _ := tree.List(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestDeadProbesAreRemoved: the cgroups of a probe that was killed do not stay for ever;
// those of one that may still go on do.
func TestDeadProbesAreRemoved(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for name, c := range map[string]struct {
		pid  int
		at   time.Time
		left bool
	}{
		"killed long ago": {gone.Process.Pid, old, false},
		"alive":           {os.Getppid(), old, true},
		"just now":        {1 << 22, time.Now(), true}, // no pid is that high
	} {
		tree, err := cgroup.Detect(probePrefix + strconv.Itoa(c.pid))
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Destroy(context.Background())
		if err := tree.Create("probe", cgroup.Limits{MemoryBytes: 64 << 20, CPUQuota: 100, MaxPIDs: 64}); err != nil {
			t.Fatal(err)
		}
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + probePrefix + strconv.Itoa(c.pid))
		for _, dir := range append(dirs, "/sys/fs/cgroup/"+probePrefix+strconv.Itoa(c.pid)) {
			if err := os.Chtimes(dir, c.at, c.at); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if err := probeCgroups(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left, err := tree.List(); err != nil || (len(left) > 0) != c.left {
			t.Errorf("%s: left are %v, %v", name, left, err)
		}
	}
}

// TestMissingFeatures plays hosts that lack one thing each: the start is refused
// before anything is changed, with one sentence that names it and the remedy.
func TestMissingFeatures(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		parts []string
	}{
		{"user namespaces are forbidden", fault.Clone(os.NewSyscallError("clone", errno("EPERM")), "a sandbox's namespaces cannot be made"), []string{"forbids namespaces (EPERM)", "kernel.apparmor_restrict_unprivileged_userns"}},
		{"user namespaces are used up", fault.Clone(errno("ENOSPC"), "a sandbox's namespaces cannot be made"), []string{"no namespace left (ENOSPC)", "user.max_user_namespaces"}},
		{"the kernel has none", fault.Clone(errno("EINVAL"), "a sandbox's namespaces cannot be made"), []string{"CONFIG_USER_NS"}},
		{"no nftables", errors.New("nftables, inside: operation not supported"), []string{"packet rules", "operation not supported", "the remedy"}},
		{"no cgroups", fault.New(fault.Unavailable, "this host has no memory cgroup controller: mount cgroup version 2 at /sys/fs/cgroup, or all of version 1's controllers"), []string{"no memory cgroup controller: mount"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			s := New(n.config)
			s.Stdout, s.Stderr = &n.stdout, &n.stderr
			s.probes = []probe{
				{"something else", func(context.Context) error { return nil }, ""},
				{"packet rules", func(context.Context) error { return c.err }, "the remedy"},
			}
			err := s.Up(context.Background())
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "this host cannot run Bulkhead: ") {
				t.Fatalf("%v", err)
			}
			for _, p := range c.parts {
				if !strings.Contains(err.Error(), p) {
					t.Errorf("%q is not in: %v", p, err)
				}
			}
			if entries, _ := os.ReadDir(n.config.DataDir); len(entries) > 0 {
				t.Errorf("the data directory was touched: %v", entries)
			}
		})
	}
}

// TestProbesSeeARealLack takes namespaces away for real, inside a user namespace of
// the test's own, where the limits bind nobody else.
func TestProbesSeeARealLack(t *testing.T) {
	if sysctl := os.Getenv("BULKHEAD_TEST_LACK"); sysctl != "" {
		if err := os.WriteFile("/proc/sys/user/"+sysctl, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		err := probeSandbox(context.Background())
		t.Logf("said: %v", err)
		return
	}
	for sysctl, part := range map[string]string{
		"max_net_namespaces":  "no namespace left (ENOSPC); raise the sysctls",
		"max_user_namespaces": "no namespace left (ENOSPC); raise the sysctls",
	} {
		cmd := exec.Command("/proc/self/exe", "-test.run=TestProbesSeeARealLack$", "-test.v")
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1<<32 - 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true}
		cmd.Env = append(os.Environ(), "BULKHEAD_TEST_LACK="+sysctl)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), part) || strings.Contains(string(out), "disk") {
			t.Errorf("%s: %v\n%s", sysctl, err, out)
		}
	}
}

// errno is a number by its name.
func errno(name string) error {
	return map[string]error{"EPERM": unix.EPERM, "ENOSPC": unix.ENOSPC, "EINVAL": unix.EINVAL}[name]
}

// TestTrialByHand: the trial that mounts over /proc and /run refuses to run where it
// was not meant to, as root of the host and of a user namespace of somebody's own. A
// mount namespace of its own keeps this host safe from a trial that does run.
func TestTrialByHand(t *testing.T) {
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	for name, attr := range map[string]*syscall.SysProcAttr{
		"root of the host":         {Unshareflags: unix.CLONE_NEWNS},
		"root of a user namespace": {Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID, UidMappings: one, GidMappings: one},
	} {
		cmd := exec.Command("/proc/self/exe", ProbeCommand)
		cmd.SysProcAttr = attr
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "in namespaces of its own alone") {
			t.Errorf("%s: %v: %q", name, err, out)
		}
	}
}
