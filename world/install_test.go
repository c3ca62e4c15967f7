package world

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
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
	plan := exec.Command("make", "--no-print-directory", "-n", "install") // below a make, too
	plan.Dir = Root()
	first, err := plan.Output()
	if line, _, _ := strings.Cut(string(first), "\n"); err != nil || !strings.Contains(line, "scripts/setup") || !strings.Contains(line, "gcc") {
		t.Errorf("make install begins with %q, %v, and not with the packages that it needs", line, err)
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
