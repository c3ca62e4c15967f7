package world_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"bulkhead/failpoint"
	"bulkhead/world"
)

// TestReleasedProgramsHaveNoFailpoints: in none of the programs as they are released is
// anything of package failpoint that the environment could arm. The control are the
// same programs with failpoints.
func TestReleasedProgramsHaveNoFailpoints(t *testing.T) {
	look := func(dir string) (found, seen int) {
		programs, err := filepath.Glob(filepath.Join(world.Root(), "build", dir, "bulkhead*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range programs {
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			seen++
			if bytes.Contains(b, []byte(failpoint.Env)) || bytes.Contains(b, []byte("failpoint: an injected error")) {
				found++
				t.Logf("%s has failpoints", p)
			}
		}
		return found, seen
	}
	if found, seen := look("bin"); found != 0 || seen < 9 {
		t.Errorf("%d of %d released programs have failpoints", found, seen)
	}
	if found, _ := look("failpoints"); found < 4 { // controller, worker, edge, warden
		t.Errorf("the control: %d programs with failpoints were found", found)
	}
}
