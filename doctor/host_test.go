package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// planted is a host of files: name and content; a name that ends with "->" is a link.
func planted(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, strings.TrimSuffix(name, "->"))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if strings.HasSuffix(name, "->") {
			err = os.Symlink(content, path)
		} else {
			err = os.WriteFile(path, []byte(content+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return host{
		root: root,
		device: func(path string) (uint32, uint32, error) {
			var major, minor uint32
			b, err := os.ReadFile(root + "/devices-of-files" + path)
			if err == nil {
				_, err = fmt.Sscanf(string(b), "%d:%d", &major, &minor)
			}
			return major, minor, err
		},
		fsType:   func(string) (int64, error) { return unix.EXT4_SUPER_MAGIC, nil },
		clock:    func() (int, int32, error) { return unix.TIME_OK, 0, nil },
		landlock: func() int { return 7 },
	}
}

// is reports whether findings are of one level, and what the first says holds a part.
func is(found []Finding, level Level, part string) bool {
	for _, f := range found {
		if f.Level == level && strings.Contains(f.Found, part) && (f.Remedy != "" || level == OK || level == Note) {
			return true
		}
	}
	return false
}

// A good host, and the faults that are seeded into it one by one.
var good = map[string]string{
	"/sys/fs/cgroup/cgroup.controllers":                  "cpu memory pids",
	"/proc/sys/user/max_user_namespaces":                 "65536",
	"/proc/sys/kernel/seccomp/actions_avail":             "kill_process kill_thread trap errno user_notif trace log allow",
	"/proc/sys/kernel/unprivileged_bpf_disabled":         "2",
	"/proc/sys/kernel/kptr_restrict":                     "1",
	"/proc/sys/kernel/yama/ptrace_scope":                 "1",
	"/proc/sys/fs/protected_symlinks":                    "1",
	"/proc/sys/fs/suid_dumpable":                         "0",
	"/proc/sys/kernel/core_pattern":                      "core",
	"/proc/swaps":                                        "Filename Type Size Used Priority",
	"/sys/devices/system/cpu/vulnerabilities/meltdown":   "Not affected",
	"/proc/sys/net/ipv4/ip_forward":                      "0",
	"/etc/resolv.conf":                                   "nameserver 127.0.0.53\n",
	"/run/systemd/resolve/resolv.conf":                   "nameserver 9.9.9.9\n",
	"/sys/devices/system/cpu/vulnerabilities/spectre_v1": "Mitigation: usercopy/swapgs barriers",
}

func TestSeededFootguns(t *testing.T) {
	type finder func(h host) []Finding
	for _, c := range []struct {
		name  string
		files map[string]string // over the good host; "-" removes
		seed  func(h *host)
		find  finder
		level Level
		part  string
	}{
		{"cgroup v1", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "-"}, nil, host.cgroups, Warn, "version 1"},
		{"no user namespaces", map[string]string{"/proc/sys/user/max_user_namespaces": "0"}, nil, host.features, Fail, "no user namespaces"},
		{"a kernel without them", map[string]string{"/proc/sys/user/max_user_namespaces": "-"}, nil, host.features, Fail, "no user namespaces"},
		{"no seccomp", map[string]string{"/proc/sys/kernel/seccomp/actions_avail": "-"}, nil, host.features, Fail, "kill_process"},
		{"an old seccomp", map[string]string{"/proc/sys/kernel/seccomp/actions_avail": "kill_process errno"}, nil, host.features, Fail, "user_notif"},
		{"no landlock", nil, func(h *host) { h.landlock = func() int { return 0 } }, host.features, Warn, "no landlock"},
		{"an old landlock", nil, func(h *host) { h.landlock = func() int { return 1 } }, host.features, Note, "version 1"},
		{"KVM", map[string]string{"/dev/kvm": ""}, nil, host.features, Note, "has KVM"},
		{"BPF", map[string]string{"/proc/sys/kernel/unprivileged_bpf_disabled": "0"}, nil, host.settings, Warn, "kernel.unprivileged_bpf_disabled is 0"},
		{"kernel pointers", map[string]string{"/proc/sys/kernel/kptr_restrict": "0"}, nil, host.settings, Warn, "kernel.kptr_restrict"},
		{"ptrace", map[string]string{"/proc/sys/kernel/yama/ptrace_scope": "0"}, nil, host.settings, Warn, "ptrace_scope"},
		{"links", map[string]string{"/proc/sys/fs/protected_symlinks": "0"}, nil, host.settings, Warn, "protected_symlinks"},
		{"dumps of setuid programs", map[string]string{"/proc/sys/fs/suid_dumpable": "1"}, nil, host.settings, Warn, "suid_dumpable"},
		{"a fault of the processor", map[string]string{"/sys/devices/system/cpu/vulnerabilities/meltdown": "Vulnerable"}, nil, host.mitigations, Warn, "meltdown"},
		{"two threads on a core", map[string]string{"/sys/devices/system/cpu/vulnerabilities/mds": "Mitigation: Clear CPU buffers; SMT vulnerable"}, nil, host.mitigations, Warn, "mds"},
		{"private name servers", map[string]string{"/etc/resolv.conf": "nameserver 127.0.0.53\n", "/run/systemd/resolve/resolv.conf": "nameserver 10.0.0.2\n"}, nil,
			func(h host) []Finding { return h.nameservers(nil) }, Warn, "cannot resolve names"},
		{"a router", map[string]string{"/proc/sys/net/ipv4/ip_forward": "1"}, nil, host.forwarding, Note, "ip_forward is 1"},
		{"a clock by itself", nil, func(h *host) { h.clock = func() (int, int32, error) { return unix.TIME_ERROR, unix.STA_UNSYNC, nil } }, host.synchronized, Warn, "keeps the clock"},
		{"no clock", nil, func(h *host) { h.clock = func() (int, int32, error) { return 0, 0, unix.EPERM } }, host.synchronized, Warn, "cannot be asked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{}
			for k, v := range good {
				files[k] = v
			}
			h := planted(t, files)
			if found := c.find(h); !is(found, OK, "") && !is(found, Note, "") || is(found, Warn, "") || is(found, Fail, "") {
				t.Errorf("a host without fault: %+v", found)
			}
			for k, v := range c.files {
				files[k] = v
				if v == "-" {
					delete(files, k)
				}
			}
			h = planted(t, files)
			if c.seed != nil {
				c.seed(&h)
			}
			if found := c.find(h); !is(found, c.level, c.part) {
				t.Errorf("%+v", found)
			}
		})
	}
}

