package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/internal/await"
)

const machine = "0123456789abcd"

var limits = Limits{MemoryBytes: 256 << 20, CPUQuota: 150, MaxPIDs: 500}

// hostKind is a host as its mountinfo shows it, and the files that its kernel makes
// in a new group.
type hostKind struct {
	name      string
	mountinfo string // with %s for the directory
	files     []string
	want      map[string]string // file → content after Create
	v2        bool
}

var hosts = []hostKind{
	{
		name: "version 2", v2: true,
		mountinfo: "30 23 0:26 / %s/cg rw,nosuid - cgroup2 cgroup2 rw,nsdelegate",
		files: []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "memory.max", "memory.swap.max", "memory.oom.group",
			"memory.events", "cpu.max", "pids.max"},
		want: map[string]string{
			"cg/cgroup.subtree_control":                                "+memory +cpu +pids",
			"cg/bulkhead-x/cgroup.subtree_control":                     "+memory +cpu +pids",
			"cg/bulkhead-x/0123456789abcd/cgroup.subtree_control":      "+memory +cpu +pids",
			"cg/bulkhead-x/0123456789abcd/sandbox/memory.max":          "268435456",
			"cg/bulkhead-x/0123456789abcd/sandbox/memory.swap.max":     "0",
			"cg/bulkhead-x/0123456789abcd/sandbox/memory.oom.group":    "1",
			"cg/bulkhead-x/0123456789abcd/sandbox/cpu.max":             "150000 100000",
			"cg/bulkhead-x/0123456789abcd/sandbox/pids.max":            "500",
			"cg/bulkhead-x/0123456789abcd/shim/memory.max":             "536870912",
			"cg/bulkhead-x/0123456789abcd/shim/cpu.max":                "150000 100000",
			"cg/bulkhead-x/0123456789abcd/shim/pids.max":               "1024",
			"cg/bulkhead-x/0123456789abcd/sandbox/cgroup.procs":        "",
			"cg/bulkhead-x/0123456789abcd/shim/cgroup.subtree_control": "",
		},
	},
	{
		name: "version 1, some controllers together, a service manager, version 2 beside",
		mountinfo: "31 30 0:27 / %[1]s/memory rw - cgroup cgroup rw,memory\n32 30 0:28 / %[1]s/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
			"33 30 0:29 / %[1]s/pids rw - cgroup cgroup rw,pids\n34 30 0:30 / %[1]s/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
			"35 30 0:31 / %[1]s/unified rw - cgroup2 cgroup2 rw\n36 30 0:32 / /proc rw - proc proc rw",
		files: []string{"cgroup.procs", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control", "cpu.cfs_period_us", "cpu.cfs_quota_us", "pids.max"},
		want: map[string]string{
			"memory/bulkhead-x/0123456789abcd/sandbox/memory.limit_in_bytes":       "268435456",
			"memory/bulkhead-x/0123456789abcd/sandbox/memory.memsw.limit_in_bytes": "268435456",
			"cpu,cpuacct/bulkhead-x/0123456789abcd/sandbox/cpu.cfs_period_us":      "100000",
			"cpu,cpuacct/bulkhead-x/0123456789abcd/sandbox/cpu.cfs_quota_us":       "150000",
			"pids/bulkhead-x/0123456789abcd/sandbox/pids.max":                      "500",
			"memory/bulkhead-x/0123456789abcd/shim/memory.limit_in_bytes":          "536870912",
			"cpu,cpuacct/bulkhead-x/0123456789abcd/shim/cpu.cfs_quota_us":          "150000",
			"pids/bulkhead-x/0123456789abcd/shim/pids.max":                         "1024",
			"systemd/bulkhead-x/0123456789abcd/sandbox/cgroup.procs":               "",
			"unified/bulkhead-x/0123456789abcd/shim/cgroup.procs":                  "",
		},
	},
	{
		name: "version 1 without swap accounting",
		mountinfo: "31 30 0:27 / %[1]s/memory rw - cgroup cgroup rw,memory\n32 30 0:28 / %[1]s/cpu rw - cgroup cgroup rw,cpu\n" +
			"33 30 0:29 / %[1]s/pids rw - cgroup cgroup rw,pids",
		files: []string{"cgroup.procs", "memory.limit_in_bytes", "memory.oom_control", "cpu.cfs_period_us", "cpu.cfs_quota_us", "pids.max"},
		want:  map[string]string{"memory/bulkhead-x/0123456789abcd/sandbox/memory.limit_in_bytes": "268435456"},
	},
}

