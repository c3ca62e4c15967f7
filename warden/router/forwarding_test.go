package router

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"bulkhead/internal/await"
)

// crossroads is a host with two interfaces besides the platform's: "wan", with the default
// route, and "lan". Behind each is a machine that would send to the other's through the host.
type crossroads struct {
	t                *testing.T
	host, wan, lan   *os.File
	behindWAN, toLAN netip.Addr
}

func newCrossroads(t *testing.T) *crossroads {
	t.Helper()
	x := &crossroads{t: t, host: newNS(t), wan: newNS(t), lan: newNS(t), behindWAN: netip.MustParseAddr("11.1.0.2"), toLAN: netip.MustParseAddr("10.2.0.2")}
	h, err := netlinkAt(x.host)
	must(t, err)
	defer h.Close()
	for name, far := range map[string]struct {
		ns         *os.File
		near, away string
	}{"wan": {x.wan, "11.1.0.1/24", "11.1.0.2/24"}, "lan": {x.lan, "10.2.0.1/24", "10.2.0.2/24"}} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(far.ns.Fd()))}))
		x.address(x.host, name, far.near)
		x.address(far.ns, "eth0", far.away)
		x.defaultRoute(far.ns, "eth0", netip.MustParsePrefix(far.near).Addr())
		serve(t, far.ns, ":7")
	}
	x.defaultRoute(x.host, "wan", x.behindWAN)
	must(t, Do(x.host, func() error { return sysctl(globalForwarding, "0") }))
	return x
}

func (x *crossroads) address(ns *os.File, name, addr string) {
	x.t.Helper()
	h, err := netlinkAt(ns)
	must(x.t, err)
	defer h.Close()
	link, err := h.LinkByName(name)
	must(x.t, err)
	must(x.t, h.AddrAdd(link, &netlink.Addr{IPNet: ipnet(netip.MustParsePrefix(addr))}))
	must(x.t, h.LinkSetUp(link))
}

// defaultRoute replaces the default route of a namespace.
func (x *crossroads) defaultRoute(ns *os.File, name string, via netip.Addr) {
	x.t.Helper()
	h, err := netlinkAt(ns)
	must(x.t, err)
	defer h.Close()
	link, err := h.LinkByName(name)
	must(x.t, err)
	must(x.t, h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: via.AsSlice(), Dst: ipnet(netip.MustParsePrefix("0.0.0.0/0"))}))
}

// in runs f on the host.
func (x *crossroads) in(f func() error) { x.t.Helper(); must(x.t, Do(x.host, f)) }

// set writes a switch of the host, as somebody else does.
func (x *crossroads) set(name, value string) {
	x.t.Helper()
	x.in(func() error { return sysctl(name, value) })
}

