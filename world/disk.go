package world

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a file system of a test's own: ext4 in a file, on a loop device. It can
// lose its power, and it can be full.
type Disk struct {
	T   testing.TB
	Dir string // where it is mounted; roles' users can pass

	image string
	loop  string
}

// NewDisk makes and mounts a disk of a size in MiB, and takes it away with the test.
func NewDisk(t testing.TB, mb int64) *Disk {
	t.Helper()
	base := t.TempDir()
	for d := base; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	d := &Disk{T: t, Dir: filepath.Join(base, "disk"), image: filepath.Join(base, "disk.img")}
	if err := os.Mkdir(d.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(d.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(mb << 20); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-F", "-m", "0", d.image)
	t.Cleanup(d.unmount)
	d.mount()
	return d
}

// run runs a command of the system; nothing in it is a user's.
func (d *Disk) run(name string, args ...string) string {
	d.T.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.T.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (d *Disk) mount() {
	d.T.Helper()
	d.loop = d.run("losetup", "--find", "--show", d.image)
	d.run("mount", "-t", "ext4", d.loop, d.Dir)
	if err := os.Chmod(d.Dir, 0o755); err != nil {
		d.T.Fatal(err)
	}
}

func (d *Disk) unmount() {
	if d.loop == "" {
		return
	}
	if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
		d.T.Errorf("unmount %s: %v", d.Dir, err)
	}
	if out, err := exec.Command("losetup", "--detach", d.loop).CombinedOutput(); err != nil {
		d.T.Errorf("losetup --detach %s: %v\n%s", d.loop, err, out)
	}
	d.loop = ""
}

// fsIocShutdown is FS_IOC_SHUTDOWN and noLogFlush EXT4_GOING_FLAGS_NOLOGFLUSH
// (linux/fs.h, fs/ext4/ext4.h).
const (
	fsIocShutdown = 0x8004587d
	noLogFlush    = 2
)

// Cut takes the power from the file system, as far as what is above it can tell:
// from here on nothing reaches the device, what was not synced is lost, and the
// file system's own log is not flushed.
func (d *Disk) Cut() {
	d.T.Helper()
	f, err := os.Open(d.Dir)
	if err != nil {
		d.T.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), fsIocShutdown, noLogFlush); err != nil {
		d.T.Fatalf("shut the file system %s down: %v", d.Dir, err)
	}
}

// Reboot mounts the disk again, after a Cut and when nobody uses it any more. What
// there is then is what the device had got, after ext4 replayed its log.
func (d *Disk) Reboot() {
	d.T.Helper()
	d.unmount()
	d.mount()
}

// Fill writes a file until nothing fits any more, and returns what removes it.
func (d *Disk) Fill() (free func()) {
	d.T.Helper()
	path := filepath.Join(d.Dir, "fill")
	f, err := os.Create(path)
	if err != nil {
		d.T.Fatal(err)
	}
	defer f.Close()
	for chunk := 1 << 20; chunk > 0; {
		if _, err := f.Write(make([]byte, chunk)); err != nil {
			chunk /= 2 // also what a megabyte finds no room for is to be used
		}
	}
	if err := f.Sync(); err != nil {
		d.T.Logf("fill %s: %v", d.Dir, err)
	}
	return func() {
		d.T.Helper()
		if err := os.Remove(path); err != nil {
			d.T.Fatal(err)
		}
	}
}
