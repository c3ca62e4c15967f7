package controller_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/audit"
	"bulkhead/controller"
	"bulkhead/internal/await"
)

// auditPath is where an organization's log is read, or the cluster's ("").
func auditPath(org string) string {
	if org == "" {
		return "/v1/platform/audit"
	}
	return "/v1/orgs/" + org + "/audit"
}

// auditLog reads an organization's whole log, oldest first, or the cluster's ("").
func (e *env) auditLog(org string) []audit.Record {
	e.t.Helper()
	out, _ := e.auditLogUpTo(org)
	return out
}

// auditLogUpTo also returns the number of the newest record.
func (e *env) auditLogUpTo(org string) (out []audit.Record, last uint64) {
	e.t.Helper()
	var p controller.AuditPage
	e.get(auditPath(org)+"?after=0&limit=500", &p)
	for _, en := range p.Records {
		r, err := en.Open()
		if err != nil {
			e.t.Fatal(err)
		}
		out = append(out, r)
	}
	return out, p.Last
}

// awaitRecords reads an organization's whole log, and again with each record that comes,
// until ok accepts it.
func (e *env) awaitRecords(org, what string, ok func(all []audit.Record) bool) {
	e.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; {
		all, last := e.auditLogUpTo(org)
		if ok(all) {
			return
		}
		left := int(time.Until(deadline).Seconds())
		if left < 1 {
			e.t.Fatalf("%s: not among %d records of organization %q: %+v", what, len(all), org, all)
		}
		e.get(fmt.Sprintf("%s?after=%d&limit=1&wait=%d", auditPath(org), last+1, left), nil)
	}
}

// find returns the one record that f accepts; it waits for those that come later.
func (e *env) find(org, what string, f func(r audit.Record) bool) (found audit.Record) {
	e.t.Helper()
	e.awaitRecords(org, what, func(all []audit.Record) bool {
		n := 0
		for _, r := range all {
			if f(r) {
				found = r
				n++
			}
		}
		return n == 1
	})
	return found
}

// TestEveryCallThatMattersHasOneRecord makes changes, refused calls, reads and a push, and
// holds the audit log against the request ids of the answers. No record, and no file of
// the log, holds the token or a secret that was in a body.
func TestEveryCallThatMattersHasOneRecord(t *testing.T) {
	e := newEnv(t)
	const planted = "planted-secret-4711"
	a := e.do("POST", "/v1/apps", config{"name": "web", "org_slug": "personal"})
	id := a.header.Get("fly-request-id")
	r := e.find("personal", "a create", func(r audit.Record) bool { return r.ID == id })
	if a.code != 201 || r.Code != 201 || r.Result != audit.OK || r.App != "web" || r.Name != "admin" || r.User == "" || r.Token == "" || r.From != "192.0.2.7" || r.Action != "POST /v1/apps" {
		t.Errorf("a create: %d, %+v", a.code, r)
	}
	m := e.launch("web", image())
	e.find("personal", "a machine", func(r audit.Record) bool {
		return r.Machine == m.ID && r.Action == "POST /v1/apps/{app}/machines" && r.Result == audit.OK
	})
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"KEY": planted}}, nil)
	a = e.do("POST", "/v1/apps/web/machines", config{"config": config{"image": 7}})
	if id = a.header.Get("fly-request-id"); e.find("personal", "a bad one", func(r audit.Record) bool { return r.ID == id }).Result != audit.Failed {
		t.Errorf("a change that failed has another result")
	}
	before := len(e.auditLog("personal"))
	e.want(200, "GET", "/v1/apps/web", nil, nil)
	if after := e.auditLog("personal"); len(after) != before {
		t.Errorf("a read left records: %+v", after[before:])
	}
	for i := range 50 {
		if a := e.do("GET", "/v1/apps/web", nil, "Authorization", "Bearer bh_nobody"+string(rune('a'+i%26))); a.code != 401 {
			t.Fatal(a.code)
		}
	}
	counted := 0
	e.awaitRecords("", "fifty refusals", func(all []audit.Record) bool {
		counted = 0
		records := 0
		for _, r := range all {
			if r.Code == 401 {
				counted += max(r.Count, 1)
				records++
			}
		}
		if records > 20 {
			t.Fatalf("50 refusals left %d records", records)
		}
		return counted >= 50
	})
	if counted != 50 {
		t.Errorf("50 calls without a good token, and %d are counted", counted)
	}
	e.want(201, "POST", "/v1/orgs", config{"slug": "acme"}, nil)
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/acme/invitations", config{"role": "viewer"}, &inv)
	viewer := e.claim(inv.Token, "vera")
	if a := e.do("DELETE", "/v1/apps/web", nil, "Authorization", "Bearer "+viewer); a.code != 403 {
		t.Fatal(a.code)
	}
	r = e.find("personal", "a refusal", func(r audit.Record) bool { return r.Code == 403 })
	if r.Name != "vera" || r.Result != audit.Refused || r.App != "web" || r.Action != "DELETE /v1/apps/{app}" {
		t.Errorf("a refusal: %+v", r)
	}
	if a := e.do("GET", "/v1/orgs/personal/audit", nil, "Authorization", "Bearer "+viewer); a.code != 403 {
		t.Errorf("another organization's log: %d", a.code)
	}
	e.push("web:v1")
	e.find("personal", "a push", func(r audit.Record) bool { return r.Action == "PUT image" && r.App == "web" && r.Name == "admin" })
	e.find("", "the installation's token", func(r audit.Record) bool { return r.Action == "POST /token" && r.Name == "root" })
	var key controller.AuditKey
	e.get("/v1/audit/key", &key)
	e.stop() // files of the log are renamed while it runs
	read := 0
	err := filepath.WalkDir(filepath.Join(e.cfg.Role.DataDir, "audit"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, s := range []string{planted, strings.TrimPrefix(e.token, "bhu_"), viewer, inv.Token} {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("%s holds a secret", path)
			}
		}
		read += len(b)
		return err
	})
	if err != nil || read < 5000 {
		t.Errorf("%d bytes of the log were looked at: %v", read, err)
	}
	rep, err := audit.VerifyDir(t.Context(), filepath.Join(e.cfg.Role.DataDir, "audit"), key.Key, nil)
	if err != nil || len(rep.Problems) > 0 || rep.Records < 60-50 {
		t.Errorf("the log: %+v, %v", rep, err)
	}
	e.startController()
	e.login()
}

