package registry_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/registry"
	"bulkhead/registry/registrytest"
)

// The crash tests run this test binary again, with these set, as a process that
// kills itself before a given operation on disk.
const (
	crashDir  = "BULKHEAD_TEST_CRASH_DIR"
	crashStep = "BULKHEAD_TEST_CRASH_STEP"
)

// The content that the crashing process works with.
var (
	crashConfig = []byte(`{"architecture":"amd64"}`)
	crashLayer  = bytes.Repeat([]byte("layer "), 1000)
	crashOne    = encode(manifestOf(crashConfig, crashLayer))
	crashTwo    = encode(withSubject(manifestOf(crashConfig), crashOne))
)

// withSubject adds a subject to a manifest.
func withSubject(m map[string]any, of []byte) map[string]any {
	m["subject"] = map[string]any{"mediaType": ociManifest, "digest": digest(of), "size": len(of)}
	return m
}

// TestCrashProcess is the process that dies; it is not a test of its own. It prints
// each step of its work when the registry has acknowledged it.
func TestCrashProcess(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return // this is the ordinary run of the suite
	}
	last, err := strconv.Atoi(os.Getenv(crashStep))
	check(t, err)
	n := 0
	cfg := registry.WithStep(registry.Config{Dir: dir}, func(op, path string) {
		if n++; n == last {
			fmt.Printf("\nkilled before %s %s\n", op, path)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	c, s := open(t, cfg)
	crashWork(c, s, func(what string) { fmt.Printf("\nack %s\n", what) })
	fmt.Printf("\nsteps %d\n", n)
}

// crashWork is what the process does. It calls ack after each step.
func crashWork(c *client, s *registrytest.Server, ack func(what string)) {
	ack("open")
	c.push("app", crashConfig)
	ack("config")
	at := c.start("app")
	ack("upload " + at[strings.LastIndex(at, "/")+1:])
	c.do("PATCH", at, bytes.NewReader(crashLayer[:3000])).want(202)
	ack("chunk")
	c.do("PUT", at+"?digest="+digest(crashLayer), bytes.NewReader(crashLayer[3000:])).want(201)
	ack("layer")
	put := func(ref string, m []byte) {
		c.do("PUT", "/v2/app/manifests/"+ref, bytes.NewReader(m), "Content-Type", ociManifest).want(201)
	}
	put("v1", crashOne)
	ack("v1")
	put("v2", crashTwo)
	ack("v2")
	put("v1", crashTwo) // moves the tag
	ack("moved")
	c.do("DELETE", "/v2/app/manifests/v2", nil).want(202)
	ack("untagged")
	c.push("app", []byte("garbage"))
	ack("garbage")
	_, err := s.GC(context.Background(), 0)
	check(c.t, err)
	ack("gc")
	c.do("DELETE", "/v2/app/manifests/"+digest(crashTwo), nil).want(202)
	ack("deleted")
}

// crash runs the process until the given operation (0: to its end) and returns what
// it printed.
func crash(t *testing.T, dir string, step int) (acks map[string]string, steps int, where string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestCrashProcess$", "-test.v=false")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashStep+"="+strconv.Itoa(step),
		// Under the race detector a process would otherwise stay a second longer.
		"GORACE=atexit_sleep_ms=0")
	out, err := cmd.Output()
	acks = map[string]string{}
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		if w := strings.Fields(sc.Text()); len(w) >= 2 && w[0] == "ack" {
			acks[w[1]] = strings.Join(w[2:], " ")
		} else if len(w) == 2 && w[0] == "steps" {
			steps, _ = strconv.Atoi(w[1])
		} else if len(w) > 2 && w[0] == "killed" {
			where = sc.Text()
		}
	}
	if steps == 0 && where == "" {
		t.Fatalf("the process did neither finish nor die as it should: %v: %s", err, out)
	}
	return acks, steps, where
}

