package world

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/coredump"
	"bulkhead/fixture"
	"bulkhead/secret"
)

// identityDumps crashes every kind of process of a platform whose bulkheadd was started
// with no limit on core dumps, while a Machine has a planted secret, and shows that no core
// is left behind and that the traces which Go's runtime writes into the log do not hold the
// value. Its control is a process without protection, whose core the same search finds.
func identityDumps(t *testing.T, w *World) {
	value, unread := planted("dumped"), planted("unread")
	w.CreateApp("crash", "")
	defer w.MustCLI("apps", "destroy", "crash", "--yes")
	w.Must("POST", "/apps/crash/secrets", map[string]any{"values": map[string]any{"TOKEN": value, "UNREAD": unread}}, nil)
	m := w.Run("crash", Config{"image": w.Push("crash", fixture.StaticGo(t)), "services": HTTPService(8080), "restart": map[string]any{"policy": "always"}})
	answers := func() {
		t.Helper()
		w.Eventually(60*time.Second, func() string {
			if got := variable(w, "crash", "TOKEN"); got != value {
				return fmt.Sprintf("TOKEN is %.80q", got)
			}
			return ""
		})
	}
	memories(t, w, unread) // before the app is asked, and prints it
	answers()
	notDumped(t, w)
	before, lines := strayCores(w), strings.Count(w.Log(), "goroutine ")
	for _, round := range []map[string]syscall.Signal{
		{"controller": syscall.SIGQUIT, "worker": syscall.SIGABRT, "warden": syscall.SIGSEGV, "edge": syscall.SIGQUIT, "sandbox": syscall.SIGSEGV},
		{"controller": syscall.SIGABRT, "worker": syscall.SIGSEGV, "warden": syscall.SIGQUIT, "edge": syscall.SIGSEGV, "shim": syscall.SIGABRT},
	} {
		crash(w, round)
		answers()
	}
	if n := strings.Count(w.Log(), "goroutine ") - lines; n < 8 {
		t.Errorf("eight roles crashed, and the log has %d traces of theirs: nothing is shown of traces", n)
	}
	w.Must("POST", "/apps/crash/machines/"+m.ID+"/stop", nil, nil)
	w.Wait("crash", m.ID, "stopped", 30*time.Second)

	control, dumped := unprotectedCore(t, filepath.Join(w.DataDir, "worker"), value)
	if !dumped {
		t.Error("a process without protection leaves no core here: nothing is shown")
	}
	found, files := grep(w, []string{value})
	if !slices.Equal(found, control) {
		t.Errorf("of %d files these hold the secret: %v; only the control may, %v", files, found, control)
	}
	for _, path := range control {
		os.Remove(path)
	}
	if after := strayCores(w); !maps.Equal(before, after) {
		t.Errorf("cores in the directories of processes: %v before, %v after", before, after)
	}
	log := []byte(w.Log())
	if bytes.Contains(log, []byte("core dumped")) {
		t.Error("the log says that a process was dumped")
	}
	for _, f := range append(forms(value), words(value)...) {
		if bytes.Contains(log, f) {
			t.Errorf("the log holds the secret as %.12s…", f)
		}
	}
	t.Logf("8 crashes of roles and 2 of a machine; %d files and %d bytes of log searched; the control's core: %v", files, len(log), control)
}

// memories looks for values of each kind in the memory of every process of the platform
// while the Machine runs: who holds one that docs/secrets.md does not name fails. That the
// sandbox and the controller hold theirs is the control: the search can see.
func memories(t *testing.T, w *World, unread string) {
	t.Helper()
	signing := planted("signing")
	w.Must("POST", "/apps/crash/secretkeys/signing", map[string]any{"type": "hs256", "value": []byte(signing)}, nil)
	w.Must("POST", "/apps/crash/secretkeys/signing/sign", map[string]any{"plaintext": []byte("a message")}, nil)
	file, err := os.ReadFile(filepath.Join(w.DataDir, "cluster-key", "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := secret.ParseKeys(file, "cluster.key")
	if err != nil || len(keys) != 1 {
		t.Fatalf("%d cluster keys, %v", len(keys), err)
	}
	fields := bytes.Fields(file)
	clusterKey, err := base64.StdEncoding.DecodeString(string(fields[len(fields)-1]))
	if err != nil {
		t.Fatal(err)
	}
	heldBy(t, w, forms(unread), "bulkhead-sandbox")
	heldBy(t, w, forms(signing))
	heldBy(t, w, [][]byte{clusterKey}, "bulkhead-controller")
	heldBy(t, w, [][]byte{[]byte(w.Ready.Token)}, "?bulkhead-controller")
}

// heldBy fails unless soon these programs' processes, and no others of the platform, have one
// of some values, which are forms of one, in memory. One with "?" before it may have it.
func heldBy(t *testing.T, w *World, values [][]byte, want ...string) {
	t.Helper()
	must := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return s[0] == '?' })
	w.Eventually(60*time.Second, func() string {
		got := []string{}
		for _, p := range w.Processes() {
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
			found, err := InMemory(p.PID, values)
			if kind := filepath.Base(exe); err == nil && len(found) > 0 && !slices.Contains(got, kind) && !slices.Contains(want, "?"+kind) {
				got = append(got, kind)
			}
		}
		if slices.Sort(got); !slices.Equal(got, must) {
			return fmt.Sprintf("%.12q… is in the memory of %v, want %v", values[0], got, want)
		}
		return ""
	})
}

