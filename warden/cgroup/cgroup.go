// Package cgroup gives each Machine its limits: memory, processor time, number of
// host processes. It writes the kernel's files directly, for version 1 and 2,
// whichever the host has.
//
// A Machine has two leaf groups below one directory, <root>/bulkhead-<tag>/<machine>:
// "sandbox", with the Machine's limits, and "shim", with small ones of its own, so that
// the process that reports an out-of-memory kill is not its victim. The directory is at the top of each
// hierarchy, not in the service's group: restarting the service ends no sandbox.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
	"bulkhead/fault"
)

// Limits bound a Machine's sandbox.
type Limits struct {
	MemoryBytes int64
	CPUQuota    int // percent of one processor
	MaxPIDs     int // processes and threads on the host
}

// period is the length of a scheduling period, in microseconds.
const period = 100000

// What a shim may use, beside its Machine's share of the processors. It runs nothing
// of the tenant's, but who has escaped a sandbox and taken the shim must not find a
// place there without bounds. A command that is sent to the sandbox runs beside
// the shim, with about 40 MB and 20 threads.
const (
	shimMemory = 512 << 20
	shimPIDs   = 1024
)

// Names of the leaves.
const (
	sandboxLeaf = "sandbox"
	shimLeaf    = "shim"
)

// Tree is the cgroups of one installation.
type Tree struct {
	v2    bool
	roots map[string]string // controller (v1) or "" (v2) → directory of the installation
	mkdir func(dir string) error
	// thawed is the file that takes processes out of whatever group of version 1's
	// freezer they are in; empty where there is none. Version 2 kills what is frozen.
	thawed string
}

// Detect finds the host's hierarchies and makes the installation's directory,
// named name, in each.
func Detect(name string) (*Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []string
	for s := bufio.NewScanner(f); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return open(name, lines, func(dir string) error { return os.MkdirAll(dir, 0o755) })
}

// controllers that a Machine's limits need.
var controllers = []string{"memory", "cpu", "pids"}

// open makes a Tree from the lines of a mountinfo file. The kernel fills what mkdir
// makes with control files; a test's mkdir does that itself.
func open(name string, mountinfo []string, mkdir func(string) error) (*Tree, error) {
	t := &Tree{roots: map[string]string{}, mkdir: mkdir}
	unified := ""
	for _, line := range mountinfo {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		dir := left[4]
		switch right[0] {
		case "cgroup2":
			unified = dir
		case "cgroup":
			for _, o := range strings.Split(right[2], ",") {
				if o == "freezer" {
					t.thawed = filepath.Join(dir, "cgroup.procs")
				}
				if slices.Contains(controllers, o) || o == "name=systemd" || o == "cpuacct" {
					t.roots[o] = filepath.Join(dir, name)
				}
			}
		}
	}
	if t.roots["cpuacct"] == t.roots["cpu"] || t.roots["cpu"] == "" {
		delete(t.roots, "cpuacct") // one hierarchy, to be made once; alone it is of no use
	}
	if t.roots["memory"] == "" && unified != "" {
		t.v2 = true
		t.roots = map[string]string{"": filepath.Join(unified, name)}
		return t, t.initV2(unified)
	}
	for _, c := range controllers {
		if t.roots[c] == "" {
			return nil, fault.New(fault.Unavailable, "this host has no %s cgroup controller: mount cgroup version 2 at /sys/fs/cgroup, or all of version 1's controllers", c)
		}
	}
	if unified != "" {
		// A service manager on a mixed host tracks processes here; be out of its groups.
		t.roots["unified"] = filepath.Join(unified, name)
	}
	for _, dir := range t.roots {
		if err := t.mkdir(dir); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
	}
	return t, nil
}

// initV2 makes the installation's directory and hands the controllers down to it.
func (t *Tree) initV2(root string) error {
	if err := delegate(root); err != nil {
		return err
	}
	if err := t.mkdir(t.roots[""]); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return delegate(t.roots[""])
}

// delegate switches the controllers on for dir's children.
func delegate(dir string) error {
	var on []string
	for _, c := range controllers {
		on = append(on, "+"+c)
	}
	if err := write(filepath.Join(dir, "cgroup.subtree_control"), strings.Join(on, " ")); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cgroup controllers %v cannot be switched on in %s", controllers, dir)
	}
	return nil
}

// V2 reports whether the host has version 2 only.
func (t *Tree) V2() bool { return t.v2 }