// fakeHost makes a host's tree and opens it; its mkdir fills directories as the
// kernel does.
func fakeHost(t *testing.T, h hostKind) (string, *Tree) {
	t.Helper()
	root := t.TempDir()
	mkdir := func(dir string) error {
		for d := dir; d != root; d = filepath.Dir(d) {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
			for _, f := range h.files {
				if _, err := os.Stat(filepath.Join(d, f)); err != nil {
					if err := os.WriteFile(filepath.Join(d, f), nil, 0o644); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
	info := h.mountinfo
	if h.v2 {
		if err := mkdir(filepath.Join(root, "cg")); err != nil {
			t.Fatal(err)
		}
	}
	info = strings.ReplaceAll(strings.ReplaceAll(info, "%[1]s", root), "%s", root)
	tree, err := open("bulkhead-x", strings.Split(info, "\n"), mkdir)
	if err != nil {
		t.Fatal(err)
	}
	return root, tree
}

func TestFakeHosts(t *testing.T) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			root, tree := fakeHost(t, h)
			if tree.V2() != h.v2 {
				t.Errorf("version 2 is %t", tree.V2())
			}
			for range 2 { // what exists is kept
				if err := tree.Create(machine, limits); err != nil {
					t.Fatal(err)
				}
			}
			for f, want := range h.want {
				if b, err := os.ReadFile(filepath.Join(root, f)); err != nil || string(b) != want {
					t.Errorf("%s is %q, %v, want %q", f, b, err, want)
				}
			}
			if err := tree.AddShim(machine, 77); err != nil {
				t.Fatal(err)
			}
			if group, err := tree.OpenShim(machine); err != nil || (group != nil) != strings.Contains(h.mountinfo, "cgroup2") {
				t.Fatalf("a group of version 2 to be cloned into: %v, %v", group, err)
			} else if group != nil { // which the kernel does
				defer group.Close()
				if err := os.WriteFile(filepath.Join(group.Name(), "cgroup.procs"), []byte("77"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := tree.Processes(machine); !slices.Equal(got, []int{77}) {
				t.Errorf("processes are %v", got)
			}
			if names, err := tree.List(); err != nil || !slices.Equal(names, []string{machine}) {
				t.Errorf("machines are %v, %v", names, err)
			}
			for _, c := range []struct {
				content string
				want    bool
			}{{"", false}, {"oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", false}, {"low 0\noom 3\noom_kill 2\noom_group_kill 1\n", true}} {
				if err := os.WriteFile(tree.oomFile(machine), []byte(c.content), 0o644); err != nil {
					t.Fatal(err)
				}
				if got := tree.OOMKilled(machine); got != c.want {
					t.Errorf("%q: killed is %t", c.content, got)
				}
			}
		})
	}
}

func TestUnusableHosts(t *testing.T) {
	mkdir := func(string) error { return nil }
	_, err := open("x", []string{"31 30 0:27 / /m rw - cgroup cgroup rw,memory"}, mkdir)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "cpu") {
		t.Errorf("half of version 1: %v", err)
	}
	_, err = open("x", []string{"30 23 0:26 / " + t.TempDir() + " rw - cgroup2 cgroup2 rw"}, mkdir)
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("version 2 without controllers: %v", err)
	}
}

func TestBadLimits(t *testing.T) {
	_, tree := fakeHost(t, hosts[0])
	for _, l := range []Limits{{}, {MemoryBytes: 1, CPUQuota: 1}, {MemoryBytes: -1, CPUQuota: 1, MaxPIDs: 1}} {
		if err := tree.Create(machine, l); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

// realTree is the host's own.
func realTree(t *testing.T) *Tree {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes cgroups; run it as root: sudo -E go test ./warden/cgroup")
	}
	tree, err := Detect(fmt.Sprintf("bulkhead-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := tree.Destroy(ctx); err != nil {
			t.Errorf("destroy: %v", err)
		}
		for _, dir := range tree.roots {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", dir, err)
			}
		}
	})
	return tree
}

