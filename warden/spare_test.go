package warden

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/key"
)

// TestDirectoriesOnAFullDisk: on a disk without an inode left the directories of
// Machines that are gone serve those that start, each once, and with room again none
// is kept.
func TestDirectoriesOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m,nr_inodes=80"); err != nil {
		t.Fatalf("mount a file system: %v (run the tests as root)", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := &Server{config: Config{MachineDir: filepath.Join(dir, "machines")}}
	if err := os.Mkdir(s.config.MachineDir, 0o711); err != nil {
		t.Fatal(err)
	}
	had, next := []key.MachineID{key.NewMachineID(), key.NewMachineID()}, []key.MachineID{key.NewMachineID(), key.NewMachineID(), key.NewMachineID()}
	for _, id := range had {
		if err := s.makeDisk(id, 1); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.diskDir(id), imageFile), nil, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	fill := func() {
		for {
			f, err := os.CreateTemp(dir, "fill")
			if err != nil {
				return
			}
			f.Close()
		}
	}
	fill()
	for _, id := range had {
		if err := s.removeDisk(id); err != nil {
			t.Fatal(err)
		}
	}
	fill() // somebody takes what the removal gave back
	for n, id := range next {
		err := s.makeDisk(id, 7)
		if n == len(had) {
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("without a spare directory: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(s.diskDir(id))
		var st unix.Stat_t
		if serr := unix.Stat(s.diskDir(id), &st); err != nil || serr != nil || info.Mode().Perm() != 0o710 || st.Uid != 0 || st.Gid != 7 {
			t.Errorf("%v %v %d:%d", err, info.Mode(), st.Uid, st.Gid)
		}
	}
	if err := s.removeDisk(next[0]); err != nil || len(s.spares()) != 1 {
		t.Errorf("%v, %d are spare", err, len(s.spares()))
	}
	filled, _ := filepath.Glob(filepath.Join(dir, "fill*"))
	for _, f := range filled {
		os.Remove(f)
	}
	if err := s.removeDisk(next[1]); err != nil || len(s.spares()) != 0 {
		t.Errorf("with room: %v, %d are spare", err, len(s.spares()))
	}
}