// Create makes the groups of a Machine and sets its limits. What exists is kept.
func (t *Tree) Create(machine string, l Limits) error {
	for _, dir := range t.roots {
		if err := t.mkdir(filepath.Join(dir, machine)); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if t.v2 {
			if err := delegate(filepath.Join(dir, machine)); err != nil {
				return err
			}
		}
		for _, leaf := range []string{sandboxLeaf, shimLeaf} {
			if err := t.mkdir(filepath.Join(dir, machine, leaf)); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
	}
	if l.CPUQuota <= 0 || l.MemoryBytes <= 0 || l.MaxPIDs <= 0 {
		return fault.New(fault.Invalid, "limits %+v must all be positive", l)
	}
	if err := failpoint.Step("cgroup/limits"); err != nil {
		return err
	}
	for _, s := range t.settings(machine, l) {
		if err := write(s.file, s.value); err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("set limit: %w", err)
		}
	}
	return nil
}

type setting struct {
	file, value string
	optional    bool // absent on hosts without swap accounting
}

// settings lists the files that hold the limits, in the order to write them.
func (t *Tree) settings(machine string, l Limits) []setting {
	return append(t.leafSettings(filepath.Join(machine, sandboxLeaf), l),
		t.leafSettings(filepath.Join(machine, shimLeaf), Limits{MemoryBytes: shimMemory, CPUQuota: l.CPUQuota, MaxPIDs: shimPIDs})...)
}

func (t *Tree) leafSettings(leaf string, l Limits) []setting {
	mem, quota := strconv.FormatInt(l.MemoryBytes, 10), strconv.Itoa(l.CPUQuota*period/100)
	at := func(controller, name string) string {
		return filepath.Join(t.roots[controller], leaf, name)
	}
	if t.v2 {
		return []setting{
			{file: at("", "memory.max"), value: mem},
			{file: at("", "memory.swap.max"), value: "0", optional: true},
			// All of it or nothing: half a sandbox is of no use.
			{file: at("", "memory.oom.group"), value: "1", optional: true},
			{file: at("", "cpu.max"), value: quota + " " + strconv.Itoa(period)},
			{file: at("", "pids.max"), value: strconv.Itoa(l.MaxPIDs)},
		}
	}
	return []setting{
		{file: at("memory", "memory.limit_in_bytes"), value: mem},
		{file: at("memory", "memory.memsw.limit_in_bytes"), value: mem, optional: true}, // memory and swap together
		{file: at("cpu", "cpu.cfs_period_us"), value: strconv.Itoa(period)},
		{file: at("cpu", "cpu.cfs_quota_us"), value: quota},
		{file: at("pids", "pids.max"), value: strconv.Itoa(l.MaxPIDs)},
	}
}

// OpenShim opens the group of the Machine's shim in version 2's hierarchy, where there is
// one: a process can be cloned into it, which saves the wait that a move costs. nil on a
// host without it. The caller closes it.
func (t *Tree) OpenShim(machine string) (*os.File, error) {
	for hierarchy, dir := range t.roots {
		if cloneable(hierarchy) {
			return os.Open(filepath.Join(dir, machine, shimLeaf))
		}
	}
	return nil, nil
}

// cloneable reports whether a hierarchy is of version 2, the only one or one without
// controllers next to version 1's.
func cloneable(hierarchy string) bool { return hierarchy == "" || hierarchy == "unified" }

// AddShim moves process pid into the groups of the Machine's shim into which it cannot be
// cloned: see OpenShim.
func (t *Tree) AddShim(machine string, pid int) error {
	for hierarchy, dir := range t.roots {
		if cloneable(hierarchy) {
			continue
		}
		if err := write(filepath.Join(dir, machine, shimLeaf, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("move the shim into its cgroup: %w", err)
		}
	}
	return nil
}

// OpenSandbox opens the cgroup.procs files of the sandbox's group for writing, and
// the file that counts its out-of-memory kills for reading. Who holds the former
// may move itself in. The caller closes them.
func (t *Tree) OpenSandbox(machine string) (procs []*os.File, oom *os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range procs {
				f.Close()
			}
		}
	}()
	for _, dir := range t.roots {
		f, err := os.OpenFile(filepath.Join(dir, machine, sandboxLeaf, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			return procs, nil, fmt.Errorf("open cgroup: %w", err)
		}
		procs = append(procs, f)
	}
	oom, err = os.Open(t.oomFile(machine))
	return procs, oom, err
}

func (t *Tree) oomFile(machine string) string {
	if t.v2 {
		return filepath.Join(t.roots[""], machine, sandboxLeaf, "memory.events")
	}
	return filepath.Join(t.roots["memory"], machine, sandboxLeaf, "memory.oom_control")
}

// OOMKilled reports whether the kernel killed anything in the Machine for its limit.
func (t *Tree) OOMKilled(machine string) bool {
	b, err := os.ReadFile(t.oomFile(machine))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(v) != "0"
		}
	}
	return false
}

