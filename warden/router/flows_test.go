package router

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bulkhead/privnet"
)

// TestEdgeCannotSpoof: who holds the edge sends from its own address alone. An
// unprivileged program may bind to any address with IPV6_FREEBIND, so that the
// kernel does not see to it.
func TestEdgeCannotSpoof(t *testing.T) {
	l := newLab(t)
	a, victim := l.machine(1, 7), l.machine(2, 7)
	from := func(src netip.Addr) func() error {
		return func() error {
			return Do(l.ns, func() error {
				fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1); err != nil {
					return err
				}
				if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: src.As16()}); err != nil {
					return err
				}
				if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet6{Port: 9, Addr: victim.v6.As16()}); err != unix.EPERM {
					return err
				}
				return nil // refused, as it must be
			})
		}
	}
	if !victim.hears(patient, from(privnet.RouterAddr(3))) {
		t.Error("a packet from the router's own address does not arrive")
	}
	for _, src := range []netip.Addr{a.v6, privnet.MachineAddr(7, 3, 9), netip.MustParseAddr("2001:db8::77")} {
		if victim.hears(quick, from(src)) {
			t.Errorf("a packet from %s arrives, which the edge has chosen", src)
		}
	}
	from4 := func(src netip.Addr) func() error {
		return func() error {
			return Do(l.ns, func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
					return err
				}
				if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: src.As4()}); err != nil {
					return err
				}
				if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: victim.v4.As4()}); err != unix.EPERM && err != unix.ENETUNREACH {
					return err
				}
				return nil // refused: by the rules, or as a source that is not the namespace's
			})
		}
	}
	// By IPv4 the edge has TCP alone.
	for _, src := range []netip.Addr{privnet.GatewayIPv4, a.v4, netip.MustParseAddr("9.9.9.9")} {
		if victim.hears(quick, from4(src)) {
			t.Errorf("a packet from %s arrives, which the edge has chosen", src)
		}
	}
	l.dropRules() // the control
	if !victim.hears(patient, from(a.v6)) || !victim.hears(patient, from4(privnet.GatewayIPv4)) {
		t.Error("without rules a forged or UDP packet does not arrive either: this test tests nothing")
	}
}

// TestForgottenConnectionsCarryNothing: an IPv4 address passes from one Machine to the
// next of its slot. What the edge sends on a connection to the one before must not reach
// the next, even where the kernel cannot end the edge's sockets.
func TestForgottenConnectionsCarryNothing(t *testing.T) {
	l := newLab(t)
	a := l.machine(1, 7)
	var lis net.Listener
	must(t, Do(a.ns, func() (err error) { lis, err = net.Listen("tcp4", ":99"); return err }))
	defer lis.Close()
	var edge net.Conn
	must(t, Do(l.ns, func() (err error) {
		edge, err = net.DialTimeout("tcp", netip.AddrPortFrom(a.v4, 99).String(), patient)
		return err
	}))
	defer edge.Close()
	app, err := lis.Accept()
	must(t, err)
	defer app.Close()
	arrives := func(within time.Duration) bool {
		_, err := edge.Write([]byte("x"))
		must(t, err)
		app.SetReadDeadline(time.Now().Add(within))
		_, err = app.Read(make([]byte, 1))
		return err == nil
	}
	if !arrives(patient) {
		t.Fatal("nothing arrives on a connection at all")
	}
	must(t, l.endFlows(a.v4))
	if arrives(quick) {
		t.Error("a connection that was forgotten still carries data")
	}
	if _, err := dial(l.ns, a.v4, 7, patient); err != nil {
		t.Errorf("a new connection is refused: %v", err)
	}
}

// flows counts what connection tracking holds of a Machine.
func (l *lab) flows(n *node) (count int) {
	l.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(l.ns.Fd()), unix.NETLINK_NETFILTER)
	must(l.t, err)
	defer h.Close()
	all, err := h.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	must(l.t, err)
	for _, f := range all {
		if src, ok := netip.AddrFromSlice(f.Forward.SrcIP.To4()); ok && src == n.v4 {
			count++
		}
	}
	return count
}

