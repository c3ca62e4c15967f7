package router

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/failpoint"
	"bulkhead/privnet"
)

// The kernel forwards a packet when forwarding is on for the interface on which it came. So
// the host forwards for Machines with two kinds of interface: our end of the uplink, and
// those on which the internet's answers come. The global switch (net.ipv4.ip_forward), which
// makes a router of every interface, stays off.
//
// What was switched on is a claim: the name of an interface in a set of a table of our own,
// written before the switch. The table also drops what comes in on a claimed interface and
// is for anything but an uplink, since nothing was forwarded from there before. Claims end
// with the kernel, as the switches do. Several installations claim the same interface, and
// the last one that lets go switches it off. Where somebody else turns the global switch on,
// as Docker does, the claims and the rule go: then the host is a router by its owner's will.
const (
	globalForwarding = "net/ipv4/ip_forward"
	forwardTables    = "bulkhead_forward_" // and the tag
	hostLinks        = "bh-"               // and the tag
	setClaimed       = "claimed"
)

// EnsureForwarding brings claims, switches and rule of an installation in line with the
// routes and the global switch of this network namespace. It can be run again at any time.
func EnsureForwarding(tag string) error { return forwarding(tag, true) }

// releaseForwarding ends the claims of an installation, and switches off what no other claims.
func releaseForwarding(tag string) error { return forwarding(tag, false) }

func forwarding(tag string, wanted bool) error {
	unlock, err := lockHost()
	if err != nil {
		return err
	}
	defer unlock()
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	ours, others, err := claims(c, tag)
	if err != nil {
		return err
	}
	global, err := forwards(globalForwarding)
	if err != nil {
		return err
	}
	if global {
		return writeClaims(c, tag, nil)
	}
	claim := map[string]bool{}
	if wanted {
		on, err := publicInterfaces()
		if err != nil {
			return err
		}
		for name := range on {
			already, err := forwards(interfaceSwitch(name))
			switch {
			case errors.Is(err, os.ErrNotExist): // it has just gone
			case err != nil:
				return err
			case ours[name] || others[name] || !already: // else it is the owner's own
				claim[name] = true
			}
		}
	}
	both := maps.Clone(ours)
	maps.Copy(both, claim)
	if err := failpoint.Write("router/claims", func() error { return writeClaims(c, tag, both) }); err != nil {
		return err
	}
	switches := map[string]string{}
	for name := range both {
		if claim[name] {
			switches[name] = "1"
		} else if !others[name] {
			switches[name] = "0"
		}
	}
	if wanted {
		switches[HostLink(tag)] = "1"
	}
	for name, v := range switches {
		if now, err := forwards(interfaceSwitch(name)); err == nil && now == (v == "1") {
			continue
		}
		if err := sysctl(interfaceSwitch(name), v); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("forwarding of %s: %w", name, err)
		}
	}
	if maps.Equal(both, claim) {
		return nil
	}
	return writeClaims(c, tag, claim)
}

// hostLock is held by whoever changes claims. Only root may open it: a lock that a user of
// the host could hold would keep every installation from starting.
var hostLock = "/run/bulkhead-forwarding.lock"

// lockHost waits until no other installation of this host changes claims.
func lockHost() (unlock func(), err error) {
	const patience, pause = 10 * time.Second, 20 * time.Millisecond
	f, err := os.OpenFile(hostLock, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { f.Close() }, nil
		}
		if time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("%s is held by another installation for %v: %w", hostLock, patience, err)
		}
	}
}

func interfaceSwitch(name string) string { return "net/ipv4/conf/" + name + "/forwarding" }

// forwards reads a switch.
func forwards(name string) (bool, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return strings.TrimSpace(string(b)) == "1", err
}

// claims returns the interfaces that an installation has claimed, and those that any other has.
func claims(c *nftables.Conn, tag string) (ours, others map[string]bool, err error) {
	ours, others = map[string]bool{}, map[string]bool{}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tables {
		whose, ok := strings.CutPrefix(t.Name, forwardTables)
		if !ok {
			continue
		}
		into := others
		if whose == tag {
			into = ours
		}
		set, err := c.GetSetByName(t, setClaimed)
		if errors.Is(err, unix.ENOENT) { // the table has just gone, or is not ours
			continue
		} else if err != nil {
			return nil, nil, err
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range elements {
			name, _, _ := bytes.Cut(e.Key, []byte{0})
			into[string(name)] = true
		}
	}
	return ours, others, nil
}

func forwardTable(tag string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: forwardTables + tag}
}

// writeClaims writes the table with these claims, in one transaction; none removes it.
func writeClaims(c *nftables.Conn, tag string, names map[string]bool) error {
	t := forwardTable(tag)
	c.AddTable(t) // so that deleting it cannot fail
	c.DelTable(t)
	if len(names) > 0 {
		c.AddTable(t)
		set := &nftables.Set{Table: t, Name: setClaimed, KeyType: nftables.TypeIFName}
		var elements []nftables.SetElement
		for _, name := range slices.Sorted(maps.Keys(names)) {
			elements = append(elements, nftables.SetElement{Key: ifname(name)})
		}
		if err := addSet(c, set, elements); err != nil {
			return err
		}
		yes := nftables.ChainPolicyAccept
		ch := c.AddChain(&nftables.Chain{Name: "claimed", Table: t, Hooknum: nftables.ChainHookForward,
			Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter, Policy: &yes})
		// A comparison with fewer bytes than the register has compares the beginning.
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(
			loadIIF(), lookup(set), metaIsNot(expr.MetaKeyOIFNAME, []byte(hostLinks)), counter, drop)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write the claims of forwarding: %w", err)
	}
	return nil
}

// publicInterfaces are those with a route to public addresses, which answers may come from.
func publicInterfaces() (map[string]bool, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := map[string]bool{}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || !leadsOut(&r) {
			continue
		}
		hops := []int{r.LinkIndex}
		for _, m := range r.MultiPath {
			hops = append(hops, m.LinkIndex)
		}
		for _, index := range hops {
			link, err := h.LinkByIndex(index)
			if err != nil {
				continue // none, or it has just gone
			}
			if name := link.Attrs().Name; !strings.HasPrefix(name, hostLinks) && link.Attrs().Flags&unix.IFF_LOOPBACK == 0 {
				out[name] = true
			}
		}
	}
	return out, nil
}

// leadsOut reports whether a route is the default one or leads to public addresses.
func leadsOut(r *netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP.To4())
	ones, _ := r.Dst.Mask.Size()
	return ok && (ones == 0 || privnet.Public(a))
}
