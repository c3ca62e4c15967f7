package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bulkhead/audit"
	"bulkhead/controller"
	"bulkhead/internal/await"
)

// brokenDisk is a file system in a file whose device can begin to fail: what is written
// to it, and what is not in memory and read, gives EIO, as a disk that dies gives it.
type brokenDisk struct {
	t         *testing.T
	dir, loop string
	image     string
}

func newBrokenDisk(t *testing.T, dir string) *brokenDisk {
	t.Helper()
	d := &brokenDisk{t: t, dir: dir, image: filepath.Join(t.TempDir(), "disk")}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-F", "-m", "0", d.image)
	t.Cleanup(d.unmount)
	d.mount()
	return d
}

func (d *brokenDisk) run(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (d *brokenDisk) mount() {
	d.t.Helper()
	d.loop = d.run("losetup", "--find", "--show", d.image)
	d.run("mount", "-t", "ext4", d.loop, d.dir)
	os.Remove(filepath.Join(d.dir, "lost+found"))
}

func (d *brokenDisk) unmount() {
	if d.loop == "" {
		return
	}
	if err := unix.Unmount(d.dir, 0); err != nil {
		d.t.Errorf("unmount: %v", err)
		unix.Unmount(d.dir, unix.MNT_DETACH)
	}
	if out, err := exec.Command("losetup", "--detach", d.loop).CombinedOutput(); err != nil {
		d.t.Errorf("losetup: %v %s", err, out)
	}
	d.loop = ""
}

// size tells the device that it has so many bytes, or all of its file (0): what is beyond
// them fails. What the file system had mounted does not learn of it.
func (d *brokenDisk) size(bytes uint64) {
	d.t.Helper()
	f, err := os.OpenFile(d.loop, os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		d.t.Fatal(err)
	}
	info.Sizelimit = bytes
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.LOOP_SET_STATUS64, uintptr(unsafe.Pointer(info))); e != 0 {
		d.t.Fatal(e)
	}
}

// TestALogOnABrokenDisk: the audit log's device fails every write while the controller
// serves. From the first failure on no change is acknowledged and the refusal says what
// failed and what to do, reads go on; the disk comes back, and every change that was
// acknowledged is there with its record, none that was refused is, and the log verifies.
// Control: a file on the same disk that was not synced is lost.
func TestALogOnABrokenDisk(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.stop()
	dir := filepath.Join(e.cfg.Role.DataDir, "audit")
	if err := os.Rename(dir, dir+".was"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := newBrokenDisk(t, dir)
	t.Cleanup(func() { e.stop() }) // before the disk goes
	if err := os.CopyFS(dir, os.DirFS(dir+".was")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir) // what a controller writes, it syncs itself
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Syncfs(int(f.Fd())), f.Close()); err != nil {
		t.Fatal(err)
	}
	e.startController()
	e.login()
	e.client = &http.Client{Timeout: 60 * time.Second, Transport: e.transport()} // refusals of this kind are no part of the contract
	create := func(name string) answer {
		return e.do("POST", "/v1/apps", config{"name": name, "org_slug": "personal"})
	}
	there := map[string]bool{}
	for i := range 5 {
		name := fmt.Sprint("before-", i)
		if a := create(name); a.code != 201 {
			t.Fatalf("%d %s", a.code, a.body)
		}
		there[name] = true
	}
	var key controller.AuditKey
	e.get("/v1/audit/key", &key)
	// The tree follows within a fraction of a second. A write of it that is still to come
	// when the disk turns read-only would end this process.
	await.True(t, "a checkpoint has every record", func() bool {
		rep, err := audit.VerifyDir(t.Context(), dir, key.Key, nil)
		return err == nil && len(rep.Problems) == 0 && rep.Later == 0
	})

	lost := filepath.Join(dir, "not-synced")
	if err := os.WriteFile(lost, []byte("not synced"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.size(4096)
	why, refused, unsure := "", 0, map[string]bool{}
	for i := range 12 {
		name := fmt.Sprint("during-", i)
		a := create(name)
		var body struct{ Error, Status string }
		json.Unmarshal(a.body, &body)
		if a.code != 503 || body.Status != "audit_unavailable" {
			t.Errorf("a change while the log's disk fails: %d %s", a.code, a.body)
		}
		if strings.Contains(body.Error, "this was done, or begun") {
			unsure[name] = true // its record is in the store, and follows
		}
		refused++
		why = body.Error
		e.want(200, "GET", "/v1/apps/before-0", nil, nil)
	}
	if len(unsure) > 1 {
		t.Errorf("%d changes were begun after the log failed", len(unsure)-1)
	}
	if !strings.Contains(why, "the audit log cannot be written: its disk fails") || !strings.Contains(why, "mend the disk") {
		t.Errorf("the refusal does not say why, and what to do: %s", why)
	}
	if !strings.Contains(e.logs.String(), "input/output error") {
		t.Error("the server's log does not have the error")
	}
	e.get("/v1/orgs/personal/audit", nil)
	if err := e.ctl.AuditReady(); err == nil {
		t.Error("the log says that it can be written")
	}
	t.Logf("%d changes refused, %d of them made before the log failed: %s", refused, len(unsure), why)

	e.stopBroken()
	d.size(0)
	d.unmount()
	d.mount()
	e.startController()
	e.login()
	if b, _ := os.ReadFile(lost); len(b) > 0 {
		t.Error("control: what was not synced is there: the disk did not fail")
	}
	os.Remove(lost) // its name may be there: a sync of the log writes all new names
	for name := range there {
		e.want(200, "GET", "/v1/apps/"+name, nil, nil)
		e.find("personal", "the record of "+name, func(r audit.Record) bool { return r.App == name && r.Result == audit.OK })
	}
	for i := range 12 {
		name := fmt.Sprint("during-", i)
		switch a := e.do("GET", "/v1/apps/"+name, nil); {
		case a.code == 404 && !unsure[name]:
		case a.code == 200 && unsure[name]: // and so it is in the log
			e.find("personal", "the record of "+name, func(r audit.Record) bool { return r.App == name })
		default:
			t.Errorf("%s, which was refused: %d (said to be made: %v)", name, a.code, unsure[name])
		}
	}
	if a := create("after"); a.code != 201 {
		t.Errorf("afterwards: %d %s", a.code, a.body)
	}
	e.find("personal", "after", func(r audit.Record) bool { return r.App == "after" && r.Result == audit.OK })
	e.stop()
	if rep, err := audit.VerifyDir(context.Background(), dir, key.Key, nil); err != nil || len(rep.Problems) > 0 {
		t.Errorf("the log afterwards: %q, %v", rep.Problems, err)
	} else {
		t.Logf("%d records verified", rep.Records)
	}
}

// stopBroken stops a controller that cannot close its log.
func (e *env) stopBroken() {
	t := e.t
	e.t = ignoring{e.t}
	e.stop()
	e.t = t
}

// ignoring is a test whose errors count for nothing.
type ignoring struct{ testing.TB }

func (i ignoring) Errorf(format string, args ...any) { i.Logf("as is to be: "+format, args...) }
