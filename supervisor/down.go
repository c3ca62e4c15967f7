package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/warden/cgroup"
	"bulkhead/warden/router"
)

// Down ends what outlives bulkheadd: the Machines of a data directory, their
// cgroups and networks, firewall rules and the runtime directory. It is what a
// power cut does, but for one installation: the data directory stays, and the next
// Up starts the Machines again. It needs root, refuses while bulkheadd runs on the
// data directory, and succeeds when there is nothing to do. Cut short, it can be
// run again.
func Down(ctx context.Context, c Config, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return errors.New("bulkheadd down must run as root")
	}
	if fi, err := os.Stat(c.DataDir); err != nil || !fi.IsDir() {
		return fmt.Errorf("there is no data directory %s; is --data-dir right?", c.DataDir)
	}
	// What it says decides what is removed, so it must be a directory that up would use.
	if err := checkDataDir(c.DataDir); err != nil {
		return err
	}
	lock, err := takeLock(c.DataDir, false)
	if err != nil {
		return err
	}
	if lock == nil {
		log.Info("nothing was ever started here", "data_dir", c.DataDir)
		return nil
	}
	defer lock.Close()
	// up.json has the truth; without it the start was cut short before it made
	// anything outside of these two.
	runDir, tag := c.RunDir, tagFor(c.DataDir)
	if st, err := readState(c.DataDir); err == nil {
		runDir, tag = st.RunDir, st.Tag
	}
	if err := checkRunDir(runDir); err != nil {
		return err
	}
	if err := checkOwnRunDir(runDir, c.DataDir); err != nil {
		return err
	}
	var errs []error
	killed, err := killAll(ctx, runDir)
	errs = append(errs, err, downCgroups(ctx, tag), router.Destroy(router.Config{RunDir: runDir, Tag: tag}), downRunDir(runDir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("not everything could be removed; run bulkheadd down again: %w", err)
	}
	log.Info("everything is down", "data_dir", c.DataDir, "processes", killed)
	return nil
}

// ownerFile names, in a runtime directory, the data directory that it belongs to.
const ownerFile = "data_dir"

// checkOwnRunDir returns an error unless down may remove a runtime directory: one below
// /run that has Bulkhead's name, or one in which up wrote that it is this installation's.
func checkOwnRunDir(runDir, dataDir string) error {
	if filepath.Dir(runDir) == "/run" && strings.HasPrefix(filepath.Base(runDir), "bulkhead") {
		return nil
	}
	if _, err := os.Lstat(runDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	file := filepath.Join(runDir, ownerFile)
	fi, err := os.Lstat(file)
	if err == nil && fi.Mode().IsRegular() && fileOwner(fi) == 0 {
		if b, err := os.ReadFile(file); err == nil && string(b) == dataDir+"\n" {
			return nil
		}
	}
	return fmt.Errorf("runtime directory %s is not known to be this installation's: %s does not name %s; stop its processes and remove it yourself", runDir, file, dataDir)
}

// killAll kills the shims and sandboxes of a runtime directory and all their
// descendants, until none is left. It returns how many there were.
func killAll(ctx context.Context, runDir string) (int, error) {
	seen := map[int]bool{}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids := processesOf(runDir)
		if len(pids) == 0 {
			return len(seen), nil
		}
		for pid, start := range pids {
			seen[pid] = true
			kill(pid, start)
		}
		select {
		case <-ctx.Done():
			return len(seen), fmt.Errorf("%d processes do not end: %w", len(pids), ctx.Err())
		case <-time.After(wait):
		}
	}
}

// kill kills a process if it is still the one that was found.
func kill(pid int, start string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if _, now, ok := procStat(pid); ok && now == start {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// processesOf finds the processes that have a path below runDir among their
// arguments and run one of Bulkhead's programs, and all their descendants, with
// their start times.
func processesOf(runDir string) map[int]string {
	type proc struct {
		parent int
		start  string
	}
	all := map[int]proc{}
	out := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		parent, start, ok := procStat(pid)
		if !ok {
			continue
		}
		all[pid] = proc{parent, start}
		exe, _ := os.Readlink(d + "/exe")
		if !strings.HasPrefix(filepath.Base(exe), "bulkhead-") {
			continue
		}
		if b, _ := os.ReadFile(d + "/cmdline"); bytes.Contains(b, []byte(runDir+"/")) {
			out[pid] = start
		}
	}
	for changed := true; changed; {
		changed = false
		for pid, p := range all {
			if _, has := out[pid]; has {
				continue
			}
			if _, below := out[p.parent]; below {
				out[pid], changed = p.start, true
			}
		}
	}
	return out
}

// procStat returns the parent and the start time of a process that lives.
func procStat(pid int) (parent int, start string, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", false
	}
	_, rest, found := strings.Cut(string(b[max(0, bytes.LastIndexByte(b, ')')):]), " ")
	f := strings.Fields(rest)
	if !found || len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0, "", false
	}
	parent, err = strconv.Atoi(f[1])
	return parent, f[19], err == nil
}

// downCgroups removes the installation's cgroups, and whatever still runs in them.
func downCgroups(ctx context.Context, tag string) error {
	t, err := cgroup.Detect("bulkhead-" + tag)
	if err != nil {
		return err
	}
	return t.Destroy(ctx)
}

// downRunDir unmounts what is mounted below the runtime directory and removes it.
func downRunDir(runDir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var mounts []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], runDir+"/") {
			mounts = append(mounts, f[4])
		}
	}
	sort.Strings(mounts)
	slices.Reverse(mounts) // inner ones first
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	if err := os.RemoveAll(runDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
