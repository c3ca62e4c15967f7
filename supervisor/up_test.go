package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/role"
)

// TestUp brings the platform up, looks at everything it made, and starts again.
func TestUp(t *testing.T) {
	n := newNode(t)
	t.Setenv("BULKHEAD_SECRET", "not for roles")
	r := n.up()
	ready := n.ready()
	if !regexp.MustCompile(`^https://api\.bulkhead\.localhost:\d+$`).MatchString(ready.APIURL) || ready.Token != "bh_1" || ready.Pin == "" || ready.Domain != "bulkhead.localhost" {
		t.Errorf("ready file: %+v", ready)
	}
	if ca, err := os.ReadFile(ready.CAFile); err != nil || !strings.Contains(string(ca), "BEGIN CERTIFICATE") {
		t.Errorf("ca file: %v %q", err, ca)
	}
	want := fmt.Sprintf("bulkhead login %s --pin %s --token bh_1\n", ready.APIURL, ready.Pin)
	if !strings.Contains(n.stdout.String(), want) {
		t.Errorf("no login line in %q", n.stdout.String())
	}
	t.Run("files", func(t *testing.T) { checkFiles(t, r) })
	t.Run("roles", func(t *testing.T) { checkRoles(t, r) })
	t.Run("token", func(t *testing.T) {
		line, err := Token(context.Background(), n.config)
		if err != nil || !strings.HasSuffix(line, "--token bh_2") || !strings.HasPrefix(line, "bulkhead login "+ready.APIURL) {
			t.Errorf("%q, %v", line, err)
		}
	})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, e := range n.events() {
		f := strings.Fields(e)
		order = append(order, f[0]+" "+f[1])
	}
	wantOrder := []string{"start warden", "start controller", "start worker", "start edge", "token made", "token made",
		"stop edge", "stop worker", "stop controller", "stop warden"}
	if !slices.Equal(order, wantOrder) {
		t.Errorf("order %q", order)
	}
	if _, err := Token(context.Background(), n.config); err == nil || !strings.Contains(err.Error(), "no bulkheadd runs on "+n.config.DataDir) {
		t.Errorf("token after the end: %v", err)
	}

	before, err := readIdentity(n.config.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	n.stdout = buffer{}
	n.up()
	if got := n.ready(); got.Token != "" {
		t.Errorf("the second start made a token")
	}
	if !strings.Contains(n.stdout.String(), "bulkheadd token --data-dir "+n.config.DataDir) {
		t.Errorf("the second start says %q", n.stdout.String())
	}
	if after, err := readIdentity(n.config.DataDir); err != nil || after != before {
		t.Errorf("identity was %+v and is %+v, %v", before, after, err)
	}
}

// checkFiles compares mode and owner of everything that was made.
func checkFiles(t *testing.T, r *running) {
	u, d, run := r.s.in.users, r.config.DataDir, r.config.RunDir
	ctl, wrk, edge := u.of(role.Controller), u.of(role.Worker), u.of(role.Edge)
	if ctl.uid == 0 || wrk.uid == 0 || edge.uid == 0 || ctl.uid == wrk.uid || wrk.uid == edge.uid || ctl.uid == edge.uid {
		t.Fatalf("users %+v", u)
	}
	shared := owner{0, u.group}
	want := map[string]struct {
		mode os.FileMode
		o    owner
	}{
		d:                               {os.ModeDir | 0o711, root},
		d + "/lock":                     {0o600, root},
		d + "/cluster.json":             {0o644, root},
		d + "/grant.key":                {0o600, ctl},
		d + "/grant.pub":                {0o644, root},
		d + "/ca.crt":                   {0o644, root},
		d + "/up.json":                  {0o600, root},
		d + "/token.given":              {0o600, root},
		d + "/controller":               {os.ModeDir | 0o700, ctl},
		d + "/worker":                   {os.ModeDir | 0o700, wrk},
		d + "/warden":                   {os.ModeDir | 0o700, root},
		d + "/edge":                     {os.ModeDir | 0o700, edge},
		d + "/cluster-key":              {os.ModeDir | 0o700, ctl},
		d + "/images":                   {os.ModeDir | 0o700, wrk},
		d + "/machines":                 {os.ModeDir | 0o711, root},
		run:                             {os.ModeDir | 0o711, root},
		run + "/machines":               {os.ModeDir | 0o711, root},
		run + "/data_dir":               {0o600, root},
		run + "/secrets":                {os.ModeDir | 0o700, wrk},
		run + "/roles":                  {os.ModeDir | 0o711, root},
		run + "/roles/controller.json":  {0o640, owner{0, ctl.gid}},
		run + "/roles/worker.json":      {0o640, owner{0, wrk.gid}},
		run + "/roles/warden.json":      {0o640, root},
		run + "/roles/edge.json":        {0o640, owner{0, edge.gid}},
		run + "/internal.sock":          {os.ModeSocket | 0o660, shared},
		run + "/enroll.sock":            {os.ModeSocket | 0o660, shared},
		run + "/worker.sock":            {os.ModeSocket | 0o660, shared},
		run + "/edge.sock":              {os.ModeSocket | 0o660, shared},
		run + "/admin.sock":             {os.ModeSocket | 0o600, root},
		run + "/api.sock":               {os.ModeSocket | 0o600, edge},
		run + "/warden.sock":            {os.ModeSocket | 0o600, wrk},
		filepath.Dir(d) + "/ready.json": {0o600, root},
	}
	var st unix.Statfs_t
	for _, dir := range []string{"/machines", "/secrets"} {
		if err := unix.Statfs(run+dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			t.Errorf("what Machines are given is not kept in memory: %s: %v, type %x", dir, err, st.Type)
		}
	}
	seen := 0
	for _, top := range []string{d, run} {
		filepath.Walk(top, func(path string, fi os.FileInfo, err error) error {
			if err != nil {
				t.Error(err)
				return nil
			}
			rel := strings.TrimPrefix(path, d+"/controller/")
			if rel != path || strings.HasPrefix(path, run+"/netns") {
				return nil // of the fakes
			}
			if _, ok := want[path]; !ok {
				t.Errorf("%s is there and not expected", path)
			}
			seen++
			return nil
		})
	}
	if seen+1 != len(want) {
		t.Errorf("%d files, want %d", seen+1, len(want))
	}
	for path, w := range want {
		fi, err := os.Lstat(path)
		if err != nil {
			t.Error(err)
			continue
		}
		st := fi.Sys().(*syscall.Stat_t)
		if fi.Mode() != w.mode || st.Uid != w.o.uid || st.Gid != w.o.gid {
			t.Errorf("%s: mode %v owner %d:%d, want %v %d:%d", path, fi.Mode(), st.Uid, st.Gid, w.mode, w.o.uid, w.o.gid)
		}
	}
}

// checkRoles holds what each role runs with against what it may have.
func checkRoles(t *testing.T, r *running) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	may := map[string][]string{
		role.Controller: {grantKey, grantPub, clusterFile, "config of controller", "directory of controller", "socket internal", "socket enroll", "socket worker", "socket edge"},
		role.Worker:     {grantPub, clusterFile, "config of worker", "directory of worker", "socket internal", "socket enroll", "socket worker", "socket edge", "socket warden"},
		role.Edge:       {grantPub, clusterFile, "config of edge", "directory of edge", "socket internal", "socket enroll", "socket worker", "socket edge", "socket api"},
	}
	sockets := map[string]int{role.Warden: 1, role.Controller: 4, role.Worker: 1, role.Edge: 3}
	for _, name := range []string{role.Warden, role.Controller, role.Worker, role.Edge} {
		rep := r.report(name)
		status := map[string]string{}
		for _, l := range strings.Split(rep.Status, "\n") {
			k, v, _ := strings.Cut(l, ":")
			status[k] = strings.Join(strings.Fields(v), " ")
		}
		o, group := r.s.in.users.of(name), fmt.Sprint(r.s.in.users.group)
		caps := map[string]string{"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "CapBnd": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000"}
		if name == role.Warden {
			var set uint64
			for _, c := range wardenCaps {
				if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && has == 1 {
					set |= 1 << c
				}
			}
			group = ""
			caps["CapBnd"] = fmt.Sprintf("%016x", set)
			caps["CapPrm"], caps["CapEff"] = caps["CapBnd"], caps["CapBnd"]
		}
		caps["NoNewPrivs"], caps["Umask"] = "1", "0077"
		caps["Uid"] = strings.TrimSpace(strings.Repeat(fmt.Sprint(o.uid)+" ", 4))
		caps["Gid"] = strings.TrimSpace(strings.Repeat(fmt.Sprint(o.gid)+" ", 4))
		caps["Groups"] = group
		for k, want := range caps {
			if status[k] != want {
				t.Errorf("%s: %s is %q, want %q", name, k, status[k], want)
			}
		}
		for _, e := range rep.Env {
			if strings.Contains(e, "SECRET") {
				t.Errorf("%s: environment has %s", name, e)
			}
		}
		if !regexp.MustCompile(`Max core file size\s+1\s+1 `).MatchString(rep.Limits) || !regexp.MustCompile(fmt.Sprintf(`Max open files\s+%d `, noFile())).MatchString(rep.Limits) {
			t.Errorf("%s: limits %s", name, rep.Limits)
		}
		if (rep.NetNS == own) == (name == role.Edge) {
			t.Errorf("%s: network namespace %s, bulkheadd's is %s", name, rep.NetNS, own)
		}
		count := 0
		for _, fd := range rep.FDs {
			if strings.HasPrefix(fd, "socket:") {
				count++
			}
			if strings.HasPrefix(fd, r.config.DataDir) {
				t.Errorf("%s has inherited %s", name, fd)
			}
		}
		if count != sockets[name] {
			t.Errorf("%s has %d sockets, want %d: %v", name, count, sockets[name], rep.FDs)
		}
		if name != role.Warden {
			got := []string{}
			for f := range rep.Files {
				got = append(got, f)
			}
			slices.Sort(got)
			slices.Sort(may[name])
			if !slices.Equal(got, may[name]) {
				t.Errorf("%s can open\n%q, want\n%q", name, got, may[name])
			}
		}
	}
}

