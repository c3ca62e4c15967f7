package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// programs are what lib_dir must hold.
var programs = []string{
	"bulkhead-warden", "bulkhead-controller", "bulkhead-worker", "bulkhead-edge",
	"bulkhead-shim", "bulkhead-sandbox", "bulkhead-unpack", "bulkhead-init",
}

// checkPrograms looks whether all programs are there and can be run.
func checkPrograms(dir string) error {
	for _, p := range programs {
		path := filepath.Join(dir, p)
		fi, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("program %s is missing; build all with make build, or say with --lib-dir where they are", path)
		}
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0 {
			return fmt.Errorf("%s is not a program", path)
		}
	}
	return nil
}

// copyPrograms copies the programs from a directory that the roles' users cannot
// enter, such as one below /root, to one that they can, and returns that. What
// runs from an earlier copy goes on from its own file.
func copyPrograms(h hook, from, to string) (string, error) {
	if err := ensureDir(h, to, 0o755, root); err != nil {
		return "", err
	}
	for _, p := range programs {
		if err := copyProgram(h, filepath.Join(from, p), filepath.Join(to, p)); err != nil {
			return "", fmt.Errorf("copy program: %w", err)
		}
	}
	return to, nil
}

func copyProgram(h hook, from, to string) error {
	if err := h.at("copy %s", filepath.Base(to)); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	// A copy gets its original's time only when it is whole.
	if have, err := os.Lstat(to); err == nil && have.Mode() == 0o755 && have.Size() == fi.Size() && have.ModTime().Equal(fi.ModTime()) {
		return nil
	}
	tmp := to + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dst, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := dst.Chmod(0o755); err != nil {
		return err
	}
	if err := dst.Close(); err != nil {
		return err
	}
	if err := os.Chtimes(tmp, fi.ModTime(), fi.ModTime()); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}
