// Package router is the node's private network: a network namespace of Bulkhead's
// own, between the Machines and the host, with one veth per Machine, routes, and
// packet rules that are sets and never lists.
//
//	Machine eth0 ══ m<slot>  [router namespace]  uplink ══ bh-<tag>  [host]
//
// What it guarantees, whatever a Machine sends:
//   - a source address that is not the Machine's own goes nowhere;
//   - fdaa:… traffic stays within its network's /48;
//   - neither the router's nor the host's own addresses answer, except that the
//     edge, which runs inside the router namespace, gets replies to what it opened;
//   - the edge speaks to Machines from its own addresses and from no other;
//   - IPv4 between Machines goes nowhere: it is for the edge, and for egress behind
//     two NATs, never to private, link-local, metadata, multicast or reserved ranges;
//     there is no IPv6 egress;
//   - a Machine takes a bounded part of the room for connections, and its
//     connections end with it;
//   - a Machine sends and gets no more than its rate, in bytes and in packets.
//
// Neighbour discovery is switched off: addresses and hardware addresses follow from
// the slot, so both sides hold permanent entries and a Machine can poison nothing.
package router

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
	"bulkhead/fault"
	"bulkhead/privnet"
)

// Interface names inside the router namespace and inside a Machine's.
const (
	uplinkName  = "uplink"
	machineName = "eth0"
	linkPrefix  = "m"
)

// MTU of every link, in bytes.
const MTU = 1500

// addrGenNone is IN6_ADDR_GEN_MODE_NONE (linux/if_link.h): no link-local address.
const addrGenNone = 1

// gatewayMAC is the hardware address of the router's end of every veth.
var gatewayMAC = net.HardwareAddr{0x02, 'b', 'h', 0xff, 0xff, 0xfe}

// machineMAC is the hardware address of a Machine.
func machineMAC(s privnet.Slot) net.HardwareAddr {
	return net.HardwareAddr{0x02, 'b', 'h', 0x00, byte(s >> 8), byte(s)}
}

// linkName is the router's end of a Machine's veth.
func linkName(s privnet.Slot) string { return linkPrefix + strconv.Itoa(int(s)) }

// Path returns the file that holds the router namespace of the node whose runtime
// directory is runDir.
func Path(runDir string) string { return filepath.Join(runDir, "netns", "router") }

// HostLink returns the name of the host's end of the uplink.
func HostLink(tag string) string { return "bh-" + tag }

// Config says which router.
type Config struct {
	RunDir string
	Tag    string
	Host   privnet.Host
	Denied []netip.Prefix // where Machines may not connect to, besides what is not public
}

// Member is a Machine's place in the router.
type Member struct {
	Slot    privnet.Slot
	Network privnet.Network

	// What it may send, and what may be sent to it; 0 for no limit.
	Mbps             int // 10^6 bits per second
	PacketsPerSecond int
}

// Router holds the router namespace open. Its methods may be called at the same time.
type Router struct {
	config Config
	ns     *os.File
	nl     *netlink.Handle // in the router namespace
	host   *netlink.Handle
	// to its connection tracking and its socket diagnosis
	sockets map[int]*nl.SocketHandle
	fresh   bool

	mu sync.Mutex // serializes changes of the packet rules
}

// Open makes the namespace, or finds what an earlier warden or somebody's hand has
// left of it, and brings it into the state that it must have, with members as its
// Machines. It is idempotent and disturbs no traffic that stays allowed.
func Open(c Config, members []Member) (*Router, error) {
	if c.Tag == "" || len(c.Tag) > 4 {
		return nil, fault.New(fault.Invalid, "tag %q must have 1 to 4 letters and digits", c.Tag)
	}
	r := &Router{config: c}
	if err := r.open(members); err != nil {
		r.Close()
		return nil, fmt.Errorf("router namespace: %w", err)
	}
	return r, nil
}

func (r *Router) open(members []Member) (err error) {
	if r.ns, r.fresh, err = ensureNamespace(Path(r.config.RunDir)); err != nil {
		return err
	}
	if r.nl, err = netlinkAt(r.ns); err != nil {
		return err
	}
	if r.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if r.sockets, err = socketsAt(r.ns); err != nil {
		return err
	}
	if err := Do(r.ns, routerSysctls); err != nil {
		return err
	}
	if err := failpoint.Write("router/addresses", r.ensureAddresses); err != nil {
		return err
	}
	// The rules stand before the first way out does.
	if err := failpoint.Write("router/rules", func() error { return r.ensureRules(members) }); err != nil {
		return err
	}
	return failpoint.Write("router/uplink", r.ensureUplink)
}

