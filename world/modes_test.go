package world_test

import (
	"io/fs"
	"path/filepath"
	"testing"

	"bulkhead/fixture"
	"bulkhead/world"
)

// public are the files that any user of the host may read: nothing secret is in them.
var public = map[string]bool{"ca.crt": true, "cluster.json": true, "grant.pub": true}

// TestOtherUsersFindNothingOpen walks the data and the runtime directory as far as a
// user who knows every name could, among them one Machine's user who has got out: no
// file can be read and no socket written to.
func TestOtherUsersFindNothingOpen(t *testing.T) {
	w := world.Shared(t)
	w.CreateApp("modes", "modes")
	m := w.Run("modes", world.Config{"image": w.Push("modes", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
	seen, closed := map[string]bool{}, 0
	for _, root := range []string{w.DataDir, w.RunDir()} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return nil // it was of the moment
			}
			seen[d.Name()] = true
			mode := info.Mode()
			switch {
			case d.IsDir() && mode.Perm()&0o001 == 0:
				closed++
				return fs.SkipDir
			case d.IsDir() && mode.Perm()&0o006 != 0 && path != w.DataDir && d.Name() != "programs":
				t.Errorf("%s can be listed or written to: %v", path, mode)
			case d.IsDir(), mode&fs.ModeSymlink != 0, public[d.Name()], filepath.Base(filepath.Dir(path)) == "programs":
			case mode.Perm()&0o006 != 0:
				t.Errorf("%s is open to every user: %v", path, mode)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The control: the walk came where there is something to find.
	if !seen[m.ID] || !seen["ca.crt"] || !seen["internal.sock"] || closed < 4 {
		t.Errorf("the walk saw %d names and %d closed directories: not what a platform is made of", len(seen), closed)
	}
}
