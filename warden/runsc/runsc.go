// Package runsc knows how to speak to gVisor: the flags of bulkhead-sandbox, the
// bundle that it starts a Machine from, and what its error messages mean for the
// user. It touches no file and runs nothing.
package runsc

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/sandbox"
)

// Annotations that cmd/bulkhead-sandbox reads; the names are repeated there, since
// it is a module of its own.
const (
	annotationMemory    = "bulkhead.memory" // bytes
	annotationCPUs      = "bulkhead.cpus"
	annotationDisk      = "bulkhead.disk"      // bytes of each file system in memory that has no size of its own
	annotationInodes    = "bulkhead.inodes"    // of the writable layer
	annotationProcesses = "bulkhead.processes" // processes and threads together
)

// execReserve is how many processes more than a Machine's limit commands may have;
// cmd/bulkhead-sandbox repeats it.
const execReserve = 16

// apiDir holds the platform's API inside a Machine; cmd/bulkhead-sandbox repeats it.
const apiDir = "/.fly"

// LogFD is where Flags tells bulkhead-sandbox to write its error log and a
// sandbox its last words: a pipe of the shim.
const LogFD = 3

// Flags are the global flags of every bulkhead-sandbox command of a Machine whose
// state is in stateDir. Debug logs stay off: they would hold tenants' data.
func Flags(stateDir string) []string {
	log := fmt.Sprintf("/proc/self/fd/%d", LogFD)
	return []string{
		"--root=" + stateDir,
		"--log=" + log, "--log-format=json", "--panic-log=" + log,
		"--platform=systrap",
		"--network=sandbox",
		"--ignore-cgroups", // the warden makes them; the sandbox could not
		"--directfs=false",
		"--allow-rootfs-tar-annotation",
		"--host-settings=ignore",
		"--oci-seccomp=false",
		"--net-raw=false",
		"--allow-suid", // setuid programs work, inside the sandbox only
	}
}

// capabilities are what the root user of a Machine has, inside its sandbox: the
// usual set of containers without NET_RAW. They mean nothing on the host.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// Files are the paths that a bundle refers to.
type Files struct {
	Image string // sealed EROFS image
	Upper string // tar archive laid over it; empty for none
}

// Bundle returns the config.json of a Machine. Its grant is complete.
func Bundle(s sandbox.Spec, g grant.Grant, files Files) ([]byte, error) {
	spec := specs.Spec{
		Version:  specs.Version,
		Process:  process(s, g),
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: s.Hostname,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777"}},
			// bulkhead-sandbox makes the socket "api" in it and closes it.
			{Destination: apiDir, Type: "tmpfs", Source: "fly", Options: []string{"nosuid", "nodev", "noexec", "mode=755", "size=4k"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			// The shim's own, which the warden has set up.
			{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"},
		}},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source":  files.Image,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "memory",
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%dm", g.DiskMB),
			annotationMemory:                 strconv.FormatInt(int64(g.MemoryMB)<<20, 10),
			annotationCPUs:                   strconv.Itoa(g.CPUs),
			annotationDisk:                   strconv.FormatInt(int64(g.DiskMB)<<20, 10),
			annotationInodes:                 strconv.Itoa(g.Inodes),
			annotationProcesses:              strconv.Itoa(g.Processes),
		},
	}
	if files.Upper != "" {
		spec.Annotations["dev.gvisor.tar.rootfs.upper"] = files.Upper
	}
	return json.Marshal(spec)
}

// process returns the first process of s. gVisor gives its limits to what Exec runs, too.
func process(s sandbox.Spec, g grant.Grant) *specs.Process {
	return &specs.Process{
		User:         specs.User{UID: s.UID, GID: s.GID, AdditionalGids: s.Groups},
		Args:         initArgs(mode(s), s.Cwd, s.Args),
		Env:          s.Env,
		Cwd:          "/", // bulkhead-init changes it
		Capabilities: caps(s.UID),
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: uint64(g.OpenFiles), Hard: uint64(g.OpenFiles)},
			// Of each user; the sandbox bounds all together, and leaves a reserve to commands.
			{Type: "RLIMIT_NPROC", Soft: uint64(g.Processes + execReserve), Hard: uint64(g.Processes + execReserve)},
			{Type: "RLIMIT_CORE"},
		},
		NoNewPrivileges: false,
	}
}

// mode is how bulkhead-init starts the process of s.
func mode(s sandbox.Spec) string {
	switch {
	case s.OwnInit:
		return "become"
	case s.TTY:
		return "tty"
	}
	return "run"
}

// initArgs are the arguments of bulkhead-init, for a command in a directory.
func initArgs(mode, cwd string, command []string) []string {
	return append([]string{"bulkhead-init", mode, cwd}, command...)
}

// ExecProcess returns the process description of an Exec, for --process.
func ExecProcess(e sandbox.ExecSpec) ([]byte, error) {
	return json.Marshal(specs.Process{
		User:         specs.User{UID: e.UID, GID: e.GID, AdditionalGids: e.Groups},
		Args:         initArgs("exec", e.Cwd, e.Args),
		Env:          e.Env,
		Cwd:          "/",
		Capabilities: caps(e.UID),
	})
}

// caps is what a process of user uid has and may gain.
func caps(uid uint32) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: capabilities}
	if uid == 0 {
		c.Effective, c.Permitted = capabilities, capabilities
	}
	return c
}

// message takes the last error out of an error log: lines of {"msg":…,"level":…}.
func message(log string) string {
	last := ""
	for line := range strings.Lines(log) {
		var e struct{ Msg, Level string }
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg != "" {
			last = e.Msg
		}
	}
	if last == "" {
		last = log
	}
	return last
}

// processInfo is one entry of "bulkhead-sandbox processes".
type processInfo struct {
	PID   int32  `json:"pid"`
	STime string `json:"stime"` // 15:04, Jan02 or 2006
	Time  string `json:"time"`  // a duration
	Cmd   string `json:"cmd"`
}

// ParseProcesses reads the answer of "bulkhead-sandbox processes". It comes from
// the sandbox, so it is bounded by the caller and nothing in it is believed beyond
// this Machine.
func ParseProcesses(b []byte, now time.Time) ([]sandbox.Process, error) {
	var list []processInfo
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the sandbox gave a process list that cannot be read")
	}
	out := make([]sandbox.Process, 0, len(list))
	for _, p := range list {
		cpu, _ := time.ParseDuration(p.Time)
		out = append(out, sandbox.Process{PID: p.PID, Command: clip(p.Cmd), CPU: cpu, Started: started(p.STime, now)})
	}
	return out, nil
}

// started undoes the sandbox's formatting of a start time, as exactly as it goes: to
// the minute for today, to the day for this year. The zero time when unknown.
func started(s string, now time.Time) time.Time {
	now = now.UTC()
	if t, err := time.Parse("15:04", s); err == nil {
		return time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), 0, 0, time.UTC)
	}
	if t, err := time.Parse("Jan02", s); err == nil {
		return time.Date(now.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	}
	if t, err := time.Parse("2006", s); err == nil {
		return t
	}
	return time.Time{}
}

// clip bounds what a process says of itself: a value that is shown, not a word in a message.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
