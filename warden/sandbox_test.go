package warden

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/warden/client"
)

// testTime bounds every wait of these tests.
const testTime = 60 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	return ctx
}

// begin starts a Machine and waits for its first line of output, which it returns.
func (w *world) begin(spec sandbox.Spec) (sandbox.Sandbox, string) {
	w.t.Helper()
	sb, err := w.client.Start(testContext(w.t), spec)
	if err != nil {
		w.t.Fatalf("start %q: %v", spec.Args, err)
	}
	w.t.Cleanup(func() { sb.Close() })
	return sb, line(w.t, sb)
}

// line reads a line of stdout.
func line(t testing.TB, sb sandbox.Sandbox) string {
	t.Helper()
	sb.Stdout().SetReadDeadline(time.Now().Add(testTime))
	var out []byte
	for b := make([]byte, 1); !bytes.HasSuffix(out, []byte("\n")); out = append(out, b...) {
		if _, err := sb.Stdout().Read(b); err != nil {
			t.Fatalf("stdout after %q: %v", out, err)
		}
	}
	return strings.TrimSuffix(string(out), "\n")
}

// run runs a command in a running Machine and returns its exit code and output.
func (w *world) run(id key.MachineID, args ...string) (int, string) {
	w.t.Helper()
	var out, errs bytes.Buffer
	r, err := w.client.Exec(testContext(w.t), id, sandbox.ExecSpec{Args: append([]string{appPath}, args...), Cwd: "/", Timeout: 20 * time.Second, Stdout: &out, Stderr: &errs})
	if err != nil {
		w.t.Fatalf("exec %q: %v", args, err)
	}
	return r.Code, strings.TrimSpace(out.String() + errs.String())
}

// TestGuest looks at a Machine from inside.
func TestGuest(t *testing.T) {
	w := newWorld(t).start()
	var upper bytes.Buffer
	tw := tar.NewWriter(&upper)
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./etc/hosts", Typeflag: tar.TypeReg, Mode: 0o644, Size: 11},
	} {
		tw.WriteHeader(h)
		if h.Size > 0 {
			tw.Write([]byte("from upper\n"))
		}
	}
	tw.Close()
	spec := w.spec("sleep")
	spec.UID, spec.GID, spec.Groups, spec.Hostname, spec.Upper = 1000, 1001, []uint32{44, 45}, "my-host", upper.Bytes()
	spec = w.grant(spec, grant.Grant{Network: 7, CPUs: 3, MemoryMB: 200, MaxPIDs: 1024, DiskMB: 64})
	w.begin(spec)
	for _, c := range []struct{ name, want, got string }{
		{"hosts", "from upper", second(w.run(spec.Machine, "read", "/etc/hosts"))},
		{"kernel", "gvisor", second(w.run(spec.Machine, "read", "/proc/version"))},
		{"memory", "MemTotal:         204800 kB", second(w.run(spec.Machine, "read", "/proc/meminfo"))},
		{"processors", "3", second(w.run(spec.Machine, "cpus"))},
		{"hostname", "my-host", second(w.run(spec.Machine, "read", "/proc/sys/kernel/hostname"))},
		{"first process's user", "Uid:\t1000\t1000", second(w.run(spec.Machine, "read", "/proc/1/status"))},
		{"first process's groups", "Groups:\t44 45", second(w.run(spec.Machine, "read", "/proc/1/status"))},
		{"exec's user", "0 0 []", second(w.run(spec.Machine, "id"))},
		{"writable layer", "written", second2(w.run(spec.Machine, "write", "/bin/new", "written"))(w.run(spec.Machine, "read", "/bin/new"))},
	} {
		if !strings.Contains(c.got, c.want) {
			t.Errorf("%s: %q is not in %q", c.name, c.want, c.got)
		}
	}
}

func second(_ int, s string) string                { return s }
func second2(int, string) func(int, string) string { return second }
func procField(t testing.TB, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, field)
	return ""
}

