package world

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Census is everything that Machines, pushes and half-done work can hold of a
// platform: taken before and after, it shows what leaked. Sealed images, contents
// of the registry and numbers given out once for all are kept on purpose and do
// not count.
type Census struct {
	// Held are lines that each name one thing, in order.
	Held []string
	// Open counts the open files of each role by kind ("warden pipe"); connections of
	// clients come and go, so two counts are compared with some slack.
	Open map[string]int
}

// Slack of Census.Open: how many more files of a kind are no leak.
const (
	fileSlack   = 6
	socketSlack = 24
)

// Leaked lists what c has and before has not, with a "+", and what it lacks, with a "-".
func (c Census) Leaked(before Census) []string {
	var out []string
	old := slices.Clone(before.Held)
	for _, line := range c.Held {
		if i := slices.Index(old, line); i >= 0 {
			old = slices.Delete(old, i, i+1)
			continue
		}
		out = append(out, "+ "+line)
	}
	for _, line := range old {
		out = append(out, "- "+line)
	}
	for _, kind := range slices.Sorted(maps.Keys(c.Open)) {
		slack := fileSlack
		if strings.HasSuffix(kind, " socket") {
			slack = socketSlack
		}
		if n := c.Open[kind] - before.Open[kind]; n > slack {
			out = append(out, fmt.Sprintf("+ %d open files: %s", n, kind))
		}
	}
	return out
}

// ReturnsTo waits until nothing is held beyond an earlier census and tells what is,
// or "".
func (w *World) ReturnsTo(before Census, limit time.Duration) string {
	return Until(limit, func() string {
		now, err := w.Census()
		if leaked := now.Leaked(before); err != nil || len(leaked) > 0 {
			return fmt.Sprintf("after %v there is more, or less, than before (%v):\n%s", limit, err, strings.Join(leaked, "\n"))
		}
		return ""
	})
}

// Settled is a census that two in a row, a moment apart, agree on.
func (w *World) Settled(limit time.Duration) (now Census) {
	w.T.Helper()
	w.Eventually(limit, func() string {
		before, err := w.Census()
		if err != nil {
			return err.Error()
		}
		if now, err = w.Census(); err != nil {
			return err.Error()
		}
		return strings.Join(now.Leaked(before), "\n")
	})
	return now
}

// Census takes stock. An error says that something changed while it was read: take
// it again.
func (w *World) Census() (Census, error) {
	tag, err := w.tag()
	if err != nil {
		return Census{}, err
	}
	c := &counting{w: w, tag: tag, open: map[string]int{}}
	for _, part := range []func() error{c.processes, c.journal, c.store, c.cgroups, c.mounts, c.files, c.network, c.hostNetwork} {
		err = errors.Join(err, part())
	}
	slices.Sort(c.held)
	return Census{Held: c.held, Open: c.open}, err
}

// tag is the installation's, as bulkheadd wrote it down.
func (w *World) tag() (string, error) {
	b, err := os.ReadFile(filepath.Join(w.DataDir, "cluster.json"))
	if err != nil {
		return "", err
	}
	var id struct {
		Tag string `json:"tag"`
	}
	err = json.Unmarshal(b, &id)
	return id.Tag, err
}

// counting is a census under way.
type counting struct {
	w    *World
	tag  string
	held []string
	open map[string]int
}

func (c *counting) add(format string, args ...any) {
	c.held = append(c.held, fmt.Sprintf(format, args...))
}

// firstMachineUID is where the user ids of Machines begin (package privnet).
const firstMachineUID = 1 << 31

// processes counts those of Machines, the namespaces that processes live in, and
// the roles' open files.
func (c *counting) processes() error {
	namespaces := map[string]bool{}
	for _, p := range c.w.Processes() {
		if p.UID >= firstMachineUID {
			c.add("user id %d, used by process %s", p.UID, p.Name)
		}
		if p.Name == "bulkhead-shim" || p.Name == "bulkhead-unpack" || p.Name == "runsc-sandbox" {
			c.add("process %s", p.Name)
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID)); err == nil && !namespaces[ns] {
			namespaces[ns] = true
			c.add("network namespace") // by number: a restart makes another
		}
		if c.w.cmd != nil && p.PPID == c.w.cmd.Process.Pid {
			c.openFiles(p)
		}
	}
	return nil
}

// openFiles counts a role's descriptors by kind.
func (c *counting) openFiles(p Process) {
	role := strings.TrimPrefix(p.Name, "bulkhead-")
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID))
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(target, ":")
		if strings.HasPrefix(target, "/") {
			kind = "file"
			if strings.HasPrefix(target, c.w.RunDir()+"/machines/") {
				kind = "file of a machine"
			}
		}
		c.open[role+" "+kind]++
	}
}