// Disks: a plain one, one above dm-crypt, mixtures, and files on them.
var disks = map[string]string{
	"/sys/dev/block/8:0->":                 "../../devices/sda",
	"/sys/dev/block/8:1->":                 "../../devices/sda/sda1",
	"/sys/dev/block/254:0->":               "../../devices/dm-0",
	"/sys/dev/block/254:1->":               "../../devices/dm-1",
	"/sys/dev/block/254:2->":               "../../devices/dm-2",
	"/sys/dev/block/254:3->":               "../../devices/dm-3",
	"/sys/dev/block/7:0->":                 "../../devices/loop0",
	"/sys/devices/sda/size":                "1",
	"/sys/devices/sda/sda1/partition":      "1",
	"/sys/devices/dm-0/dm/uuid":            "CRYPT-LUKS2-0123",
	"/sys/devices/dm-0/slaves/sda1->":      "../../sda/sda1",
	"/sys/devices/dm-1/dm/uuid":            "LVM-abc", // a volume above dm-crypt
	"/sys/devices/dm-1/slaves/dm-0->":      "../../dm-0",
	"/sys/devices/dm-2/dm/uuid":            "LVM-def", // one half above it, one not
	"/sys/devices/dm-2/slaves/dm-0->":      "../../dm-0",
	"/sys/devices/dm-2/slaves/sda1->":      "../../sda/sda1",
	"/sys/devices/dm-3/dm/uuid":            "LVM-ghi", // a volume on the plain disk
	"/sys/devices/dm-3/slaves/sda1->":      "../../sda/sda1",
	"/sys/devices/loop0/loop/backing_file": "/crypt/image",
	"/devices-of-files/plain":              "8:1",
	"/devices-of-files/crypt/image":        "254:0",
	"/devices-of-files/lvm":                "254:1",
	"/devices-of-files/half":               "254:2",
	"/devices-of-files/lvmplain":           "254:3",
	"/devices-of-files/loop":               "7:0",
	"/devices-of-files/btrfs":              "0:33",
	"/devices-of-files/overlay":            "0:34",
	"/devices-of-files/dev/mapper/lvm":     "254:1",
	"/devices-of-files/gone":               "9:9",
	"/proc/self/mountinfo":                 "22 1 0:33 / /btrfs rw - btrfs /dev/mapper/lvm rw\n23 1 8:1 / / rw - ext4 /dev/sda1 rw\n24 1 0:34 / /overlay rw - overlay overlay rw",
}