// TestConfined looks at a Machine's processes from outside.
func TestConfined(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	base := uint64(privnet.UIDRange(spec.Slot))
	pids := w.server.groups.Processes(string(spec.Machine))
	if len(pids) < 3 { // shim, sandbox, its stubs
		t.Fatalf("only processes %v", pids)
	}
	sandboxes := 0
	for _, pid := range pids {
		for _, field := range []string{"Uid", "Gid"} {
			for _, s := range strings.Fields(procField(t, pid, field)) {
				if id, err := strconv.ParseUint(s, 10, 64); err != nil || id < base || id >= base+privnet.UIDCount {
					t.Errorf("process %d: %s %s is not in [%d, %d)", pid, field, s, base, base+privnet.UIDCount)
				}
			}
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if strings.HasSuffix(exe, "bulkhead-shim") {
			continue // root of its own user namespace, in which there is nothing
		}
		sandboxes++
		for field, want := range map[string]string{"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
			if got := procField(t, pid, field); got != want {
				t.Errorf("process %d (%s): %s is %s, want %s", pid, exe, field, got, want)
			}
		}
		if ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); ns == hostNetNS(t) {
			t.Errorf("process %d is in the host's network namespace", pid)
		}
		if root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid)); err == nil && len(root) > 3 {
			t.Errorf("process %d sees a root with %d entries", pid, len(root))
		}
	}
	if sandboxes == 0 {
		t.Error("no sandbox process was looked at")
	}
	// Nothing secret is left on disk: the bundle has gone.
	if _, err := os.Stat(filepath.Join(w.server.runDir(spec.Machine), bundleDir)); !os.IsNotExist(err) {
		t.Errorf("the bundle is still there: %v", err)
	}
}

func hostNetNS(t testing.TB) string {
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// TestOOM uses up a Machine's memory.
func TestOOM(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("alloc", "400")
	sb, err := w.client.Start(testContext(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	e, err := sb.Wait(testContext(t))
	if err != nil || !e.OOM || e.Signal != 9 || e.Code != 137 {
		out, _ := io.ReadAll(sb.Stdout())
		t.Errorf("exit is %+v, %v; stdout %q", e, err, out)
	}
	// The control: what fits is not killed.
	if _, l := w.begin(w.spec("alloc", "100")); l != "allocated" {
		t.Errorf("stdout is %q", l)
	}
}

// TestCrash ends by a signal of its own.
func TestCrash(t *testing.T) {
	w := newWorld(t).start()
	sb, err := w.client.Start(testContext(t), w.spec("crash"))
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	if e, err := sb.Wait(testContext(t)); err != nil || e.Signal != 9 || e.OOM {
		t.Errorf("exit is %+v, %v", e, err)
	}
}

// TestUnusableCommand checks the sentences that users get.
func TestUnusableCommand(t *testing.T) {
	w := newWorld(t).start()
	for _, c := range []struct {
		command, want string
	}{
		{"/bin/nope", `the command "/bin/nope" does not exist in the image`},
		{"nope", `the command "nope" does not exist in the image`},
		{"/bin/plain", `the command "/bin/plain" is not an executable file in the image, or its user may not run it`},
		{"/bin", `the command "/bin" is not an executable file in the image, or its user may not run it`},
		{"/bin/foreign", `the command "/bin/foreign" cannot be executed: it is neither a script nor a program for this machine's architecture`},
		{"/bin/noise", `the command "/bin/noise" cannot be executed: it is neither a script nor a program for this machine's architecture`},
	} {
		spec := w.spec()
		spec.Args = []string{c.command}
		_, err := w.client.Start(testContext(t), spec)
		if !fault.Is(err, fault.Unprocessable) || fault.MessageOf(err) != c.want {
			t.Errorf("%s: error %q of kind %q, want %q", c.command, fault.MessageOf(err), fault.KindOf(err), c.want)
		}
	}
	// A working directory that does not exist is made, as other runtimes do; not so for
	// a command in a running Machine.
	spec := w.spec("sleep")
	spec.Cwd = "/no/such"
	w.begin(spec)
	e := sandbox.ExecSpec{Args: []string{appPath, "exit", "0"}, Cwd: "/nor/this", Timeout: testTime}
	if r, err := w.client.Exec(testContext(t), spec.Machine, e); !fault.Is(err, fault.Unprocessable) {
		t.Errorf("exec in a missing directory gives %+v, %v", r, err)
	}
	// An image that the node does not have, and files that are no sealed images.
	spec = w.spec("exit", "0")
	spec.Image = key.Digest("sha256:" + strings.Repeat("0", 64))
	_, err := w.client.Start(testContext(t), spec)
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("missing image: %v", err)
	}
	path := filepath.Join(w.config.ImageDir, spec.Image.Hex()+".erofs")
	for name, make := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink("/etc/shadow", path) },
		"directory":     func() error { return os.Mkdir(path, 0o555) },
		"writable file": func() error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.Chown(path, workerUID, workerUID))
		},
		"foreign file": func() error { return os.WriteFile(path, nil, 0o444) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.client.Start(testContext(t), spec); !fault.Is(err, fault.Denied) {
			t.Errorf("%s as an image: %v", name, err)
		}
		os.Remove(path)
	}
}

