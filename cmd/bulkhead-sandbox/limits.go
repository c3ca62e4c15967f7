package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	syscalls "gvisor.dev/gvisor/pkg/sentry/syscalls/linux"
	"gvisor.dev/gvisor/pkg/sentry/vfs"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// Annotations of the bundle that boot obeys. Package warden/runsc writes them.
const (
	annotationMemory    = "bulkhead.memory" // bytes
	annotationCPUs      = "bulkhead.cpus"
	annotationDisk      = "bulkhead.disk"      // bytes of each file system in memory that has no size of its own
	annotationInodes    = "bulkhead.inodes"    // of the writable layer
	annotationProcesses = "bulkhead.processes" // processes and threads together
)

// bounds are the limits that this program itself keeps.
type bounds struct {
	inodes    uint64
	processes int64
}

// setSize overrides the flags that "start" passed with what the bundle asks for.
func setSize(f *flag.FlagSet) (b bounds, err error) {
	annotations, err := bundleAnnotations(f)
	if err != nil {
		return b, err
	}
	number := func(name string) (n int64) {
		v, ok := annotations[name]
		if !ok || err != nil {
			return 0
		}
		if n, err = strconv.ParseInt(v, 10, 64); err == nil && n < 1 {
			err = fmt.Errorf("it is %d", n)
		}
		if err != nil {
			err = fmt.Errorf("annotation %s: %w", name, err)
		}
		return n
	}
	b.inodes, b.processes = uint64(number(annotationInodes)), number(annotationProcesses)
	for name, v := range map[string]int64{
		"total-memory": number(annotationMemory), "cpu-num": number(annotationCPUs),
		// All that gVisor uses it for: a tmpfs takes half of it unless it is told otherwise.
		"total-host-memory": 2 * number(annotationDisk),
	} {
		if v != 0 && err == nil {
			err = f.Set(name, strconv.FormatInt(v, 10))
		}
	}
	if err == nil && b.inodes > 0 {
		err = setInodes(f, b.inodes)
	}
	return b, err
}

