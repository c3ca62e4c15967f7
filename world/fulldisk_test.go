package world_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"bulkhead/fixture"
	"bulkhead/world"
)

// TestFullDisk fills the disk below a platform with a running app: what can wait is
// refused first and by name, then every change is, what runs goes on and is read, a
// controller that dies comes back, the log stays short, and with room again
// everything goes on by itself, what was refused meanwhile included.
func TestFullDisk(t *testing.T) {
	d := smallDisk(t, 600)
	w := world.StartAt(t, d.dir, filepath.Join(world.Root(), "build", "bin"), nil)
	config := func(image string) world.Config {
		return world.Config{"image": image, "services": world.HTTPService(8080), "guest": map[string]any{"cpu_kind": "shared", "cpus": 1, "memory_mb": 128}}
	}
	w.CreateApp("here", "")
	first := w.Push("here", fixture.StaticGo(t))
	m := w.Run("here", config(first))
	w.Eventually(20*time.Second, func() string { return answers(w, "here", "/", 200, "") })
	unsealed := w.Push("here", variant(t, 1))
	create := func(image string) (int, string) {
		status, body := w.APIRaw("POST", "/apps/here/machines", map[string]any{"config": config(image)})
		return status, string(body)
	}
	goesOn := func() {
		t.Helper()
		w.Client().CloseIdleConnections() // those of an edge that was killed are dead
		if why := answers(w, "here", "/", 200, ""); why != "" {
			t.Errorf("the app: %s", why)
		}
		if status, body := w.APIRaw("GET", "/apps/here/machines/"+m.ID, nil); status != 200 || !strings.Contains(string(body), `"state":"started"`) {
			t.Errorf("reading: %d %s", status, body)
		}
	}

	// Images are refused, and everything else goes on.
	d.leave(t, 45<<20)
	if _, err := w.TryPush("here", variant(t, 2)); err == nil || !strings.Contains(err.Error(), "the registry's disk is full") {
		t.Errorf("a push: %v", err)
	}
	status, body := create(unsealed)
	if status != 200 {
		t.Fatalf("a machine, with room for machines: %d %s", status, body)
	}
	waiting := decode[world.Machine](t, []byte(body))
	w.Eventually(20*time.Second, func() string {
		if e := events(w, "here", waiting.ID); !strings.Contains(e, "there is too little room: 4") || !strings.Contains(e, "images are refused") {
			return e
		}
		return ""
	})
	if status, body := create(first); status != 200 {
		t.Errorf("a machine with an image that is there: %d %s", status, body)
	} else {
		w.Wait("here", decode[world.Machine](t, []byte(body)).ID, "started", 50*time.Second)
	}

	// Then new Machines are, and what is there can still be changed.
	d.leave(t, 20<<20)
	if status, body := create(first); status != 507 || !strings.Contains(body, `"status":"disk_full"`) || !strings.Contains(body, "new apps and machines are refused") {
		t.Errorf("a machine: %d %s", status, body)
	}
	w.Must("POST", "/apps/here/machines/"+m.ID+"/metadata/k", map[string]any{"value": "v"}, nil)

	// Nothing is left: another program has taken the reserve too.
	d.leave(t, 0)
	if status, body := w.APIRaw("POST", "/apps/here/machines/"+m.ID+"/metadata/k", map[string]any{"value": "w"}); status != 507 || !strings.Contains(string(body), `"status":"disk_full"`) {
		t.Errorf("a change: %d %s", status, body)
	}
	goesOn()
	w.Kill("controller")
	apiAnswers(w)
	w.Kill("worker")
	w.Kill("edge")
	w.Eventually(60*time.Second, func() string { return answers(w, "here", "/", 200, "") })
	time.Sleep(3 * time.Second) // what repeats itself is said now, and must not be: no event
	goesOn()
	checkSaidOnce(t, w.Log(), "the disk is low, and something is refused", 3)
	if n := strings.Count(w.Log(), "(ENOSPC)"); n > 12 {
		t.Errorf("a full disk is told of %d times", n)
	}

	// There is room again.
	d.leave(t, -1)
	w.Eventually(60*time.Second, func() string {
		if status, body := w.APIRaw("POST", "/apps/here/machines/"+m.ID+"/metadata/k", map[string]any{"value": "w"}); status >= 300 {
			return fmt.Sprint(status, string(body))
		}
		return ""
	})
	w.Wait("here", waiting.ID, "started", 60*time.Second)
	if _, err := w.TryPush("here", variant(t, 2)); err != nil {
		t.Errorf("a push: %v", err)
	}
	w.Eventually(30*time.Second, func() string {
		if !strings.Contains(w.Log(), "over: the disk is low") {
			return "it is not said that there is room again"
		}
		return ""
	})
	goesOn()
	for _, dir := range []string{"images", "controller/registry/tmp"} {
		left, _ := filepath.Glob(filepath.Join(d.dir, dir, "*tmp*"))
		if len(left) > 0 {
			t.Errorf("half-written files stay: %v", left)
		}
	}
}

// apiAnswers waits until the controller answers, which it does not while it starts.
func apiAnswers(w *world.World) {
	w.T.Helper()
	w.Eventually(60*time.Second, func() string {
		resp, err := w.Client().Get(w.Ready.APIURL + "/v1/apps/nothing")
		if err != nil {
			return err.Error()
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			return resp.Status
		}
		return ""
	})
}

// checkSaidOnce checks that a message is in the log at least once and at most so often.
func checkSaidOnce(t *testing.T, log, msg string, most int) {
	t.Helper()
	if n := strings.Count(log, `"msg":"`+msg); n < 1 || n > most {
		t.Errorf("%q is in the log %d times, want 1 to %d", msg, n, most)
	}
}

// events gives all that a Machine's events say of errors.
func events(w *world.World, app, id string) string {
	var out []string
	for _, e := range w.Machine(app, id).Events {
		if e.Request != nil && e.Request.Error != "" {
			out = append(out, e.Request.Error)
		}
	}
	return strings.Join(out, "\n")
}

// variant is the static program's image under another digest.
func variant(t *testing.T, n int) v1.Image {
	t.Helper()
	img, err := mutate.Config(fixture.StaticGo(t), v1.Config{Cmd: []string{"/staticgo"}, Entrypoint: nil, Labels: map[string]string{"n": fmt.Sprint(n)}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// small is a small file system in memory.
type small struct {
	dir string
	mb  int64
}

func smallDisk(t *testing.T, mb int64) *small {
	t.Helper()
	d := &small{dir: t.TempDir(), mb: mb}
	for p := d.dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		os.Chmod(p, 0o755)
	}
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0755", mb)); err != nil {
		t.Fatalf("mount a small file system: %v (run the tests as root)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", d.dir, err)
		}
	})
	return d
}

// leave fills the disk until n bytes are free; with -1 it empties it again.
func (d *small) leave(t *testing.T, n int64) {
	t.Helper()
	path := filepath.Join(d.dir, ".filler")
	if n < 0 {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if more := int64(st.Bavail)*st.Bsize - n; more > 0 {
		// The platform writes meanwhile: what it took since is no longer to be had.
		for err = unix.ENOSPC; err == unix.ENOSPC && more > 0; more -= 64 << 10 {
			err = unix.Fallocate(int(f.Fd()), 0, info.Size(), more)
		}
	} else {
		err = f.Truncate(info.Size() + more)
	}
	if err != nil {
		t.Fatal(err)
	}
}
