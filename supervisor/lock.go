package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func fileOwner(fi os.FileInfo) uint32 { return fi.Sys().(*syscall.Stat_t).Uid }

// takeLock locks a data directory for this process, until the file is closed or
// the process ends. Without create, a missing lock file gives nil and no error:
// nothing is made. A directory that another bulkheadd holds gives an error that
// names its process.
func takeLock(dataDir string, create bool) (*os.File, error) {
	path := filepath.Join(dataDir, lockFile)
	flags := os.O_RDWR | syscall.O_NOFOLLOW
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if errors.Is(err, os.ErrNotExist) && !create {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		pid := strings.TrimSpace(string(b[:n]))
		if _, err := strconv.Atoi(pid); err != nil {
			pid = "unknown"
		}
		return nil, fmt.Errorf("bulkheadd runs on %s already, as process %s; stop it first, or choose another data directory with --data-dir", dataDir, pid)
	}
	// The number is advice. It is written over the old one, which on a disk that is
	// full takes no room, and a lock without it is a lock all the same: what makes room
	// again may well be the platform.
	pid := []byte(strconv.Itoa(os.Getpid()) + "\n")
	_, err = f.WriteAt(pid, 0)
	if err == nil {
		err = f.Truncate(int64(len(pid)))
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		f.Close()
		return nil, err
	}
	return f, nil
}
