package world_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/failpoint"
	"bulkhead/fixture"
	"bulkhead/world"
)

// clocked is a platform whose roles read a clock that the test sets ("make clock"). The
// test itself, and so every client, keeps the right one, and so does the edge, which may
// open nothing outside its own directory: it must bear with certificates of the others.
type clocked struct {
	*world.World
	file   string // what the clock is off by
	offset time.Duration
	image  string // of app "steady"
	apps   int
	logged int // how much of the log is about earlier clocks
}

func newClocked(t *testing.T) *clocked {
	t.Helper()
	bin := filepath.Join(world.Root(), "build", "clock")
	if _, err := os.Stat(filepath.Join(bin, "bulkheadd")); err != nil {
		t.Fatalf("the programs with a clock that can be set are missing (%v): run \"make clock\"", err)
	}
	dir := t.TempDir()
	for _, sub := range []string{"data", "clock/armed", "clock/seen"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "clock/seen"), 0o777); err != nil {
		t.Fatal(err)
	}
	c := &clocked{file: filepath.Join(dir, "clock", "clock")}
	c.World = world.StartAt(t, filepath.Join(dir, "data"), bin, []string{failpoint.Env + "=" + filepath.Join(dir, "clock")})
	return c
}

// set sets the roles' clock, which they see within 50 ms.
func (c *clocked) set(offset time.Duration) {
	c.T.Helper()
	tmp := c.file + ".new"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%d\n", int64(offset.Seconds())), 0o644); err != nil {
		c.T.Fatal(err)
	}
	if err := os.Rename(tmp, c.file); err != nil {
		c.T.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // no role says when it has seen it
	c.offset, c.logged = offset, len(c.Log())
}

// near reports whether a time is one of the roles' clock now.
func (c *clocked) near(at time.Time) bool {
	return time.Since(at.Add(-c.offset)).Abs() < 10*time.Minute
}

// seenBy is the control: each of the roles writes to the log by the clock that was
// set, and none by another.
func (c *clocked) seenBy(roles ...string) {
	c.T.Helper()
	seen := map[string]int{}
	for line := range strings.Lines(c.Log()[c.logged:]) {
		var l struct {
			Time time.Time
			Role string
		}
		if json.Unmarshal([]byte(line), &l) != nil || l.Role == "" || l.Role == "edge" {
			continue
		}
		if seen[l.Role]++; !c.near(l.Time) {
			c.T.Errorf("the clock is to be off by %v, and %s writes: %s", c.offset, l.Role, line)
		}
	}
	for _, r := range roles {
		if seen[r] == 0 {
			c.T.Errorf("%s wrote nothing since its clock is off by %v: nothing was tried", r, c.offset)
		}
	}
}

// deploys makes a new app that answers, which takes every role, a push, new certificates
// and a start, and checks that its events are of this clock.
func (c *clocked) deploys() {
	c.T.Helper()
	c.apps++
	app := fmt.Sprintf("new%d", c.apps)
	c.CreateApp(app, "")
	m := c.Run(app, world.Config{"image": c.Push(app, fixture.StaticGo(c.T)), "services": world.HTTPService(8080)})
	c.Eventually(30*time.Second, func() string { return answers(c.World, app, "/", 200, "") })
	if len(m.Events) == 0 || !c.near(time.UnixMilli(m.Events[0].Timestamp)) {
		c.T.Errorf("the clock is off by %v, and a new machine's last event is %+v", c.offset, m.Events)
	}
	c.Must("DELETE", "/apps/"+app+"/machines/"+m.ID+"?force=true", nil, nil)
}

// lease takes a Machine's lease and gives its nonce.
func (c *clocked) lease(app, id string, ttl time.Duration) string {
	c.T.Helper()
	var l struct {
		Data struct {
			Nonce string `json:"nonce"`
		} `json:"data"`
	}
	c.Must("POST", "/apps/"+app+"/machines/"+id+"/lease", map[string]any{"ttl": int(ttl.Seconds())}, &l)
	return l.Data.Nonce
}

// change changes a Machine without its lease's nonce.
func (c *clocked) change(app, id string) int {
	c.T.Helper()
	status, _ := c.APIRaw("POST", "/apps/"+app+"/machines/"+id+"/metadata/k", map[string]any{"value": fmt.Sprint(c.offset)})
	return status
}

