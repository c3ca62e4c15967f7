package warden

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/image/erofs"
	"bulkhead/image/tree"
	"bulkhead/key"
	"bulkhead/sandbox"
)

// entry is a file of an image, or of a config's files.
type entry struct {
	name    string
	mode    int64
	owner   int
	to      string // of a link
	content string
}

// archive writes entries; a name that ends with a slash is a directory.
func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.owner, Gid: e.owner, Typeflag: tar.TypeReg, Size: int64(len(e.content))}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if e.to != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.to
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image seals an image with the test program and entries.
func (w *world) imageOf(t *testing.T, entries ...entry) key.Digest {
	t.Helper()
	app, err := os.ReadFile(filepath.Join(libDir, "testapp"))
	if err != nil {
		t.Fatal(err)
	}
	all := append([]entry{{name: "bin/testapp", mode: 0o755, content: string(app)}, {name: "tmp/", mode: 0o1777}}, entries...)
	layer := archive(t, all...)
	sum := sha256.Sum256(layer)
	d := key.Digest("sha256:" + hex.EncodeToString(sum[:]))
	f, err := os.OpenFile(filepath.Join(w.config.ImageDir, d.Hex()+".erofs"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Chown(workerUID, workerUID); err != nil {
		t.Fatal(err)
	}
	out := erofs.NewWriter(imageOut{f})
	tr := tree.New(out, tree.Limits{Bytes: 1 << 30, Entries: 10000, Path: 4096})
	if err := tr.Apply(bytes.NewReader(layer)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := out.Finish(tr.Root()); err != nil {
		t.Fatal(err)
	}
	return d
}

// output starts a Machine and gives what it wrote.
func (w *world) output(t *testing.T, spec sandbox.Spec) (string, error) {
	t.Helper()
	sb, err := w.client.Start(testContext(t), spec)
	if err != nil {
		return "", err
	}
	defer sb.Close()
	b, err := io.ReadAll(sb.Stdout())
	if err != nil {
		t.Fatal(err)
	}
	return string(b), w.client.Remove(testContext(t), spec.Machine)
}

// TestFilesKeepTheImage: a file of the config changes nothing above it. Directories keep mode
// and owner, links stay links, and what the image has next to the file is still there.
func TestFilesKeepTheImage(t *testing.T) {
	w := newWorld(t).start()
	image := w.imageOf(t,
		entry{name: "app/", mode: 0o755, owner: 1000}, entry{name: "app/config/", mode: 0o2750, owner: 1000}, entry{name: "app/config/old", mode: 0o640, owner: 1000, content: "old"},
		entry{name: "home/app/", mode: 0o700, owner: 1000},
		entry{name: "usr/etc/", mode: 0o711}, entry{name: "usr/etc/passwd", mode: 0o600, content: "root"}, entry{name: "etc", to: "usr/etc"},
		entry{name: "releases/7/", mode: 0o755, owner: 7}, entry{name: "releases/7/app", mode: 0o755, content: "v7"}, entry{name: "opt/current", to: "/../releases/7"},
		entry{name: "usr/etc/resolv.conf", to: "../../run/systemd/resolve.conf"},
		entry{name: "usr/etc/hosts", to: "/proc/net/pnp"},
		entry{name: "srv/a", to: "real"}, entry{name: "srv/real", mode: 0o644, owner: 9, content: "before"},
	)
	files := archive(t, entry{name: "./app/config/site.yml", mode: 0o600, content: "s"}, entry{name: "./home/app/.config/deep/x", mode: 0o644, content: "x"},
		entry{name: "./etc/resolv.conf", mode: 0o644, content: "r"}, entry{name: "./etc/hosts", mode: 0o644, content: "h"}, entry{name: "./opt/current/.env", mode: 0o4755, content: "e"},
		entry{name: "./srv/a", mode: 0o644, content: "after"}, entry{name: "./tmp/x", mode: 0o644, content: "x"})
	paths := []string{"/app", "/app/config", "/home/app", "/usr/etc", "/etc", "/releases/7", "/opt/current", "/srv", "/srv/a", "/tmp", "/usr/etc/resolv.conf", "/app/config/old", "/etc/passwd"}
	spec := w.spec(append([]string{"lstat"}, paths...)...)
	spec.Image = image
	want, err := w.output(t, spec)
	if err != nil {
		t.Fatal(err)
	}
	spec = w.spec(append([]string{"lstat"}, paths...)...)
	spec.Image, spec.Upper = image, files
	if got, err := w.output(t, spec); err != nil || got != want {
		t.Errorf("with files: %v\n%s\nwithout:\n%s", err, got, want)
	}
	for name, content := range map[string]string{
		"/app/config/site.yml": `0600 0:0 "s"`, "/home/app/.config/deep/x": `0644 0:0 "x"`, "/run/systemd/resolve.conf": `0644 0:0 "r"`, "/usr/etc/hosts": `0644 0:0 "h"`,
		"/releases/7/.env": `4755 0:0 "e"`, "/releases/7/app": `0755 0:0 "v7"`, "/srv/real": `0644 0:0 "after"`, "/tmp/x": `0644 0:0 "x"`,
	} {
		spec := w.spec("file", name)
		spec.Image, spec.Upper = image, files
		if got, err := w.output(t, spec); err != nil || got != content+"\n" {
			t.Errorf("%s is %q, %v, want %s", name, got, err, content)
		}
	}
}

// TestFilesOfHostileImages: links of an image lead a file neither out of it nor on for ever.
func TestFilesOfHostileImages(t *testing.T) {
	w := newWorld(t).start()
	entries := []entry{
		{name: "loop", to: "loop"}, {name: "ping", to: "pong"}, {name: "pong", to: "/ping"},
		{name: "proc-link", to: "/proc/self/root"}, {name: "fly", to: "/.fly"}, {name: "dev-link", to: "dev/shm"},
		{name: "up", to: "../../../../../../outside"}, {name: "is-file", mode: 0o644, content: "f"}, {name: "is-dir/", mode: 0o755}, {name: "chain300/", mode: 0o755},
		{name: "trailing", to: "is-dir/"}, {name: "dots", to: "is-dir/.."},
	}
	for i := range 300 {
		entries = append(entries, entry{name: fmt.Sprintf("chain%d", i), to: fmt.Sprintf("chain%d", i+1)})
	}
	image := w.imageOf(t, entries...)
	for file, want := range map[string]string{
		"loop/x": "too many links", "ping/x": "too many links", "chain0/x": "too many links", "loop": "too many links",
		"proc-link/x": "platform's own files", "fly/x": "platform's own files", "fly/api": "platform's own files", "dev-link/x": "platform's own files",
		"is-file/x": "is a file in the image", "is-dir": "is a directory in the image", "trailing": "is a directory in the image", "dots": "is a directory in the image",
		"up/x": "", "is-dir/x": "", "trailing/x": "", "dots/x": "",
	} {
		spec := w.spec("exit", "0")
		spec.Image, spec.Upper = image, archive(t, entry{name: "./" + file, mode: 0o644, content: "x"})
		_, err := w.output(t, spec)
		if want == "" && err == nil {
			continue
		}
		if !fault.Is(err, fault.Unprocessable) || !strings.Contains(fault.MessageOf(err), want) || want == "" {
			t.Errorf("/%s: %v, want %q", file, err, want)
		}
		if list, err := w.client.List(testContext(t)); err != nil || len(list) != 0 {
			t.Errorf("/%s: %+v is left, %v", file, list, err)
		}
	}
}

// TestCommandsInAFullMachine: an operator gets into a Machine whose processes are used up, as
// any user; who uses up the reserve, too, reads which limit that was.
func TestCommandsInAFullMachine(t *testing.T) {
	w := newWorld(t).start()
	for _, uid := range []uint32{0, 1000} {
		spec := w.spec("bomb")
		spec.UID, spec.GID = uid, uid
		spec = w.grant(spec, grant.Grant{Network: 7, CPUs: 1, MemoryMB: 512, MaxPIDs: 4096, DiskMB: 64, Processes: 64})
		if _, said := w.begin(spec); said != "full" {
			t.Fatalf("user %d: the bomb said %q", uid, said)
		}
		e := sandbox.ExecSpec{Args: []string{appPath, "print", "in"}, Cwd: "/", Timeout: testTime, UID: uid, GID: uid}
		var out bytes.Buffer
		e.Stdout = &out
		if r, err := w.client.Exec(testContext(t), spec.Machine, e); err != nil || r.Code != 0 || out.String() != "in\n" {
			t.Errorf("user %d: a command in a full machine: %+v %q, %v", uid, r, out.String(), err)
		}
		if err := w.client.Remove(testContext(t), spec.Machine); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMachineEndsUnderACommand: the command's caller reads that memory ran out.
func TestMachineEndsUnderACommand(t *testing.T) {
	w := newWorld(t).start()
	spec := w.grant(w.spec("sleep"), grant.Grant{Network: 7, CPUs: 1, MemoryMB: 64, MaxPIDs: 1024, DiskMB: 64})
	w.begin(spec)
	_, err := w.client.Exec(testContext(t), spec.Machine, sandbox.ExecSpec{Args: []string{appPath, "alloc", "400"}, Cwd: "/", Timeout: testTime})
	if !fault.Is(err, fault.Unprocessable) || !strings.Contains(fault.MessageOf(err), "ran out of memory while the command ran") {
		t.Errorf("a command that takes all memory: %v", err)
	}
}

// TestInit: process 1 collects orphans and passes signals on; the command ends as it would alone.
func TestInit(t *testing.T) {
	w := newWorld(t).start()
	image := w.imageOf(t, entry{name: "sbin/tini", to: "/bin/testapp"}, entry{name: "lib/systemd/systemd", mode: 0o755, content: "x"}, entry{name: "sbin/init", to: "../lib/systemd/systemd"},
		entry{name: "bin/crlf", mode: 0o755, content: "#!/bin/sh\r\n"}, entry{name: "bin/nobash", mode: 0o755, content: "#! /usr/bin/bash -e\n"},
		entry{name: "bin/deep", mode: 0o755, content: "#!/bin/nobash\n"})
	get := func(command string, args ...string) (string, error) {
		spec := w.spec(args...)
		spec.Image, spec.Args[0] = image, command
		return w.output(t, spec)
	}
	for _, c := range []struct {
		command string
		args    []string
		want    string
	}{
		{"/bin/testapp", []string{"orphans", "5"}, "0 zombies\n"},
		{"testapp", []string{"first"}, "2 1 bulkhead-init\n"},
		{"/sbin/tini", []string{"first"}, "1 0 tini\n"},
	} {
		if got, err := get(c.command, c.args...); err != nil || got != c.want {
			t.Errorf("%s %q wrote %q, %v, want %q", c.command, c.args, got, err, c.want)
		}
	}
	own := w.spec("first")
	own.OwnInit = true
	if got, err := w.output(t, own); err != nil || got != "1 0 testapp\n" {
		t.Errorf("with an init of its own: %q, %v", got, err)
	}
	run := w.spec("sleep")
	w.begin(run)
	var groups bytes.Buffer
	_, err := w.client.Exec(testContext(t), run.Machine, sandbox.ExecSpec{Args: []string{appPath, "id"}, Cwd: "/", Timeout: testTime, UID: 5, GID: 6, Groups: []uint32{44}, Stdout: &groups})
	if err != nil || !strings.Contains(groups.String(), "44") {
		t.Errorf("a command in group 44 says %q, %v", groups.String(), err)
	}
	tty := w.spec("terminal")
	tty.TTY = true
	if got, err := w.output(t, tty); err != nil || got != "80 24\r\n" {
		t.Errorf("on a terminal: %q, %v", got, err)
	}
	for command, want := range map[string]string{
		"/sbin/init":  "systemd cannot run in a machine",
		"/bin/crlf":   `needs the interpreter "/bin/sh\r": its first line ends with a carriage return`,
		"/bin/nobash": `needs the interpreter "/usr/bin/bash", which is missing in the image`,
		"/bin/deep":   `needs the interpreter "/usr/bin/bash", which is missing in the image`,
	} {
		if _, err := get(command); !fault.Is(err, fault.Unprocessable) || !strings.Contains(fault.MessageOf(err), want) {
			t.Errorf("%s: %v, want %s", command, err, want)
		}
	}
}
