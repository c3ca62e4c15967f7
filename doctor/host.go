package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead/privnet"
)

// host is where checks look. Tests plant another one.
type host struct {
	root string // goes before every path below /proc, /sys and /dev
	// device returns the block device that a file lies on, or is.
	device func(path string) (major, minor uint32, err error)
	// fsType is the magic number of the file system that a path lies on.
	fsType func(path string) (int64, error)
	// clock asks the kernel how good its clock is.
	clock func() (state int, status int32, err error)
	// landlock is the version of the kernel's landlock, 0 for none.
	landlock func() int
}

// thisHost is the real one.
var thisHost = host{
	device: func(path string) (uint32, uint32, error) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return 0, 0, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		dev := uint64(st.Dev)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			dev = st.Rdev
		}
		return unix.Major(dev), unix.Minor(dev), nil
	},
	fsType: func(path string) (int64, error) {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		return int64(st.Type), err
	},
	clock: func() (int, int32, error) {
		var tx unix.Timex
		state, err := unix.Adjtimex(&tx)
		return state, tx.Status, err
	},
	landlock: func() int {
		v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
		if errno != 0 {
			return 0
		}
		return int(v)
	},
}

// read returns a file of the kernel's, trimmed; "" when it is not there.
func (h host) read(path string) string {
	b, err := os.ReadFile(h.root + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h host) exists(path string) bool {
	_, err := os.Lstat(h.root + path)
	return err == nil
}

// hostFindings are all checks of host and files, which need no running platform.
func hostFindings(p Platform, h host) (out []Finding) {
	for _, check := range []func() []Finding{
		func() []Finding { return h.files(p.DataDir) },
		func() []Finding { return programs(p.LibDir, p.Config) },
		func() []Finding { return h.dataDisk(p.DataDir) },
		h.swap,
		h.cgroups,
		h.features,
		h.settings,
		h.mitigations,
		h.synchronized,
		func() []Finding { return h.nameservers(p.Nameservers) },
		h.forwarding,
	} {
		out = append(out, check()...)
	}
	return append(out, Finding{"backup", Note, "there is no backup to look at: Bulkhead makes none yet", ""})
}

// cgroups wants version 2, which bounds more, and whose limits hold below them.
func (h host) cgroups() []Finding {
	if h.exists("/sys/fs/cgroup/cgroup.controllers") {
		return []Finding{{"cgroups", OK, "cgroups are of version 2", ""}}
	}
	return []Finding{{"cgroups", Warn, "cgroups are of version 1: limits hold, but what a Machine writes to disk is not charged to it, and a memory kill may take one process instead of all",
		"boot with systemd.unified_cgroup_hierarchy=1, or take a distribution of the last years"}}
}

// features are what isolation is made of.
func (h host) features() (out []Finding) {
	if n := h.read("/proc/sys/user/max_user_namespaces"); n == "" || n == "0" {
		out = append(out, Finding{"user namespaces", Fail, "the kernel makes no user namespaces: no sandbox can start", "set user.max_user_namespaces to 65536 or more with sysctl"})
	}
	actions := " " + h.read("/proc/sys/kernel/seccomp/actions_avail") + " "
	for _, a := range []string{"kill_process", "errno", "user_notif"} {
		if !strings.Contains(actions, " "+a+" ") {
			out = append(out, Finding{"seccomp", Fail, "the kernel's seccomp cannot do " + a + ": sandboxes and the unpacker filter their system calls with it", "take a kernel with CONFIG_SECCOMP_FILTER, 5.0 or newer"})
			break
		}
	}
	const wanted = 4 // files, truncation, and TCP
	switch v := h.landlock(); {
	case v == 0:
		out = append(out, Finding{"landlock", Warn, "the kernel has no landlock: the process that unpacks images is held by seccomp alone", "add landlock to the kernel's lsm= parameter, or take a kernel with CONFIG_SECURITY_LANDLOCK"})
	case v < wanted:
		out = append(out, Finding{"landlock", Note, fmt.Sprintf("the kernel's landlock is of version %d: it does not know the network (version %d does)", v, wanted), ""})
	}
	if out == nil {
		out = append(out, Finding{"isolation", OK, fmt.Sprintf("user namespaces, seccomp and landlock (version %d) are there", h.landlock()), ""})
	}
	if h.exists("/dev/kvm") {
		return append(out, Finding{"kvm", Note, "the host has KVM", ""})
	}
	return append(out, Finding{"kvm", Note, "the host has no KVM: gVisor, which needs none, is the only kind of sandbox here", ""})
}

// settings of the kernel that make it harder to attack from a process that got out.
func (h host) settings() (out []Finding) {
	for _, s := range []struct{ path, bad, means, remedy string }{
		{"/proc/sys/kernel/unprivileged_bpf_disabled", "0", "every process may load BPF programs into the kernel", "set kernel.unprivileged_bpf_disabled=1 with sysctl"},
		{"/proc/sys/kernel/kptr_restrict", "0", "every process may read where the kernel lies in memory", "set kernel.kptr_restrict=1 with sysctl"},
		{"/proc/sys/kernel/yama/ptrace_scope", "0", "processes may look into all others of their user", "set kernel.yama.ptrace_scope=1 with sysctl"},
		{"/proc/sys/fs/protected_symlinks", "0", "links in directories like /tmp may lead root astray", "set fs.protected_symlinks=1 with sysctl"},
		{"/proc/sys/fs/suid_dumpable", "1", "programs that changed their user write their memory where others read it", "set fs.suid_dumpable=0 with sysctl"},
	} {
		if h.read(s.path) == s.bad {
			out = append(out, Finding{"kernel settings", Warn, fmt.Sprintf("%s is %s: %s", strings.ReplaceAll(strings.TrimPrefix(s.path, "/proc/sys/"), "/", "."), s.bad, s.means), s.remedy})
		}
	}
	if out == nil {
		out = []Finding{{"kernel settings", OK, "BPF, addresses of the kernel, tracing and links are closed to processes without rights", ""}}
	}
	return out
}

// mitigations of the processor's faults, through which a sandbox might read what
// another or the kernel computes.
func (h host) mitigations() []Finding {
	const dir = "/sys/devices/system/cpu/vulnerabilities"
	names, err := os.ReadDir(h.root + dir)
	if err != nil {
		return []Finding{{"processor", Warn, "the kernel does not tell of the processor's faults: it is older than 4.15", "take a newer kernel"}}
	}
	var open, smt []string
	for _, n := range names {
		text := h.read(filepath.Join(dir, n.Name()))
		switch {
		case strings.HasPrefix(text, "Vulnerable"):
			open = append(open, n.Name())
		case strings.Contains(text, "SMT vulnerable"), strings.Contains(text, "SMT Host state unknown"):
			smt = append(smt, n.Name())
		}
	}
	var out []Finding
	if len(open) > 0 {
		out = append(out, Finding{"processor", Warn, "nothing is done about these faults of the processor: " + strings.Join(open, ", "),
			"update kernel and microcode, and leave mitigations= off the kernel's command line; where it must stay so, run apps of one owner alone on this host"})
	}
	if len(smt) > 0 {
		out = append(out, Finding{"processor", Warn, "two apps on one core may read from each other through " + strings.Join(smt, ", "),
			"boot with mitigations=auto,nosmt, or run apps of one owner alone on this host"})
	}
	if out == nil {
		out = []Finding{{"processor", OK, fmt.Sprintf("of %d known faults the processor has none, or the kernel mitigates it", len(names)), ""}}
	}
	return out
}

// synchronized looks at the clock, which tokens, certificates and the log rest on.
func (h host) synchronized() []Finding {
	state, status, err := h.clock()
	switch {
	case err != nil:
		return []Finding{{"clock", Warn, "the kernel cannot be asked about its clock: " + err.Error(), "run the doctor on the host itself, as root"}}
	case state == unix.TIME_ERROR || status&unix.STA_UNSYNC != 0:
		return []Finding{{"clock", Warn, "nothing keeps the clock right: tokens and certificates end too early or too late", "start a time service: apt-get install chrony"}}
	}
	return []Finding{{"clock", OK, "the clock is synchronized", ""}}
}

// forwarding says whether the host is a router between its other interfaces.
func (h host) forwarding() []Finding {
	if h.read("/proc/sys/net/ipv4/ip_forward") != "1" {
		return []Finding{{"forwarding", OK, "the host forwards nothing between its own networks", ""}}
	}
	return []Finding{{"forwarding", Note, "the host forwards between all its networks: net.ipv4.ip_forward is 1, which Bulkhead does not need",
		"set it to 0 unless something else needs it, such as Docker; versions of Bulkhead before this one left it on"}}
}

// nameservers looks for a name server that Machines can reach. set are the operator's.
func (h host) nameservers(set []netip.Addr) []Finding {
	if len(set) > 0 {
		return []Finding{{"nameservers", OK, fmt.Sprintf("machines resolve names with %v, which the configuration sets", set), ""}}
	}
	for _, file := range privnet.ResolvConfs {
		if found := privnet.Nameservers(h.read(file)); len(found) > 0 {
			return []Finding{{"nameservers", OK, fmt.Sprintf("machines resolve names with %v, from %s", found, file), ""}}
		}
	}
	return []Finding{{"nameservers", Warn, "machines cannot resolve names: the host has no public IPv4 name server",
		`set nameservers in bulkhead.toml, for example ["9.9.9.9", "1.1.1.1"], and start bulkheadd again`}}
}

// probe runs what bulkheadd up tries first: doing what a sandbox needs, in passing.
func (p Platform) probe(ctx context.Context) []Finding {
	if p.Probe == nil {
		return nil
	}
	err := p.Probe(ctx)
	if err == nil {
		return []Finding{{"probes", OK, "the host makes namespaces, packet rules and cgroups for a sandbox", ""}}
	}
	var out []Finding
	for _, e := range unjoin(err) {
		out = append(out, Finding{"probes", Fail, e.Error(), "see the sentence itself"})
	}
	return out
}

func unjoin(err error) []error {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		return many.Unwrap()
	}
	return []error{err}
}