// TestSecondUpIsRefused also shows that the first is left alone.
func TestSecondUpIsRefused(t *testing.T) {
	n := newNode(t)
	r := n.up()
	second := New(n.config)
	second.Stderr = &n.stderr
	err := second.Up(context.Background())
	want := fmt.Sprintf("bulkheadd runs on %s already, as process %d", n.config.DataDir, os.Getpid())
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("second up: %v, want %s", err, want)
	}
	if _, err := os.Stat(filepath.Join(n.config.RunDir, "admin.sock")); err != nil {
		t.Errorf("the second up took a socket away: %v", err)
	}
	if _, err := Token(context.Background(), n.config); err != nil {
		t.Errorf("the first does not answer any more: %v", err)
	}
	if err := Down(context.Background(), n.config, NewLog(&n.stderr, "json")); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("down beside up: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// TestRefusedBeforeAnythingIsMade runs up with arguments that cannot work. Nothing
// may be left behind.
func TestRefusedBeforeAnythingIsMade(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	taken := busy.Addr().String()
	self, _ := os.ReadFile("/proc/self/comm")
	by := fmt.Sprintf("in use by %s, process %d; choose another with ", strings.TrimSpace(string(self)), os.Getpid())
	for _, c := range []struct {
		name, want string
		spoil      func(*node)
	}{
		{"https port in use", "https address " + taken + " is " + by + "--https-addr", func(n *node) { n.config.HTTPSAddr = taken }},
		{"http port in use", "http address " + taken + " is " + by + "--http-addr", func(n *node) { n.config.HTTPAddr = taken }},
		{"cluster port in use", "cluster address " + taken + " is " + by + "--cluster-addr", func(n *node) { n.config.ClusterAddr = taken }},
		{"no address of this machine", "https address 203.0.113.9:443 is not an address of this machine", func(n *node) { n.config.HTTPSAddr = "203.0.113.9:443" }},
		{"program missing", "bulkhead-edge is missing; build all with make build", func(n *node) { os.Remove(filepath.Join(n.lib, "bulkhead-edge")) }},
		{"program not executable", "bulkhead-edge is not a program", func(n *node) {
			os.Remove(filepath.Join(n.lib, "bulkhead-edge"))
			os.WriteFile(filepath.Join(n.lib, "bulkhead-edge"), nil, 0o644)
		}},
		{"closed parent", "is closed to other users", func(n *node) {
			d := filepath.Dir(n.config.DataDir) + "/closed"
			os.Mkdir(d, 0o700)
			n.config.DataDir = d + "/data"
		}},
		{"no parent", "cannot be made", func(n *node) { n.config.DataDir = filepath.Dir(n.config.DataDir) + "/no/data" }},
		{"a file", "is not a directory", func(n *node) { n.config.DataDir = n.lib + "/bulkhead-edge" }},
		{"foreign directory", "holds bulkhead-controller and is not Bulkhead's", func(n *node) {
			n.config.DataDir = filepath.Dir(n.config.DataDir) + "/foreign"
			os.Mkdir(n.config.DataDir, 0o755)
			os.WriteFile(n.config.DataDir+"/bulkhead-controller", nil, 0o644)
		}},
		{"runtime directory of others", "must be a directory of root", func(n *node) {
			os.Mkdir(n.config.RunDir, 0o755)
			os.Chown(n.config.RunDir, 1234, 1234)
		}},
		{"ready file nowhere", "ready file /nowhere/ready.json cannot be written", func(n *node) { n.config.ReadyFile = "/nowhere/ready.json" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			c.spoil(n)
			before := tree(t, filepath.Dir(n.lib))
			s := New(n.config)
			s.Stdout, s.Stderr, s.timing = &n.stdout, &n.stderr, fastTiming
			err := s.Up(context.Background())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if after := tree(t, filepath.Dir(n.lib)); !slices.Equal(before, after) {
				t.Errorf("it left something behind: %q, was %q", after, before)
			}
		})
	}
}

func tree(t *testing.T, dir string) (out []string) {
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			out = append(out, fmt.Sprint(path, fi.Mode()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestIdentityIsFixed starts an installation with another domain and node.
func TestIdentityIsFixed(t *testing.T) {
	n := newNode(t)
	if err := n.up().stop(); err != nil {
		t.Fatal(err)
	}
	try := func(change func(*Config), explicit bool) error {
		c := n.config
		change(&c)
		s := New(c)
		s.Stdout, s.Stderr, s.ExplicitDomain = &n.stdout, &n.stderr, explicit
		return s.Up(context.Background())
	}
	if err := try(func(c *Config) { c.Domain = "other.example" }, true); err == nil || !strings.Contains(err.Error(), "was installed with domain bulkhead.localhost") {
		t.Errorf("other domain: %v", err)
	}
	if err := try(func(c *Config) { c.Node = "other" }, true); err == nil || !strings.Contains(err.Error(), "was installed as node ") {
		t.Errorf("other node: %v", err)
	}
	os.Remove(filepath.Join(n.config.DataDir, grantKey))
	if err := try(func(*Config) {}, false); err == nil || !strings.Contains(err.Error(), "grant.key is missing from an installed data directory") {
		t.Errorf("lost key: %v", err)
	}
}

// TestRoleThatDoesNotStart ends the whole start with that role's own words.
func TestRoleThatDoesNotStart(t *testing.T) {
	for _, c := range []struct {
		name, role string
		b          behaviour
		want       []string
		starts     int
	}{
		{"it exits", role.Worker, behaviour{FailStarts: 100, Say: "no disk in the drive"},
			[]string{"the worker does not start: it ended with exit code 3; the last lines of its log:", "no disk in the drive"}, 3},
		{"it hangs", role.Edge, behaviour{NeverReady: true, Say: "thinking"}, []string{"the edge does not start: it was not ready within 2s", "thinking"}, 1},
		{"it serves nothing", role.Controller, behaviour{NotReady: true},
			[]string{"the roles run, but the API does not answer after 1s: the controller answered 503", "the worker has not synced"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.behave(c.role, c.b)
			tm := fastTiming
			tm.platform = time.Second
			if c.b.NeverReady {
				tm.ready = 2 * time.Second
			}
			r := n.begin(tm)
			err := r.await()
			if err == nil {
				t.Fatal("it started")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\nlacks %q", err, w)
				}
			}
			starts := 0
			for _, e := range n.events() {
				if strings.HasPrefix(e, "start "+c.role) {
					starts++
				}
			}
			if starts != c.starts {
				t.Errorf("%d starts, want %d", starts, c.starts)
			}
			for _, name := range []string{role.Warden, role.Controller, role.Worker, role.Edge} {
				if pid := n.pid(name); pid != 0 && alive(pid) {
					t.Errorf("%s is left running", name)
				}
			}
		})
	}
}
