package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"bulkhead/internal/await"
)

// TestUsage reads what the kernels of both versions, and a mixed one, would say.
func TestUsage(t *testing.T) {
	want := Usage{Memory: 5 << 20, MemoryLimit: 208 << 20, CPU: 1500 * time.Millisecond, Periods: 40, ThrottledPeriods: 12, Throttled: 250 * time.Millisecond, Tasks: 17, TasksLimit: 1152}
	v1 := map[string]string{
		"memory/%/memory.usage_in_bytes": "5242880\n", "memory/%/memory.limit_in_bytes": "218103808\n",
		"pids/%/pids.current": "17\n", "pids/%/pids.max": "1152\n",
		"cpu,cpuacct/%/cpu.stat": "nr_periods 40\nnr_throttled 12\nthrottled_time 250000000\n", "cpu,cpuacct/%/cpuacct.usage": "1500000000\n",
	}
	for i, files := range []map[string]string{
		{
			"cg/%/memory.current": "5242880\n", "cg/%/memory.max": "218103808\n", "cg/%/pids.current": "17\n", "cg/%/pids.max": "1152\n",
			"cg/%/cpu.stat": "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\nnr_periods 40\nnr_throttled 12\nthrottled_usec 250000\n",
		}, v1,
	} {
		root, tree := fakeHost(t, hosts[i])
		if err := tree.Create(machine, limits); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			dir, file := filepath.Split(name)
			dir = filepath.Join(root, filepath.Dir(filepath.Dir(dir+"x")), "bulkhead-x", machine, sandboxLeaf)
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := tree.Usage(machine); got != want {
			t.Errorf("%s: %+v, want %+v", hosts[i].name, got, want)
		}
		if got := tree.Usage("none"); got != (Usage{}) {
			t.Errorf("%s: of no machine: %+v", hosts[i].name, got)
		}
	}
}

// TestRealUsage: the host's own kernel says something of each.
func TestRealUsage(t *testing.T) {
	tree := realTree(t)
	if err := tree.Create(machine, Limits{MemoryBytes: 32 << 20, CPUQuota: 20, MaxPIDs: 20}); err != nil {
		t.Fatal(err)
	}
	spin := startIn(t, tree, `x=$(head -c 8000000 /dev/zero | tr "\0" x); while :; do :; done`) // the kernel counts memory in batches
	defer func() { spin.Process.Kill(); spin.Wait() }()
	var u Usage
	await.True(t, "each figure is more than nothing", func() bool {
		u = tree.Usage(machine)
		return u.Memory > 0 && u.CPU > 0 && u.Periods > 0 && u.ThrottledPeriods > 0 && u.Throttled > 0 && u.Tasks == 1
	})
	if u.Memory <= 0 || u.MemoryLimit != 32<<20 || u.CPU <= 0 || u.Periods <= 0 || u.ThrottledPeriods <= 0 || u.Throttled <= 0 || u.Tasks != 1 || u.TasksLimit != 20 {
		t.Errorf("usage is %+v", u)
	}
}
