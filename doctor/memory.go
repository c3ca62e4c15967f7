package doctor

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"bulkhead/coredump"
)

// holders are the programs with keys or secrets in their memory.
var holders = []string{"bulkhead-controller", "bulkhead-worker", "bulkhead-edge", "bulkhead-warden", "bulkhead-shim", "bulkhead-sandbox"}

// forbidden is the limit with which the kernel makes no dump, not even for a program.
var forbidden = strconv.Itoa(coredump.Limit)

var coreLimit = regexp.MustCompile(`(?m)^Max core file size +(\S+)`)

// memory looks at the ways on which what processes have in memory reaches a disk:
// core dumps and swap.
func (h host) memory(procs []Process) (out []Finding) {
	pattern := h.read("/proc/sys/kernel/core_pattern")
	program, piped := strings.CutPrefix(pattern, "|")
	socket, sent := strings.CutPrefix(pattern, "@") // Linux 6.16 and later
	var dumping []string
	for _, p := range procs {
		if !slices.Contains(holders, p.Name) {
			continue
		}
		status := h.read(fmt.Sprintf("/proc/%d/status", p.PID))
		if kb := field(status, "VmSwap"); kb > 0 {
			out = append(out, Finding{"swap", Warn, fmt.Sprintf("%d KiB of %s (process %d) have been swapped out, with what it keeps in memory alone", kb, p.Name, p.PID), "give the host more memory, or run without swap (swapoff -a)"})
		}
		if m := coreLimit.FindStringSubmatch(h.read(fmt.Sprintf("/proc/%d/limits", p.PID))); m != nil && m[1] != forbidden && (piped || m[1] != "0") {
			dumping = append(dumping, p.Name)
		}
	}
	slices.Sort(dumping)
	dumping = slices.Compact(dumping)
	switch {
	case sent:
		// No limit forbids it, and sandboxes are dumpable: gVisor looks into them.
		out = append(out, Finding{"core dumps", Warn, fmt.Sprintf("the memory of machines, secrets included, is handed to whoever listens at %s when a sandbox crashes", strings.TrimLeft(socket, "@")),
			"set kernel.core_pattern=core with sysctl, or to a program (with a bar), which the limits of Bulkhead's processes forbid"})
	case piped && len(dumping) > 0:
		name, _, _ := strings.Cut(strings.TrimSpace(program), " ")
		out = append(out, Finding{"core dumps", Warn, fmt.Sprintf("the memory of %s, keys included, may be handed to %s when they crash", strings.Join(dumping, ", "), name),
			"restart them with the programs of one release, which forbid it; or set kernel.core_pattern=core with sysctl, or see that " + filepath.Base(name) + " keeps no dumps (systemd-coredump: Storage=none)"})
	case len(dumping) > 0:
		where := "its directory"
		if strings.HasPrefix(pattern, "/") {
			where = filepath.Dir(pattern)
		}
		out = append(out, Finding{"core dumps", Warn, fmt.Sprintf("%s write their memory, keys included, to %s when they crash", strings.Join(dumping, ", "), where),
			"restart them with the programs of one release, which forbid it"})
	default:
		out = append(out, Finding{"core dumps", OK, "no process of the platform writes its memory to a disk when it crashes", ""})
	}
	return out
}

// field reads a number from /proc/<pid>/status.
func field(status, name string) int {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			f := strings.Fields(rest)
			if len(f) > 0 {
				n, _ := strconv.Atoi(f[0])
				return n
			}
		}
	}
	return 0
}