// TestClock: the power is cut and the clock is an hour back after it, then an hour
// forward; then it is set back while the platform runs. Each time everything is as it
// was, clients whose clock is right are served over TLS, nothing waits for the clock to
// catch up, and a new deploy works.
func TestClock(t *testing.T) {
	c := newClocked(t)
	c.CreateApp("steady", "")
	c.image = c.Push("steady", fixture.StaticGo(t))
	steady := c.Run("steady", world.Config{"image": c.image, "services": world.HTTPService(8080)})
	stopped := c.Run("steady", world.Config{"image": c.image})
	c.Must("POST", "/apps/steady/machines/"+stopped.ID+"/stop", map[string]any{}, nil)
	c.Wait("steady", stopped.ID, "stopped", 60*time.Second)

	c.CreateApp("sleepy", "")
	s := world.HTTPService(8080)[0].(map[string]any)
	s["autostart"] = true
	sleepy := c.Run("sleepy", world.Config{"image": c.Push("sleepy", fixture.StaticGo(t)), "services": []any{s}})
	sleeps := func() {
		t.Helper()
		c.Must("POST", "/apps/sleepy/machines/"+sleepy.ID+"/stop", map[string]any{}, nil)
		c.Wait("sleepy", sleepy.ID, "stopped", 60*time.Second)
	}
	sleeps()

	c.CreateApp("loop", "") // ends at once, is started again, and waits longer each time
	loop := map[string]any{"image": c.Push("loop", fixture.StaticGo(t)), "init": map[string]any{"exec": []string{"/staticgo", "exit", "3"}}, "restart": map[string]any{"policy": "always"}}
	var looping world.Machine
	c.Must("POST", "/apps/loop/machines", map[string]any{"config": loop}, &looping)
	starts := func() (n int, newest time.Time) {
		for _, e := range c.Machine("loop", looping.ID).Events {
			if at := time.UnixMilli(e.Timestamp); e.Type == "start" {
				n++
				if n == 1 {
					newest = at
				}
			}
		}
		return n, newest
	}
	c.Eventually(60*time.Second, func() string {
		if n, _ := starts(); n < 4 {
			return fmt.Sprintf("the machine that crashes was started %d times", n)
		}
		return ""
	})
	c.lease("sleepy", sleepy.ID, 20*time.Second)
	c.lease("steady", steady.ID, time.Hour)
	if status := c.change("steady", steady.ID); status != http.StatusConflict {
		t.Errorf("a leased machine was changed: %d", status)
	}
	before := c.Machine("steady", steady.ID).Events

	for _, offset := range []time.Duration{-time.Hour, time.Hour} {
		c.PowerCut()
		c.set(offset)
		c.Up()
		c.Eventually(60*time.Second, func() string { return answers(c.World, "steady", "/", 200, "") })
		c.Wait("steady", steady.ID, "started", 60*time.Second)
		if m := c.Machine("steady", stopped.ID); m.State != "stopped" {
			t.Errorf("%v: the stopped machine is %s", offset, m.State)
		}
		// The sleeping Machine is woken: its lease of seconds does not hold for an hour.
		c.Eventually(45*time.Second, func() string { return answers(c.World, "sleepy", "/", 200, "") })
		if status := c.change("steady", steady.ID); status >= 300 {
			t.Errorf("%v: a lease of an hour, taken before the clock was set, still holds: %d", offset, status)
		}
		nonce := c.lease("steady", steady.ID, time.Hour)
		if status := c.change("steady", steady.ID); status != http.StatusConflict || nonce == "" {
			t.Errorf("%v: a lease of the clock as it is does not hold: %d", offset, status)
		}
		c.Eventually(90*time.Second, func() string { // its back-off is at most half a minute
			if n, newest := starts(); !c.near(newest) {
				return fmt.Sprintf("the machine that crashes was started %d times, the last time at %v", n, newest)
			}
			return ""
		})
		c.deploys()
		c.seenBy("bulkheadd", "controller", "worker", "warden")

		// Events are in the order in which things happened, whatever the clock says.
		now := c.Machine("steady", steady.ID).Events
		if len(now) <= len(before) {
			t.Fatalf("%v: %d events, %d before the cut", offset, len(now), len(before))
		}
		for i, e := range now[len(now)-len(before):] {
			if e.Type != before[i].Type || e.Timestamp != before[i].Timestamp {
				t.Errorf("%v: event %d before the cut was %+v and is %+v", offset, i, before[i], e)
			}
		}
		for _, e := range now[:len(now)-len(before)] {
			if !c.near(time.UnixMilli(e.Timestamp)) {
				t.Errorf("%v: among the events after the cut is %+v", offset, e)
			}
		}
		before = now
		sleeps()
		c.lease("sleepy", sleepy.ID, 20*time.Second)
	}

	// Set back while everything runs.
	c.set(0)
	if why := answers(c.World, "steady", "/", 200, ""); why != "" {
		t.Errorf("set back while it runs: %s", why)
	}
	c.Eventually(45*time.Second, func() string { return answers(c.World, "sleepy", "/", 200, "") })
	c.deploys()
	c.Kill("worker")
	c.Kill("edge")
	c.Eventually(45*time.Second, func() string {
		c.Client().CloseIdleConnections()
		return answers(c.World, "steady", "/", 200, "")
	})
	c.deploys()
	c.seenBy("worker")
	if log := c.Log(); strings.Contains(log, "x509: ") || strings.Contains(log, "tls: ") {
		for line := range strings.Lines(log) {
			if strings.Contains(line, "x509: ") || strings.Contains(line, "tls: ") {
				t.Errorf("the roles did not trust each other: %s", line)
			}
		}
	}
}
