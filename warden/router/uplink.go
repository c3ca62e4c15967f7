package router

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
)

// ensureUplink connects the router to the host, whose rules stand first.
func (r *Router) ensureUplink() error {
	outside, err := r.uplinkLink()
	if err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	hostAddr, routerAddr, err := r.uplinkAddresses(outside)
	if err != nil {
		return err
	}
	// Before the link has an address or is up.
	if err := failpoint.Write("router/host-rules", func() error { return hostRules(r.config, hostAddr) }); err != nil {
		return err
	}
	if err := sysctl("net/ipv6/conf/"+outside.Attrs().Name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := r.host.AddrReplace(outside, &netlink.Addr{IPNet: ipnet(hostAddr)}); err != nil {
		return fmt.Errorf("uplink address %s: %w", hostAddr, err)
	}
	if err := r.host.LinkSetUp(outside); err != nil {
		return err
	}
	inside, err := r.nl.LinkByName(uplinkName)
	if err != nil {
		return err
	}
	if err := r.nl.AddrReplace(inside, &netlink.Addr{IPNet: ipnet(routerAddr)}); err != nil {
		return fmt.Errorf("uplink address %s: %w", routerAddr, err)
	}
	if err := r.nl.LinkSetUp(inside); err != nil {
		return err
	}
	if err := r.nl.RouteReplace(&netlink.Route{LinkIndex: inside.Attrs().Index, Gw: hostAddr.Addr().AsSlice(), Dst: ipnet(netip.MustParsePrefix("0.0.0.0/0"))}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return EnsureForwarding(r.config.Tag)
}

// uplinkLink finds or makes the veth pair; half of one, or one that leads into a
// namespace of the past, is replaced.
func (r *Router) uplinkLink() (netlink.Link, error) {
	name := HostLink(r.config.Tag)
	outside, err := r.host.LinkByName(name)
	_, ierr := r.nl.LinkByName(uplinkName)
	if err == nil && ierr == nil {
		return outside, nil
	}
	if err == nil {
		if err := r.host.LinkDel(outside); err != nil {
			return nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, MTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplinkName, PeerMTU: MTU, PeerNamespace: netlink.NsFd(int(r.ns.Fd()))}
	if err := failpoint.Write("router/uplink-link", func() error { return r.host.LinkAdd(veth) }); err != nil {
		return nil, err
	}
	return r.host.LinkByName(name)
}

// uplinkAddresses returns the pair that the link has, or the first free one.
func (r *Router) uplinkAddresses(outside netlink.Link) (host, router netip.Prefix, err error) {
	all, err := r.host.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return host, router, err
	}
	taken := map[netip.Addr]bool{}
	for _, a := range all {
		ip, _ := netip.AddrFromSlice(a.IP.To4())
		if a.LinkIndex != outside.Attrs().Index {
			taken[ip] = true
		} else if uplinkPrefixes.Contains(ip) {
			return netip.PrefixFrom(ip, 30), netip.PrefixFrom(ip.Next(), 30), nil
		}
	}
	for n := range uint32(1 << 14) {
		if host, router = uplinkAddrs(r.config.Tag, n); !taken[host.Addr()] {
			return host, router, nil
		}
	}
	return host, router, fmt.Errorf("all of %s is in use on this host", uplinkPrefixes)
}

// hostTable is the host's own table of an installation. Only IPv4 crosses the uplink.
func hostTable(tag string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "bulkhead_" + tag}
}

// hostRules writes the host's table: what comes from the uplink reaches none of the
// host's own addresses and no denied range, and is masqueraded; what goes to it is
// an answer. The denied ranges repeat what the router does: two locks, two owners.
func hostRules(cfg Config, uplink netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t, link := hostTable(cfg.Tag), HostLink(cfg.Tag)
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	ranges := &nftables.Set{Table: t, Name: setDenied4, KeyType: nftables.TypeIPAddr, Interval: true}
	if err := addSet(c, ranges, intervals(denied(cfg.Denied))); err != nil {
		return err
	}
	yes := nftables.ChainPolicyAccept
	chain := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority, typ nftables.ChainType) func(...any) {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Hooknum: hook, Priority: prio, Type: typ, Policy: &yes})
		return func(parts ...any) { c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(parts...)}) }
	}
	input := chain("input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	input(iif(link), counter, drop)
	output := chain("output", nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	output(oif(link), ctState(replies), accept) // "fragmentation needed" and the like
	output(oif(link), counter, drop)
	forward := chain("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	forward(iif(link), load(1, dst4, len4), lookup(ranges), counter, drop)
	forward(oif(link), ctState(replies), accept)
	forward(oif(link), counter, drop)
	nat := chain("nat", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT)
	network := uplink.Masked().Addr().As4()
	nat(load(1, src4, len4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 255, 255, 252}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network[:]},
		metaIsNot(expr.MetaKeyOIFNAME, ifname(link)), &expr.Masq{})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write the host's packet rules: %w", err)
	}
	return nil
}

func metaIsNot(k expr.MetaKey, v []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: k, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: v}}
}

// Destroy removes the router namespace, the uplink and the host's tables, and switches the
// host's forwarding off where it was on for this installation alone. Machines must be gone.
func Destroy(c Config) error {
	errs := []error{releaseForwarding(c.Tag)}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	if link, err := nl.LinkByName(HostLink(c.Tag)); err == nil {
		errs = append(errs, nl.LinkDel(link))
	}
	errs = append(errs, removeNamespace(Path(c.RunDir)))
	conn, err := nftables.New()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	conn.AddTable(hostTable(c.Tag))
	conn.DelTable(hostTable(c.Tag))
	return errors.Join(append(errs, conn.Flush())...)
}