// journal lists what the worker's journal has: addresses follow from slots. It
// reads a copy, since the file is locked; one that was written meanwhile may be torn.
func (c *counting) journal() (err error) {
	b, err := os.ReadFile(filepath.Join(c.w.DataDir, "worker", "journal.db"))
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "journal-*.db")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the copy of the journal is torn: %v", p)
		}
	}()
	db, err := bbolt.Open(f.Name(), 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("the copy of the journal: %w", err)
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		for _, name := range []string{"machines", "assignments", "slots"} {
			bucket := tx.Bucket([]byte(name))
			if bucket == nil {
				return fmt.Errorf("the journal has no bucket %s", name)
			}
			if err := bucket.ForEach(func(k, v []byte) error {
				if name == "slots" {
					c.add("journal: slot %x of machine %s", k, v)
				} else {
					c.add("journal: %s of machine %s", name, k)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// store lists the keys of the controller's store.
func (c *counting) store() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, err := c.w.etcd()
	if err != nil {
		return err
	}
	defer client.Close()
	resp, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	for _, kv := range resp.Kvs {
		switch {
		case bytes.HasPrefix(kv.Key, []byte("/audit/pending/")): // cleared once a second; TestKilledAnywhereLeavesNoChangeWithoutARecord
		case bytes.HasPrefix(kv.Key, []byte("/counter/")), bytes.HasPrefix(kv.Key, []byte("/network/")): // given out once for all
		case string(kv.Key) == "/issuer": // made once, in the background of the first start
		default:
			c.add("store: %s", kv.Key)
		}
	}
	return nil
}

// etcd is the controller's store by its socket, which root may call.
func (w *World) etcd() (*clientv3.Client, error) {
	socket := filepath.Join(w.DataDir, "controller", "store", "etcd-c")
	return clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 5 * time.Second})
}

// cgroups lists the installation's groups.
func (c *counting) cgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/bulkhead-" + c.tag)
	if err != nil {
		return err
	}
	for _, root := range append(roots, "/sys/fs/cgroup/bulkhead-"+c.tag) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				c.add("cgroup %s", path)
			}
			return ignoreGone(err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mounts lists what is mounted below the platform's directories, here and where
// its roles live.
func (c *counting) mounts() error {
	pids := []string{"self"}
	for _, p := range c.w.Processes() {
		pids = append(pids, strconv.Itoa(p.PID))
	}
	seen := map[string]bool{}
	for _, pid := range pids {
		ns, _ := os.Readlink("/proc/" + pid + "/ns/mnt")
		if seen[ns] {
			continue
		}
		seen[ns] = true
		b, _ := os.ReadFile("/proc/" + pid + "/mountinfo")
		for line := range bytes.Lines(b) {
			f := bytes.Fields(line)
			if len(f) > 4 && (bytes.HasPrefix(f[4], []byte(c.w.RunDir())) || bytes.HasPrefix(f[4], []byte(c.w.DataDir))) {
				c.add("mount %s of %s", f[4], ns)
			}
		}
	}
	return nil
}

// RetiredLogs reports whether a directory holds the logs of a Machine that is no more: its
// users may read them for a day.
func RetiredLogs(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "retired"))
	return err == nil
}

// files lists the files of Machines, and temporary ones.
func (c *counting) files() error {
	worker, registry := filepath.Join(c.w.DataDir, "worker"), filepath.Join(c.w.DataDir, "controller", "registry")
	for _, dir := range []string{
		c.w.RunDir(), filepath.Join(c.w.DataDir, "machines"), filepath.Join(worker, "logs"),
		filepath.Join(registry, "tmp"), filepath.Join(registry, "uploads"), filepath.Join(registry, "repos"),
	} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if RetiredLogs(path) {
				return fs.SkipDir
			}
			if err == nil {
				c.add("file %s", path)
			}
			return ignoreGone(err)
		})
		if err != nil {
			return err
		}
	}
	if err := c.images(filepath.Join(c.w.DataDir, "images")); err != nil {
		return err
	}
	return filepath.WalkDir(c.w.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		if path == filepath.Join(c.w.DataDir, "controller", "store") {
			return fs.SkipDir // etcd's own
		}
		name := d.Name()
		if strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".new") || strings.HasPrefix(name, ".tmp-") {
			c.add("temporary file %s", path)
		}
		return nil
	})
}

// images lists the halves of sealed images.
func (c *counting) images(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
	}
	for name := range there {
		base, ext := strings.TrimSuffix(name, filepath.Ext(name)), filepath.Ext(name)
		if ext == ".json" && !there[base+".erofs"] || ext == ".erofs" && !there[base+".json"] {
			c.add("half of an image %s", name)
		}
	}
	return nil
}

// ignoreGone is for files that vanish while they are listed.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