// TestGrant tries to start what the controller has not granted.
func TestGrant(t *testing.T) {
	w := newWorld(t).start()
	for _, c := range []struct {
		name   string
		change func(*sandbox.Spec)
		want   fault.Kind
	}{
		{"another node's", func(s *sandbox.Spec) {
			*s = w.grant(*s, grant.Grant{Node: "node-2", Network: 7, CPUs: 1, MemoryMB: 128, MaxPIDs: 1024, DiskMB: 512})
		}, fault.Denied},
		{"the platform's network", func(s *sandbox.Spec) {
			*s = w.grant(*s, grant.Grant{Network: 0, CPUs: 1, MemoryMB: 128, MaxPIDs: 1024, DiskMB: 512})
		}, fault.Denied},
		{"signed by somebody else", func(s *sandbox.Spec) {
			other := freshKey(t)
			*s = (&world{t: t, key: other, config: w.config}).grant(*s, grant.Grant{Network: 7, CPUs: 1, MemoryMB: 128, MaxPIDs: 1024, DiskMB: 512})
		}, fault.Denied},
		{"no memory", func(s *sandbox.Spec) {
			*s = w.grant(*s, grant.Grant{Network: 7, CPUs: 1, MemoryMB: 0, MaxPIDs: 1024, DiskMB: 512})
		}, fault.Invalid},
		{"as granted", func(*sandbox.Spec) {}, ""},
	} {
		s := w.spec("exit", "0")
		c.change(&s)
		sb, err := w.client.Start(testContext(t), s)
		if fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, want kind %q", c.name, err, c.want)
		}
		if err == nil {
			sb.Close()
		}
	}
}

// TestUnavailable calls a warden that is down.
func TestUnavailable(t *testing.T) {
	c := client.New(filepath.Join(t.TempDir(), "nobody.sock"))
	if _, err := c.List(testContext(t)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("list: %v", err)
	}
}

// TestMeasure prints what a start costs; it fails only when a start is absurdly slow.
func TestMeasure(t *testing.T) {
	w := newWorld(t).start()
	var starts, removes []time.Duration
	for range 10 {
		spec := w.spec("sleep")
		began := time.Now()
		sb, _ := w.begin(spec)
		starts = append(starts, time.Since(began))
		if len(starts) == 10 {
			for _, pid := range w.server.groups.Processes(string(spec.Machine)) {
				name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
				t.Logf("%.60q: rss %s; %s", name, procField(t, pid, "VmRSS"), strings.Join(strings.Fields(grep(string(rollup), "Private_Dirty:", "Pss:")), " "))
			}
		}
		began = time.Now()
		if err := w.client.Remove(testContext(t), spec.Machine); err != nil {
			t.Fatal(err)
		}
		removes = append(removes, time.Since(began))
		sb.Close()
	}
	slices.Sort(starts)
	slices.Sort(removes)
	t.Logf("start to first output: median %s, min %s, max %s; remove: median %s", starts[5], starts[0], starts[9], removes[5])
	if starts[5] > 5*time.Second {
		t.Errorf("a start takes %s", starts[5])
	}
}

func grep(s string, prefixes ...string) string {
	var out strings.Builder
	for l := range strings.Lines(s) {
		for _, p := range prefixes {
			if strings.HasPrefix(l, p) {
				out.WriteString(l)
			}
		}
	}
	return out.String()
}
