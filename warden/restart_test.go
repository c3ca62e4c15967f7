package warden

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/sandbox"
	"bulkhead/warden/cgroup"
	"bulkhead/warden/client"
	"bulkhead/warden/router"
)

// census lists everything on the host that belongs to the installation. It looks
// for itself and asks no warden.
func (w *world) census() string {
	w.t.Helper()
	var out []string
	add := func(kind string, what ...string) {
		for _, x := range what {
			out = append(out, kind+" "+x+"\n")
		}
	}
	for _, dir := range []string{filepath.Join(w.config.RunDir, "machines"), w.config.MachineDir} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			add("directory", filepath.Join(filepath.Base(dir), e.Name()))
		}
	}
	groups, err := cgroup.Detect(groupName(w.config.Tag))
	if err != nil {
		w.t.Fatal(err)
	}
	names, err := groups.List()
	if err != nil {
		w.t.Fatal(err)
	}
	add("cgroup", names...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for l := range strings.Lines(string(mounts)) {
		if f := strings.Fields(l); strings.HasPrefix(f[4], w.dir) {
			add("mount", f[4])
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasSuffix(l.Attrs().Name, w.config.Tag) {
			add("link", l.Attrs().Name)
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range cmdlines {
		if b, _ := os.ReadFile(c); strings.Contains(string(b), w.config.RunDir) {
			add("process", string(b))
		}
	}
	if r, err := router.Open(router.Config{RunDir: w.config.RunDir, Tag: w.config.Tag, Host: w.config.Host}, w.members()); err == nil {
		slots, _ := r.Slots()
		members, _ := r.Members()
		add("veth", fmt.Sprint(slots))
		add("elements", fmt.Sprint(members))
		r.Close()
	} else {
		w.t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// members are the Machines that the records speak of.
func (w *world) members() []router.Member {
	s := New(w.config)
	ids, err := s.idsOnDisk()
	if err != nil {
		w.t.Fatal(err)
	}
	var members []router.Member
	for _, id := range ids {
		if r, err := s.readRecord(id); err == nil {
			members = append(members, router.Member{Slot: r.Slot, Network: r.Network})
		}
	}
	return members
}

// TestWardenRestart restarts the warden around a Machine, and then the Machine is
// used as if nothing had happened.
func TestWardenRestart(t *testing.T) {
	w := newWorld(t)
	w.startProcess()
	before := w.census()
	ctx := testContext(t)
	spec, ended := w.spec("term", "5"), w.spec("print", "unread")
	sb, _ := w.begin(spec)
	over, err := w.client.Start(ctx, ended)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := over.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.stop()
		if _, err := sb.Wait(expired(t)); err == nil {
			t.Fatal("the sandbox ended with the warden")
		}
		w.startProcess()
		want := []sandbox.Info{
			{Machine: spec.Machine, Instance: spec.Instance, Slot: spec.Slot, Running: true},
			{Machine: ended.Machine, Instance: ended.Instance, Slot: ended.Slot, Running: false},
		}
		list, err := w.client.List(ctx)
		if err != nil || len(list) != 2 || !slices.Contains(list, want[0]) || !slices.Contains(list, want[1]) {
			t.Fatalf("list is %+v, %v", list, err)
		}
		if code, out := w.run(spec.Machine, "print", "alive"); code != 0 || out != "alive" {
			t.Errorf("exec gave %d %q", code, out)
		}
	}
	// A new worker, too.
	again, err := w.client.Attach(ctx, spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := w.client.Signal(ctx, spec.Machine, 15); err != nil {
		t.Fatal(err)
	}
	for _, s := range []sandbox.Sandbox{sb, again} {
		if e, err := s.Wait(ctx); err != nil || e.Code != 5 {
			t.Errorf("exit is %+v, %v", e, err)
		}
	}
	for _, id := range []key.MachineID{spec.Machine, ended.Machine} {
		if err := w.client.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if after := w.census(); after != before {
		t.Errorf("left behind:\n%s\nwas:\n%s", after, before)
	}
}

// TestEndWhileNobodyLooks ends a Machine while warden and worker are down.
func TestEndWhileNobodyLooks(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("term", "6")
	sb, _ := w.begin(spec)
	if err := w.client.Signal(testContext(t), spec.Machine, 15); err != nil {
		t.Fatal(err)
	}
	w.stop()
	sb.Close()
	w.start()
	again, err := w.client.Attach(testContext(t), spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if e, err := again.Wait(testContext(t)); err != nil || e.Code != 6 {
		t.Errorf("exit is %+v, %v", e, err)
	}
}

func expired(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// TestWardenKilledDuringStart kills the warden at many points of a start. The next
// one leaves nothing half-made behind.
func TestWardenKilledDuringStart(t *testing.T) {
	w := newWorld(t)
	w.startProcess()
	before := w.census()
	killed := map[bool]int{}
	// Until the warden outlives two starts: then every point of a start was tried.
	for delay := 500 * time.Microsecond; delay < 5*time.Second && killed[false] < 2; delay = delay*13/10 + time.Millisecond/2 {
		spec := w.spec("sleep")
		result := make(chan error, 1)
		go func() {
			sb, err := w.client.Start(testContext(t), spec)
			if err == nil {
				sb.Close()
			}
			result <- err
		}()
		<-time.After(delay)
		w.stop()
		var err error
		select {
		case err = <-result:
			killed[err != nil]++
			w.startProcess()
		case <-time.After(2 * time.Second):
			// The warden died before it took the connection: it waits in the socket, which
			// outlives wardens, for the next one.
			w.startProcess()
			err = <-result
		}
		if err != nil && !fault.Is(err, fault.Unavailable) {
			t.Errorf("after %s: %v", delay, err)
		}
		list, err := w.client.List(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list { // started, and the warden died before it could say so
			if i.Machine != spec.Machine || !i.Running {
				t.Errorf("after %s: %+v is there", delay, i)
			}
			if err := w.client.Remove(testContext(t), i.Machine); err != nil {
				t.Fatal(err)
			}
		}
		if after := w.census(); after != before {
			t.Fatalf("killed after %s, left behind:\n%s\nwas:\n%s", delay, after, before)
		}
	}
	t.Logf("%d starts were cut short, %d were not", killed[true], killed[false])
	if killed[true] < 5 || killed[false] < 2 {
		t.Error("this test did not span a start")
	}
}

// TestCensusSeesALeak is the control of the tests above.
func TestCensusSeesALeak(t *testing.T) {
	w := newWorld(t).start()
	before := w.census()
	spec := w.spec("sleep")
	w.begin(spec)
	during := w.census()
	for _, kind := range []string{"directory machines/" + string(spec.Machine), "cgroup " + string(spec.Machine), "process", fmt.Sprintf("veth [%d]", spec.Slot), fmt.Sprintf("elements [%d]", spec.Slot)} {
		if !strings.Contains(during, kind) || strings.Contains(before, kind) {
			t.Errorf("the census does not show %q:\n%s", kind, during)
		}
	}
}

// TestShimKilled kills a shim: its sandbox goes, too, and leaves no exit status.
func TestShimKilled(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	sb, _ := w.begin(spec)
	r, err := w.server.get(spec.Machine)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(r.Shim.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e, err := sb.Wait(testContext(t)); err != nil || e.Code != -1 {
		t.Errorf("exit is %+v, %v", e, err)
	}
	ctx := testContext(t)
	for len(w.server.groups.Processes(string(spec.Machine))) > 0 {
		if ctx.Err() != nil {
			t.Fatal("the sandbox is still there")
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestPowerCut takes processes and mounts away behind a stopped warden's back.
func TestPowerCut(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	w.begin(spec)
	w.stop()
	groups, err := cgroup.Detect(groupName(w.config.Tag))
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	if err := groups.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := router.Destroy(router.Config{RunDir: w.config.RunDir, Tag: w.config.Tag}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.config.RunDir); err != nil { // it was in memory
		t.Fatal(err)
	}
	if err := os.Mkdir(w.config.RunDir, 0o711); err != nil {
		t.Fatal(err)
	}
	w.start()
	if list, err := w.client.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("list is %+v, %v", list, err)
	}
	if entries, _ := os.ReadDir(w.config.MachineDir); len(entries) != 0 {
		t.Errorf("on disk there is still %v", entries)
	}
	w.begin(spec) // the same Machine again
}

// TestRouterLost deletes the router namespace. Machines that have lost their network
// end, so that they are started again.
func TestRouterLost(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("sleep")
	sb, _ := w.begin(spec)
	w.stop()
	if err := router.Destroy(router.Config{RunDir: w.config.RunDir, Tag: w.config.Tag}); err != nil {
		t.Fatal(err)
	}
	w.start()
	if e, err := sb.Wait(testContext(t)); err != nil || e.Code != 137 {
		t.Errorf("exit is %+v, %v", e, err)
	}
	if err := w.client.Remove(testContext(t), spec.Machine); err != nil {
		t.Fatal(err)
	}
	w.begin(spec)
}

// TestUnacknowledgedStart breaks the connection after a start has succeeded.
func TestUnacknowledgedStart(t *testing.T) {
	w := newWorld(t).start()
	before := w.census()
	spec := w.spec("sleep")
	c, err := dialWarden(w)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Send(c, client.Request{Op: client.OpStart, Spec: &spec}); err != nil {
		t.Fatal(err)
	}
	var resp client.Response
	files, err := client.Receive(c, &resp)
	if err != nil || resp.Error.Err() != nil || len(files) != client.FilePID+1 {
		t.Fatalf("answer %+v with %d files, %v", resp, len(files), err)
	}
	closeFiles(files)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil { // the warden hangs up when it is done
		t.Fatal(err)
	}
	c.Close()
	if after := w.census(); after != before {
		t.Errorf("left behind:\n%s\nwas:\n%s", after, before)
	}
}

// TestMalformedRequests sends the warden nonsense.
func TestMalformedRequests(t *testing.T) {
	w := newWorld(t).start()
	for name, raw := range map[string]string{
		"not JSON":         frame("nonsense"),
		"unknown field":    frame(`{"op":"list","x":1}`),
		"trailing bytes":   frame(`{"op":"list"} {}`),
		"unknown op":       frame(`{"op":"reboot","machine":"00000000000000"}`),
		"ack alone":        frame(`{"op":"ack","machine":"00000000000000"}`),
		"path as machine":  frame(`{"op":"remove","machine":"../../../etc"}`),
		"start of nothing": frame(`{"op":"start"}`),
		"huge":             "\xff\xff\xff\xff",
	} {
		c, err := dialWarden(w)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, raw)
		var resp client.Response
		_, err = client.Receive(c, &resp)
		if err != nil || !fault.Is(resp.Error.Err(), fault.Invalid) {
			t.Errorf("%s: answer %+v, %v", name, resp.Error, err)
		}
		c.Close()
	}
	if err := w.client.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

func frame(s string) string { return string([]byte{0, 0, byte(len(s) >> 8), byte(len(s))}) + s }

// TestManyAtOnce starts and removes Machines from many callers.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t).start()
	before := w.census()
	ctx := testContext(t)
	var wg sync.WaitGroup
	for range 6 {
		spec := w.spec("sleep")
		wg.Go(func() {
			sb, err := w.client.Start(ctx, spec)
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			defer sb.Close()
			_, lerr := w.client.List(ctx)
			_, perr := w.client.Processes(ctx, spec.Machine)
			if err := errors.Join(lerr, perr, w.client.Remove(ctx, spec.Machine)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if after := w.census(); after != before {
		t.Errorf("left behind:\n%s\nwas:\n%s", after, before)
	}
}

// TestProcess checks what the program itself keeps.
func TestProcess(t *testing.T) {
	w := newWorld(t)
	cmd := w.startProcess()
	const want = "00000000002010cb" // see cmd/bulkhead-warden/caps.go
	for _, field := range []string{"CapBnd", "CapPrm", "CapEff"} {
		if got := procField(t, cmd.Process.Pid, field); got != want {
			t.Errorf("%s is %s, want %s", field, got, want)
		}
	}
	// With these it can do all it must: start, exec, kill, remove.
	spec := w.spec("sleep")
	w.begin(spec)
	w.run(spec.Machine, "print", "x")
	if err := w.client.Remove(testContext(t), spec.Machine); err != nil {
		t.Error(err)
	}
}
