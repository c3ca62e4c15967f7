package doctor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is a process of the platform.
type Process struct {
	PID  int
	Name string // of the program's file
}

// Processes lists every process of a platform: bulkheadd and all below it, every shim
// of its runtime directory, whoever its parent is now, and all below that.
func Processes(p Platform) ([]Process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	parents, names := map[int]int{}, map[int]string{}
	ours := map[int]bool{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		parent, ok := parentOf(pid)
		if !ok {
			continue // it ended
		}
		exe, _ := os.Readlink(d + "/exe")
		parents[pid], names[pid] = parent, strings.TrimSuffix(filepath.Base(exe), " (deleted)")
		if pid == p.Supervisor {
			ours[pid] = true
		}
		if p.RunDir != "" && strings.HasPrefix(names[pid], "bulkhead-") {
			if b, _ := os.ReadFile(d + "/cmdline"); bytes.Contains(b, []byte(p.RunDir+"/")) {
				ours[pid] = true
			}
		}
	}
	for changed := true; changed; {
		changed = false
		for pid, parent := range parents {
			if ours[parent] && !ours[pid] {
				ours[pid], changed = true, true
			}
		}
	}
	var out []Process
	for pid := range ours {
		out = append(out, Process{pid, names[pid]})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no process of the platform can be seen: is /proc that of the host?")
	}
	return out, nil
}

// parentOf reads the parent from /proc. A zombie counts as ended.
func parentOf(pid int) (int, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The name, in parentheses, may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 2 || f[0] == "Z" || f[0] == "X" {
		return 0, false
	}
	n, err := strconv.Atoi(f[1])
	return n, err == nil
}