func TestDisksThatAreNotEncrypted(t *testing.T) {
	h := planted(t, disks)
	for _, c := range []struct {
		path  string
		level Level
		part  string
	}{
		{"/plain", Warn, "sda, which is not encrypted"},
		{"/crypt/image", OK, "dm-0"},
		{"/lvm", OK, "encrypted"},
		{"/half", Warn, "sda, which is not encrypted"},
		{"/lvmplain", Warn, "not encrypted"},
		{"/loop", OK, "dm-0"},
		{"/btrfs", OK, "encrypted"},
		{"/overlay", Note, `"overlay", which is no device`},
		{"/gone", Note, "9:9 is not in /sys"},
	} {
		if found := h.dataDisk(c.path); len(found) != 1 || !is(found, c.level, c.part) {
			t.Errorf("%s: %+v", c.path, found)
		}
	}
	for magic, part := range map[int64]string{unix.NFS_SUPER_MAGIC: "NFS", unix.TMPFS_MAGIC: "in memory", unix.FUSE_SUPER_MAGIC: "FUSE"} {
		h.fsType = func(string) (int64, error) { return magic, nil }
		if found := h.dataDisk("/plain"); !is(found, Warn, part) {
			t.Errorf("%x: %+v", magic, found)
		}
	}
	h.fsType = func(string) (int64, error) { return 0, unix.ENOENT }
	if found := h.dataDisk("/plain"); !is(found, Fail, "cannot be looked at") {
		t.Errorf("%+v", found)
	}
}

func TestSwapThatIsNotEncrypted(t *testing.T) {
	const head = "Filename Type Size Used Priority\n"
	for lines, want := range map[string]Level{"": OK, "/dev/zram0 partition 1 0 100\n": OK, "/lvm partition 1 0 -2\n": OK, "/plain file 1 0 -2\n": Warn, "/lvm partition 1 0 -2\n/plain partition 1 0 -3\n": Warn} {
		files := map[string]string{"/proc/swaps": head + lines}
		for k, v := range disks {
			files[k] = v
		}
		if found := planted(t, files).swap(); !is(found, want, "") {
			t.Errorf("%q: %+v", lines, found)
		}
	}
}

