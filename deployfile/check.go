package deployfile

import (
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"bulkhead/key"
	"bulkhead/machine"
)

// DefaultGroup is the process group of an app that names none.
const DefaultGroup = "app"

var groupRE = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]{0,62}$`)

// Groups that the platform uses itself.
var reservedGroups = []string{"fly_app_release_command", "fly_app_test_machine_command", "fly_app_console"}

// Strategies are the deploy strategies there are.
var Strategies = []string{"rolling", "immediate", "canary"}

// check reports values that no platform could honour.
func (f *File) check(b *binder) {
	if f.App != "" {
		if _, err := key.ParseAppName(f.App); err != nil {
			b.errorf("app", "%v", err)
		}
	}
	f.checkEnv(b)
	f.checkProcesses(b)
	f.checkServices(b)
	f.checkFiles(b)
	for i, r := range f.Restart {
		p := entry("restart", i, len(f.Restart), f)
		if !slices.Contains([]string{"", "always", "never", "no", "on-failure", "on-fail"}, r.Policy) {
			b.errorf(join(p, "policy"), "restart policy is %q; it must be \"always\", \"never\" or \"on-failure\"", r.Policy)
		}
		if r.Retries < 0 {
			b.errorf(join(p, "retries"), "retries is %d; it must not be negative", r.Retries)
		}
	}
	for i := range f.VM {
		p := entry("vm", i, len(f.VM), f)
		if _, err := f.VM[i].guest(); err != nil {
			b.errorf(p, "%v", err)
		}
	}
	if f.Deploy != nil && f.Deploy.Strategy != "" && !slices.Contains(Strategies, f.Deploy.Strategy) {
		msg := fmt.Sprintf("strategy is %q; it must be one of %s", f.Deploy.Strategy, strings.Join(Strategies, ", "))
		if f.Deploy.Strategy == "bluegreen" {
			msg = "strategy \"bluegreen\" needs health checks, which this version of Bulkhead does not run; use \"rolling\" or \"canary\""
		}
		b.errorf("deploy.strategy", "%s", msg)
	}
	if f.KillTimeout.Set && f.KillTimeout.D.Seconds() > 300 {
		b.errorf("kill_timeout", "kill_timeout is %s; it must be at most 300s", f.KillTimeout.D)
	}
}

func (f *File) checkEnv(b *binder) {
	for name := range f.Env {
		if strings.HasPrefix(name, "FLY_") {
			b.errorf(join("env", name), "the name %q is refused: names that start with FLY_ are set by the platform", name)
		}
	}
}

// checkProcesses checks the groups and that every section names only groups there are.
func (f *File) checkProcesses(b *binder) {
	for g, cmd := range f.Processes {
		p := join("processes", g)
		if !groupRE.MatchString(g) || slices.Contains(reservedGroups, g) {
			b.errorf(p, "%q cannot be the name of a process group", g)
		}
		if _, err := words(cmd); err != nil {
			b.errorf(p, "the command of process group %q %v", g, err)
		}
	}
	groups := f.Groups()
	named := func(path string, gs []string) {
		for _, g := range gs {
			if !slices.Contains(groups, g) {
				b.errorf(join(path, "processes"), "there is no process group %q in [processes]; there is %s", g, strings.Join(groups, ", "))
			}
		}
	}
	if f.HTTPService != nil {
		named("http_service", f.HTTPService.Processes)
	}
	for i, s := range f.Services {
		named(entry("services", i, len(f.Services), f), s.Processes)
	}
	for i, s := range f.Files {
		named(entry("files", i, len(f.Files), f), s.Processes)
	}
	for i, s := range f.Restart {
		named(entry("restart", i, len(f.Restart), f), s.Processes)
	}
	for i, s := range f.VM {
		named(entry("vm", i, len(f.VM), f), s.Processes)
	}
}

func (f *File) checkServices(b *binder) {
	if h := f.HTTPService; h != nil && h.InternalPort != nil {
		checkPort(b, "http_service.internal_port", *h.InternalPort)
	}
	for i, s := range f.Services {
		p := entry("services", i, len(f.Services), f)
		checkPort(b, join(p, "internal_port"), s.InternalPort)
		if s.Protocol != "" && s.Protocol != "tcp" && s.Protocol != "udp" {
			b.errorf(join(p, "protocol"), "protocol is %q; it must be \"tcp\"", s.Protocol)
		}
	}
}

func checkPort(b *binder, path string, n int) {
	if n < 1 || n > 65535 {
		b.errorf(path, "internal_port is %d; it must be 1 to 65535", n)
	}
}

func (f *File) checkFiles(b *binder) {
	for i, e := range f.Files {
		p := entry("files", i, len(f.Files), f)
		if !strings.HasPrefix(e.GuestPath, "/") {
			b.errorf(join(p, "guest_path"), "guest_path is %q; it must be an absolute path inside the Machine", e.GuestPath)
		}
		n := 0
		for _, v := range []string{e.LocalPath, e.RawValue, e.SecretName} {
			if v != "" {
				n++
			}
		}
		if n != 1 {
			b.errorf(p, "a file needs exactly one of local_path, raw_value and secret_name; this one has %d", n)
		}
	}
}

// entry is the path of the i-th of n entries of a list that may also have been
// written as one table.
func entry(list string, i, n int, f *File) string {
	p := fmt.Sprintf("%s[%d]", list, i)
	if _, ok := f.positions[p]; !ok && n == 1 {
		return list
	}
	return p
}

// Groups returns the names of the process groups, sorted.
func (f *File) Groups() []string {
	if len(f.Processes) == 0 {
		return []string{DefaultGroup}
	}
	gs := make([]string, 0, len(f.Processes))
	for g := range f.Processes {
		gs = append(gs, g)
	}
	sort.Strings(gs)
	return gs
}

// defaultGroup is the group that sections without processes belong to.
func (f *File) defaultGroup() string {
	gs := f.Groups()
	if slices.Contains(gs, DefaultGroup) {
		return DefaultGroup
	}
	return gs[0]
}

// in reports whether a section with this processes list applies to group.
func (f *File) in(processes []string, group string) bool {
	if len(processes) == 0 {
		return group == f.defaultGroup()
	}
	return slices.Contains(processes, group)
}

// sizeRE is a size of memory: a number, fractions too, and the unit, MiB without one.
var sizeRE = regexp.MustCompile(`^(\d{1,12}(?:\.\d{1,9})?) ?(|[kmgt]?i?b|[kmgt])$`)

// memoryMB reads a size such as "512mb", "1.5gb" or "1024" in MiB. A rest below one MiB
// is left off.
func memoryMB(text string) (int, error) {
	m := sizeRE.FindStringSubmatch(strings.ToLower(strings.TrimSpace(text)))
	if m == nil {
		return 0, fmt.Errorf("memory is %q; it must be a size such as \"512mb\" or \"2gb\"", text)
	}
	n, _ := strconv.ParseFloat(m[1], 64) // the expression takes numbers alone
	switch {
	case m[2] == "" || m[2][0] == 'm':
	case m[2][0] == 'k':
		n /= 1 << 10
	case m[2][0] == 'g':
		n *= 1 << 10
	case m[2][0] == 't':
		n *= 1 << 20
	default:
		n /= 1 << 20
	}
	return int(min(n, 1<<40)), nil
}

// guest returns the size that a [[vm]] section asks for.
func (v *VM) guest() (*machine.Guest, error) {
	size := v.Size
	if size == "" {
		size = "shared-cpu-1x"
	}
	c := machine.Config{Image: "x", Size: size}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("size is %q; use shared-cpu-1x, -2x, -4x, -6x or -8x, or performance-1x to performance-16x", size)
	}
	g := c.EffectiveGuest()
	if v.Memory != "" {
		n, err := memoryMB(string(v.Memory))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("memory is %q; it must be at least %d MiB", string(v.Memory), machine.MinMemoryMB)
		}
		g.MemoryMB = n
	}
	if v.MemoryMB != 0 {
		g.MemoryMB = v.MemoryMB
	}
	if v.CPUKind != "" {
		g.CPUKind = v.CPUKind
	}
	if v.CPUs != 0 {
		g.CPUs = v.CPUs
	}
	check := machine.Config{Image: "x", Guest: &g}
	if err := check.Validate(); err != nil {
		return nil, fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "config.guest."))
	}
	return &g, nil
}
