package world_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"bulkhead/privnet"
	"bulkhead/world"
)

// Everything that processes of ours may hold open, besides sockets.
const (
	filesOfGo      = `/dev/null|anon_inode:\[(eventfd|eventpoll|pidfd)\]|pipe:\[\d+\]|/sys/fs/cgroup/.*cpu[./].*`
	filesOfMachine = `|RUN/machines/[0-9a-f]+/(stdout|stderr)`
)

// confinement is what must be true of every process of a kind, seen from the host.
type confinement struct {
	users      func(uid int) bool
	bounding   string // the most that it may ever have; "" for anything within its user namespace
	seccomp    string
	namespaces []string // that are not the host's
	cgroup     string   // ends the group's path; "" for any
	files      string   // pattern of its open files
}

var machineUser = func(uid int) bool { return uid >= privnet.UIDBase }
var roleUser = func(uid int) bool { return uid > 0 && uid < privnet.UIDBase }

// confinements are the kinds of processes.
var confinements = map[string]confinement{
	"sandbox": {machineUser, zeroCaps, "2", []string{"user", "mnt", "pid", "net", "ipc", "uts"}, "/sandbox",
		filesOfGo + filesOfMachine + `|/image\.erofs|/bulkhead-init|/memfd:(runsc-memory|systrap-memory|memory-usage) \(deleted\)|anon_inode:seccomp notify`},
	"shim": {machineUser, "", "0", []string{"user", "mnt", "pid", "net", "ipc", "uts"}, "/shim",
		filesOfGo + filesOfMachine + `|RUN/machines/[0-9a-f]+/(exit|meter|shim\.log)|/sys/fs/cgroup/.*/(memory\.oom_control|memory\.events)`},
	"controller": {roleUser, zeroCaps, "0", nil, "", filesOfGo + `|DATA/controller/.*`},
	"worker":     {roleUser, zeroCaps, "0", nil, "", filesOfGo + filesOfMachine + `|RUN/machines/[0-9a-f]+/exit|DATA/(images|worker)/.*`},
	"edge":       {roleUser, zeroCaps, "0", []string{"net"}, "", filesOfGo + `|DATA/edge/.*`},
	"warden": {func(uid int) bool { return uid == 0 }, "00000000002010cb", "0", nil, "",
		filesOfGo + filesOfMachine + `|RUN/netns/router|RUN/machines/[0-9a-f]+/exit`},
}

// kindOf names a process's kind by its program.
func kindOf(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	kind, _ := strings.CutPrefix(filepath.Base(exe), "bulkhead-")
	return kind
}

// auditProcesses looks at every process of the platform from the host.
func auditProcesses(t *testing.T, w *world.World) {
	seen := map[string]int{}
	for _, p := range w.Processes() {
		kind := kindOf(p.PID)
		c, ok := confinements[kind]
		if !ok {
			if p.UID >= privnet.UIDBase {
				t.Errorf("%s (%d), of user %d, is of no known kind", p.Name, p.PID, p.UID)
			}
			continue
		}
		wrong, ended := audit(t, w, p.PID, c)
		if ended {
			continue
		}
		seen[kind]++
		for _, why := range wrong {
			t.Errorf("%s (%d): %s", kind, p.PID, why)
		}
	}
	for kind := range confinements {
		if seen[kind] == 0 {
			t.Errorf("no process of kind %s was looked at", kind)
		}
	}
	t.Logf("processes looked at: %v", seen)
}

