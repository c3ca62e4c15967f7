package failpoint_test

import (
	"errors"
	"testing"

	"bulkhead/failpoint"
)

// TestReleaseHasNoFailpoints: without the build tag a place is its write and nothing
// else, whatever the environment says.
func TestReleaseHasNoFailpoints(t *testing.T) {
	if failpoint.Enabled {
		t.Fatal("the tests were built with the tag failpoints")
	}
	t.Setenv(failpoint.Env, "/nonexistent")
	want := errors.New("of the write")
	made := 0
	if err := failpoint.Write("a/b", func() error { made++; return want }); err != want || made != 1 {
		t.Errorf("the write was made %d times and gave %v", made, err)
	}
	if err := failpoint.Step("a/b"); err != nil {
		t.Error(err)
	}
	if n := testing.AllocsPerRun(100, func() { failpoint.Step("a/b") }); n != 0 {
		t.Errorf("a place costs %v allocations", n)
	}
}
