package world

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// shared is the platform that tests of one binary share.
var shared struct {
	once   sync.Once
	w      *World // nil until it runs
	before Census
}

// Shared returns the platform that the tests of this binary share. The first caller
// starts it; Main takes it down. It runs with "--idle-after 2s", which concerns only
// Machines whose config says autostop.
//
// A test may use it if it leaves the platform as it was and breaks nothing that other
// tests need. It must not kill, stop or freeze a role, fill the disk, change files of
// the platform, or change what a whole organization or the cluster has: such a test
// calls Start. On the shared platform
//
//   - a test's apps and networks have names that no other test uses (begin them with a
//     word of the test's own): CreateApp deletes its apps when the test ends, and a test
//     that makes an app in another way calls Owns;
//   - a test that mostly waits calls t.Parallel; one that counts what the whole platform
//     does (log lines, processes, files) does not: it then runs alone;
//   - users, tokens, organizations and secrets that a test makes, it removes.
//
// When all tests have ended, Main compares a census of the platform with the one taken
// when it started: what a test has left behind fails the run.
func Shared(t testing.TB) *World {
	t.Helper()
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "shared")
		if err != nil {
			t.Fatal(err)
		}
		w := prepare(t, filepath.Join(dir, "data"), filepath.Join(Root(), "build", "bin"), nil, "--idle-after", "2s")
		shared.w = w
		w.Up()
		w.shared = true
		shared.before = w.Settled(30 * time.Second)
		// The edge's runtime pools the pipes that copy the API's connections in the kernel, two
		// of two files each for a connection, until it collects garbage: some minutes when idle.
		shared.before.Open["edge pipe"] += 4 * connections * parallel
	})
	if shared.w == nil || !shared.w.shared {
		t.Fatal("the shared platform did not start: the first test that asked for it says why")
	}
	w := shared.w.In(t)
	began := w.log.size()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("since the test began, the shared platform said:\n%s", w.log.tail(min(20000, w.log.size()-began)))
		}
	})
	return w
}

// Owns has the shared platform delete an app when the test ends. On a platform of a
// test's own it does nothing, since that ends with the test.
func (w *World) Owns(app string) {
	if !w.shared {
		return
	}
	w.T.Cleanup(func() {
		w.T.Helper()
		if status, body := w.APIRaw("DELETE", "/apps/"+app, nil); status >= 300 && status != 404 {
			w.T.Errorf("deleting the app %s of the shared platform: %d %s", app, status, body)
		}
		w.Gone(app)
	})
}

// Gone waits until an app that is being deleted has gone.
func (w *World) Gone(app string) {
	w.T.Helper()
	w.Eventually(60*time.Second, func() string {
		if status, body := w.APIRaw("GET", "/apps/"+app, nil); status != 404 {
			return fmt.Sprintf("app %s is still there: %d %s", app, status, body)
		}
		return ""
	})
}

// parallel is how many of the tests that wait run at a time, unless -parallel says
// otherwise: they use little of the processors.
const parallel = 4

// connections is how many of the API's a test has open at a time: its own, and its CLI's.
const connections = 2

// Main runs the tests of a package whose tests use Shared: its TestMain passes the
// result to os.Exit.
func Main(m *testing.M) int {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", fmt.Sprint(parallel))
	}
	code := m.Run()
	if err := endShared(code == 0); err != nil {
		fmt.Fprintf(os.Stderr, "FAIL: the shared platform: %v\n", err)
		return max(code, 1)
	}
	return code
}

// endShared takes the shared platform down. If all tests passed, it first makes sure
// that they have left nothing behind.
func endShared(passed bool) (err error) {
	w := shared.w
	if w == nil {
		return nil
	}
	if passed && w.shared {
		w.client.CloseIdleConnections()
		if why := w.ReturnsTo(shared.before, 20*time.Second); why != "" {
			err = errors.New("the tests left something behind: " + why)
		}
	}
	err = errors.Join(err, w.takeDown())
	if err != nil {
		err = fmt.Errorf("%w\nbulkheadd said:\n%s", err, w.log.tail(20000))
	}
	return errors.Join(err, os.RemoveAll(filepath.Dir(w.DataDir)))
}