// flood begins count connections with packets to as many ports.
func (n *node) flood(to netip.Addr, count int) {
	n.t.Helper()
	must(n.t, Do(n.ns, func() error {
		c, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer c.Close()
		for i := range count {
			if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, uint16(1000+i)))); err != nil {
				return err
			}
		}
		return nil
	}))
}

// TestConnectionsAreBounded: no Machine can fill the table of connections, which is
// everybody's.
func TestConnectionsAreBounded(t *testing.T) {
	public := netip.MustParseAddr("9.9.9.98")
	internet(t, public.String())
	l := newLab(t)
	a, b := l.machine(1, 7), l.machine(2, 7)
	a.reaches("the internet", public, 7)
	a.flood(public, 2*maxFlows)
	// The control: the bound is what held it back.
	if got := l.flows(a); got > maxFlows+1 || got < maxFlows/2 {
		t.Errorf("%d connections of one Machine are kept, the bound is %d", got, maxFlows)
	}
	a.unreachable("the internet, with no connection left,", public, 7)
	b.reaches("the internet", public, 7)
	a.reaches("its own network", b.v6, 7)
	if _, err := dial(l.ns, a.v6, 7, patient); err != nil {
		t.Errorf("the edge does not reach a Machine that has used up its connections: %v", err)
	}
}

// TestConnectionsEndWithTheirMachine: the next Machine of a slot gets no answers to
// what the one before it asked, and none of its bound is used.
func TestConnectionsEndWithTheirMachine(t *testing.T) {
	public := netip.MustParseAddr("9.9.9.97")
	internet(t, public.String())
	l := newLab(t)
	a, b := l.machine(1, 7), l.machine(2, 7)
	a.flood(public, 2*maxFlows)
	b.flood(public, 10)
	if l.flows(a) == 0 {
		t.Fatal("no connection is seen at all")
	}
	must(t, l.Remove(a.Member))
	if got := l.flows(a); got != 0 {
		t.Errorf("%d connections are left of a Machine that is gone", got)
	}
	if got := l.flows(b); got < 10 {
		t.Errorf("%d of its neighbour's 10 connections are left", got)
	}
	next := l.machine(1, 8)
	next.reaches("the internet", public, 7)
}

// TestCallersOfAGoneMachineAreTold: the edge's connections to a Machine whose sandbox
// was killed end with it, and those to its neighbour do not.
func TestCallersOfAGoneMachineAreTold(t *testing.T) {
	l := newLab(t)
	a, b := l.machine(1, 7), l.machine(2, 7)
	connect := func(n *node, to netip.Addr) net.Conn {
		var silent net.Listener // the kernel accepts, nobody answers
		must(t, Do(n.ns, func() (err error) {
			silent, err = net.Listen("tcp", netip.AddrPortFrom(to, 99).String())
			return err
		}))
		t.Cleanup(func() { silent.Close() })
		var c net.Conn
		must(t, Do(l.ns, func() (err error) {
			c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 99).String(), patient)
			return err
		}))
		t.Cleanup(func() { c.Close() })
		return c
	}
	toA, toB := []net.Conn{connect(a, a.v6), connect(a, a.v4)}, []net.Conn{connect(b, b.v6), connect(b, b.v4)}
	must(t, l.Remove(a.Member))
	for _, c := range toA {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("the connection to %s, a Machine that is gone, ends with %v", c.RemoteAddr(), err)
		}
	}
	for _, c := range toB {
		c.SetReadDeadline(time.Now().Add(quick))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("its neighbour's connection to %s ends with %v", c.RemoteAddr(), err)
		}
	}
}

// TestNoSocketDiagnosis: a kernel that cannot tell of sockets, which this one cannot of
// AppleTalk's, does not keep a Machine from being removed.
func TestNoSocketDiagnosis(t *testing.T) {
	l := newLab(t)
	a := l.machine(1, 7)
	if err := l.sockDiag(unix.AF_APPLETALK, nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, make([]byte, diagIDSize)).ExecuteIter(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY, func([]byte) bool { return true }); !errors.Is(err, unix.ENOENT) {
		t.Fatalf("the kernel said %v", err)
	}
	must(t, l.endSocketsOf(unix.AF_APPLETALK, a.v6))
}