// Processes returns the pids of all processes of the Machine, sandbox first.
func (t *Tree) Processes(machine string) []int { return t.processes(machine, sandboxLeaf, shimLeaf) }

func (t *Tree) processes(machine string, leaves ...string) []int {
	var pids []int
	for _, leaf := range leaves {
		for _, dir := range t.roots {
			b, err := os.ReadFile(filepath.Join(dir, machine, leaf, "cgroup.procs"))
			if err != nil {
				continue
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// thawAfter is how long killed processes may take to die before they are taken out of
// the groups that may have frozen them.
const thawAfter = time.Second

// Remove kills every process of the Machine and removes its groups. It succeeds when
// there is nothing to remove, and fails when ctx ends before the processes do.
func (t *Tree) Remove(ctx context.Context, machine string) error {
	began := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids := t.Processes(machine)
		if len(pids) > 0 && !t.killV2(machine) {
			t.kill(machine, sandboxLeaf, shimLeaf)
			if time.Since(began) > thawAfter {
				t.thaw(pids)
			}
		}
		if len(pids) == 0 {
			if err := failpoint.Write("cgroup/rmdir", func() error { return t.rmdir(machine) }); err == nil {
				return nil
			} else if !errors.Is(err, syscall.EBUSY) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Internal, ctx.Err(), "processes %v of machine %s were killed and did not die; they wait in the kernel, for a disk or a device, or somebody holds them (ps -o pid,stat,wchan)", pids, machine)
		case <-time.After(wait):
		}
	}
}

// thaw takes killed processes out of the group of version 1's freezer that they are
// in: one that is frozen does not die. Nobody but root can have frozen them.
func (t *Tree) thaw(pids []int) {
	if t.v2 || t.thawed == "" {
		return
	}
	for _, pid := range pids {
		write(t.thawed, strconv.Itoa(pid)) // it may be gone by now
	}
}

// Kill kills the processes of the Machine's sandbox, not its shim, and does not wait.
func (t *Tree) Kill(machine string) { t.kill(machine, sandboxLeaf) }

// kill kills the processes of some leaves. A pid could be reused between the reading
// of a group and the signal: so the processes are held by pidfds, and those are
// signalled that are still in the group afterwards.
//
// First the groups are closed to new processes: who forks fast enough would else never
// be caught up with.
func (t *Tree) kill(machine string, leaves ...string) {
	pids := t.roots["pids"]
	if t.v2 {
		pids = t.roots[""]
	}
	for _, leaf := range leaves {
		write(filepath.Join(pids, machine, leaf, "pids.max"), "0") // without a group there is nothing to close
	}
	held := map[int]int{}
	for _, pid := range t.processes(machine, leaves...) {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			held[pid] = fd
		}
	}
	for _, pid := range t.processes(machine, leaves...) {
		if fd, ok := held[pid]; ok {
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may have died by itself
		}
	}
	for _, fd := range held {
		unix.Close(fd)
	}
}

// killV2 kills the whole Machine at once, where the kernel can: version 2 since 5.14.
func (t *Tree) killV2(machine string) bool {
	return t.v2 && write(filepath.Join(t.roots[""], machine, "cgroup.kill"), "1") == nil
}

func (t *Tree) rmdir(machine string) error {
	var errs []error
	for _, dir := range t.roots {
		for _, d := range []string{filepath.Join(dir, machine, sandboxLeaf), filepath.Join(dir, machine, shimLeaf), filepath.Join(dir, machine)} {
			if err := syscall.Rmdir(d); err != nil && err != syscall.ENOENT {
				errs = append(errs, &fs.PathError{Op: "rmdir", Path: d, Err: err})
			}
		}
	}
	return errors.Join(errs...)
}

// List returns the names of all Machines that have a group.
func (t *Tree) List() ([]string, error) {
	var names []string
	for _, dir := range t.roots {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// Beside returns the names of other trees that start with prefix and have not changed since
// before: of use to find what a process that was killed has left.
func (t *Tree) Beside(prefix string, before time.Time) ([]string, error) {
	var names []string
	for _, dir := range t.roots {
		entries, err := os.ReadDir(filepath.Dir(dir))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) || e.Name() == filepath.Base(dir) || slices.Contains(names, e.Name()) {
				continue
			}
			if info, err := e.Info(); err == nil && info.ModTime().Before(before) {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// Destroy removes every Machine's groups, with their processes, and the
// installation's own directories.
func (t *Tree) Destroy(ctx context.Context) error {
	names, err := t.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, t.Remove(ctx, n))
	}
	for _, dir := range t.roots {
		if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

// write writes to a file that must exist: the kernel makes them.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