func TestMemoryThatReachesADisk(t *testing.T) {
	procs := []Process{{11, "bulkhead-controller"}, {12, "bulkhead-shim"}, {13, "bulkheadd"}}
	base := func(pattern, limit, swapped string) map[string]string {
		files := map[string]string{"/proc/sys/kernel/core_pattern": pattern}
		for _, pid := range []string{"11", "12", "13"} {
			files["/proc/"+pid+"/limits"] = "Limit                     Soft Limit           Hard Limit           Units\nMax core file size        0                    0                    bytes"
			files["/proc/"+pid+"/status"] = "Name:\tx\nVmSwap:\t       0 kB"
		}
		files["/proc/12/limits"] = strings.Replace(files["/proc/12/limits"], "size        0                    0", "size        1                    1", 1)
		files["/proc/11/limits"] = strings.Replace(files["/proc/11/limits"], "size        0", "size        "+limit, 1)
		files["/proc/11/status"] = "Name:\tx\nVmSwap:\t       " + swapped + " kB"
		return files
	}
	for _, c := range []struct {
		pattern, limit, swapped string
		level                   Level
		part                    string
	}{
		{"core", "0", "0", OK, "no process"},
		{"core", "unlimited", "0", Warn, "bulkhead-controller write their memory"},
		{"/var/crash/core.%p", "1024", "0", Warn, "to /var/crash"},
		{"|/usr/lib/apport %p", "0", "0", Warn, "bulkhead-controller, keys included, may be handed to /usr/lib/apport"},
		{"|/usr/lib/apport %p", "1", "0", OK, "no process"},
		{"core", "1", "0", OK, "no process"},
		{"@/run/dumps.socket", "1", "0", Warn, "the memory of machines, secrets included, is handed to whoever listens at /run/dumps.socket"},
		{"@@/run/dumps.socket", "0", "0", Warn, "listens at /run/dumps.socket"},
		{"core", "0", "12", Warn, "12 KiB of bulkhead-controller"},
	} {
		if found := planted(t, base(c.pattern, c.limit, c.swapped)).memory(procs); !is(found, c.level, c.part) {
			t.Errorf("%+v: %+v", c, found)
		}
	}
}

// TestKeysThatOthersRead also tries to read them, as somebody else.
func TestKeysThatOthersRead(t *testing.T) {
	dir := openDir(t)
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	try := func(uid uint32, errands []errand) ([]errandResult, error) {
		return asStranger(t.Context(), uid, ownNetns, errands)
	}
	if found := thisHost.files(dir); !is(found, Warn, "holds no key") {
		t.Errorf("%+v", found)
	}
	write("controller/api.key", "x", 0o600)
	write("grant.pub", "public", 0o644)
	write("ca.crt", "-----BEGIN CERTIFICATE-----", 0o644)
	write("images/sha256.key", "an app's", 0o644)
	write("worker/store.db", "no key", 0o644)
	if found := thisHost.files(dir); len(found) != 1 || !is(found, OK, "1 files hold keys") {
		t.Errorf("%+v", found)
	}
	if found := strangerReads(try, dir); !is(found, OK, "refused each of 1") {
		t.Errorf("%+v", found)
	}
	byName := write("cluster.key", "0123456789", 0o640)
	byContent := write("edge/state", "x\n-----BEGIN EC PRIVATE KEY-----\n", 0o604)
	found := thisHost.files(dir)
	if len(found) != 2 || !is(found, Fail, byName+" (mode 0640) is open to its group") || !is(found, Fail, byContent+" (mode 0604) is open to every user") {
		t.Errorf("%+v", found)
	}
	if found := strangerReads(try, dir); !is(found, Fail, byContent+" (as user nobody: opened)") || strings.Contains(found[0].Found, byName) {
		t.Errorf("%+v", found)
	}
	write("cluster-key/cluster.key", "x", 0o600)
	if found := thisHost.files(dir); len(found) != 3 || !is(found, Warn, "lies beside it") {
		t.Errorf("%+v", found)
	}
	if found := thisHost.files("/nowhere"); !is(found, Warn, "holds no key") {
		t.Errorf("%+v", found)
	}
}

