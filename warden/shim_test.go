package warden

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"bulkhead/internal/await"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/warden/wire"
)

// shimOf returns the pid of a Machine's shim.
func (w *world) shimOf(spec sandbox.Spec) int {
	w.t.Helper()
	r, err := w.server.get(spec.Machine)
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Shim.PID
}

// TestShimSeesNothingOfTheHost: who breaks out of gVisor and out of the sandbox's own
// namespaces, and takes the shim, finds what a sandbox is started from and no more.
func TestShimSeesNothingOfTheHost(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	pid := w.shimOf(spec)
	root := fmt.Sprintf("/proc/%d/root", pid)
	var names []string
	for _, dir := range []string{"", "/dev", "/tmp", wire.ShimBundle} {
		entries, err := os.ReadDir(root + dir)
		if err != nil && !(dir == wire.ShimBundle && errors.Is(err, os.ErrNotExist)) { // deleted after the start
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, dir+"/"+e.Name())
		}
	}
	want := []string{wire.ShimInit, wire.ShimProgram, wire.ShimHelper, wire.ShimBundle, "/dev", wire.ShimImage, "/proc", wire.ShimState, "/tmp", "/dev/null"}
	if !slices.Equal(names, want) {
		t.Errorf("the shim's root holds %q, want %q", names, want)
	}
	if got := mountPoints(t, pid); !slices.Equal(got, []string{"/ rw", "/bulkhead-init ro", "/bulkhead-sandbox ro", "/bulkhead-shim ro", "/bundle ro", "/dev/null rw", "/image.erofs ro", "/proc rw"}) {
		t.Errorf("the shim's mounts are %q", got)
	}
	// The process list that it sees is its own namespace's.
	entries, err := os.ReadDir(root + "/proc")
	if err != nil {
		t.Fatal(err)
	}
	var seen int
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" {
			seen++
			st, err := os.Stat(filepath.Join(root, "proc", e.Name()))
			if err != nil {
				continue // it has just ended
			}
			base := privnet.UIDRange(spec.Slot)
			if uid := st.Sys().(*syscall.Stat_t).Uid; uid < base || uid >= base+privnet.UIDCount {
				t.Errorf("the shim sees process %s of user %d", e.Name(), uid)
			}
		}
	}
	if seen < 2 || seen > 50 {
		t.Errorf("the shim sees %d processes", seen)
	}
	for field, want := range map[string]string{
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "NSpid": fmt.Sprintf("%d\t1", pid),
	} {
		if got := procField(t, pid, field); got != want {
			t.Errorf("the shim's %s is %q, want %q", field, got, want)
		}
	}
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts"} {
		host, _ := os.Readlink("/proc/self/ns/" + ns)
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns)); err != nil || got == host {
			t.Errorf("the shim's %s namespace is %q, the host's %q: %v", ns, got, host, err)
		}
	}
	// Nobody who has its user may make a user namespace, in which to be root again.
	out, err := exec.Command("nsenter", "--target", fmt.Sprint(pid), "--user", "unshare", "--user", "true").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "No space left") {
		t.Errorf("a user namespace below the shim's: %v: %s", err, out)
	}
	if out, err := exec.Command("nsenter", "--target", fmt.Sprint(pid), "--user", "true").CombinedOutput(); err != nil {
		t.Errorf("the control: %v: %s", err, out)
	}
}

// TestShimIsNotLookedInto: another process of the shim's user, in its user namespace,
// neither reads its memory and open files nor traces it.
func TestShimIsNotLookedInto(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	pid := fmt.Sprint(w.shimOf(spec))
	inside := func(args ...string) *exec.Cmd {
		return exec.Command("nsenter", append([]string{"--target", pid, "--user", "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}, args...)...)
	}
	peer := inside("sleep", "60")
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { peer.Process.Kill(); peer.Wait() }()
	await.True(t, "the peer sleeps", func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", peer.Process.Pid))
		return string(comm) == "sleep\n"
	})
	for _, file := range []string{"environ", "maps"} {
		if out, err := inside("head", "-c", "1", fmt.Sprintf("/proc/%d/%s", peer.Process.Pid, file)).CombinedOutput(); err != nil {
			t.Errorf("the control: %s of a peer cannot be read: %v: %s", file, err, out)
		}
		out, err := inside("head", "-c", "1", "/proc/"+pid+"/"+file).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "ermi") {
			t.Errorf("%s of the shim: %v: %s", file, err, out)
		}
	}
}

// TestShimStateIsBounded: no Machine fills the memory that all Machines' files are in.
func TestShimStateIsBounded(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	pid := w.shimOf(spec)
	to := fmt.Sprintf("of=/proc/%d/root%s/flood", pid, wire.ShimState)
	for _, c := range []struct{ count, want string }{{"count=4", "4194304 bytes"}, {"count=32", "No space left"}} {
		out, _ := exec.Command("nsenter", "--target", fmt.Sprint(pid), "--user", "dd", "if=/dev/zero", to, "bs=1M", c.count).CombinedOutput()
		if !strings.Contains(string(out), c.want) {
			t.Errorf("%s MiB in a Machine's state directory: %s", c.count, out)
		}
	}
}

// TestShimFilesAreBounded: who took the shim cannot fill the file system that all
// Machines' files are in through those that the shim holds open; and a shim whose log
// has grown to the bound lives on.
func TestShimFilesAreBounded(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	pid := w.shimOf(spec)
	const most = 64 << 10
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	var soft, hard string
	for line := range strings.Lines(string(limits)) {
		if v, ok := strings.CutPrefix(line, "Max file size"); ok {
			fmt.Sscan(v, &soft, &hard)
		}
	}
	if want := fmt.Sprint(most); soft != want || hard != want {
		t.Errorf("the shim may write files of %s bytes, and have it raised to %s; want %s", soft, hard, want)
	}
	// Only regular files can grow: each one that it may write is below the bound, for its
	// own writes.
	seen := 0
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		st, err := os.Stat(fd)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		if info, _ := os.Readlink(fd); strings.HasPrefix(info, w.server.runDir(spec.Machine)) {
			seen++
		}
	}
	if seen != 4 { // its log twice
		t.Errorf("the shim holds %d files of the Machine's directory open", seen)
	}
	// Its log is full: what it says of a bad request is lost, and it goes on.
	log := filepath.Join(w.server.runDir(spec.Machine), shimLogFile)
	if err := os.WriteFile(log, make([]byte, most), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.server.ask(testContext(t), spec.Machine, []string{"kill"}, null); err == nil {
			t.Error("a request without its files was answered")
		}
		null.Close()
	}
	if st, err := os.Stat(log); err != nil || st.Size() != most {
		t.Errorf("the shim's log is %v: %v", st, err)
	}
	if code, out := w.run(spec.Machine, "print", "x"); code != 0 || !strings.Contains(out, "x") {
		t.Errorf("a command afterwards: %d %q", code, out)
	}
}

// TestShimTakesItsSandboxAlong: nothing of a Machine outlives its shim, which is the
// first process of its namespace.
func TestShimTakesItsSandboxAlong(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	sb, _ := w.begin(spec)
	if err := syscall.Kill(w.shimOf(spec), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Wait(testContext(t)); err != nil {
		t.Logf("wait: %v", err) // how it ended is not known
	}
	await.True(t, "no process lives on", func() bool { return len(w.server.groups.Processes(string(spec.Machine))) == 0 })
}

// mountPoints lists a process's mounts as "point mode", in order.
func mountPoints(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		list = append(list, f[4]+" "+f[5][:2])
	}
	slices.Sort(list)
	return list
}
