package world_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bulkhead/fixture"
	"bulkhead/warden/router"
	"bulkhead/world"
)

// TestCensus: what a Machine holds is in the census while it runs and is not after
// it was destroyed; and, the control, a thing of each kind that somebody left is seen.
func TestCensus(t *testing.T) {
	w := world.Shared(t)
	before := census(t, w)
	w.CreateApp("counted", "")
	m := w.Run("counted", world.Config{"image": w.Push("counted", fixture.StaticGo(t)), "services": world.HTTPService(8080)})
	during := strings.Join(census(t, w).Leaked(before), "\n")
	for _, kind := range []string{
		"process bulkhead-shim", "process runsc-sandbox", "user id ", "network namespace", "cgroup ", "file ",
		"journal: machines", "journal: assignments", "journal: slot", "store: ",
		"router: link m", "router: route ", "router: neighbour ", "router: element ",
	} {
		if !strings.Contains(during, "+ "+kind) {
			t.Errorf("a running machine adds no %q to the census:\n%s", kind, during)
		}
	}
	w.Must("DELETE", "/apps/counted/machines/"+m.ID+"?force=true", nil, nil)
	w.Must("DELETE", "/apps/counted", nil, nil)
	if why := w.ReturnsTo(before, 10*time.Second); why != "" {
		t.Fatal(why)
	}
	clean := census(t, w)
	for what, leak := range leaks(t, w) {
		undo := leak()
		if got := census(t, w).Leaked(clean); len(got) == 0 {
			t.Errorf("%s was left and not seen", what)
		}
		undo()
		if why := w.ReturnsTo(clean, 5*time.Second); why != "" {
			t.Fatalf("%s, removed again: %s", what, why)
		}
	}
}

// leaks are ways of leaving something behind, each with its undoing.
func leaks(t *testing.T, w *world.World) map[string]func() (undo func()) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(path string) func() func() {
		return func() func() {
			check(os.WriteFile(path, nil, 0o600))
			return func() { check(os.Remove(path)) }
		}
	}
	ns, err := os.Open(router.Path(w.RunDir()))
	check(err)
	t.Cleanup(func() { ns.Close() })
	group := "/sys/fs/cgroup/pids/bulkhead-" + tag(t, w) + "/leaked"
	if _, err := os.Stat(filepath.Dir(group)); err != nil {
		group = "/sys/fs/cgroup/bulkhead-" + tag(t, w) + "/leaked"
	}
	return map[string]func() func(){
		"a link": func() func() {
			nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
			check(err)
			link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "m77"}, PeerName: "p77"}
			check(nl.LinkAdd(link))
			return func() { check(nl.LinkDel(link)); nl.Close() }
		},
		"an element of a packet rule": func() func() {
			c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
			check(err)
			tables, err := c.ListTables()
			check(err)
			set, err := c.GetSetByName(tables[0], "source4")
			check(err)
			element := []nftables.SetElement{{Key: append(append(make([]byte, 12), "left"...), 198, 18, 0, 77)}}
			check(c.SetAddElements(set, element))
			check(c.Flush())
			return func() { check(c.SetDeleteElements(set, element)); check(c.Flush()) }
		},
		"a cgroup": func() func() {
			check(os.Mkdir(group, 0o755))
			return func() { check(os.Remove(group)) }
		},
		"a mount": func() func() {
			dir := filepath.Join(w.RunDir(), "leaked")
			check(os.Mkdir(dir, 0o700))
			check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
			return func() { check(unix.Unmount(dir, 0)); check(os.Remove(dir)) }
		},
		"a file of a machine":         file(filepath.Join(w.RunDir(), "machines", "leaked")),
		"a linked image":              file(filepath.Join(w.DataDir, "machines", "leaked")),
		"an image half sealed":        file(filepath.Join(w.DataDir, "images", ".tmp-leaked.erofs")),
		"half of an image":            file(filepath.Join(w.DataDir, "images", strings.Repeat("7", 64)+".json")),
		"a temporary of the registry": file(filepath.Join(w.DataDir, "controller", "registry", "tmp", "leaked")),
		"an upload":                   file(filepath.Join(w.DataDir, "controller", "registry", "uploads", "leaked")),
		"logs":                        file(filepath.Join(w.DataDir, "worker", "logs", "leaked")),
		"a temporary of a key":        file(filepath.Join(w.DataDir, "controller", "api.key.tmp")),
	}
}

// census takes one that nothing changed meanwhile.
func census(t *testing.T, w *world.World) (c world.Census) {
	t.Helper()
	w.Eventually(10*time.Second, func() string {
		var err error
		if c, err = w.Census(); err != nil {
			return err.Error()
		}
		return ""
	})
	return c
}
