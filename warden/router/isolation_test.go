package router

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/privnet"
)

func TestNetworksAreApart(t *testing.T) {
	l := newLab(t)
	a, b, other := l.machine(1, 7), l.machine(2, 7), l.machine(3, 8)
	for range 2 {
		a.reaches("its own network", b.v6, 7)
		b.reaches("its own network", a.v6, 7)
		a.unreachable("another network", other.v6, 7)
		other.unreachable("another network", a.v6, 7)
		a.unreachable("its own network by IPv4", b.v4, 7)
		a.unreachable("another network by IPv4", other.v4, 7)

		// The control: without rules, another network is reached. So it is the rules that
		// keep it apart, and this test would notice. A new warden brings them back.
		l.dropRules()
		a.reaches("another network, without rules", other.v6, 7)
		l.reopen(a.Member, b.Member, other.Member)
	}
}

func TestRouterAndHostAreClosed(t *testing.T) {
	l := newLab(t)
	a := l.machine(1, 7)
	serve(t, l.ns, ":7") // whatever the edge may listen on
	port := hostServer(t)
	hostAddr, routerAddr := uplinkAddrs(l.config.Tag, 0)
	a.unreachable("the router", privnet.RouterAddr(3), 7)
	a.unreachable("the router", privnet.GatewayIPv4, 7)
	a.unreachable("the router", routerAddr.Addr(), 7)
	a.unreachable("the resolver's address", privnet.Resolver, 7)
	a.unreachable("the host", hostAddr.Addr(), port)
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	for _, x := range addrs {
		if ip, ok := netip.AddrFromSlice(x.(*net.IPNet).IP); ok && !ip.Unmap().IsLoopback() && !ip.Unmap().IsLinkLocalUnicast() {
			a.unreachable("the host", ip.Unmap(), port)
		}
	}
	// The edge: from inside the router to any Machine, and nowhere else.
	if said, err := dial(l.ns, a.v6, 7, patient); err != nil || !strings.Contains(said, privnet.RouterAddr(3).String()) {
		t.Errorf("the edge's place does not reach a Machine: %q, %v", said, err)
	}
	if said, err := dial(l.ns, a.v4, 7, patient); err != nil || !strings.HasPrefix(said, "pong "+privnet.GatewayIPv4.String()+":") {
		t.Errorf("the edge's place does not reach a Machine by IPv4: %q, %v", said, err)
	}
	if said, err := dial(l.ns, hostAddr.Addr(), port, quick); err == nil {
		t.Errorf("the edge's place reaches the host: %q", said)
	}
	// The host does not reach Machines either.
	if said, err := dial(openSelf(t), a.v6, 7, quick); err == nil {
		t.Errorf("the host reaches a Machine: %q", said)
	}
	// The control: without the two tables the host is reached.
	l.dropRules()
	c, err := nftables.New()
	must(t, err)
	c.DelTable(hostTable(l.config.Tag))
	must(t, c.Flush())
	must(t, Do(l.ns, func() error { return nil }))
	if said, err := dial(l.ns, hostAddr.Addr(), port, patient); err != nil {
		t.Errorf("without rules the host is not reached: %q, %v", said, err)
	}
}

