package warden

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/coredump"
	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/warden/cgroup"
	"bulkhead/warden/runsc"
	"bulkhead/warden/wire"
)

// startTimeout bounds a start.
const startTimeout = 60 * time.Second

// overheadMB is what a sandbox may use beyond the guest's memory, in MiB: the
// sandbox's own kernel lives in the same cgroup as the memory it gives out.
const overheadMB = 48

// start makes the Machine and starts it. The files are those of client.FileStdout and
// so on. When it fails, nothing is left: what undoes a start is the same remove that
// ends a Machine and that the next warden calls for what this one left half-made.
func (s *Server) start(ctx context.Context, spec *sandbox.Spec, secrets *os.File) (files []*os.File, err error) {
	g, err := s.checkSpec(spec)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	unlock, err := s.lock(ctx, spec.Machine)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.started.Check(spec.Machine, g.Generation); err != nil {
		if fault.Is(err, fault.Denied) { // an honest worker has none
			s.log.Warn("a grant that was replaced was shown", "machine", spec.Machine, "err", err)
		}
		return nil, err
	}
	st := &starter{server: s, spec: spec, secrets: secrets, grant: g, record: record{Machine: spec.Machine, Instance: spec.Instance, Slot: spec.Slot, Network: g.Network, NetworkMbps: g.NetworkMbps, PacketsPerSecond: g.PacketsPerSecond}}
	if st.machine, err = s.reserve(st.record); err != nil {
		return nil, err
	}
	err = st.run(ctx)
	st.closeFiles()
	if err == nil {
		files, err = s.filesOf(st.record)
	}
	if err != nil {
		if plain := (*fault.Error)(nil); !errors.As(err, &plain) {
			err = fault.System(err, "machine %s cannot be started", spec.Machine)
		}
		if uerr := s.removeLocked(context.WithoutCancel(ctx), spec.Machine); uerr != nil {
			s.log.Error("a failed start could not be undone", "machine", spec.Machine, "err", uerr)
		}
		if ctx.Err() != nil {
			err = fault.Wrap(fault.Timeout, err, "the start of machine %s was given up", spec.Machine)
		}
		return nil, err
	}
	return files, nil
}

// reserve takes the Machine's slot and makes its entry. The Machine must not exist.
func (s *Server) reserve(r record) (*machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machines[r.Machine] != nil {
		return nil, fault.New(fault.Conflict, "machine %s has a sandbox already", r.Machine)
	}
	if other, ok := s.slots[r.Slot]; ok && other != r.Machine {
		return nil, fault.New(fault.Conflict, "slot %d belongs to machine %s", r.Slot, other)
	}
	m := &machine{record: r}
	s.slots[r.Slot], s.machines[r.Machine] = r.Machine, m
	return m, nil
}

// starter is one start under way.
type starter struct {
	server  *Server
	spec    *sandbox.Spec
	secrets *os.File // the caller's; nil when there are none
	grant   grant.Grant
	record  record

	open    []*os.File // closed at the end, whatever it is
	machine *machine
	netns   *os.File
	goPipe  *os.File
	report  *os.File
}

// keep registers a file to be closed at the end of the start.
func (st *starter) keep(f *os.File, err error) (*os.File, error) {
	if err == nil {
		st.open = append(st.open, f)
	}
	return f, err
}

func (st *starter) closeFiles() { closeFiles(st.open) }

