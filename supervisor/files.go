package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"bulkhead/role"
)

// owner is the user and group of a file.
type owner struct{ uid, gid uint32 }

var root = owner{0, 0}

// hook is called with a name before each step that changes something on disk.
// Tests return an error from it to stop there, as a power cut would; bulkheadd
// itself has none.
type hook func(step string) error

func (h hook) at(format string, args ...any) error {
	if h == nil {
		return nil
	}
	return h(fmt.Sprintf(format, args...))
}

// writeFile replaces path so that a reader, or the next start after a power cut,
// sees the old content or the new, whole. When it returns nil the new content is
// on the disk. The temporary file has a fixed name: one left by a crash is
// written over by the next attempt.
func writeFile(h hook, path string, data []byte, mode os.FileMode, o owner) error {
	dir, name := filepath.Split(path)
	tmp := dir + "." + name + ".tmp"
	if err := h.at("create %s", name); err != nil {
		return err
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := h.at("write %s", name); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chown(int(o.uid), int(o.gid)); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := h.at("rename %s", name); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ensureDir makes path a directory with this mode and owner, or checks that it is
// a directory of that owner and sets the mode. A directory of another owner is
// refused: its content would not be what it seems.
func ensureDir(h hook, path string, mode os.FileMode, o owner) error {
	if err := h.at("mkdir %s", filepath.Base(path)); err != nil {
		return err
	}
	made := false
	switch err := os.Mkdir(path, 0o700); {
	case err == nil:
		made = true
	case !errors.Is(err, os.ErrExist):
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is in the way: it is not a directory", path)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := h.at("own %s", filepath.Base(path)); err != nil {
		return err
	}
	// Owned by root: made by us and not given away yet, by an earlier start that
	// was cut short. Its mode was 0700 until then, so nobody else put anything in.
	if made || st.Uid == 0 && st.Uid != o.uid {
		if err := os.Lchown(path, int(o.uid), int(o.gid)); err != nil {
			return err
		}
	} else if st.Uid != o.uid {
		return fmt.Errorf("%s belongs to user %d instead of user %d; if it was restored from another machine, give it and all in it to the right user with chown -R", path, st.Uid, o.uid)
	}
	return os.Chmod(path, mode)
}

// checkReachable returns the first directory on the way to path, path included,
// that other users may not enter; "" when there is none.
func checkReachable(path string) string {
	closed := ""
	for p := path; ; p = filepath.Dir(p) {
		if fi, err := os.Stat(p); err == nil && fi.Mode().Perm()&0o001 == 0 {
			closed = p
		}
		if p == "/" {
			return closed
		}
	}
}

// ensureMemory mounts a file system in memory at path, unless one is mounted there.
// Machines' environments pass through it and must not touch a disk; and it is
// bounded and apart from /run, so that a Machine that escapes its sandbox can fill
// neither the node's memory nor the host's runtime directory.
func ensureMemory(h hook, path, options string) error {
	var here, above unix.Stat_t
	if err := errors.Join(unix.Lstat(path, &here), unix.Lstat(filepath.Dir(path), &above)); err != nil {
		return err
	}
	if here.Dev != above.Dev {
		return nil
	}
	if err := h.at("mount %s", filepath.Base(path)); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount a file system in memory at %s: %w", path, err)
	}
	return nil
}

// secretDir is the worker's directory in memory, below the runtime directory.
const secretDir = "secrets"

// ensureSecretDir makes the worker's directory in memory. What lies there, encrypted and
// with its key beside it, must not reach the disk by way of swap either: a kernel before
// 6.4 cannot promise that.
func (s *Supervisor) ensureSecretDir() error {
	path, o := filepath.Join(s.Config.RunDir, secretDir), s.in.users.of(role.Worker)
	fi, err := os.Lstat(path)
	if err != nil || fileOwner(fi) == 0 { // else it is there, mounted and given away
		if err := ensureDir(s.fault, path, 0o700, root); err != nil {
			return err
		}
		options := fmt.Sprintf("mode=0700,size=256m,nr_inodes=64k,uid=%d,gid=%d", o.uid, o.gid)
		if err := ensureMemory(s.fault, path, options+",noswap"); err != nil {
			if err := ensureMemory(s.fault, path, options); err != nil {
				return err
			}
			s.log.Debug("this kernel may swap file systems in memory out", "dir", path)
		}
	}
	return ensureDir(s.fault, path, 0o700, o)
}
