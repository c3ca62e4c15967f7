package world_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bulkhead/world"
)

// place is a name of package failpoint as the source has it; one that ends with a
// star stands for every name that begins so.
type place string

// is reports whether name is the place, or one of those that it stands for.
func (p place) is(name string) bool {
	if prefix, family := strings.CutSuffix(string(p), "*"); family {
		return strings.HasPrefix(name, prefix)
	}
	return name == string(p)
}

// neverPassed are the places that no operation of TestCrashAtEveryPlace passes, with
// the reason.
var neverPassed = map[place]string{
	"pki/write/*":             "a first start alone: TestCrashFirstStart",
	"secret/write":            "a first start, or a rotation of the cluster key: TestCrashFirstStart",
	"secret/rewrapped":        "a rotation of the cluster key alone: TestRotationIsCutShort",
	"secret/rename":           "as secret/write",
	"pki/rename/*":            "a first start alone: TestCrashFirstStart",
	"audit/recover":           "a controller that was killed in a change: TestKilledAnywhereLeavesNoChangeWithoutARecord",
	"router/namespace":        "a first start alone: TestCrashFirstStart",
	"router/uplink-link":      "a first start alone: TestCrashFirstStart",
	"worker/logs/remove":      "a node that was removed from the cluster, or logs that could not be kept",
	"worker/journal/take-up":  "a version that comes between two steps of a first start: TestKilledAtEveryStep",
	"router/remove-link":      "a link goes by itself, most often, with the Machine's namespace",
	"worker/journal/rebuild":  "a journal that is new or was lost: TestCrashFirstStart, TestRebuildIsKilledAtEveryStep",
	"worker/journal/renew":    "a node that was away for a day, or reaches the controller that long: TestRenewalIsKilledAtEveryStep",
	"warden/started/create":   "a first start alone: TestCrashFirstStart",
	"warden/started/grow":     "more than 63 Machines: TestFileGrows",
	"worker/journal/limit":    "a Machine that hits a limit: TestLimits",
	"worker/journal/complain": "what is in the way of a step, if it stays long enough",
}

var (
	placeRE = regexp.MustCompile(`"((?:worker|warden|router|cgroup|image|registry|store|pki|secret)/[a-z/-]+)"( *\+)?`)
	entryRE = regexp.MustCompile(`(?:a\.update|a\.commit|j\.write|j\.writeBy)\((?:j\.db\.Batch, )?"([a-z ]+)"`)
)

// placesInSource finds the places of all programs, and where they stand.
func placesInSource(t *testing.T) map[place]string {
	t.Helper()
	out := map[place]string{}
	err := filepath.WalkDir(world.Root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "build" || d.Name() == "failpoint" || strings.HasPrefix(d.Name(), ".")) {
			if err == nil && path != world.Root() {
				err = fs.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(world.Root(), path)
		if strings.Contains(string(b), `"bulkhead/failpoint"`) {
			for _, m := range placeRE.FindAllStringSubmatch(string(b), -1) {
				if m[2] != "" {
					m[1] += "*"
				}
				out[place(m[1])] = rel
			}
		}
		if strings.HasPrefix(rel, "worker/") {
			for _, m := range entryRE.FindAllStringSubmatch(string(b), -1) {
				out[place("worker/journal/"+strings.ReplaceAll(m[1], " ", "-"))] = rel
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Errorf("only %d places were found in the source", len(out))
	}
	return out
}
