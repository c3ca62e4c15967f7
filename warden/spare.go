package warden

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/room"
)

// sparePrefix begins the names of directories of Machines that are gone. On a disk
// that is full no directory can be made, and what the removal of one gives back
// others take first: after a power cut no Machine would start again for want of
// one block. So while the disk is low they are kept, empty, and starts take them.
const sparePrefix = ".spare-"

// removeDisk removes a Machine's directory on disk.
func (s *Server) removeDisk(id key.MachineID) error {
	dir := s.diskDir(id)
	if room.Check(s.config.MachineDir, 0, room.Objects) == nil {
		return errors.Join(os.RemoveAll(dir), s.removeSpares())
	}
	if err := os.Remove(filepath.Join(dir, imageFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Rename(dir, filepath.Join(s.config.MachineDir, sparePrefix+string(id))) == nil {
		return nil
	}
	return os.RemoveAll(dir) // it is not there, or its new name finds no room
}

// makeDisk makes a Machine's directory on disk, of a spare one if need be.
func (s *Server) makeDisk(id key.MachineID, group uint32) error {
	dir := s.diskDir(id)
	err := ownedDir(dir, 0, group, 0o710)
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	for _, spare := range s.spares() {
		// Renaming finds whether it is there, and once; it is root's, as all in here.
		if os.Rename(spare, dir) != nil {
			continue
		}
		if left, rerr := os.ReadDir(dir); rerr != nil || len(left) > 0 {
			return errors.Join(fault.New(fault.Internal, "the spare directory %s is not empty", spare), rerr)
		}
		return errors.Join(os.Chown(dir, 0, int(group)), os.Chmod(dir, 0o710))
	}
	return err
}

// spares lists the spare directories.
func (s *Server) spares() []string {
	all, _ := filepath.Glob(filepath.Join(s.config.MachineDir, sparePrefix+"*")) // the pattern is good
	return all
}

// removeSpares removes those that are spare no more, as there is room.
func (s *Server) removeSpares() error {
	var errs []error
	for _, spare := range s.spares() {
		if err := os.Remove(spare); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