// TestKillAtEveryStep kills the registry before each third of its operations on disk, from
// a random one on ("make soak-crash": before each), and checks after each that what was acknowledged is there, that nothing is half there,
// and that the same work can be done again and leaves no garbage.
func TestKillAtEveryStep(t *testing.T) {
	_, steps, _ := crash(t, memDir(t), 0)
	if steps < 40 {
		t.Fatalf("the process makes %d operations on disk; the hook misses some", steps)
	}
	stride, first := 3, 1+rand.IntN(3)
	if os.Getenv("BULKHEAD_CRASH") == "all" {
		stride, first = 1, 1
	}
	for step := first; step <= steps; step += stride {
		dir := memDir(t)
		acks, _, where := crash(t, dir, step)
		t.Run(strings.ReplaceAll(strings.TrimPrefix(where, "killed before "), "/", ":"), func(t *testing.T) {
			checkAfterCrash(t, dir, acks)
		})
	}
	t.Run("control", func(t *testing.T) {
		// What the check is worth: it must see a missing blob.
		dir := memDir(t)
		acks, _, _ := crash(t, dir, 0)
		hex := strings.TrimPrefix(digest(crashLayer), "sha256:")
		check(t, os.Remove(dir+"/blobs/sha256/"+hex[:2]+"/"+hex))
		if problems := inspect(t, dir, acks); len(problems) == 0 {
			t.Error("the check does not see that an acknowledged blob is gone")
		}
	})
}

// checkAfterCrash is the check after one crash.
func checkAfterCrash(t *testing.T, dir string, acks map[string]string) {
	for _, problem := range inspect(t, dir, acks) {
		t.Error(problem)
	}
	// Everything can be done again on what is left, to the end.
	c, s := open(t, registry.Config{Dir: dir})
	crashWork(c, s, func(string) {})
	s.Stop()
	// Uploads whose client does not come back go when they expire: now.
	c, s = open(t, registry.Config{Dir: dir, UploadExpiry: 1})
	_, err := s.GC(context.Background(), 0)
	check(t, err)
	c.do("GET", "/v2/app/manifests/"+digest(crashOne), nil).want(200)
	want := map[string]bool{digest(crashOne): true, digest(crashConfig): true, digest(crashLayer): true}
	for _, f := range files(t, dir, "blobs", "uploads", "tmp") {
		if !want["sha256:"+f[strings.LastIndex(f, "/")+1:]] {
			t.Errorf("left behind after a collection: %s", f)
		}
	}
}