// crash sends every process of some programs a signal, at once, and waits until all run
// anew.
func crash(w *World, signals map[string]syscall.Signal) {
	w.T.Helper()
	was := map[string][]int{}
	for program := range signals {
		if was[program] = ofProgram(w, program); len(was[program]) == 0 {
			w.T.Fatalf("no process of bulkhead-%s runs", program)
		}
	}
	for program, sig := range signals {
		for _, pid := range was[program] {
			syscall.Kill(pid, sig)
		}
	}
	w.Eventually(60*time.Second, func() string {
		for program, sig := range signals {
			now := ofProgram(w, program)
			if len(now) == 0 || slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(was[program], pid) }) {
				return fmt.Sprintf("bulkhead-%s: processes %v were sent %v, and %v run", program, was[program], sig, now)
			}
		}
		return ""
	})
}

// ofProgram lists the platform's processes that run bulkhead-program, by the file.
func ofProgram(w *World, program string) (pids []int) {
	for _, p := range w.Processes() {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID)); err == nil && filepath.Base(exe) == "bulkhead-"+program {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

var coreLimit = regexp.MustCompile(`(?m)^Max core file size +(\S+) +(\S+)`)

// notDumped: the kernel makes no dump of any process of the platform, whatever
// kernel.core_pattern says (package coredump), and no role can be looked into by others of
// its user: its /proc belongs to root. (The shim's belongs to its user namespace's root, of
// whom nothing is left; TestShimIsNotLookedInto. gVisor looks into the sandbox's.)
func notDumped(t *testing.T, w *World) {
	t.Helper()
	kinds := map[string]int{}
	for _, p := range w.Processes() {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.PID))
		fi, err2 := os.Stat(fmt.Sprintf("/proc/%d/mem", p.PID))
		if err != nil || err2 != nil {
			continue // it ended
		}
		kind := filepath.Base(exe)
		kinds[kind]++
		want := fmt.Sprint(coredump.Limit)
		if m := coreLimit.FindSubmatch(limits); m == nil || string(m[1]) != want || string(m[2]) != want {
			t.Errorf("%s (%d) may dump core: %q", kind, p.PID, m)
		}
		if uid := fi.Sys().(*syscall.Stat_t).Uid; uid != 0 && kind != "bulkhead-shim" && kind != "bulkhead-sandbox" {
			t.Errorf("%s (%d) can be looked into by user %d", kind, p.PID, uid)
		}
	}
	for _, kind := range []string{"bulkheadd", "bulkhead-controller", "bulkhead-worker", "bulkhead-warden", "bulkhead-edge", "bulkhead-shim", "bulkhead-sandbox"} {
		if kinds[kind] == 0 {
			t.Errorf("no process of %s was looked at: %v", kind, kinds)
		}
	}
}

// strayCores lists the cores in the directories that processes of the platform and this
// test work in, where kernel.core_pattern = "core" puts them.
func strayCores(w *World) map[string]bool {
	out := map[string]bool{}
	own, _ := os.Getwd()
	dirs := []string{"/", own}
	for _, p := range w.Processes() {
		dirs = append(dirs, fmt.Sprintf("/proc/%d/cwd/", p.PID))
	}
	for _, d := range dirs {
		files, _ := filepath.Glob(filepath.Join(d, "core*"))
		for _, f := range files {
			if fi, err := os.Stat(f); err == nil && fi.Mode().IsRegular() {
				out[f] = true
			}
		}
	}
	return out
}

// unprotectedCore crashes a process with a value in memory, and returns the cores that it
// left in a directory, and whether the kernel says that it was dumped. There is none in the
// directory where kernel.core_pattern names another or a program.
func unprotectedCore(t *testing.T, dir, value string) (cores []string, dumped bool) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read -r v; echo ready; read -r w")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, value)
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGABRT)
	cmd.Wait()
	cores, _ = filepath.Glob(filepath.Join(dir, "core*"))
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	if bytes.HasPrefix(pattern, []byte("core")) && len(cores) == 0 {
		t.Errorf("no core in %s, where kernel.core_pattern (%s) wants it", dir, bytes.TrimSpace(pattern))
	}
	return cores, cmd.ProcessState.Sys().(syscall.WaitStatus).CoreDump()
}

// unlimitedCores lets whatever the test starts dump core, until its end: what an operator's
// "ulimit -c unlimited" does.
func unlimitedCores(t *testing.T) {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_CORE, &l) })
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		t.Fatal(err)
	}
}

// words are what a value looks like in a trace of Go's, when it is an argument: words of
// eight bytes in hexadecimal digits.
func words(v string) (out [][]byte) {
	v = v[strings.Index(v, core):]
	v = v[:strings.IndexByte(v, '"')]
	for at := range len(v) - 8 {
		out = append(out, fmt.Appendf(nil, "%#x", binary.LittleEndian.Uint64([]byte(v[at:at+8]))))
	}
	return out
}