// TestAFullLogRefusesChanges: while the audit log's file system is read-only, and while it
// is full, every change is refused with a sentence and leaves nothing, reads go on, and
// with room again changes go on by themselves.
func TestAFullLogRefusesChanges(t *testing.T) {
	e := newEnvWithoutWorker(t)
	e.app("web")
	e.stop()
	dir := filepath.Join(e.cfg.Role.DataDir, "audit")
	if err := os.Rename(dir, dir+".was"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bulkhead-test", dir, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		t.Fatalf("mount a tmpfs: %v; this test needs root", err)
	}
	t.Cleanup(func() {
		e.stop()
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := os.CopyFS(dir, os.DirFS(dir+".was")); err != nil {
		t.Fatal(err)
	}
	e.startController()
	e.login()
	changes := func(name string) answer {
		return e.do("POST", "/v1/apps", config{"name": name, "org_slug": "personal"})
	}
	if a := changes("one"); a.code != 201 {
		t.Fatalf("before: %d %s", a.code, a.body)
	}
	e.client = &http.Client{Timeout: 30 * time.Second, Transport: e.transport()} // refusals for want of room are no part of the contract
	ballast := filepath.Join(dir, "ballast")
	remount := func(flags uintptr) func() {
		return func() { // busy while a file is open for writing
			await.True(t, "the disk is mounted again", func() bool { return unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "size=4m") == nil })
		}
	}
	for _, c := range []struct {
		name       string
		code       int
		says       string
		do, undo   func()
		afterwards string
	}{
		{"full", 507, "too little room", func() {
			f, err := os.Create(ballast)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for {
				if _, err := f.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, func() { os.Remove(ballast) }, "two"},
		{"read-only", 503, "the audit log cannot be written", remount(unix.MS_RDONLY), remount(0), "three"},
	} {
		c.do()
		// The first call may find it out by itself; from then on nothing is begun.
		await.True(t, c.name+": the log says that it cannot be written", func() bool {
			e.ctl.RecordSomething()
			return e.ctl.AuditReady() != nil
		})
		state, _ := e.ctl.State(t.Context())
		a := changes("refused")
		var body struct{ Error string }
		json.Unmarshal(a.body, &body)
		if a.code != c.code || !strings.Contains(body.Error, c.says) {
			t.Errorf("%s: a change: %d %s", c.name, a.code, a.body)
		}
		if after, _ := e.ctl.State(t.Context()); strings.Join(after, "\n") != strings.Join(state, "\n") {
			t.Errorf("%s: a refused change left %q, before %q", c.name, after, state)
		}
		e.want(200, "GET", "/v1/apps/web", nil, nil)
		e.get("/v1/orgs/personal/audit", nil)
		c.undo()
		await.True(t, c.name+": it heals", func() bool { return changes(c.afterwards).code == 201 })
		e.find("personal", "after "+c.name, func(r audit.Record) bool { return r.App == c.afterwards && r.Result == audit.OK })
	}
	var key controller.AuditKey
	e.get("/v1/audit/key", &key)
	e.stop()
	if rep, err := audit.VerifyDir(t.Context(), dir, key.Key, nil); err != nil || len(rep.Problems) > 0 {
		t.Errorf("the log afterwards: %q, %v", rep.Problems, err)
	}
}
