package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/privnet"
	"bulkhead/warden/cgroup"
	"bulkhead/warden/router"
)

// ProbeCommand is the first argument with which bulkheadd runs itself to try what a
// sandbox needs. Its main (and a test's) hands the rest to ProbeHost.
const ProbeCommand = "probe-host"

// probeLimit bounds each probe.
const probeLimit = 10 * time.Second

// probe tries one thing that the host must be able to do. It does it; it does not
// look whether it should be possible.
type probe struct {
	name string
	try  func(ctx context.Context) error
	// remedy ends the sentence when the error itself names none.
	remedy string
}

// hostProbes is what Bulkhead needs of a host. There is no weaker way to run for a
// host that lacks one of them.
var hostProbes = []probe{
	{"the namespaces, seccomp and ptrace of a sandbox", probeSandbox, "a sandbox needs them"},
	{"packet rules, links and routes", func(context.Context) error { return router.Probe() },
		"the private network needs nf_tables with inet tables, sets of concatenations and intervals, ct, limit and masquerade, and veth: load the modules nf_tables, nft_ct, nft_limit, nft_masq, nf_nat and veth, or take a kernel that has them"},
	{"cgroups", probeCgroups, "limits of machines need the controllers memory, cpu and pids, of version 1 or 2"},
}

// preflight tries all probes at the same time and returns one sentence for each
// thing that the host lacks.
func preflight(ctx context.Context, probes []probe) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	errs := make([]error, len(probes))
	type outcome struct {
		i   int
		err error
	}
	done := make(chan outcome, len(probes))
	for i, p := range probes {
		errs[i] = fmt.Errorf("this host cannot run Bulkhead: trying %s took longer than %s", p.name, probeLimit)
		go func() {
			err := p.try(ctx)
			if err != nil {
				err = lacks(p, err)
			}
			done <- outcome{i, err}
		}()
	}
	for range probes {
		select {
		case o := <-done:
			errs[o.i] = o.err
		case <-time.After(probeLimit + time.Second):
			return errors.Join(errs...)
		}
	}
	return errors.Join(errs...)
}

// lacks words what a probe found.
func lacks(p probe, err error) error {
	if f := (*fault.Error)(nil); errors.As(err, &f) && f.Status != "" {
		return fmt.Errorf("this host cannot run Bulkhead: %s", f.Msg)
	}
	return fmt.Errorf("this host cannot run Bulkhead: it refuses %s: %w; %s", p.name, err, p.remedy)
}

// probePrefix starts the names of cgroups that are made to see whether that works.
const probePrefix = "bulkhead-probe-"

// probeCgroups makes a Machine's groups with limits and removes them, and those that an
// earlier probe left because it was killed.
func probeCgroups(ctx context.Context) error {
	t, err := cgroup.Detect(probePrefix + strconv.Itoa(os.Getpid()))
	if err != nil {
		return err
	}
	err = t.Create("probe", cgroup.Limits{MemoryBytes: 64 << 20, CPUQuota: 100, MaxPIDs: 64})
	removeDeadProbes(ctx, t)
	return errors.Join(err, t.Destroy(context.WithoutCancel(ctx)))
}

// removeDeadProbes removes what probes have left that are older than any goes on. What cannot
// be removed harms nobody, and is no reason not to start.
func removeDeadProbes(ctx context.Context, beside *cgroup.Tree) {
	names, _ := beside.Beside(probePrefix, time.Now().Add(-2*probeLimit))
	for _, name := range names {
		pid, err := strconv.Atoi(strings.TrimPrefix(name, probePrefix))
		if err != nil || unix.Kill(pid, 0) == nil {
			continue
		}
		if dead, err := cgroup.Detect(name); err == nil {
			dead.Destroy(ctx)
		}
	}
}

// found is what ProbeHost says of a step that failed.
type found struct {
	Step  string        `json:"step"`
	Errno syscall.Errno `json:"errno"`
	Text  string        `json:"text"`
}

// probeSandbox starts this program as the warden starts a shim, in namespaces of its
// own under a Machine's users, and has it try what the sandbox does there.
func probeSandbox(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", ProbeCommand)
	cmd.Dir, cmd.Env = "/", []string{"GOMAXPROCS=1"}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(privnet.UIDRange(1)), Size: privnet.UIDCount}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		return fault.Clone(err, "a sandbox's namespaces cannot be made")
	}
	var f found
	if jerr := json.Unmarshal(out.Bytes(), &f); jerr == nil && f.Step != "" {
		if f.Errno != 0 {
			return fault.Clone(f.Errno, "%s: %s", f.Step, f.Text)
		}
		return fmt.Errorf("%s: %s", f.Step, f.Text)
	}
	if err != nil {
		return fmt.Errorf("the trial ended with %w: %.500s", err, strings.TrimSpace(complaints.String()))
	}
	return nil
}

// ProbeHost is the process of a trial: it tries what a sandbox does in its
// namespaces, and writes what failed to its output. It returns the exit code.
//
// In the host's own namespaces it would mount over the host's /proc and /run: whoever
// calls it by hand, as root, gets a refusal.
func ProbeHost() int {
	runtime.LockOSThread()
	if err := aMachineUsers(); err != nil {
		fmt.Fprintf(os.Stderr, "bulkheadd: %v; \"bulkheadd up\" starts this by itself\n", err)
		return 1
	}
	for _, s := range []struct {
		name string
		try  func() error
	}{
		{"mounting proc in namespaces of a sandbox", func() error { return unix.Mount("proc", "/proc", "proc", 0, "") }},
		{"mounting a file system in memory in namespaces of a sandbox", func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "") }},
		{"a user namespace in a user namespace, and ptrace", probeNested},
		{"seccomp", probeSeccomp},
	} {
		if err := s.try(); err != nil {
			f := found{Step: s.name, Text: err.Error()}
			errors.As(err, &f.Errno)
			json.NewEncoder(os.Stdout).Encode(f)
			return 1
		}
	}
	return 0
}

// aMachineUsers reports whether this process runs in the user namespace that
// probeSandbox makes. /proc is still the host's, and the map is told as seen from us.
func aMachineUsers() error {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	var inside, outside, count uint32
	if _, err := fmt.Sscan(string(b), &inside, &outside, &count); err != nil {
		return err
	}
	if inside != 0 || outside != uint32(privnet.UIDRange(1)) || count != privnet.UIDCount {
		return errors.New("the trial of what a sandbox needs runs in namespaces of its own alone")
	}
	return nil
}

// probeNested starts a traced process one user namespace further down, as gVisor
// does, and ends it.
func probeNested() error {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	cmd := exec.Command("/proc/self/exe", ProbeCommand)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Ptrace: true, Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		UidMappings: ids, GidMappings: ids,
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var ws unix.WaitStatus
	_, err := unix.Wait4(cmd.Process.Pid, &ws, 0, nil) // it stops at its first instruction
	cmd.Process.Kill()
	cmd.Wait()
	if err == nil && !ws.Stopped() {
		err = errors.New("a traced process does not stop")
	}
	return err
}

// probeSeccomp loads a filter that refuses one call and sees it refused.
func probeSeccomp() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	const refused = unix.SYS_SYNC // nothing in this process needs it
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: refused},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EXDEV)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := setFilter(filter); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(refused, 0, 0, 0); errno != unix.EXDEV {
		return errors.New("a filter is loaded and does not filter")
	}
	return nil
}