// startIn runs a command that joins the sandbox's group through descriptors that
// this process opened, as an unprivileged user.
func startIn(t *testing.T, tree *Tree, script string) *exec.Cmd {
	t.Helper()
	procs, oom, err := tree.OpenSandbox(machine)
	if err != nil {
		t.Fatal(err)
	}
	oom.Close()
	join := ""
	for i := range procs {
		join += fmt.Sprintf("echo 0 >&%d; ", 3+i)
	}
	cmd := exec.Command("/bin/sh", "-c", join+script)
	cmd.ExtraFiles = procs
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range procs {
		f.Close()
	}
	return cmd
}

// TestRealTree joins, limits and kills on the host's own cgroups.
func TestRealTree(t *testing.T) {
	tree := realTree(t)
	if err := tree.Create(machine, Limits{MemoryBytes: 32 << 20, CPUQuota: 50, MaxPIDs: 20}); err != nil {
		t.Fatal(err)
	}
	// More memory than there is.
	hog := startIn(t, tree, `x=0123456789abcdef; while :; do x="$x$x"; done`)
	if err := hog.Wait(); err == nil || hog.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the hog ended with %v", err)
	}
	if !tree.OOMKilled(machine) {
		t.Error("no out-of-memory kill was counted")
	}
	// More processes than there may be, all killed together.
	many := startIn(t, tree, `for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 100 & done; wait`)
	done := make(chan struct{})
	go func() { many.Wait(); close(done) }()
	n := 0
	await.True(t, "there are many processes", func() bool {
		n = len(tree.Processes(machine))
		return n >= 15
	})
	if n > 20 {
		t.Errorf("%d processes, want at most 20", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 2 {
		if err := tree.Remove(ctx, machine); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	if names, err := tree.List(); err != nil || len(names) != 0 {
		t.Errorf("machines are %v, %v", names, err)
	}
}

// TestShimIsClonedIntoItsGroup clones a process into the shim's group of version 2's hierarchy,
// and moves it into those of version 1's, on the host's own cgroups.
func TestShimIsClonedIntoItsGroup(t *testing.T) {
	tree := realTree(t)
	if err := tree.Create(machine, limits); err != nil {
		t.Fatal(err)
	}
	group, err := tree.OpenShim(machine)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "100")
	if group != nil {
		defer group.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := tree.AddShim(machine, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	for hierarchy, dir := range tree.roots {
		b, err := os.ReadFile(filepath.Join(dir, machine, shimLeaf, "cgroup.procs"))
		if want := fmt.Sprintf("%d\n", cmd.Process.Pid); err != nil || string(b) != want {
			t.Errorf("hierarchy %q: the shim's group has the processes %q, not %q (%v)", hierarchy, b, want, err)
		}
	}
}

// TestForkBombIsKilled: a Machine whose processes fork as fast as they can ends all
// the same, in the place of its sandbox and in that of its shim.
func TestForkBombIsKilled(t *testing.T) {
	for _, leaf := range []string{sandboxLeaf, shimLeaf} {
		tree := realTree(t)
		if err := tree.Create(machine, Limits{MemoryBytes: 512 << 20, CPUQuota: 200, MaxPIDs: 1024}); err != nil {
			t.Fatal(err)
		}
		// A moment to be moved, then every process makes two, and those that fail go on.
		bomb := startIn(t, tree, `sleep 0.2; f() { while :; do f & done; }; f`)
		if leaf == shimLeaf {
			for _, dir := range tree.roots {
				if err := write(filepath.Join(dir, machine, shimLeaf, "cgroup.procs"), fmt.Sprint(bomb.Process.Pid)); err != nil {
					t.Fatal(err)
				}
			}
		}
		go bomb.Wait()
		await.True(t, "the bomb in "+leaf+" goes off", func() bool { return len(tree.Processes(machine)) >= 200 })
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if err := tree.Remove(ctx, machine); err != nil {
			t.Errorf("%s: %.200v", leaf, err)
		}
		cancel()
	}
}
