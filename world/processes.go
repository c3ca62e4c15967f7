package world

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Process is one process of this platform.
type Process struct {
	PID  int
	PPID int
	UID  int    // real user id
	Name string // the program's file name, or argv[0]
	Args []string
}

// Processes lists every process below bulkheadd and every shim and sandbox of
// this platform, also those that bulkheadd no longer has for children.
func (w *World) Processes() []Process {
	all := processTable()
	mine := map[int]bool{}
	if w.cmd != nil {
		mine[w.cmd.Process.Pid] = true
	}
	run := w.RunDir()
	for _, p := range all {
		if p.Name == "bulkhead-shim" && strings.Contains(strings.Join(p.Args, " "), run+"/") {
			mine[p.PID] = true
		}
	}
	for changed := true; changed; {
		changed = false
		for _, p := range all {
			if mine[p.PPID] && !mine[p.PID] {
				mine[p.PID], changed = true, true
			}
		}
	}
	var out []Process
	for _, p := range all {
		if mine[p.PID] {
			out = append(out, p)
		}
	}
	return out
}

// Role returns the process of a role, or 0.
func (w *World) Role(name string) int {
	for _, p := range w.Processes() {
		if p.Name == "bulkhead-"+name && w.cmd != nil && p.PPID == w.cmd.Process.Pid {
			return p.PID
		}
	}
	return 0
}

// Kill kills a role outright and waits until its successor runs.
func (w *World) Kill(role string) {
	w.T.Helper()
	pid := w.Role(role)
	if pid == 0 {
		w.T.Fatalf("no process of role %s", role)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.T.Fatal(err)
	}
	w.Eventually(30e9, func() string {
		if now := w.Role(role); now == 0 || now == pid {
			return "role " + role + " has not come back"
		}
		return ""
	})
}

// PowerCut ends everything of this platform at once, and takes away what a
// reboot takes away: mounts, namespaces, rules, cgroups and the runtime directory.
func (w *World) PowerCut() {
	w.T.Helper()
	for range 3 { // a process may fork while we kill
		for _, p := range w.Processes() {
			syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
	if w.cmd != nil {
		<-w.exited
		w.cmd = nil
	}
	w.Eventually(10e9, func() string {
		if ps := w.Processes(); len(ps) > 0 {
			return strconv.Itoa(len(ps)) + " processes are left"
		}
		return ""
	})
	w.unmountRunDir()
	if err := os.RemoveAll(w.RunDir()); err != nil {
		w.T.Fatal(err)
	}
}

func (w *World) unmountRunDir() {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.T.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) > 4 && bytes.HasPrefix(f[4], []byte(w.RunDir()+"/")) {
			syscall.Unmount(string(f[4]), syscall.MNT_DETACH)
		}
	}
}

// kthreadd is the parent of the kernel's own threads.
const kthreadd = 2

// processAt reads ids and owner of the process of a directory in /proc: none for a zombie
// and for a thread of the kernel. Tests ask often: it reads as little as it can.
func processAt(dir string) (p Process, ok bool) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, false
	}
	// PID (NAME) STATE PPID …, and the name may have spaces and parentheses.
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	state, rest, _ := bytes.Cut(rest, []byte(" "))
	parent, _, _ := bytes.Cut(rest, []byte(" "))
	p.PID, _ = strconv.Atoi(filepath.Base(dir))
	p.PPID, _ = strconv.Atoi(string(parent))
	if string(state) == "Z" || p.PID == kthreadd || p.PPID == kthreadd {
		return p, false
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return p, false
	}
	_, line, _ := bytes.Cut(status, []byte("\nUid:\t"))
	uid, _, _ := bytes.Cut(line, []byte("\t"))
	p.UID, err = strconv.Atoi(string(uid))
	if err != nil {
		return p, false
	}
	return p, true
}

// ChildNamed returns a child of a process that runs a program of a name of at most 15 bytes,
// or 0. It is quick enough to be asked without a pause.
func ChildNamed(parent int, name string) int {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range comms {
		if comm, err := os.ReadFile(file); err != nil || string(comm) != name+"\n" {
			continue
		}
		if p, ok := processAt(filepath.Dir(file)); ok && p.PPID == parent {
			return p.PID
		}
	}
	return 0
}

func processTable() []Process {
	var out []Process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		p, ok := processAt(d)
		if !ok {
			continue
		}
		cmdline, _ := os.ReadFile(d + "/cmdline")
		p.Args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		p.Name = filepath.Base(p.Args[0])
		if exe, err := os.Readlink(d + "/exe"); err == nil && strings.HasPrefix(filepath.Base(exe), "bulkhead") && p.Args[0] != "runsc-sandbox" {
			p.Name = filepath.Base(exe)
		}
		out = append(out, p)
	}
	return out
}

// RunDir is where this platform's sockets and namespaces are.
func (w *World) RunDir() string {
	sum := sha256.Sum256([]byte(w.DataDir))
	return "/run/bulkhead-" + hex.EncodeToString(sum[:4])
}

// Freeze stops a role without ending it: it answers nothing until Thaw. Its
// successor is not started, as it would be after a kill.
func (w *World) Freeze(role string) { w.signal(role, syscall.SIGSTOP) }

// Thaw lets a frozen role go on.
func (w *World) Thaw(role string) { w.signal(role, syscall.SIGCONT) }

func (w *World) signal(role string, sig syscall.Signal) {
	w.T.Helper()
	pid := w.Role(role)
	if pid == 0 { // which would name our own process group
		w.T.Fatalf("no process of role %s", role)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		w.T.Fatalf("signal role %s: %v", role, err)
	}
}
