package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a Machine's sandbox has used. What the host does not tell is 0.
type Usage struct {
	Memory, MemoryLimit int64 // bytes
	CPU                 time.Duration
	Periods             int64 // scheduling periods in which it wanted to run
	ThrottledPeriods    int64 // those in which it had used its share up
	Throttled           time.Duration
	Tasks, TasksLimit   int64 // processes and threads on the host
}

// Usage reads the counters of the Machine's sandbox.
func (t *Tree) Usage(machine string) Usage {
	at := func(controller, name string) string {
		if t.v2 {
			controller = ""
		}
		dir := t.roots[controller]
		if dir == "" {
			return ""
		}
		return filepath.Join(dir, machine, sandboxLeaf, name)
	}
	u := Usage{Tasks: number(at("pids", "pids.current")), TasksLimit: number(at("pids", "pids.max"))}
	stat := table(at("cpu", "cpu.stat"))
	u.Periods, u.ThrottledPeriods = stat["nr_periods"], stat["nr_throttled"]
	if t.v2 {
		u.Memory, u.MemoryLimit = number(at("", "memory.current")), number(at("", "memory.max"))
		u.CPU = time.Duration(stat["usage_usec"]) * time.Microsecond
		u.Throttled = time.Duration(stat["throttled_usec"]) * time.Microsecond
		return u
	}
	u.Memory, u.MemoryLimit = number(at("memory", "memory.usage_in_bytes")), number(at("memory", "memory.limit_in_bytes"))
	u.Throttled = time.Duration(stat["throttled_time"])
	acct := at("cpuacct", "cpuacct.usage")
	if acct == "" { // it is mounted together with cpu
		acct = at("cpu", "cpuacct.usage")
	}
	u.CPU = time.Duration(number(acct))
	return u
}

// number reads a file of one number; "max", or none, is 0.
func number(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n > math.MaxInt64/2 {
		return 0
	}
	return n
}

// table reads a file of lines of a name and a number.
func table(path string) map[string]int64 {
	m := map[string]int64{}
	b, err := os.ReadFile(path)
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			m[name] = n
		}
	}
	return m
}