func TestProgramsThatOthersChange(t *testing.T) {
	dir := openDir(t)
	for _, name := range []string{"bulkheadd", "bulkhead-edge", "bulkhead.toml"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "bulkhead.toml")
	if found := programs(dir, conf); !is(found, OK, "") {
		t.Errorf("%+v", found)
	}
	for _, c := range []struct {
		spoil, mend func() error
		part        string
	}{
		{func() error { return os.Chmod(dir+"/bulkhead-edge", 0o775) }, func() error { return os.Chmod(dir+"/bulkhead-edge", 0o755) }, "bulkhead-edge (mode 0775)"},
		{func() error { return os.Chown(dir+"/bulkheadd", 1000, 0) }, func() error { return os.Chown(dir+"/bulkheadd", 0, 0) }, "belongs to user 1000"},
		{func() error { return os.Chmod(dir, 0o777) }, func() error { return os.Chmod(dir, 0o755) }, dir + " (mode 0777)"},
		{func() error { return os.Chmod(conf, 0o666) }, func() error { return os.Chmod(conf, 0o644) }, "bulkhead.toml (mode 0666)"},
	} {
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		if found := programs(dir, conf); len(found) != 1 || !is(found, Fail, c.part) {
			t.Errorf("%s: %+v", c.part, found)
		}
		if err := c.mend(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReport: what decides the exit code, and what a terminal shows.
func TestReport(t *testing.T) {
	r := &Report{Running: true, Listeners: []Listener{{Network: "tcp", Addr: "x\x1b[2J", Trials: []Trial{{"y", false, "z"}}}}, Findings: []Finding{{"a", OK, "b", ""}, {"c", Note, "d", ""}}}
	if r.Err(true) != nil {
		t.Error(r.Err(true))
	}
	r.Findings = append(r.Findings, Finding{"e", Warn, "f", "g"})
	if r.Err(false) != nil || r.Err(true) == nil {
		t.Error(r.Err(false), r.Err(true))
	}
	r.Findings = append(r.Findings, Finding{"h", Fail, "i", "j"})
	if r.Err(false) == nil {
		t.Error("it failed")
	}
	var short, text, machine strings.Builder
	if err := errors.Join(r.WriteText(&short, false), r.WriteText(&text, true), r.WriteJSON(&machine)); err != nil {
		t.Fatal(err)
	}
	const summary = "1 failed, 1 warning, 1 note, 1 ok"
	for _, part := range []string{"NOT EXPECTED", "NOT REFUSED", "x?[2J", "-> j"} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("%q is missing in\n%s", part, text.String())
		}
	}
	if !strings.HasPrefix(text.String(), summary+"\n") || !strings.HasPrefix(short.String(), summary+" (-v shows what was tried)\n") {
		t.Errorf("the summary is not first:\n%s\n%s", short.String(), text.String())
	}
	// What failed comes first, and what is in order only with -v.
	lines := strings.Split(strings.TrimSpace(short.String()), "\n")
	if len(lines) != 7 || !strings.HasPrefix(lines[2], "fail ") || strings.Contains(short.String(), "NOT REFUSED") || strings.Contains(short.String(), "\nok ") {
		t.Errorf("without -v:\n%s", short.String())
	}
	if strings.Contains(text.String(), "\x1b") || !strings.Contains(machine.String(), `"level": "fail"`) {
		t.Errorf("%s\n%s", text.String(), machine.String())
	}
}

// TestWithoutAPlatform the doctor looks at the host, and says what it could not do.
func TestWithoutAPlatform(t *testing.T) {
	r, err := Examine(t.Context(), Platform{DataDir: t.TempDir(), Probe: func(context.Context) error {
		return errors.Join(errors.New("this host cannot one"), errors.New("this host cannot two"))
	}})
	if err != nil || r.Running || !is(r.Findings, Warn, "does not run") || !is(r.Findings, Fail, "cannot one") || !is(r.Findings, Fail, "cannot two") {
		t.Errorf("%v %+v", err, r)
	}
}

// TestEveryCheckIsDocumented holds the words of findings against docs/doctor.md.
func TestEveryCheckIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	words := 0
	sources, _ := filepath.Glob("*.go")
	for _, name := range sources {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\{"([a-z ]+)", (?:OK|Note|Warn|Fail),`).FindAllStringSubmatch(string(b), -1) {
			words++
			if !strings.Contains(string(doc), "`"+m[1]+"`") {
				t.Errorf("%s: docs/doctor.md does not explain the check %q", name, m[1])
			}
		}
	}
	if words < 30 {
		t.Errorf("only %d findings were read: the pattern does not match what is written", words)
	}
}