// Fresh reports whether Open had to make the namespace anew, so that Machines which
// were connected to an earlier one have lost their network.
func (r *Router) Fresh() bool { return r.fresh }

// Namespace returns the open namespace; it stays the router's.
func (r *Router) Namespace() *os.File { return r.ns }

// Close lets go of the namespace; it and everything in it stay.
func (r *Router) Close() error {
	if r.nl != nil {
		r.nl.Close()
	}
	if r.host != nil {
		r.host.Close()
	}
	for _, h := range r.sockets {
		h.Close()
	}
	if r.ns != nil {
		return r.ns.Close()
	}
	return nil
}

// routerSysctls is run inside the router namespace, where all is forwarded that the rules
// let through. On the host, EnsureForwarding decides.
func routerSysctls() error {
	for _, s := range []struct{ name, value string }{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv4/conf/all/rp_filter", "1"},
		{"net/ipv4/conf/default/rp_filter", "1"},
		{"net/ipv4/conf/all/accept_redirects", "0"},
		{"net/ipv4/conf/default/accept_redirects", "0"},
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/conf/default/send_redirects", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "0"},
		{"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/default/autoconf", "0"},
		{"net/ipv6/conf/default/accept_redirects", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/addr_gen_mode", "1"}, // no link-local address
	} {
		if err := sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// ensureAddresses gives the namespace its own address and closes the routes that
// lead nowhere.
func (r *Router) ensureAddresses() error {
	lo, err := r.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := r.nl.LinkSetUp(lo); err != nil {
		return err
	}
	for _, own := range []netip.Addr{privnet.RouterAddr(r.config.Host), privnet.GatewayIPv4} {
		a := &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(own, own.BitLen()))}
		if own.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := r.nl.AddrReplace(lo, a); err != nil {
			return fmt.Errorf("address %s: %w", own, err)
		}
	}
	for _, dst := range []string{"fdaa::/16", "198.18.0.0/16"} {
		err := r.nl.RouteReplace(&netlink.Route{Dst: ipnet(netip.MustParsePrefix(dst)), Type: unix.RTN_UNREACHABLE})
		if err != nil {
			return fmt.Errorf("unreachable route %s: %w", dst, err)
		}
	}
	return nil
}

// Add connects a Machine: ns is its network namespace, whose interface machineName
// gets the Machine's addresses and routes. The Machine's slot must be free. On an
// error nothing is left.
func (r *Router) Add(m Member, ns *os.File) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("connect slot %d: %w", m.Slot, err), r.Remove(m))
		}
	}()
	inside, err := netlinkAt(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = linkName(m.Slot), MTU, gatewayMAC
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: machineName, PeerHardwareAddr: machineMAC(m.Slot), PeerNamespace: netlink.NsFd(int(ns.Fd())), PeerMTU: MTU}
	if err := failpoint.Write("router/veth", func() error { return r.nl.LinkAdd(veth) }); err != nil {
		return fmt.Errorf("make veth: %w", err)
	}
	if err := failpoint.Write("router/own-end", func() error { return r.configureRouterEnd(m) }); err != nil {
		return err
	}
	if err := failpoint.Write("router/machine-end", func() error { return r.configureMachineEnd(inside, m) }); err != nil {
		return err
	}
	return failpoint.Write("router/add-elements", func() error { return r.addElements([]Member{m}) })
}

// configureRouterEnd sets up m<slot>: no ARP, permanent neighbours, two host routes.
func (r *Router) configureRouterEnd(m Member) error {
	link, err := r.nl.LinkByName(linkName(m.Slot))
	if err != nil {
		return err
	}
	if err := r.nl.LinkSetARPOff(link); err != nil {
		return err
	}
	if err := r.nl.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range []netip.Addr{privnet.MachineAddr(m.Network, r.config.Host, m.Slot), privnet.MachineIPv4(m.Slot)} {
		if err := permanent(r.nl, link, a, machineMAC(m.Slot)); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipnet(netip.PrefixFrom(a, a.BitLen())), Scope: netlink.SCOPE_LINK}
		if a.Is6() {
			route.Scope = netlink.SCOPE_UNIVERSE
		} else {
			route.Src = privnet.GatewayIPv4.AsSlice()
		}
		if err := r.nl.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s: %w", a, err)
		}
	}
	return nil
}

