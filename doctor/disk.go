package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// networkFS are file systems whose server may be away, or read along.
var networkFS = map[int64]string{
	unix.NFS_SUPER_MAGIC: "NFS", unix.SMB_SUPER_MAGIC: "SMB", unix.SMB2_SUPER_MAGIC: "SMB", unix.CIFS_SUPER_MAGIC: "CIFS",
	unix.V9FS_MAGIC: "9P", unix.AFS_FS_MAGIC: "AFS", unix.AFS_SUPER_MAGIC: "AFS", unix.CEPH_SUPER_MAGIC: "Ceph", unix.CODA_SUPER_MAGIC: "Coda", unix.FUSE_SUPER_MAGIC: "FUSE",
}

// zfsMagic is not in package unix: the file system is not in the kernel.
const zfsMagic = 0x2fc12fc1

// dataDisk looks at what the data directory lies on.
func (h host) dataDisk(dir string) []Finding {
	magic, err := h.fsType(dir)
	if err != nil {
		return []Finding{{"data disk", Fail, fmt.Sprintf("%s cannot be looked at: %v", dir, err), "is --data-dir right?"}}
	}
	switch name := networkFS[magic]; {
	case name != "":
		return []Finding{{"data disk", Warn, fmt.Sprintf("%s lies on a network file system (%s): what was acknowledged may be lost with its server, and whoever runs that reads all of it", dir, name),
			"move the data directory to a disk of this host"}}
	case magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC:
		return []Finding{{"data disk", Warn, dir + " lies in memory: nothing of it survives a restart of the host", "move the data directory to a disk"}}
	case magic == zfsMagic:
		return []Finding{{"data disk", Note, dir + " lies on ZFS: whether that encrypts cannot be seen from here", "zfs get encryption tells"}}
	}
	if fscrypt(dir) {
		return []Finding{{"data disk", OK, dir + " is encrypted by its file system", ""}}
	}
	return encryptedOrNot("data disk", dir, func() (bool, string, error) { return h.encrypted(dir, 0) },
		"the images, logs and configurations of apps, and the keys beside them, are open to whoever gets the disk or a copy of it",
		"put the data directory on a LUKS volume (cryptsetup luksFormat); encryption below the host, by a provider or the disk itself, cannot be seen from here")
}

// encryptedOrNot words what was found about a device.
func encryptedOrNot(check, what string, look func() (bool, string, error), means, remedy string) []Finding {
	ok, device, err := look()
	switch {
	case err != nil:
		return []Finding{{check, Note, fmt.Sprintf("whether %s is encrypted cannot be told: %v", what, err), "look with lsblk"}}
	case ok:
		return []Finding{{check, OK, fmt.Sprintf("%s is encrypted (%s)", what, device), ""}}
	}
	return []Finding{{check, Warn, fmt.Sprintf("%s lies on %s, which is not encrypted: %s", what, device, means), remedy}}
}

// swap would write what is in memory alone, keys and secrets, to a disk.
func (h host) swap() (out []Finding) {
	lines := strings.Split(h.read("/proc/swaps"), "\n")
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		name := strings.ReplaceAll(f[0], `\040`, " ")
		if strings.HasPrefix(filepath.Base(name), "zram") {
			continue // it is memory
		}
		out = append(out, encryptedOrNot("swap", name, func() (bool, string, error) { return h.encrypted(name, 0) },
			"keys and secrets that are kept in memory alone reach the disk there", "encrypt the swap with a random key (crypttab: swap), or run without (swapoff -a)")...)
	}
	if out == nil {
		out = []Finding{{"swap", OK, "no memory is swapped to a disk", ""}}
	}
	return out
}

// encrypted reports whether everything that a file is stored on lies above dm-crypt,
// and names the device that says so.
func (h host) encrypted(path string, depth int) (bool, string, error) {
	if depth > 8 {
		return false, "", errors.New("devices upon devices")
	}
	major, minor, err := h.device(path)
	if err != nil {
		return false, "", err
	}
	if major == 0 { // a file system with a number of its own: overlay, btrfs
		source, err := h.mountSource(path)
		if err != nil {
			return false, "", err
		}
		return h.encrypted(source, depth+1)
	}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("%s/sys/dev/block/%d:%d", h.root, major, minor))
	if err != nil {
		return false, "", fmt.Errorf("device %d:%d is not in /sys", major, minor)
	}
	return h.encryptedDevice(dir, depth)
}

// encryptedDevice looks at one block device of /sys and at what it is made of.
func (h host) encryptedDevice(dir string, depth int) (bool, string, error) {
	if depth > 8 {
		return false, "", errors.New("devices upon devices")
	}
	name := filepath.Base(dir)
	if uuid, _ := os.ReadFile(dir + "/dm/uuid"); strings.HasPrefix(string(uuid), "CRYPT-") {
		return true, name, nil
	}
	if file, err := os.ReadFile(dir + "/loop/backing_file"); err == nil {
		return h.encrypted(strings.TrimSpace(string(file)), depth+1)
	}
	if _, err := os.Stat(dir + "/partition"); err == nil {
		return h.encryptedDevice(filepath.Dir(dir), depth+1)
	}
	below, _ := os.ReadDir(dir + "/slaves")
	for _, b := range below {
		at, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", b.Name()))
		if err != nil {
			return false, "", err
		}
		if ok, device, err := h.encryptedDevice(at, depth+1); err != nil || !ok {
			return false, device, err
		}
	}
	return len(below) > 0, name, nil
}

// mountSource finds the device of the file system that a path lies on.
func (h host) mountSource(path string) (string, error) {
	best, source := "", ""
	for _, line := range strings.Split(h.read("/proc/self/mountinfo"), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 2 {
			continue
		}
		at := f[4]
		if len(at) >= len(best) && (path == at || at == "/" || strings.HasPrefix(path, at+"/")) {
			best, source = at, g[1]
		}
	}
	if !strings.HasPrefix(source, "/dev/") {
		return "", fmt.Errorf("%s is on %q, which is no device", path, source)
	}
	return source, nil
}

// fscrypt reports whether a directory is encrypted by its own file system.
func fscrypt(dir string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	policy := make([]byte, 8+32) // the size of what follows, and room for it
	policy[0] = 32
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.FS_IOC_GET_ENCRYPTION_POLICY_EX, bufferAddress(policy))
	return errno == 0
}
