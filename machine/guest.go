package machine

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"bulkhead/fault"
)

// Kinds of processor share.
const (
	CPUShared      = "shared"
	CPUPerformance = "performance"
)

// Bounds and defaults of a Guest. Memory is in MiB.
const (
	DefaultMemoryMB = 256
	MinMemoryMB     = 128
	MaxMemoryMB     = 256 << 10
	MaxCPUs         = 64
	MaxMaxRetries   = 1000
)

// presetCPUs are the processor counts that the preset names allow.
var presetCPUs = map[string][]int{CPUShared: {1, 2, 4, 6, 8}, CPUPerformance: {1, 2, 4, 6, 8, 10, 12, 14, 16}}

// presetMemory is a preset's MiB for each processor.
var presetMemory = map[string]int{CPUShared: 256, CPUPerformance: 2048}

// preset returns the Guest of a preset name such as "shared-cpu-2x" or "performance-1x".
func preset(size string) (Guest, error) {
	kind, rest, _ := strings.Cut(size, "-")
	if kind == CPUShared {
		rest = strings.TrimPrefix(rest, "cpu-")
	}
	if n, err := strconv.Atoi(strings.TrimSuffix(rest, "x")); err == nil && strings.HasSuffix(rest, "x") {
		for _, c := range presetCPUs[kind] {
			if c == n && size == presetName(kind, n) {
				return Guest{CPUKind: kind, CPUs: n, MemoryMB: n * presetMemory[kind]}, nil
			}
		}
	}
	return Guest{}, fmt.Errorf("is %q; use shared-cpu-1x, -2x, -4x, -6x or -8x, or performance-1x to performance-16x, or give guest instead", fault.Clip(size))
}

// presetName is the name of the preset of n processors of a kind.
func presetName(kind string, n int) string {
	if kind == CPUShared {
		return fmt.Sprintf("shared-cpu-%dx", n)
	}
	return fmt.Sprintf("performance-%dx", n)
}

// EffectiveGuest is the size that a Machine of this config gets: the guest with
// what it leaves out filled in, or the preset, or the default (shared, 1 CPU, 256
// MiB). The config must be valid.
func (c *Config) EffectiveGuest() Guest {
	if c.Guest == nil && c.Size != "" {
		if g, err := preset(c.Size); err == nil {
			return g
		}
	}
	var g Guest
	if c.Guest != nil {
		g = *c.Guest
		g.KernelArgs = append([]string(nil), g.KernelArgs...)
	}
	if g.CPUKind == "" {
		g.CPUKind = CPUShared
	}
	if g.CPUs == 0 {
		g.CPUs = 1
	}
	if g.MemoryMB == 0 {
		g.MemoryMB = DefaultMemoryMB
		if g.CPUKind == CPUPerformance {
			g.MemoryMB = g.CPUs * presetMemory[CPUPerformance]
		}
	}
	return g
}

// Clone returns a copy that shares nothing with c.
func (c *Config) Clone() *Config {
	b, err := json.Marshal(c)
	if err != nil {
		// Every field of Config can be encoded; only HTTPResponse.Headers holds an open
		// type, and what came from JSON goes back to JSON.
		panic("machine: a config cannot be encoded: " + err.Error())
	}
	out := new(Config)
	if err := json.Unmarshal(b, out); err != nil {
		panic("machine: a config does not survive its own encoding: " + err.Error())
	}
	return out
}