// configureMachineEnd sets up the Machine's interface; the sandbox takes addresses,
// routes and neighbours from it into its own stack.
func (r *Router) configureMachineEnd(nl *netlink.Handle, m Member) error {
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := nl.LinkSetUp(lo); err != nil {
		return err
	}
	link, err := nl.LinkByName(machineName)
	if err != nil {
		return err
	}
	if err := nl.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil {
		return fmt.Errorf("switch link-local addresses off: %w", err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		return err
	}
	for _, pair := range [][2]netip.Addr{
		{privnet.MachineAddr(m.Network, r.config.Host, m.Slot), privnet.GatewayIPv6},
		{privnet.MachineIPv4(m.Slot), privnet.GatewayIPv4},
	} {
		own, gw := pair[0], pair[1]
		if err := nl.AddrAdd(link, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(own, own.BitLen())), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", own, err)
		}
		if err := permanent(nl, link, gw, gatewayMAC); err != nil {
			return err
		}
		if err := nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}); err != nil {
			return fmt.Errorf("route via %s: %w", gw, err)
		}
	}
	return nil
}

// Remove disconnects a Machine. It succeeds when there is nothing to remove.
func (r *Router) Remove(m Member) error {
	err := failpoint.Write("router/remove-elements", func() error { return r.removeElements(m) })
	link, lerr := r.nl.LinkByName(linkName(m.Slot))
	switch {
	case errors.As(lerr, new(netlink.LinkNotFoundError)):
	case lerr != nil:
		err = errors.Join(err, lerr)
	default:
		// It may vanish by itself at any time, with the Machine's namespace.
		derr := failpoint.Write("router/remove-link", func() error { return r.nl.LinkDel(link) })
		if derr != nil && !errors.Is(derr, unix.ENODEV) {
			err = errors.Join(err, fmt.Errorf("remove veth %s: %w", linkName(m.Slot), derr))
		}
	}
	return errors.Join(err,
		failpoint.Write("router/end-flows", func() error { return r.endFlows(privnet.MachineIPv4(m.Slot)) }),
		r.endSockets(privnet.MachineAddr(m.Network, r.config.Host, m.Slot)),
		r.endSockets(privnet.MachineIPv4(m.Slot)))
}

// Slots returns the slots that have a veth.
func (r *Router) Slots() ([]privnet.Slot, error) {
	links, err := r.nl.LinkList()
	if err != nil {
		return nil, err
	}
	var slots []privnet.Slot
	for _, l := range links {
		num, ok := strings.CutPrefix(l.Attrs().Name, linkPrefix)
		if n, err := strconv.ParseUint(num, 10, 32); ok && err == nil {
			slots = append(slots, privnet.Slot(n))
		}
	}
	return slots, nil
}

// permanent adds a neighbour entry that nothing on the wire can change.
func permanent(nl *netlink.Handle, link netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	err := nl.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("neighbour %s: %w", ip, err)
	}
	return nil
}

// uplinkPrefixes is where uplinks live: a /30 for each tag.
var uplinkPrefixes = netip.MustParsePrefix("198.19.0.0/16")

// uplinkAddrs returns the host's and the router's address of a tag's n-th choice.
func uplinkAddrs(tag string, n uint32) (host, router netip.Prefix) {
	h := fnv.New32a()
	h.Write([]byte(tag))
	i := (h.Sum32() + n) % (1 << 14) * 4
	base := uplinkPrefixes.Addr().As4()
	at := func(k uint32) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1], byte((i + k) >> 8), byte(i + k)}), 30)
	}
	return at(1), at(2)
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl writes a setting of the calling thread's network namespace.
func sysctl(name, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "net/ipv6/") {
		return fault.Wrap(fault.Unavailable, err, "this kernel runs without IPv6, which the private network needs: boot it without ipv6.disable=1")
	}
	return err
}
