package warden

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/warden/router"
	"bulkhead/warden/wire"
)

// A Machine's files. RunDir must be on a file system in memory: the bundle holds the
// Machine's environment, secrets among it. All directories belong to root; those
// that the Machine's own user must enter belong to its group and can only be
// entered, not listed.
//
//	<RunDir>/machines/<id>/
//	    record.json   what this is: made first, removed last
//	    stdout stderr FIFOs, read by the worker
//	    exit          how the sandbox ended; written by the shim
//	    meter         how the sandbox's limits stand; written by the shim
//	    control       the shim's socket
//	    shim.log      the shim's complaints
//	    bundle/       config.json, upper.tar: deleted as soon as the sandbox runs
//	<MachineDir>/<id>/
//	    image.erofs   a hard link to the sealed image, so that nobody can delete it
//	                  from under a running Machine
//	<MachineDir>/.spare-<id>/
//	    empty; there only while the disk is low, see removeDisk
//	<DataDir>/
//	    started       which generation of each Machine was started last; see package started
func (s *Server) runDir(id key.MachineID) string {
	return filepath.Join(s.config.RunDir, "machines", string(id))
}

func (s *Server) diskDir(id key.MachineID) string {
	return filepath.Join(s.config.MachineDir, string(id))
}

const (
	recordFile  = "record.json"
	stdoutFile  = "stdout"
	stderrFile  = "stderr"
	exitFile    = "exit"
	meterFile   = "meter"
	controlFile = "control"
	shimLogFile = "shim.log"
	bundleDir   = "bundle"
	configFile  = "config.json"
	upperFile   = "upper.tar"
	imageFile   = "image.erofs"
	startedFile = "started"
)

// record is what a warden must know of a Machine that it did not start itself.
type record struct {
	Machine  key.MachineID   `json:"machine"`
	Instance key.InstanceID  `json:"instance"`
	Slot     privnet.Slot    `json:"slot"`
	Network  privnet.Network `json:"network"`
	// Of the grant: what the packet rules hold it to.
	NetworkMbps      int `json:"network_mbps,omitempty"`
	PacketsPerSecond int `json:"packets_per_second,omitempty"`

	Started bool         `json:"started"` // the sandbox ran: no longer half-made
	Shim    wire.Process `json:"shim"`
}

// member is the Machine's place in the router.
func (r record) member() router.Member {
	g := grant.Grant{NetworkMbps: r.NetworkMbps, PacketsPerSecond: r.PacketsPerSecond}.Complete()
	return router.Member{Slot: r.Slot, Network: r.Network, Mbps: g.NetworkMbps, PacketsPerSecond: g.PacketsPerSecond}
}

// makeDirs makes the directories that hold the Machines' directories.
func (s *Server) makeDirs() error {
	for _, dir := range []string{filepath.Join(s.config.RunDir, "machines"), s.config.MachineDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// writeRecord replaces the Machine's record.
func (s *Server) writeRecord(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(s.runDir(r.Machine), recordFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// readRecord reads the Machine's record. An unreadable one is as good as none: the
// Machine is half-made.
func (s *Server) readRecord(id key.MachineID) (record, error) {
	b, err := os.ReadFile(filepath.Join(s.runDir(id), recordFile))
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	if r.Machine != id || privnet.CheckSlot(r.Slot) != nil {
		return record{}, fmt.Errorf("record of machine %s is not its own", id)
	}
	return r, nil
}

// idsOnDisk lists the Machines that have a directory of either kind.
func (s *Server) idsOnDisk() ([]key.MachineID, error) {
	seen := map[key.MachineID]bool{}
	var ids []key.MachineID
	for _, dir := range []string{filepath.Join(s.config.RunDir, "machines"), s.config.MachineDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if id, err := key.ParseMachineID(e.Name()); err == nil && !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// linkImage links the sealed image of digest d into the Machine's directory. The file
// that is checked is the file that is linked.
func (s *Server) linkImage(id key.MachineID, d key.Digest) error {
	path := filepath.Join(s.config.ImageDir, d.Hex()+".erofs")
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return fault.New(fault.NotFound, "image %s is not in this node's store", d)
	}
	if err != nil {
		return fmt.Errorf("open image %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != s.config.WorkerUID || st.Mode&0o222 != 0 {
		return fault.New(fault.Denied, "image %s is not a sealed file of the worker's (mode %#o, user %d)", d, st.Mode, st.Uid)
	}
	to := filepath.Join(s.diskDir(id), imageFile)
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EXDEV) {
		return fault.New(fault.Internal, "image directory %s and machine directory %s must be on one file system", s.config.ImageDir, s.config.MachineDir)
	}
	if err != nil {
		return fmt.Errorf("link image %s: %w", path, err)
	}
	return nil
}

// ownedDir makes a directory with an owner, group and mode.
func ownedDir(path string, uid, gid uint32, mode fs.FileMode) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := os.Chown(path, int(uid), int(gid)); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// groupFile makes a file of root's that group gid may read.
func groupFile(path string, content []byte, gid uint32) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Chown(0, int(gid)), f.Chmod(0o440), f.Close())
}
