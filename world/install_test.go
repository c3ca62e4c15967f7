package world

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestInstallAndUninstall: what make install puts below a directory, make uninstall removes, but
// for the configuration.
func TestInstallAndUninstall(t *testing.T) {
	dir := t.TempDir()
	files := func() (all []string) {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				all = append(all, path[len(dir):])
			}
			return err
		})
		return all
	}
	for _, target := range []string{"install", "uninstall"} {
		cmd := exec.Command("make", "-s", "-o", "programs", target, "DESTDIR="+dir) // they are built
		cmd.Dir = Root()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
		if all := files(); target == "install" && !slices.Contains(all, "/usr/local/bin/bulkheadd") {
			t.Fatalf("control: make install made %q", all)
		}
	}
	if all := files(); !slices.Equal(all, []string{"/etc/bulkhead/bulkhead.toml"}) {
		t.Errorf("make uninstall leaves %q", all)
	}
}