// bundleAnnotations reads the annotations of the bundle's config.json.
func bundleAnnotations(f *flag.FlagSet) (map[string]string, error) {
	fd, err := strconv.Atoi(f.Lookup("spec-fd").Value.String())
	if err != nil || fd < 0 {
		return nil, fmt.Errorf("boot was started without --spec-fd")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("read the bundle's config.json: %w", err)
	}
	buf := make([]byte, st.Size)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return nil, fmt.Errorf("read the bundle's config.json: %w", err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(buf[:n], &spec); err != nil {
		return nil, fmt.Errorf("read the bundle's config.json: %w", err)
	}
	return spec.Annotations, nil
}

// setInodes bounds the inodes of the root file system's writable layer, a tmpfs, for
// which runsc has no setting: its size ends up as a mount option, and another option
// is put behind it.
func setInodes(f *flag.FlagSet, n uint64) error {
	confs, ok := f.Lookup("gofer-mount-confs").Value.(*specutils.GoferMountConfFlags)
	if !ok || len(*confs) == 0 || (*confs)[0].Size == "" {
		return fmt.Errorf("the root file system has no size, so its inodes cannot be bounded")
	}
	(*confs)[0].Size += ",nr_inodes=" + strconv.FormatUint(n, 10)
	return nil
}

// meter keeps the limit on processes and watches the others being hit: it stands
// between the app's system calls and the kernel's answers. What it counts goes to the
// error log as lines of "meter" and the numbers of meterLine; package warden/wire
// reads them.
type meter struct {
	processes int64
	starting  atomic.Int64 // calls that may make a process

	kernel atomic.Pointer[kernel.Kernel]
	once   sync.Once
	root   vfs.VirtualDentry // of the root file system, held from the first call on

	disk, inodes, refused, files atomic.Uint64 // how often each limit was hit

	hit  chan struct{}
	stop chan struct{}
	done sync.WaitGroup
	last string // line written
}

// How often a meter speaks: when nothing is hit, and between two hits.
const (
	meterEvery = 15 * time.Second
	meterRest  = 500 * time.Millisecond
)

// making are the system calls that make processes and threads.
var making = names("clone clone3 fork vfork")

// failing are the calls that fail when the disk is full or a process has too many
// open files. (A store to a mapped file on a full disk is a SIGBUS and not seen.)
var failing = names(`write pwrite64 writev pwritev pwritev2 sendfile splice copy_file_range fallocate ftruncate truncate
	open openat openat2 creat mkdir mkdirat mknod mknodat symlink symlinkat link linkat rename renameat renameat2
	chmod fchmod fchmodat chown fchown lchown fchownat utimensat setxattr lsetxattr fsetxattr
	socket socketpair accept accept4 dup dup2 dup3 fcntl pipe pipe2 eventfd eventfd2 epoll_create epoll_create1
	timerfd_create signalfd signalfd4 inotify_init inotify_init1 memfd_create recvmsg recvmmsg`)

func names(s string) map[string]bool {
	m := map[string]bool{}
	for _, n := range strings.Fields(s) {
		m[n] = true
	}
	return m
}

// newMeter puts a meter into the system call tables; it runs until end.
func newMeter(b bounds) *meter {
	m := &meter{processes: b.processes, hit: make(chan struct{}, 1), stop: make(chan struct{})}
	for _, table := range []*kernel.SyscallTable{syscalls.AMD64, syscalls.ARM64} {
		for no, call := range table.Table {
			fn := call.Fn
			switch {
			case making[call.Name]:
				call.Fn = func(t *kernel.Task, no uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
					return m.make(t, no, args, fn)
				}
			case failing[call.Name]:
				call.Fn = func(t *kernel.Task, no uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
					m.meet(t)
					v, ctl, err := fn(t, no, args)
					if err != nil {
						m.failed(err)
					}
					return v, ctl, err
				}
			default:
				continue
			}
			table.Table[no] = call
		}
		table.Init()
	}
	m.done.Go(m.run)
	return m
}

// meet takes hold of the kernel at the first call.
func (m *meter) meet(t *kernel.Task) {
	if m.kernel.Load() != nil {
		return
	}
	m.once.Do(func() {
		if mns := t.MountNamespace(); mns != nil {
			m.root = mns.Root(t)
			m.kernel.Store(t.Kernel())
			m.tell()
		}
	})
}

// execReserve is how many processes and threads the commands that are sent into a Machine have
// at least, children among them, however many others there are: an operator who looks for a
// fork bomb gets in. Package warden/runsc leaves room for as many in the limit of each user.
const execReserve = 16

// make makes a process unless there are too many. Calls under way count as if they
// had succeeded, so that no number of them at once gets beyond the limit.
func (m *meter) make(t *kernel.Task, no uintptr, args arch.SyscallArguments, fn kernel.SyscallFn) (uintptr, *kernel.SyscallControl, error) {
	m.meet(t)
	starting := m.starting.Add(1)
	defer m.starting.Add(-1)
	if m.processes > 0 && int64(t.Kernel().RootPIDNamespace().NumTasks())+starting > m.processes && !inReserve(t) {
		m.refused.Add(1)
		m.tell()
		return 0, nil, linuxerr.EAGAIN
	}
	return fn(t, no, args)
}

// inReserve reports whether a task of a command may make another although the Machine is full.
func inReserve(t *kernel.Task) bool {
	if t.Origin != kernel.OriginExec {
		return false
	}
	n := 0
	for _, other := range t.Kernel().RootPIDNamespace().Tasks() {
		if other.Origin == kernel.OriginExec {
			n++
		}
	}
	return n < execReserve
}

// failed looks whether a call failed of a limit.
func (m *meter) failed(err error) {
	switch {
	case linuxerr.Equals(linuxerr.ENOSPC, err):
		if st := m.statfs(); st.Files > 0 && st.FilesFree == 0 {
			m.inodes.Add(1)
		} else {
			m.disk.Add(1)
		}
	case linuxerr.Equals(linuxerr.EMFILE, err):
		m.files.Add(1)
	default:
		return
	}
	m.tell()
}

func (m *meter) tell() {
	select {
	case m.hit <- struct{}{}:
	default:
	}
}

// run writes lines until the meter ends.
func (m *meter) run() {
	t := time.NewTicker(meterEvery)
	defer t.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-t.C:
		case <-m.hit:
			select {
			case <-time.After(meterRest):
			case <-m.stop:
				m.write()
				return
			}
		}
		m.write()
	}
}

// write writes a line if it says anything new.
func (m *meter) write() {
	line := m.line()
	if line == "" || line == m.last || util.ErrorLogger == nil {
		return
	}
	m.last = line
	fmt.Fprintln(util.ErrorLogger, line)
}

// line is wire.Meter's encoding.
func (m *meter) line() string {
	k := m.kernel.Load()
	if k == nil {
		return ""
	}
	st := m.statfs()
	const most = 1 << 60 // tells "no limit" from a limit
	block := uint64(st.BlockSize)
	limit := uint64(0)
	if st.Blocks < most/max(block, 1) {
		limit = st.Blocks * block
	}
	return fmt.Sprintf("meter %d %d %d %d %d %d %d %d %d %d",
		(st.Blocks-st.BlocksFree)*block, limit, st.Files-st.FilesFree, st.Files, k.RootPIDNamespace().NumTasks(), max(m.processes, 0),
		m.disk.Load(), m.inodes.Load(), m.refused.Load(), m.files.Load())
}

// statfs asks the root file system.
func (m *meter) statfs() linux.Statfs {
	k := m.kernel.Load()
	if k == nil {
		return linux.Statfs{}
	}
	ctx := k.SupervisorContext()
	st, err := k.VFS().StatFSAt(ctx, auth.NewRootCredentials(k.RootUserNamespace()), &vfs.PathOperation{Root: m.root, Start: m.root})
	if err != nil {
		return linux.Statfs{}
	}
	return st
}

// end stops the meter: after it the log belongs to others.
func (m *meter) end() {
	close(m.stop)
	m.done.Wait()
}
