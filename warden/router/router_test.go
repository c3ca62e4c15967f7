package router

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/privnet"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces; run them as root: sudo -E go test ./warden/router")
		os.Exit(1)
	}
	hostLock = filepath.Join(os.TempDir(), fmt.Sprintf("bulkhead-forwarding-%d.lock", os.Getpid())) // /run is real root's
	code := m.Run()
	os.Remove(hostLock)
	os.Exit(code)
}

// quick is how long a test waits for what must not happen, patient for what must: on
// a busy host a link takes its time to come up.
const (
	quick   = 400 * time.Millisecond
	patient = 15 * time.Second
)

var tags atomic.Uint32

// lab is a router with Machines that are bare network namespaces.
type lab struct {
	t      *testing.T
	config Config
	*Router
}

func newLab(t *testing.T, members ...Member) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "bhr")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, config: Config{RunDir: dir, Tag: fmt.Sprintf("r%d", tags.Add(1)+uint32(os.Getpid()%90)*10), Host: 3}}
	t.Cleanup(func() {
		l.Close()
		if err := Destroy(l.config); err != nil {
			t.Errorf("destroy: %v", err)
		}
		os.RemoveAll(dir)
	})
	l.reopen(members...)
	return l
}

// reopen is a new warden.
func (l *lab) reopen(members ...Member) {
	l.t.Helper()
	if l.Router != nil {
		l.Close()
	}
	r, err := Open(l.config, members)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Router = r
}

// newNS makes a network namespace that lives as long as the test.
func newNS(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// node is a Machine of the lab.
type node struct {
	t  *testing.T
	ns *os.File
	Member
	v6, v4 netip.Addr
}

// machine connects a Machine and runs an echo server in it, on TCP and UDP port 7.
func (l *lab) machine(slot privnet.Slot, network privnet.Network) *node {
	l.t.Helper()
	n := &node{t: l.t, ns: newNS(l.t), Member: Member{Slot: slot, Network: network}, v6: privnet.MachineAddr(network, l.config.Host, slot), v4: privnet.MachineIPv4(slot)}
	if err := l.Add(n.Member, n.ns); err != nil {
		l.t.Fatal(err)
	}
	serve(l.t, n.ns, ":7")
	return n
}

// serve answers "pong <who asked>" on TCP in a namespace.
func serve(t *testing.T, ns *os.File, addr string) {
	t.Helper()
	var lis net.Listener
	if err := Do(ns, func() (err error) { lis, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "pong %s", c.RemoteAddr())
			c.Close()
		}
	}()
}

// dial connects from a namespace within a time and returns what the server says.
func dial(ns *os.File, to netip.Addr, port uint16, within time.Duration) (string, error) {
	var said string
	err := Do(ns, func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, port).String(), within)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(within))
		b, err := io.ReadAll(c)
		said = string(b)
		return err
	})
	return said, err
}

// reaches and unreachable state who may talk to whom.
func (n *node) reaches(what string, to netip.Addr, port uint16) string {
	n.t.Helper()
	said, err := dial(n.ns, to, port, patient)
	if err != nil {
		n.t.Errorf("slot %d does not reach %s: %v", n.Slot, what, err)
	}
	return said
}

func (n *node) unreachable(what string, to netip.Addr, port uint16) {
	n.t.Helper()
	if said, err := dial(n.ns, to, port, quick); err == nil {
		n.t.Errorf("slot %d reaches %s at %s (%q)", n.Slot, what, to, said)
	}
}

// hostServer listens on all the host's addresses and returns the port.
func hostServer(t *testing.T) uint16 {
	t.Helper()
	lis, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "host")
			c.Close()
		}
	}()
	return uint16(lis.Addr().(*net.TCPAddr).Port)
}

// internet makes a namespace behind the host that owns addrs and answers on port 7.
func internet(t *testing.T, addrs ...string) *os.File {
	t.Helper()
	ns := newNS(t)
	name := fmt.Sprintf("bhi%d", os.Getpid()%100000)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wan", PeerNamespace: netlink.NsFd(int(ns.Fd()))}))
	outside, err := netlink.LinkByName(name)
	must(t, err)
	t.Cleanup(func() { netlink.LinkDel(outside) })
	must(t, netlink.AddrAdd(outside, &netlink.Addr{IPNet: ipnet(netip.MustParsePrefix("11.77.0.1/30"))}))
	must(t, netlink.LinkSetUp(outside))
	in, err := netlinkAt(ns)
	must(t, err)
	defer in.Close()
	wan, err := in.LinkByName("wan")
	must(t, err)
	must(t, in.AddrAdd(wan, &netlink.Addr{IPNet: ipnet(netip.MustParsePrefix("11.77.0.2/30"))}))
	for _, a := range addrs {
		must(t, in.AddrAdd(wan, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(netip.MustParseAddr(a), 32))}))
	}
	must(t, in.LinkSetUp(wan))
	for _, a := range addrs {
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: outside.Attrs().Index, Dst: ipnet(netip.PrefixFrom(netip.MustParseAddr(a), 32))}))
	}
	serve(t, ns, ":7")
	return ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dropRules takes the router's packet rules away: the seeded fault of these tests.
func (l *lab) dropRules() {
	l.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(l.ns.Fd())))
	must(l.t, err)
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
	must(l.t, c.Flush())
}

