package world_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/fixture"
	"bulkhead/world"
)

// processesOf lists a Machine's processes by name: its shim, and the sandbox.
func processesOf(w *world.World, id, name string) (pids []int) {
	for _, p := range w.Processes() {
		if p.Name == name && strings.Contains(strings.Join(p.Args, " "), id) {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// pause stops processes, and undoes it at the end of the test.
func pause(t *testing.T, pids []int) {
	t.Helper()
	if len(pids) == 0 {
		t.Fatal("there is nothing to stop")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
}

// freeze puts processes into a frozen cgroup that is nobody's, as a debugger or a
// backup agent of the host may do.
func freeze(t *testing.T, pids []int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const v1 = "/sys/fs/cgroup/freezer"
	if _, err := os.Stat(filepath.Join(v1, "cgroup.procs")); errors.Is(err, fs.ErrNotExist) {
		// Version 2: the Machine's own group, which the processes cannot be taken out of.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pids[0]))
		must(err)
		path := strings.TrimSpace(strings.TrimPrefix(string(b), "0::"))
		must(os.WriteFile(filepath.Join("/sys/fs/cgroup", path, "cgroup.freeze"), []byte("1"), 0))
		return
	}
	dir := filepath.Join(v1, "bulkhead-test-"+strconv.Itoa(os.Getpid()))
	must(os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
		os.Remove(dir)
	})
	for _, pid := range pids {
		must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	}
	must(os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("FROZEN"), 0))
}

// TestDestroyForceAlwaysWorks lets a Machine resist in every way that is known: it is
// destroyed by force soon after all the same, and nothing of it is left.
func TestDestroyForceAlwaysWorks(t *testing.T) {
	w := world.Start(t)
	w.CreateApp("jobs", "")
	image := w.Push("jobs", fixture.StaticGo(t))
	run := func(args ...string) world.Machine {
		return w.Run("jobs", world.Config{"image": image, "init": map[string]any{"exec": append([]string{"/staticgo"}, args...)}})
	}
	destroy := func(t *testing.T, id string) {
		t.Helper()
		began := time.Now()
		w := w.In(t)
		w.MustCLI("machine", "destroy", id, "--app", "jobs", "--force")
		w.Wait("jobs", id, "destroyed", 60*time.Second)
		w.Eventually(10*time.Second, func() string {
			if left := append(processesOf(w, id, "bulkhead-shim"), processesOf(w, id, "runsc-sandbox")...); len(left) > 0 {
				return fmt.Sprintf("processes %v are left", left)
			}
			return ""
		})
		t.Logf("destroyed after %v", time.Since(began).Round(time.Millisecond))
	}
	t.Run("a sandbox that is stopped", func(t *testing.T) {
		m := run("sleep", "1h")
		pause(t, processesOf(w, m.ID, "runsc-sandbox"))
		destroy(t, m.ID)
	})
	t.Run("a shim that is stopped", func(t *testing.T) {
		m := run("sleep", "1h")
		pause(t, processesOf(w, m.ID, "bulkhead-shim"))
		destroy(t, m.ID)
	})
	t.Run("a frozen cgroup", func(t *testing.T) {
		m := run("sleep", "1h")
		freeze(t, processesOf(w, m.ID, "runsc-sandbox"))
		destroy(t, m.ID)
	})
	t.Run("a command that does not end", func(t *testing.T) {
		m := run("sleep", "1h")
		answered := make(chan int, 1)
		go func() {
			status, _ := w.APIRaw("POST", "/apps/jobs/machines/"+m.ID+"/exec", map[string]any{"command": []string{"/staticgo", "deaf", "1h"}, "timeout": 300})
			answered <- status
		}()
		w.In(t).Eventually(20*time.Second, func() string {
			if w.Exec("jobs", m.ID, "/staticgo", "echo", "there").ExitCode != 0 {
				return "commands do not run"
			}
			return ""
		})
		destroy(t, m.ID)
		select {
		case status := <-answered:
			t.Logf("the command's caller got %d", status)
		case <-time.After(30 * time.Second):
			t.Error("the command's caller still waits")
		}
	})
	t.Run("stop, of one that is deaf and stopped", func(t *testing.T) {
		w := w.In(t)
		deaf, frozen := run("deaf", "1h"), run("sleep", "1h")
		pause(t, append(processesOf(w, frozen.ID, "runsc-sandbox"), processesOf(w, frozen.ID, "bulkhead-shim")...))
		for _, m := range []world.Machine{deaf, frozen} {
			w.Must("POST", "/apps/jobs/machines/"+m.ID+"/stop", map[string]any{"timeout": "2s"}, nil)
		}
		for _, m := range []world.Machine{deaf, frozen} {
			w.Wait("jobs", m.ID, "stopped", 60*time.Second)
			destroy(t, m.ID)
		}
	})
	t.Run("a warden that is stopped in the middle of a call", func(t *testing.T) {
		w := w.In(t)
		m, other := run("sleep", "1h"), run("sleep", "1h")
		w.Freeze("warden")
		w.MustCLI("machine", "destroy", m.ID, "--app", "jobs", "--force") // the wish is taken
		if s := w.Machine("jobs", m.ID).State; s != "destroying" {
			t.Errorf("without a warden it is %s", s)
		}
		if s := w.Machine("jobs", other.ID).State; s != "started" {
			t.Errorf("another one is %s", s)
		}
		w.Kill("warden") // its successor finds the Machine
		w.Wait("jobs", m.ID, "destroyed", 60*time.Second)
		destroy(t, other.ID)
	})
	b, status := w.APIRaw("GET", "/apps/jobs/machines", nil)
	var left []world.Machine
	if err := json.Unmarshal(status, &left); err != nil || b != http.StatusOK || len(left) > 0 {
		t.Errorf("machines are left: %v (%v)", left, err)
	}
}
