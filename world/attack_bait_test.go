package world_test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/fixture"
	"bulkhead/privnet"
	"bulkhead/world"
)

// targets is what package fixture/attack is told; see Targets there.
type targets struct {
	Canary, Digest string
	Socket, Path   string
	Victim         string
	Disk           uint64
	Dial           map[string][]string
	Only, Skip     []string
}

// attackResult is what it answers.
type attackResult struct{ Attack, Outcome, Detail string }

// bait is laid out on the host: a secret, and many ways to it that a careless operator
// leaves open. Nothing is protected by its mode.
type bait struct {
	t       *testing.T
	dir     string
	secret  string
	program string // the attack program
	port    string // of a service on all of the host's addresses
	victim  *exec.Cmd
	targets targets
}

// layBait lays everything out and takes it away with the test.
func layBait(t *testing.T) *bait {
	t.Helper()
	random := make([]byte, 16)
	rand.Read(random)
	b := &bait{t: t, dir: t.TempDir(), secret: "bulkhead-secret-" + hex.EncodeToString(random)}
	for d := b.dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	sum := sha256.Sum256([]byte(b.secret))
	tag := hex.EncodeToString(random[:4])
	b.targets = targets{
		Canary: filepath.Join(b.dir, "canary"), Digest: hex.EncodeToString(sum[:]),
		Socket: "bulkhead-bait-" + tag, Path: filepath.Join(b.dir, "bait.sock"), Victim: "victim-" + tag,
	}
	b.program = filepath.Join(b.dir, "attack")
	for path, content := range map[string]string{b.targets.Canary: b.secret, b.program: string(fixture.AttackProgram(t)), "/dev/shm/" + b.targets.Socket: b.secret} {
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.Remove("/dev/shm/" + b.targets.Socket) })
	b.listen("unix", "@"+b.targets.Socket)
	b.listen("unixpacket", "@"+b.targets.Socket+"-seq")
	b.listen("unix", b.targets.Path)
	os.Chmod(b.targets.Path, 0o777)
	_, b.port, _ = net.SplitHostPort(b.listen("tcp", ":0"))
	b.targets.Disk = hostDisk(t, b.dir)
	if err := os.WriteFile("/dev/kmsg", []byte("<6>bulkhead test: "+b.secret+"\n"), 0); err != nil {
		t.Fatal(err)
	}
	b.sharedMemory()
	b.victim = exec.Command(b.program, "wait", b.targets.Victim, "{}")
	b.victim.Env = []string{"BAIT=" + b.secret}
	if err := b.victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.victim.Process.Kill(); b.victim.Wait() })
	return b
}

// listen tells the secret to everybody who connects.
func (b *bait) listen(network, addr string) string {
	l, err := net.Listen(network, addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(time.Second))
			c.Write([]byte(b.secret))
			c.Close()
		}
	}()
	return l.Addr().String()
}

// sharedMemory puts the secret into a System V segment that everybody may attach.
func (b *bait) sharedMemory() {
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o666)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { unix.SysvShmCtl(id, unix.IPC_RMID, nil) })
	mem, err := unix.SysvShmAttach(id, 0, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	copy(mem, b.secret)
	unix.SysvShmDetach(mem)
}

// hostDisk is the device that holds a directory, or its whole disk.
func hostDisk(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev
}

// untouched fails when something of the host was changed or ended.
func (b *bait) untouched(before hostState) {
	b.t.Helper()
	if got, err := os.ReadFile(b.targets.Canary); err != nil || string(got) != b.secret {
		b.t.Errorf("the host's file holds %q: %v", got, err)
	}
	if err := b.victim.Process.Signal(unix.Signal(0)); err != nil {
		b.t.Errorf("the host's process: %v", err)
	}
	if now := readHostState(b.t); now != before {
		b.t.Errorf("the host was\n%+v and is\n%+v", before, now)
	}
}

// hostState is what of the host's kernel the attacks try to change.
type hostState struct{ hostname, corePattern, modprobe string }

func readHostState(t *testing.T) (s hostState) {
	t.Helper()
	for path, to := range map[string]*string{
		"/proc/sys/kernel/hostname": &s.hostname, "/proc/sys/kernel/core_pattern": &s.corePattern, "/proc/sys/kernel/modprobe": &s.modprobe,
	} {
		b, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) { // a kernel without modules
			t.Fatal(err)
		}
		*to = string(b)
	}
	return s
}

// addresses are what a Machine must not reach, for the attacks of those names.
func (b *bait) addresses(w *world.World, foreign world.Machine) map[string][]string {
	b.t.Helper()
	slot := netip.MustParseAddr(foreign.PrivateIP).As16()
	ipv4 := privnet.MachineIPv4(privnet.Slot(uint32(slot[10])<<24 | uint32(slot[11])<<16 | uint32(slot[12])<<8 | uint32(slot[13])))
	at := func(host, port string) string { return net.JoinHostPort(host, port) }
	d := map[string][]string{
		"dial-host-loopback":      {at("127.0.0.1", b.port), at("::1", b.port), at("127.8.8.8", b.port)},
		"dial-gateway":            {at(privnet.GatewayIPv4.String(), b.port), at(privnet.GatewayIPv4.String(), "22")},
		"dial-router":             {at(privnet.RouterAddr(1).String(), "22"), at(privnet.RouterAddr(1).String(), "443"), at(privnet.RouterAddr(1).String(), b.port)},
		"dial-metadata":           {"169.254.169.254:80", "169.254.170.2:80", "100.100.100.200:80"},
		"dial-metadata-ipv6":      {"[fd00:ec2::254]:80", "[fd20:ce::254]:80"},
		"dial-link-local":         {at("fe80::1%eth0", b.port), at("169.254.0.1", b.port)},
		"dial-private-ranges":     {at("10.0.0.1", b.port), at("172.16.0.1", b.port), at("192.168.0.1", b.port), at("100.64.0.1", b.port)},
		"dial-other-network":      {at(foreign.PrivateIP, "8080")},
		"dial-other-network-ipv4": {at(ipv4.String(), "8080")},
		"dial-edge":               {w.Ready.HTTPSAddr, w.HTTPAddr},
		"dial-platform-network":   {"[fdaa::3]:53", "[fdaa::1]:53"},
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP; !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			d["dial-host"] = append(d["dial-host"], at(ip.String(), b.port))
		}
	}
	return d
}