func openSelf(t *testing.T) *os.File {
	f, err := os.Open("/proc/self/ns/net")
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestEgress(t *testing.T) {
	public := []string{"11.77.7.7", "9.9.9.99"}
	private := []string{"10.253.7.7", "172.31.250.7", "192.168.251.7", "100.64.250.7", "169.254.250.7", "192.0.0.7", "198.51.100.7", "203.0.113.7", "168.63.129.16"}
	operators := []string{"9.9.10.7", "11.79.0.1"} // denied by the operator; ranges may overlap
	internet(t, slices.Concat(public, private, operators)...)
	l := newLab(t)
	l.config.Denied = []netip.Prefix{
		netip.MustParsePrefix("9.9.10.0/24"), netip.MustParsePrefix("9.9.10.7/32"), netip.MustParsePrefix("11.79.0.1/32"),
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32"),
	}
	l.reopen()
	a := l.machine(1, 7)
	for _, p := range public {
		if said := a.reaches("the internet", netip.MustParseAddr(p), 7); !strings.Contains(said, "pong 11.77.0.1:") {
			t.Errorf("the internet sees %q, not the host", said)
		}
	}
	self := openSelf(t)
	for _, p := range slices.Concat(private, operators, []string{"169.254.169.254"}) {
		if p != "169.254.169.254" {
			// It is there: the host itself reaches it.
			if _, err := dial(self, netip.MustParseAddr(p), 7, patient); err != nil {
				t.Errorf("the host does not reach %s: %v", p, err)
			}
		}
		a.unreachable("a denied range", netip.MustParseAddr(p), 7)
	}
	if _, err := dial(a.ns, netip.MustParseAddr("2001:db8::1"), 7, quick); err == nil {
		t.Error("there is IPv6 egress")
	}
}

// hears reports whether a UDP packet sent by send, again and again, arrives at a
// Machine within a time.
func (n *node) hears(within time.Duration, send func() error) bool {
	n.t.Helper()
	var pc net.PacketConn
	must(n.t, Do(n.ns, func() (err error) { pc, err = net.ListenPacket("udp", "[::]:9"); return err }))
	defer pc.Close()
	for end := time.Now().Add(within); time.Now().Before(end); {
		must(n.t, send())
		pc.SetReadDeadline(time.Now().Add(min(within, quick)))
		if _, _, err := pc.ReadFrom(make([]byte, 100)); err == nil {
			return true
		}
	}
	return false
}

// sendFrom sends a UDP packet to a Machine from an address that it first takes.
func (n *node) sendFrom(src netip.Addr, to *node) func() error {
	return func() error {
		nl, err := netlinkAt(n.ns)
		if err != nil {
			return err
		}
		defer nl.Close()
		link, err := nl.LinkByName(machineName)
		if err != nil {
			return err
		}
		if err := nl.AddrReplace(link, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(src, src.BitLen())), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
		return Do(n.ns, func() error {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
			c, err := d.Dial("udp", netip.AddrPortFrom(to.v6, 9).String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
	}
}

func TestSpoofing(t *testing.T) {
	l := newLab(t)
	a, victim, other := l.machine(1, 7), l.machine(2, 7), l.machine(3, 8)
	if !victim.hears(patient, a.sendFrom(a.v6, victim)) {
		t.Error("a packet with its own source does not arrive")
	}
	forged := []netip.Addr{
		privnet.MachineAddr(7, 3, 9),        // nobody's
		other.v6,                            // another Machine's, another network's
		privnet.RouterAddr(3),               // the edge's
		netip.MustParseAddr("2001:db8::77"), // the world's
	}
	for _, src := range forged {
		if victim.hears(quick, a.sendFrom(src, victim)) {
			t.Errorf("a packet with the forged source %s arrives", src)
		}
	}
	// As the victim's own neighbour, into a network that is not its own.
	if other.hears(quick, a.sendFrom(privnet.MachineAddr(8, 3, 1), other)) {
		t.Error("a packet with a source of another network arrives there")
	}
	l.dropRules() // the control
	if !victim.hears(patient, a.sendFrom(forged[0], victim)) {
		t.Error("without rules a forged packet does not arrive either: this test tests nothing")
	}
}

// TestNeighboursCannotBePoisoned floods the router with neighbour messages.
func TestNeighboursCannotBePoisoned(t *testing.T) {
	l := newLab(t)
	a, b := l.machine(1, 7), l.machine(2, 7)
	before := neighbours(t, l)
	nl, err := netlinkAt(a.ns)
	must(t, err)
	defer nl.Close()
	link, err := nl.LinkByName(machineName)
	must(t, err)
	for i := range 20 {
		// Each address makes the kernel announce it and solicit the gateway.
		src := privnet.MachineAddr(7, 3, privnet.Slot(100+i))
		must(t, nl.AddrAdd(link, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(src, 128))}))
	}
	must(t, Do(a.ns, func() error { return sysctl("net/ipv6/conf/eth0/ndisc_notify", "1") }))
	must(t, nl.LinkSetDown(link))
	must(t, nl.LinkSetUp(link))
	a.hears(quick, func() error { return nil }) // let it happen
	if after := neighbours(t, l); !slices.Equal(before, after) {
		t.Errorf("neighbours of the router changed from %v to %v", before, after)
	}
	if _, err := dial(l.ns, b.v6, 7, patient); err != nil {
		t.Error(err)
	}
}

func neighbours(t *testing.T, l *lab) []string {
	t.Helper()
	list, err := l.nl.NeighList(0, 0)
	must(t, err)
	var out []string
	for _, n := range list {
		if n.State != netlink.NUD_NOARP {
			out = append(out, fmt.Sprint(n.LinkIndex, n.IP, n.HardwareAddr, n.State))
		}
	}
	slices.Sort(out)
	return out
}

// TestNobodyLearnsWhoElseIsThere: an address of another network gives the same
// silence whether it has a Machine or not.
func TestNobodyLearnsWhoElseIsThere(t *testing.T) {
	l := newLab(t)
	a, other := l.machine(1, 7), l.machine(3, 8)
	for what, to := range map[string]netip.Addr{
		"a Machine of another network": other.v6, "no Machine of another network": privnet.MachineAddr(8, 3, 4),
		"a Machine's IPv4": other.v4, "no Machine's IPv4": privnet.MachineIPv4(4),
	} {
		if _, err := dial(a.ns, to, 7, quick); !os.IsTimeout(err) {
			t.Errorf("%s: %v, not silence", what, err)
		}
	}
	// The control: an address that nobody has hidden says so at once.
	if _, err := dial(a.ns, netip.MustParseAddr("2001:db8::1"), 7, patient); err == nil || os.IsTimeout(err) {
		t.Errorf("an address without a route: %v, want a refusal", err)
	}
}
