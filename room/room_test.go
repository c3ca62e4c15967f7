//go:build linux

package room

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/notice"
)

// TestWhatCanWaitIsRefusedFirst fills a small file system step by step: images are
// refused first, then new objects, then changes, each step is said once, and so is
// that there is room again.
func TestWhatCanWaitIsRefusedFirst(t *testing.T) {
	dir := small(t, "size=100m")
	var out bytes.Buffer
	board := notice.New(slog.New(slog.NewTextHandler(&out, nil)))
	look := func(want ...Use) {
		t.Helper()
		for range 3 {
			Look(dir, board)
		}
		for _, u := range []Use{Images, Objects, Records} {
			refused := len(want) > 0 && u <= want[0]
			err := Check(dir, 0, u)
			if (err != nil) != refused || refused && (!fault.Is(err, fault.Full) || !strings.Contains(err.Error(), dir)) {
				t.Errorf("%s: %v", u, err)
			}
		}
	}
	fill := func(leave int64) {
		t.Helper()
		os.Remove(filepath.Join(dir, "fill"))
		f, err := os.Create(filepath.Join(dir, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Fallocate(int(f.Fd()), 0, 0, 100<<20-leave); err != nil {
			t.Fatal(err)
		}
	}
	look()
	fill(9 << 20)
	look(Images)
	fill(4 << 20)
	look(Objects)
	fill(1 << 20)
	look(Records)
	if err := Check(dir, 95<<20, Images); err == nil {
		t.Error("more than there is")
	}
	fill(50 << 20)
	look()
	log := out.String()
	if n := strings.Count(log, "\n"); n != 4 || !strings.Contains(log, `refused="images, new apps and machines, changes"`) || !strings.Contains(log, `msg="over: the disk is low`) {
		t.Errorf("%d lines:\n%s", n, log)
	}
}

// TestInodesAreRoomToo: a file system with room and no inode is full, and it is said
// which of the two it is.
func TestInodesAreRoomToo(t *testing.T) {
	dir := small(t, "size=100m,nr_inodes=40")
	if err := Check(dir, 0, Records); !fault.Is(err, fault.Full) || !strings.Contains(err.Error(), "inodes left") {
		t.Errorf("%v", err)
	}
}

// TestReserves are those of a usual disk and of a small one.
func TestReserves(t *testing.T) {
	for _, c := range []struct{ total, images, objects, records int64 }{
		{100 << 30, 512 << 20, 128 << 20, 16 << 20},
		{1000 << 20, 100 << 20, 50 << 20, 12<<20 + 512<<10},
	} {
		s := Space{Total: c.total}
		if s.Keep(Images) != c.images || s.Keep(Objects) != c.objects || s.Keep(Records) != c.records {
			t.Errorf("%d: %d %d %d", c.total, s.Keep(Images), s.Keep(Objects), s.Keep(Records))
		}
	}
}

// small mounts a small file system in memory for the test.
func small(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount a file system: %v (run the tests as root)", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