func TestRemoveLeavesNothing(t *testing.T) {
	l := newLab(t)
	before := l.state()
	a, b := l.machine(1, 7), l.machine(32000, 7)
	if s := l.state(); s == before {
		t.Fatal("the state does not show Machines")
	}
	for range 2 { // idempotent
		must(t, l.Remove(a.Member))
		must(t, l.Remove(b.Member))
	}
	if after := l.state(); after != before {
		t.Errorf("state is\n%s\nwas\n%s", after, before)
	}
	// A failed Add leaves nothing either: the slot's veth exists twice.
	c := l.machine(5, 7)
	if err := l.Add(c.Member, newNS(t)); err == nil {
		t.Error("a slot was connected twice")
	}
}

// state is everything in the router namespace that depends on Machines.
func (l *lab) state() string {
	l.t.Helper()
	var out []string
	links, err := l.nl.LinkList()
	must(l.t, err)
	for _, k := range links {
		out = append(out, fmt.Sprintln("link", k.Attrs().Name))
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := l.nl.RouteList(nil, f)
		must(l.t, err)
		for _, r := range routes {
			out = append(out, fmt.Sprintln("route", r.Dst))
		}
	}
	slots, err := l.Members()
	must(l.t, err)
	slices.Sort(out)
	return strings.Join(out, "") + fmt.Sprintln("members", slots)
}

func TestOpenIsIdempotentAndHeals(t *testing.T) {
	l := newLab(t)
	if !l.Fresh() {
		t.Error("a new namespace is not fresh")
	}
	a, b := l.machine(1, 7), l.machine(2, 7)
	want := l.state()
	check := func(what string) {
		t.Helper()
		l.reopen(a.Member, b.Member)
		if got := l.state(); got != want {
			t.Errorf("after %s the state is\n%s\nwas\n%s", what, got, want)
		}
		if l.Fresh() {
			t.Errorf("after %s the namespace is fresh", what)
		}
		a.reaches("its network", b.v6, 7)
	}
	check("nothing")
	l.dropRules()
	check("the rules were dropped")
	uplink, err := netlink.LinkByName(HostLink(l.config.Tag))
	must(t, err)
	must(t, netlink.LinkDel(uplink))
	check("the uplink was deleted")
	lo, err := l.nl.LinkByName("lo")
	must(t, err)
	must(t, l.nl.AddrDel(lo, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(privnet.RouterAddr(3), 128))}))
	check("the address was deleted")
	// A member that has gone meanwhile is forgotten.
	l.reopen(a.Member)
	if m, err := l.Members(); err != nil || !slices.Equal(m, []privnet.Slot{1}) {
		t.Errorf("members are %v, %v", m, err)
	}
	// The whole namespace is gone.
	must(t, unix.Unmount(Path(l.config.RunDir), unix.MNT_DETACH))
	must(t, os.Remove(Path(l.config.RunDir)))
	l.reopen()
	if !l.Fresh() {
		t.Error("a namespace made anew is not fresh")
	}
	c := l.machine(4, 7)
	if _, err := dial(l.ns, c.v6, 7, patient); err != nil {
		t.Error(err)
	}
}

func TestManyMembers(t *testing.T) {
	var members []Member
	for i := range privnet.Slot(1000) {
		members = append(members, Member{Slot: i + 1, Network: privnet.Network(i % 10)})
	}
	l := newLab(t, members...)
	if m, err := l.Members(); err != nil || len(m) != len(members) {
		t.Errorf("%d members, %v", len(m), err)
	}
}

func TestDestroyLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.machine(1, 7)
	l.Close()
	must(t, Destroy(l.config))
	must(t, Destroy(l.config)) // idempotent
	if _, err := netlink.LinkByName(HostLink(l.config.Tag)); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("the uplink is still there: %v", err)
	}
	c, err := nftables.New()
	must(t, err)
	tables, err := c.ListTables()
	must(t, err)
	for _, table := range tables {
		if table.Name == hostTable(l.config.Tag).Name {
			t.Error("the host's table is still there")
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), l.config.RunDir) {
		t.Error("the namespace is still mounted")
	}
	l.Router, err = Open(l.config, nil) // for the cleanup
	must(t, err)
}

func TestStartIn(t *testing.T) {
	l := newLab(t)
	home, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	var out bytes.Buffer
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	must(t, StartIn(Path(l.config.RunDir), cmd))
	must(t, cmd.Wait())
	var st unix.Stat_t
	must(t, unix.Fstat(int(l.ns.Fd()), &st))
	if got, want := strings.TrimSpace(out.String()), fmt.Sprintf("net:[%d]", st.Ino); got != want {
		t.Errorf("the process is in %s, want %s", got, want)
	}
	now, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil || now != home {
		t.Errorf("the caller is in %s (%v), was in %s", now, err, home)
	}
	if err := StartIn("/etc/hostname", exec.Command("true")); err == nil {
		t.Error("a file that is no namespace was entered")
	}
}

func TestUplinkAddresses(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for n := range uint32(1 << 14) {
		h, r := uplinkAddrs("x", n)
		if !uplinkPrefixes.Contains(h.Addr()) || h.Addr().Next() != r.Addr() || h.Masked() != r.Masked() || seen[h.Addr()] {
			t.Fatalf("choice %d is %s and %s", n, h, r)
		}
		seen[h.Addr()] = true
	}
}
