package world_test

// What may come of an attack, in the words of package fixture/attack: "done" is what was
// allowed and stays inside.
const (
	refused   = "refused"
	contained = "done"
	counted   = "counted"
	reached   = "reached"

	// Of the control only: what is allowed there acts on the host; what is tried depends
	// on the host's kernel and is only logged.
	succeeds = contained
	tried    = "tried"
)

// attackRow is one attack, what must come of it in a Machine, and what comes of it in the
// control, where nothing holds it.
type attackRow struct {
	name, class string
	want        string
	asUser      string // in the Machine whose process is not root, if that differs
	control     string // in the control; empty: it is not run there, since it would harm the host
	ownLink     bool   // the control runs it in a network namespace of its own
}

// in returns what the attack must come to in a Machine of a kind.
func (r attackRow) in(kind string) string {
	if kind == "user" && r.asUser != "" {
		return r.asUser
	}
	return r.want
}

var attackTable = []attackRow{
	{name: "fd-leak", class: "descriptors", want: refused, control: reached},
	{name: "proc-kcore", class: "/proc", want: refused, control: tried},
	{name: "proc-kallsyms", class: "/proc", want: refused, control: tried},
	{name: "proc-iomem", class: "/proc", want: refused, control: succeeds},
	{name: "proc-sched-debug", class: "/proc", want: refused, control: tried},
	{name: "proc-keys", class: "/proc", want: refused, control: tried},
	{name: "proc-sysrq", class: "/proc", want: refused, control: tried},
	{name: "proc-core-pattern", class: "/proc", want: refused, control: succeeds},
	{name: "proc-modprobe", class: "/proc", want: refused, control: tried},
	{name: "proc-panic", class: "/proc", want: refused, control: succeeds},
	{name: "proc-binfmt-misc", class: "/proc", want: refused, control: tried},
	{name: "proc-host-init", class: "file system", want: refused, control: tried},
	{name: "proc-all-roots", class: "file system", want: refused, control: reached},
	{name: "proc-all-environs", class: "file system", want: refused, control: reached},
	{name: "proc-fd-escape", class: "file system", want: refused, control: reached},
	{name: "path-traversal", class: "file system", want: refused, control: tried},
	{name: "sys-uevent-helper", class: "/sys and the kernel log", want: refused, control: tried},
	{name: "sys-power", class: "/sys and the kernel log", want: refused, control: tried},
	{name: "sys-debugfs", class: "/sys and the kernel log", want: refused, control: tried},
	{name: "sys-tracefs", class: "/sys and the kernel log", want: refused, control: tried},
	{name: "sys-firmware", class: "/sys and the kernel log", want: refused, control: tried},
	{name: "sys-write", class: "/sys and the kernel log", want: refused, control: succeeds},
	{name: "kernel-log", class: "/sys and the kernel log", want: contained, control: reached},
	{name: "dev-disk", class: "devices", want: refused, control: tried},
	{name: "dev-mem", class: "devices", want: refused, control: tried},
	{name: "dev-port", class: "devices", want: refused},
	{name: "dev-kmsg", class: "devices", want: refused, control: succeeds},
	{name: "dev-kvm", class: "devices", want: refused, control: tried},
	{name: "dev-fuse", class: "devices", want: contained, control: tried},
	{name: "dev-tun", class: "devices", want: contained, control: tried},
	{name: "dev-loop", class: "devices", want: refused, control: tried},
	{name: "dev-tty", class: "devices", want: refused, control: tried},
	{name: "tiocsti", class: "devices", want: refused, control: tried},
	{name: "io-uring", class: "system calls", want: refused, control: tried},
	{name: "bpf-program", class: "system calls", want: refused, control: tried},
	{name: "bpf-map", class: "system calls", want: refused, control: succeeds},
	{name: "perf-event", class: "system calls", want: refused, control: tried},
	{name: "keyring", class: "system calls", want: refused, control: succeeds},
	{name: "keyring-session", class: "system calls", want: contained, control: succeeds},
	{name: "kexec", class: "system calls", want: refused},
	{name: "init-module", class: "system calls", want: refused, control: tried},
	{name: "finit-module", class: "system calls", want: refused, control: tried},
	{name: "delete-module", class: "system calls", want: refused, control: tried},
	{name: "userfaultfd", class: "system calls", want: refused, control: tried},
	{name: "iopl", class: "system calls", want: refused, control: tried},
	{name: "ioperm", class: "system calls", want: refused, control: tried},
	{name: "modify-ldt", class: "system calls", want: refused, control: tried},
	{name: "personality", class: "system calls", want: refused, control: succeeds},
	{name: "set-clock", class: "system calls", want: refused},
	{name: "adjust-clock", class: "system calls", want: refused},
	{name: "set-hostname", class: "system calls", want: refused, control: succeeds},
	{name: "swapon", class: "system calls", want: refused},
	{name: "accounting", class: "system calls", want: refused},
	{name: "reboot", class: "system calls", want: refused},
	{name: "realtime", class: "system calls", want: refused, control: tried},
	{name: "mlock-all", class: "system calls", want: refused},
	{name: "memfd-secret", class: "system calls", want: refused, control: tried},
	{name: "fanotify", class: "system calls", want: refused, control: tried},
	{name: "capabilities", class: "system calls", want: refused, control: tried},
	{name: "unshare-user", class: "namespaces and mounts", want: contained, control: tried},
	{name: "unshare-mount", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "unshare-pid", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "unshare-net", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "unshare-cgroup", class: "namespaces and mounts", want: refused, control: tried},
	{name: "unshare-time", class: "namespaces and mounts", want: contained, control: tried},
	{name: "setns-init", class: "namespaces and mounts", want: refused, control: tried},
	{name: "mount-proc", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "mount-sysfs", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "mount-tmpfs", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "mount-devtmpfs", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "mount-debugfs", class: "namespaces and mounts", want: refused, control: tried},
	{name: "mount-bind", class: "namespaces and mounts", want: refused, control: succeeds},
	{name: "mount-disk", class: "namespaces and mounts", want: refused, control: tried},
	{name: "mount-overlay", class: "namespaces and mounts", want: refused, control: tried},
	{name: "fsopen", class: "namespaces and mounts", want: refused, control: tried},
	{name: "remount-sys", class: "namespaces and mounts", want: refused, control: tried},
	{name: "umount-proc", class: "namespaces and mounts", want: refused},
	{name: "pivot-root", class: "namespaces and mounts", want: refused},
	{name: "chroot-escape", class: "namespaces and mounts", want: refused, control: reached},
	{name: "open-by-handle", class: "namespaces and mounts", want: refused, control: tried},
	{name: "ptrace-foreign", class: "processes", want: refused, control: reached},
	{name: "read-foreign-memory", class: "processes", want: refused, control: reached},
	{name: "steal-foreign-file", class: "processes", want: refused, control: reached},
	{name: "renice-foreign", class: "processes", want: refused, control: reached},
	{name: "stop-foreign", class: "processes", want: refused, control: reached},
	{name: "signal-all-pids", class: "processes", want: refused},
	{name: "kill-foreign", class: "processes", want: refused, control: reached},
	{name: "shared-memory", class: "processes", want: refused, control: reached},
	{name: "cgroup-release-agent", class: "cgroups", want: refused, control: tried},
	{name: "cgroup-mount-v2", class: "cgroups", want: refused, control: succeeds},
	{name: "cgroup-mount-devices", class: "cgroups", want: refused, control: tried},
	{name: "cgroup-lift-limits", class: "cgroups", want: refused, control: tried},
	{name: "symlink-to-host", class: "links and programs", want: refused, control: tried},
	{name: "symlinks-of-the-image", class: "links and programs", want: refused, control: tried},
	{name: "write-through-image-links", class: "links and programs", want: contained, asUser: refused},
	{name: "hardlink-own-program", class: "links and programs", want: refused, control: succeeds},
	{name: "overwrite-sandbox-program", class: "links and programs", want: refused, control: tried},
	{name: "dirty-pipe", class: "links and programs", want: refused, control: tried},
	{name: "setuid-root", class: "links and programs", want: contained, asUser: refused, control: succeeds},
	{name: "abstract-socket", class: "host sockets", want: refused, control: reached},
	{name: "abstract-socket-seqpacket", class: "host sockets", want: refused, control: reached},
	{name: "path-socket", class: "host sockets", want: refused, control: tried},
	{name: "path-socket-by-proc", class: "host sockets", want: refused, control: tried},
	{name: "platform-sockets", class: "host sockets", want: refused, control: tried},
	{name: "foreign-sockets-listed", class: "host sockets", want: refused, control: reached},
	{name: "raw-ipv4", class: "socket kinds", want: refused, control: succeeds, ownLink: true},
	{name: "raw-ipv6", class: "socket kinds", want: refused, control: succeeds, ownLink: true},
	{name: "raw-icmp", class: "socket kinds", want: refused, control: succeeds, ownLink: true},
	{name: "raw-icmpv6", class: "socket kinds", want: refused, control: succeeds, ownLink: true},
	{name: "packet-socket", class: "socket kinds", want: refused, control: succeeds, ownLink: true},
	{name: "packet-socket-cooked", class: "socket kinds", want: refused, control: succeeds, ownLink: true},
	{name: "vsock", class: "socket kinds", want: refused, control: tried},
	{name: "alg-socket", class: "socket kinds", want: refused, control: tried},
	{name: "netfilter", class: "socket kinds", want: refused, control: succeeds},
	{name: "audit", class: "socket kinds", want: refused, control: succeeds},
	{name: "crypto-netlink", class: "socket kinds", want: refused, control: tried},
	{name: "xdp-socket", class: "socket kinds", want: refused, control: tried},
	{name: "rds-socket", class: "socket kinds", want: refused, control: tried},
	{name: "sctp-socket", class: "socket kinds", want: refused, control: tried},
	{name: "spoof-ipv4", class: "network", want: refused, control: succeeds, ownLink: true},
	{name: "spoof-ipv6", class: "network", want: refused, control: succeeds, ownLink: true},
	{name: "set-mac", class: "network", want: refused, control: succeeds, ownLink: true},
	{name: "add-address", class: "network", want: refused, control: succeeds, ownLink: true},
	{name: "link-down", class: "network", want: refused, control: succeeds, ownLink: true},
	{name: "promiscuous", class: "network", want: refused, control: succeeds, ownLink: true},
	{name: "low-port-of-others", class: "network", want: refused},
	{name: "dial-host", class: "network", want: refused},
	{name: "dial-host-loopback", class: "network", want: refused, control: reached},
	{name: "dial-gateway", class: "network", want: refused},
	{name: "dial-router", class: "network", want: refused},
	{name: "dial-metadata", class: "network", want: refused},
	{name: "dial-metadata-ipv6", class: "network", want: refused},
	{name: "dial-link-local", class: "network", want: refused},
	{name: "dial-private-ranges", class: "network", want: refused},
	{name: "dial-other-network", class: "network", want: refused},
	{name: "dial-other-network-ipv4", class: "network", want: refused},
	{name: "dial-edge", class: "network", want: refused},
	{name: "dial-platform-network", class: "network", want: refused},
}

// floodTable is what floods must come to. One ends the Machine.
var floodTable = []struct {
	kind, want string
	ends       bool
	note       string
}{
	{"forks", counted, false, "processes until none more is to be had"},
	{"disk", contained, false, "64 MiB of files"},
	{"inodes", contained, false, "files, as fast as they are made"},
	{"log", counted, false, "lines as fast as they are taken"},
	{"descriptors", counted, false, "open files"},
	{"packets", counted, false, "to the internet"},
	{"api", counted, false, "connections to `/.fly/api`, with garbage, half requests and files"},
	{"memory", "", true, "until the Machine is ended for it, which an event says"},
}

// containedBy says of each attack that is let do something why it stays inside.
var containedBy = map[string]string{
	"kernel-log":                "it is gVisor's own log",
	"dev-fuse":                  "gVisor's own FUSE, without a mount",
	"dev-tun":                   "a device of gVisor's own network stack; nothing is attached to it",
	"keyring-session":           "gVisor's own, empty",
	"unshare-user":              "a namespace of gVisor's; what it gives means nothing outside",
	"unshare-time":              "gVisor ignores it",
	"write-through-image-links": "what is written are the Machine's own files",
	"setuid-root":               "root of the Machine, as it was",
}