// audit returns what is wrong with a process.
func audit(t *testing.T, w *world.World, pid int, c confinement) (wrong []string, ended bool) {
	t.Helper()
	st := status(t, pid)
	if st == nil || strings.HasPrefix(st["State"], "Z") {
		return nil, true
	}
	is := func(what, got string, ok bool) {
		if !ok {
			wrong = append(wrong, what+": "+got)
		}
	}
	for _, field := range []string{"Uid", "Gid"} {
		for _, id := range strings.Fields(st[field]) {
			var n int
			fmt.Sscan(id, &n)
			is(field, st[field], c.users(n))
		}
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		is(set, st[set], st[set] == zeroCaps || c.bounding != "" && set != "CapAmb" && set != "CapInh" && st[set] == c.bounding)
	}
	is("CapBnd", st["CapBnd"], c.bounding == "" || st["CapBnd"] == c.bounding)
	is("NoNewPrivs", st["NoNewPrivs"], st["NoNewPrivs"] == "1")
	is("Seccomp", st["Seccomp"], st["Seccomp"] == c.seccomp)
	is("TracerPid", st["TracerPid"], st["TracerPid"] == "0")
	for _, ns := range c.namespaces {
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		host, _ := os.Readlink("/proc/self/ns/" + ns)
		is(ns+" namespace", own, err != nil || own != host)
	}
	if c.cgroup != "" {
		is("cgroup", groupOf(pid), strings.HasPrefix(groupOf(pid), "/bulkhead-"+tag(t, w)+"/") && strings.HasSuffix(groupOf(pid), c.cgroup))
		limits, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		core := regexp.MustCompile(`Max core file size +(\S+) +(\S+)`).FindStringSubmatch(string(limits))
		is("core dumps", fmt.Sprint(core), len(limits) == 0 || len(core) == 3 && core[1] == "1" && core[2] == "1")
	}
	return append(wrong, auditFiles(w, pid, c)...), false
}

// groupOf is the cgroup that bounds a process's memory.
func groupOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	group := ""
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && (f[1] == "memory" || f[1] == "" && group == "") {
			group = f[2]
		}
	}
	return group
}

// auditFiles returns open files that do not belong there: those that are not on the
// list, and, in a network namespace of its own, sockets of the host's network.
func auditFiles(w *world.World, pid int, c confinement) (wrong []string) {
	allowed := regexp.MustCompile(`^(` + c.files + `|socket:\[\d+\])$`)
	var foreign []string
	if slices.Contains(c.namespaces, "net") && slices.Contains(c.namespaces, "user") {
		for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"} {
			b, _ := os.ReadFile("/proc/self/net/" + table)
			for line := range strings.Lines(string(b)) {
				column := 9
				if table == "packet" {
					column = 8
				}
				if f := strings.Fields(line); len(f) > column {
					foreign = append(foreign, f[column])
				}
			}
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		short := strings.Replace(strings.Replace(link, w.DataDir, "DATA", 1), w.RunDir(), "RUN", 1)
		if !allowed.MatchString(short) {
			wrong = append(wrong, "open file "+filepath.Base(fd)+": "+short)
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok && slices.Contains(foreign, strings.TrimSuffix(inode, "]")) {
			wrong = append(wrong, "socket of the host's network: "+link)
		}
	}
	return wrong
}

// auditOfTheWeak is the control: a process that nothing confines, with a file too many,
// is seen for what it is; and so is a Machine's shim, once something of it is wrong.
func auditOfTheWeak(t *testing.T, w *world.World, machine string) {
	secret, err := os.Open(filepath.Join(w.DataDir, "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	cmd := exec.Command("/bin/sleep", "60")
	cmd.ExtraFiles = []*os.File{secret}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	wrong, _ := audit(t, w, cmd.Process.Pid, confinements["sandbox"])
	all := strings.Join(wrong, "\n")
	for _, want := range []string{"Uid", "Gid", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp", "user namespace", "mnt namespace", "pid namespace",
		"net namespace", "ipc namespace", "uts namespace", "cgroup", "open file 3: DATA/cluster.json"} {
		if !strings.Contains(all, want) {
			t.Errorf("an unconfined process: %s is not found:\n%s", want, all)
		}
	}
	for _, p := range w.Processes() {
		if kindOf(p.PID) == "shim" {
			c := confinements["sandbox"] // which it is not
			if wrong, _ := audit(t, w, p.PID, c); len(wrong) == 0 {
				t.Errorf("a shim of machine %s passes for a sandbox", machine)
			}
		}
	}
}