// run is the start, step by step. The network is made while the sandbox boots.
func (st *starter) run(ctx context.Context) error {
	s, id := st.server, st.spec.Machine
	s.log.Debug("trace", "step", "asked", "machine", id)
	remembered := st.remember()
	defer func() { <-remembered }()
	if err := st.makeDirs(); err != nil {
		return fault.System(err, "the machine's directories cannot be made in %s and %s", s.config.RunDir, s.config.MachineDir)
	}
	s.log.Debug("trace", "step", "made directories", "machine", id)
	if err := failpoint.Write("warden/start/link", func() error { return s.linkImage(id, st.spec.Image) }); err != nil {
		return err
	}
	if err := failpoint.Write("warden/start/cgroup", func() error { return s.groups.Create(string(id), limits(st.grant)) }); err != nil {
		return err
	}
	s.log.Debug("trace", "step", "made cgroups", "machine", id)
	if err := failpoint.Write("warden/start/bundle", st.writeBundle); err != nil {
		return err
	}
	if err := failpoint.Write("warden/start/shim", st.startShim); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	if err := s.holdOutput(st.machine, id); err != nil {
		return err
	}
	err := failpoint.Write("warden/start/go", func() error { _, err := st.goPipe.Write([]byte{1}); return err })
	if err != nil {
		return fmt.Errorf("let the shim go on: %w", err)
	}
	s.log.Debug("trace", "step", "cloned the shim", "machine", id)
	err = failpoint.Write("warden/start/network", func() error { return s.router.Add(st.record.member(), st.netns) })
	if err != nil {
		return err
	}
	s.log.Debug("trace", "step", "connected", "machine", id)
	// A sandbox that has ended already says in its report why.
	err = failpoint.Write("warden/start/connected", func() error { _, err := st.goPipe.Write([]byte{1}); return err })
	if err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("let the sandbox go on: %w", err)
	}
	if err := failpoint.Write("warden/start/report", func() error { return st.awaitReport(ctx) }); err != nil {
		return err
	}
	s.log.Debug("trace", "step", "reported", "machine", id)
	// Nobody needs it any more. (gVisor keeps what it must know of it, the environment
	// among it, in its own state file beside, in memory too.)
	err = failpoint.Write("warden/start/unbundle", func() error { return os.RemoveAll(filepath.Join(s.runDir(id), bundleDir)) })
	if err != nil {
		return err
	}
	// Died before: the next warden undoes the start, whether it is remembered or not.
	if err := <-remembered; err != nil {
		return err
	}
	st.record.Started = true
	if err := failpoint.Write("warden/start/started", func() error { return s.writeRecord(st.record) }); err != nil {
		return err
	}
	return s.adopt(st.machine, st.record)
}

// remember writes down, beside the start, which generation it is of: no sandbox is kept
// of which that is not on disk. The channel holds the error, and is then closed.
func (st *starter) remember() <-chan error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- st.server.started.Raise(st.spec.Machine, st.grant.Generation, time.Unix(st.grant.Ends, 0))
	}()
	return done
}

// limits turns a grant, which is complete, into a cgroup's limits.
func limits(g grant.Grant) cgroup.Limits {
	return cgroup.Limits{MemoryBytes: int64(g.MemoryMB+overheadMB) << 20, CPUQuota: g.CPUQuota, MaxPIDs: g.MaxPIDs}
}

// makeDirs makes the Machine's directories, the record first.
func (st *starter) makeDirs() error {
	s, id, base := st.server, st.spec.Machine, privnet.UIDRange(st.spec.Slot)
	dir := s.runDir(id)
	if err := ownedDir(dir, 0, base, 0o710); err != nil {
		return err
	}
	if err := failpoint.Write("warden/start/record", func() error { return s.writeRecord(st.record) }); err != nil {
		return err
	}
	if err := failpoint.Step("warden/start/dirs"); err != nil {
		return err
	}
	return errors.Join(
		ownedDir(filepath.Join(dir, bundleDir), 0, base, 0o710),
		os.Mkdir(filepath.Join(dir, bundleDir, "rootfs"), 0o755),
		unix.Mkfifo(filepath.Join(dir, stdoutFile), 0o600),
		unix.Mkfifo(filepath.Join(dir, stderrFile), 0o600),
		os.WriteFile(filepath.Join(dir, exitFile), nil, 0o600),
		os.WriteFile(filepath.Join(dir, meterFile), nil, 0o600),
		s.makeDisk(id, base),
	)
}

// writeBundle writes what the sandbox starts from.
func (st *starter) writeBundle() error {
	s, base := st.server, privnet.UIDRange(st.spec.Slot)
	dir := filepath.Join(s.runDir(st.spec.Machine), bundleDir)
	files := runsc.Files{Image: wire.ShimImage}
	if len(st.spec.Upper) > 0 {
		files.Upper = filepath.Join(wire.ShimBundle, upperFile)
		if err := groupFile(filepath.Join(dir, upperFile), st.spec.Upper, base); err != nil {
			return err
		}
	}
	config, err := runsc.Bundle(*st.spec, st.grant, files)
	if err != nil {
		return err
	}
	return groupFile(filepath.Join(dir, configFile), config, base)
}