// state is the switches of wan, lan and the whole host, and the claims of each installation.
func (x *crossroads) state(tags ...string) (s string) {
	x.t.Helper()
	x.in(func() error {
		for _, name := range []string{interfaceSwitch("wan"), interfaceSwitch("lan"), globalForwarding} {
			on, err := forwards(name)
			if err != nil {
				return err
			}
			s += map[bool]string{true: "1", false: "0"}[on]
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		for _, tag := range tags {
			ours, _, err := claims(c, tag)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %v", ours)
		}
		return nil
	})
	return s
}

func (x *crossroads) want(what, want string, tags ...string) {
	x.t.Helper()
	if got := x.state(tags...); got != want {
		x.t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// passes reports whether the machine behind wan reaches the one behind lan.
func (x *crossroads) passes() bool {
	_, err := dial(x.wan, x.toLAN, 7, quick)
	return err == nil
}

// TestTheHostIsNoRouter: forwarding is on for the uplink and for what leads to the internet,
// and the host still forwards nothing between its other interfaces.
func TestTheHostIsNoRouter(t *testing.T) {
	x := newCrossroads(t)
	x.set(interfaceSwitch("lan"), "1") // answers would pass: the rule alone is in the way
	x.in(func() error { return EnsureForwarding("a") })
	x.want("after up", "110 map[wan:true]", "a")
	if x.passes() {
		t.Error("the host forwards from the internet's side to its own network")
	}
	// Docker comes later, and switches forwarding on for all.
	x.set(globalForwarding, "1")
	x.in(func() error { return EnsureForwarding("a") })
	x.want("with forwarding on for all", "111 map[]", "a")
	if !x.passes() {
		t.Error("control: the host does not forward though its owner switched it on; the rule stayed, or nothing was tried")
	}
	x.in(func() error { return releaseForwarding("a") })
	x.want("down leaves what the owner set", "111 map[]", "a")

	// The control without the rule: the switch of the one interface alone lets it pass.
	x.set(globalForwarding, "0")
	x.set(interfaceSwitch("wan"), "1")
	x.set(interfaceSwitch("lan"), "1")
	if !x.passes() {
		t.Error("control: without the rule nothing passes either")
	}
	x.in(func() error { return EnsureForwarding("a") })
	x.want("the owner's own switch is no claim", "110 map[]", "a")
	x.in(func() error { return releaseForwarding("a") })
	x.want("and stays", "110 map[]", "a")
}

// TestTwoInstallationsForward: the first that goes takes nothing from the other; the last
// one leaves the host as it was.
func TestTwoInstallationsForward(t *testing.T) {
	x := newCrossroads(t)
	for _, tag := range []string{"a", "b"} {
		x.in(func() error { return EnsureForwarding(tag) })
	}
	x.want("two", "100 map[wan:true] map[wan:true]", "a", "b")
	x.in(func() error { return releaseForwarding("a") })
	x.want("one of them went", "100 map[] map[wan:true]", "a", "b")
	if x.passes() {
		t.Error("the rule went with the first installation")
	}
	x.in(func() error { return releaseForwarding("b") })
	x.want("both went", "000 map[] map[]", "a", "b")
}

// TestForwardingSurvivesDeath: a death between the claim and the switch is repaired by the
// next start, and by down.
func TestForwardingSurvivesDeath(t *testing.T) {
	x := newCrossroads(t)
	claim := func() {
		x.in(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			return writeClaims(c, "a", map[string]bool{"wan": true})
		})
	}
	claim()
	x.in(func() error { return EnsureForwarding("a") })
	x.want("the next start", "100 map[wan:true]", "a")
	x.in(func() error { return releaseForwarding("a") })
	claim()
	x.in(func() error { return releaseForwarding("a") })
	x.want("down", "000 map[]", "a")
	x.set(interfaceSwitch("wan"), "1") // switched on, and the claim is still there: died before the second write
	claim()
	x.in(func() error { return releaseForwarding("a") })
	x.want("down after the switch", "000 map[]", "a")
}

// TestForwardingFollowsTheHost: the default route moves, and others switch forwarding.
func TestForwardingFollowsTheHost(t *testing.T) {
	x := newCrossroads(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Do(x.host, func() error { return FollowForwarding(ctx, "a", slog.New(slog.DiscardHandler)) })
	}()
	defer func() { cancel(); <-done }()
	becomes := func(what, want string) {
		t.Helper()
		await.True(t, what, func() bool { return x.state("a") == want })
	}
	becomes("at first", "100 map[wan:true]")
	x.set(globalForwarding, "1")
	becomes("somebody switches forwarding on", "111 map[]")
	x.set(globalForwarding, "0")
	becomes("and off", "100 map[wan:true]")
	// The network behind wan is a public one: only when it goes too does wan lead nowhere.
	x.defaultRoute(x.host, "lan", x.toLAN)
	becomes("the default route moves", "110 map[lan:true wan:true]")
	h, err := netlinkAt(x.host)
	must(t, err)
	defer h.Close()
	wan, err := h.LinkByName("wan")
	must(t, err)
	must(t, h.AddrDel(wan, &netlink.Addr{IPNet: ipnet(netip.MustParsePrefix("11.1.0.1/24"))}))
	becomes("wan leads nowhere", "010 map[lan:true]")
}
