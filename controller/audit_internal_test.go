package controller

import (
	"regexp"
	"slices"
	"testing"
)

// TestRecordsNameTheirTarget: whatever the path of a change names is in its record, as the
// organization, app or Machine, or as the target.
func TestRecordsNameTheirTarget(t *testing.T) {
	names, changes := regexp.MustCompile(`\{([a-z_]+)(?:\.\.\.)?\}`), 0
	for _, e := range new(Controller).endpoints() {
		if !e.recorded() {
			continue
		}
		changes++
		for _, m := range names.FindAllStringSubmatch(e.pattern, -1) {
			if !slices.Contains([]string{"org", "app", "machine"}, m[1]) && !slices.Contains(targetNames, m[1]) {
				t.Errorf("%s: the record does not say which %s it was about: add it to targetNames", e.pattern, m[1])
			}
		}
	}
	if changes < 30 {
		t.Errorf("only %d endpoints change something", changes)
	}
}
