package machine

import "fmt"

// Limits bound what a Machine may use beside its Guest. The Machines API knows
// nothing like it: the object is an extension, "bulkhead_limits" in a config. Zero
// fields have their defaults.
type Limits struct {
	CPUPercent        int `json:"cpu_percent,omitempty"`          // of one processor
	Processes         int `json:"processes,omitempty"`            // processes and threads together
	OpenFiles         int `json:"open_files,omitempty"`           // of each process
	DiskMB            int `json:"disk_mb,omitempty"`              // MiB of the writable layer, which lies in memory
	Inodes            int `json:"inodes,omitempty"`               // files and directories of the writable layer
	LogKBPerSecond    int `json:"log_kb_per_second,omitempty"`    // KiB of output
	LogLinesPerSecond int `json:"log_lines_per_second,omitempty"` // lines of output
	NetworkMbps       int `json:"network_mbps,omitempty"`         // 10^6 bits per second, each way
	PacketsPerSecond  int `json:"packets_per_second,omitempty"`   // each way
}

// LogBurst is for how many seconds a Machine may print at its rates at once.
const LogBurst = 8

// inodesPerMB is an inode for each page, as Linux gives a tmpfs.
const inodesPerMB = 256

// limitRange is what one field of Limits may be and is.
type limitRange struct {
	field           string
	value           func(*Limits) *int
	min, max, deflt int
}

// ranges lists every field of Limits, for a Machine of a size.
func ranges(g Guest, l Limits) []limitRange {
	memory, disk := g.MemoryMB, l.DiskMB
	if disk == 0 {
		disk = memory / 2
	}
	return []limitRange{
		{"cpu_percent", func(l *Limits) *int { return &l.CPUPercent }, 5, 100 * g.CPUs, 100 * g.CPUs},
		{"processes", func(l *Limits) *int { return &l.Processes }, 16, 16384, min(max(128, memory/2), 1024)},
		{"open_files", func(l *Limits) *int { return &l.OpenFiles }, 64, 1 << 20, 65536},
		{"disk_mb", func(l *Limits) *int { return &l.DiskMB }, 8, memory, memory / 2},
		{"inodes", func(l *Limits) *int { return &l.Inodes }, 256, 1 << 24, disk * inodesPerMB},
		{"log_kb_per_second", func(l *Limits) *int { return &l.LogKBPerSecond }, 1, 64 << 10, 1 << 10},
		{"log_lines_per_second", func(l *Limits) *int { return &l.LogLinesPerSecond }, 1, 1_000_000, 10_000},
		{"network_mbps", func(l *Limits) *int { return &l.NetworkMbps }, 1, 100_000, 1000},
		{"packets_per_second", func(l *Limits) *int { return &l.PacketsPerSecond }, 100, 10_000_000, 100_000},
	}
}

// EffectiveLimits is what a Machine of this config gets. The config must be valid.
func (c *Config) EffectiveLimits() Limits {
	var l Limits
	if c.Limits != nil {
		l = *c.Limits
	}
	for _, r := range ranges(c.EffectiveGuest(), l) {
		if p := r.value(&l); *p == 0 {
			*p = r.deflt
		}
	}
	return l
}

// limits checks c.Limits; the guest has been checked.
func (v *validator) limits(c *Config) {
	if c.Limits == nil || v.err != nil {
		return
	}
	for _, r := range ranges(c.EffectiveGuest(), *c.Limits) {
		if n := *r.value(c.Limits); n != 0 && (n < r.min || n > r.max) {
			what := ""
			if r.field == "disk_mb" {
				what = " (what a machine writes lies in its memory: config.guest.memory_mb is the most)"
			}
			v.bad("config.bulkhead_limits."+r.field, "is %d; it must be %d to %d%s", n, r.min, r.max, what)
		}
	}
}

// Sentence says which limit was met and what to do.
func (e LimitEvent) Sentence() string {
	switch e.Limit {
	case LimitCPU:
		return fmt.Sprintf("the machine uses all its processor time, %d %% of one CPU, and is slowed down; raise guest.cpus or bulkhead_limits.cpu_percent", e.Value)
	case LimitDisk:
		return fmt.Sprintf("a write failed: the %d MiB of the writable layer are full; remove files or raise bulkhead_limits.disk_mb", e.Value)
	case LimitInodes:
		return fmt.Sprintf("a file could not be made: all %d inodes of the writable layer are used; remove files or raise bulkhead_limits.inodes", e.Value)
	case LimitProcesses:
		return fmt.Sprintf("a process or thread could not be made: the machine has all %d; raise bulkhead_limits.processes", e.Value)
	case LimitOpenFiles:
		return fmt.Sprintf("a process has all its %d files open; close files or raise bulkhead_limits.open_files", e.Value)
	case LimitLog:
		return fmt.Sprintf("output was dropped: more than %d KiB or too many lines a second were printed; print less or raise bulkhead_limits.log_kb_per_second and log_lines_per_second", e.Value)
	case LimitNetworkOut, LimitNetworkIn:
		way := "sent"
		if e.Limit == LimitNetworkIn {
			way = "arrived"
		}
		return fmt.Sprintf("packets were dropped: more than %d Mbit/s or too many packets a second were %s; raise bulkhead_limits.network_mbps or packets_per_second", e.Value, way)
	}
	return fmt.Sprintf("the limit %s of %d was hit", e.Limit, e.Value)
}

// LimitEvent is the detail of an event of type "limit": a Machine met one of its
// limits. While it goes on meeting it, nothing more is said.
type LimitEvent struct {
	Limit string `json:"limit"` // one of the names below
	Value int64  `json:"value"` // of the limit
	Unit  string `json:"unit"`
	Count uint64 `json:"count"` // how often it was met when the event was written
}

// Names of limits. They are stored in journals: never rename one.
const (
	LimitCPU        = "cpu"
	LimitDisk       = "disk"
	LimitInodes     = "inodes"
	LimitProcesses  = "processes"
	LimitOpenFiles  = "open_files"
	LimitLog        = "log"
	LimitNetworkOut = "network_out"
	LimitNetworkIn  = "network_in"
)