// inspect opens a registry that has crashed and says what is wrong with it.
func inspect(t *testing.T, dir string, acks map[string]string) (problems []string) {
	t.Helper()
	c, s := open(t, registry.Config{Dir: dir})
	defer s.Stop()
	has := func(what string) bool { _, ok := acks[what]; return ok }
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	get := func(path string, content []byte, must bool) {
		r := c.do("GET", "/v2/app/"+path, nil)
		switch {
		case r.status == 200 && !bytes.Equal(r.body, content):
			bad("%s has another content", path)
		case r.status != 200 && r.status != 404:
			bad("%s: status %d: %s", path, r.status, r.body)
		case r.status == 404 && must:
			bad("%s was acknowledged and is gone", path)
		}
	}
	get("blobs/"+digest(crashConfig), crashConfig, has("config"))
	get("blobs/"+digest(crashLayer), crashLayer, has("layer"))
	get("manifests/"+digest(crashOne), crashOne, has("v1"))
	// Between the acknowledgement before a deletion and its own, either is right.
	get("manifests/"+digest(crashTwo), crashTwo, has("v2") && !has("gc"))
	if r := c.do("GET", "/v2/app/manifests/"+digest(crashTwo), nil); has("deleted") && r.status != 404 {
		bad("a deleted manifest is there")
	}
	tag := c.do("GET", "/v2/app/manifests/v1", nil)
	meant := digest(tag.body)
	switch {
	case has("gc"): // the deletion takes the tag along
	case has("moved") && meant != digest(crashTwo), has("v1") && meant != digest(crashOne) && meant != digest(crashTwo):
		bad("tag v1 means %s (status %d)", meant, tag.status)
	}
	if r := c.do("GET", "/v2/app/manifests/v2", nil); has("untagged") && r.status != 404 {
		bad("a deleted tag is there")
	}
	if id, ok := acks["upload"]; ok && has("chunk") && !has("layer") {
		r := c.do("GET", "/v2/app/blobs/uploads/"+id, nil)
		blob := c.do("HEAD", "/v2/app/blobs/"+digest(crashLayer), nil)
		if r.status != 204 && blob.status != 200 {
			// The finish was under way: either the upload can go on, or its content is a
			// blob, or it is garbage under the blob's name and must be sent again.
			if hex := strings.TrimPrefix(digest(crashLayer), "sha256:"); !exists(dir + "/blobs/sha256/" + hex[:2] + "/" + hex) {
				bad("an acknowledged chunk is gone")
			}
		}
	}
	// Every part of every manifest that is there is there too.
	for _, m := range [][]byte{crashOne, crashTwo} {
		if c.do("HEAD", "/v2/app/manifests/"+digest(m), nil).status == 200 {
			if r := c.do("PUT", "/v2/app/manifests/"+digest(m), bytes.NewReader(m), "Content-Type", ociManifest); r.status != 201 {
				bad("a manifest is not whole: %s", r.body)
			}
		}
	}
	var list struct{ Tags []string }
	if r := c.do("GET", "/v2/app/tags/list", nil); r.status == 200 {
		check(t, json.Unmarshal(r.body, &list))
	}
	for _, name := range list.Tags {
		if r := c.do("GET", "/v2/app/manifests/"+name, nil); r.status != 200 {
			bad("tag %s means a manifest that is not there", name)
		}
	}
	for _, f := range files(t, dir, "tmp") {
		bad("left behind after the open: %s", f)
	}
	return problems
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// trace is a list of operations on disk.
type trace []string

// unsynced says where a trace breaks the rule of durable writing: content is synced
// before it is renamed to its place, and the directory is synced before anybody is
// told. An "ack" entry in the trace is where somebody is told.
func (tr trace) unsynced() (problems []string) {
	dirty, dirs := map[string]bool{}, map[string]bool{}
	dirOf := func(p string) string { return p[:max(strings.LastIndex(p, "/"), 0)] }
	for _, line := range tr {
		op, path, _ := strings.Cut(line, " ")
		switch op {
		case "append", "write":
			dirty[path] = true
		case "sync":
			delete(dirty, path)
		case "rename":
			from, to, _ := strings.Cut(path, " ")
			if dirty[from] {
				problems = append(problems, from+" is renamed before it is synced")
			}
			dirs[dirOf(to)] = true
		case "link", "mkdir":
			dirs[dirOf(path)] = true
		case "syncdir":
			if path == "." {
				path = ""
			}
			delete(dirs, path)
		case "ack":
			for p := range dirty {
				problems = append(problems, p+" is not synced before "+path+" is acknowledged")
			}
			for d := range dirs {
				problems = append(problems, "directory "+d+" is not synced before "+path+" is acknowledged")
			}
		}
	}
	return problems
}

// TestSyncedBeforeAcknowledged watches the operations of a push. A kill, as above,
// does not lose what the kernel still holds; a power cut does.
func TestSyncedBeforeAcknowledged(t *testing.T) {
	var tr trace
	step := func(op, path string) { tr = append(tr, op+" "+path) }
	c, _ := open(t, registry.WithStep(registry.Config{Dir: t.TempDir()}, step))
	ack := func(what string) { tr = append(tr, "ack "+what) }
	c.push("a/b", crashConfig)
	ack("config")
	at := c.start("a/b")
	ack("start")
	c.do("PATCH", at, bytes.NewReader(crashLayer[:100])).want(202)
	ack("chunk")
	c.do("PUT", at+"?digest="+digest(crashLayer), bytes.NewReader(crashLayer[100:])).want(201)
	ack("layer")
	c.do("POST", "/v2/c/blobs/uploads/?from=a/b&mount="+digest(crashLayer), nil).want(201)
	ack("mount")
	c.do("PUT", "/v2/a/b/manifests/t", bytes.NewReader(crashOne), "Content-Type", ociManifest).want(201)
	ack("manifest")
	for _, problem := range tr.unsynced() {
		t.Error(problem)
	}
	t.Run("control", func(t *testing.T) {
		// Without any one of the syncs of files the rule is broken, and the check must
		// see it; so too without all syncs of one directory.
		for i, line := range tr {
			if strings.HasPrefix(line, "sync ") && !strings.HasPrefix(tr[i-1], "sync") {
				less := append(append(trace{}, tr[:i]...), tr[i+1:]...)
				if synced := len(less.unsynced()) == 0; synced && !strings.HasPrefix(line, "sync uploads/") {
					t.Errorf("the check does not miss %q", line)
				}
			}
		}
		var less trace
		for _, line := range tr {
			if !strings.HasPrefix(line, "syncdir repos/a/b/_blobs") {
				less = append(less, line)
			}
		}
		if len(less.unsynced()) == 0 {
			t.Error("the check does not miss the syncs of a directory")
		}
	})
}