// shimFiles opens everything that the shim inherits, in the order of wire.FDGo and
// following.
func (st *starter) shimFiles() ([]*os.File, error) {
	s, id := st.server, st.spec.Machine
	dir := s.runDir(id)
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		closeFiles([]*os.File{goRead, goWrite})
		return nil, err
	}
	st.open = append(st.open, goRead, goWrite, reportRead, reportWrite)
	st.goPipe, st.report = goWrite, reportRead
	files := []*os.File{goRead, reportWrite}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, controlFile), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	control, err := st.keep(l.File())
	if err != nil {
		return nil, err
	}
	for _, o := range []struct {
		name string
		flag int
	}{
		{exitFile, os.O_WRONLY}, {controlFile, -1},
		{stdoutFile, os.O_RDWR}, {stderrFile, os.O_RDWR}, {stdoutFile, os.O_WRONLY}, {stderrFile, os.O_WRONLY},
	} {
		if o.flag == -1 {
			files = append(files, control)
			continue
		}
		f, err := st.keep(openFIFO(filepath.Join(dir, o.name), o.flag))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	procs, oom, err := s.groups.OpenSandbox(string(id))
	st.open = append(append(st.open, procs...), oom)
	if err != nil {
		return nil, err
	}
	meter, err := st.keep(os.OpenFile(filepath.Join(dir, meterFile), os.O_WRONLY, 0))
	if err != nil {
		return nil, err
	}
	secrets := st.secrets
	if secrets == nil {
		if secrets, err = st.keep(os.Open(os.DevNull)); err != nil {
			return nil, err
		}
	}
	return append(append(files, oom, meter, secrets), procs...), nil
}

// openFIFO opens a file without the non-blocking mode that Go gives to pipes: the
// mode belongs to the open file, which a Machine's process inherits. A FIFO must
// have a reader, or be opened for both, else this waits.
func openFIFO(path string, flag int) (*os.File, error) {
	fd, err := unix.Open(path, flag|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// startShim clones the shim into its namespaces and its cgroup. It
// waits there for the first byte of the go pipe.
func (st *starter) startShim() error {
	s, id, base := st.server, st.spec.Machine, privnet.UIDRange(st.spec.Slot)
	dir := s.runDir(id)
	files, err := st.shimFiles()
	if err != nil {
		return err
	}
	config := wire.ShimConfig{
		ID: string(id), Program: filepath.Join(s.config.LibDir, "bulkhead-sandbox"), Bundle: filepath.Join(dir, bundleDir),
		Init:  filepath.Join(s.config.LibDir, "bulkhead-init"),
		Image: filepath.Join(s.diskDir(id), imageFile), Cgroups: len(files) - (wire.FDCgroups - wire.FDGo),
		Flags: runsc.Flags(wire.ShimState),
	}
	log, err := st.keep(os.OpenFile(filepath.Join(dir, shimLogFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600))
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.config.LibDir, "bulkhead-shim"), append([]string{"run"}, config.Args()...)...)
	cmd.Dir, cmd.Env = "/", []string{"GOMAXPROCS=1"}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, files
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: privnet.UIDCount}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
		Setsid:     true, // no signal to the warden's group reaches it
	}
	group, err := s.groups.OpenShim(string(id))
	if err != nil {
		return fmt.Errorf("open the shim's cgroup: %w", err)
	}
	if group != nil {
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if err := cmd.Start(); err != nil {
		return fault.Clone(err, "the sandbox's namespaces cannot be made")
	}
	done := make(chan struct{})
	st.machine.done = done
	go func() {
		cmd.Wait() // how it ended is in the exit file
		close(done)
	}()
	// Until the process has been waited for, its pid is its own.
	pid := cmd.Process.Pid
	if st.record.Shim, err = wire.Identify(pid); err != nil {
		return err
	}
	if st.netns, err = st.keep(os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))); err != nil {
		return err
	}
	// No core dump of a Machine's memory on the host's disk. (The sandbox and its stubs have
	// no other protection against it: gVisor looks into them.)
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: coredump.Limit, Max: coredump.Limit}, nil); err != nil {
		return err
	}
	return s.groups.AddShim(string(id), pid)
}

// awaitReport waits until the shim says that the sandbox runs, or why not.
func (st *starter) awaitReport(ctx context.Context) error {
	// Our copies of what the shim holds must go, or the pipe would never end.
	for _, f := range st.open {
		if f != st.report && f != st.netns {
			f.Close()
		}
	}
	stop := context.AfterFunc(ctx, func() { st.report.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(st.report, 4*wire.MaxLog))
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the sandbox did not start in time")
	}
	r, err := wire.ParseReport(b)
	if err != nil {
		return fault.Wrap(fault.Internal, fmt.Errorf("%w; its log: %s", err, st.shimLog()), "the sandbox's shim ended without a word")
	}
	if !r.OK {
		return runsc.StartError(r.Log, st.spec.Args[0])
	}
	return nil
}

// shimLog is the beginning of the shim's log, of which nobody knows how long it is.
func (st *starter) shimLog() []byte {
	f, err := os.Open(filepath.Join(st.server.runDir(st.spec.Machine), shimLogFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, 2000)
	n, _ := f.ReadAt(b, 0)
	return b[:n]
}
