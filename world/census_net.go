package world

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bulkhead/warden/router"
)

// network lists links, routes, permanent neighbours and the elements of packet
// rules' sets in the router namespace. Sets that the kernel fills by itself, to
// count, are left out.
func (c *counting) network() error {
	ns, err := os.Open(router.Path(c.w.RunDir()))
	if err != nil {
		return ignoreGone(err)
	}
	defer ns.Close()
	nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("the router namespace: %w", err)
	}
	defer nl.Close()
	links, err := nl.LinkList()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		c.add("router: link %s", l.Attrs().Name)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, rerr := nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		neighbours, nerr := nl.NeighList(0, family)
		if err := errors.Join(rerr, nerr); err != nil {
			return err
		}
		for _, r := range routes {
			c.add("router: route %v dev %s table %d", r.Dst, names[r.LinkIndex], r.Table)
		}
		for _, n := range neighbours {
			if n.State&netlink.NUD_PERMANENT != 0 {
				c.add("router: neighbour %v dev %s", n.IP, names[n.LinkIndex])
			}
		}
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	return c.rules(conn, "router", func(string) bool { return true })
}

// hostNetwork lists the installation's link and rules on the host.
func (c *counting) hostNetwork() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().Name == router.HostLink(c.tag) {
			c.add("host: link %s", l.Attrs().Name)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	// Not the claims of forwarding, which follow the host's routes and no Machine.
	return c.rules(conn, "host", func(table string) bool {
		return strings.HasSuffix(table, "_"+c.tag) && !strings.HasPrefix(table, "bulkhead_forward_")
	})
}

// rules lists chains with the number of their rules, and the elements of sets.
func (c *counting) rules(conn *nftables.Conn, where string, mine func(table string) bool) error {
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		if !mine(ch.Table.Name) {
			continue
		}
		rules, err := conn.GetRules(ch.Table, ch)
		if err != nil {
			return err
		}
		c.add("%s: chain %s of %d rules", where, ch.Name, len(rules))
	}
	for _, t := range tables {
		if !mine(t.Name) {
			continue
		}
		sets, err := conn.GetSets(t)
		if err != nil {
			return err
		}
		for _, s := range sets {
			if s.Dynamic {
				continue
			}
			elements, err := conn.GetSetElements(s)
			if err != nil {
				return err
			}
			for _, e := range elements {
				c.add("%s: element %x of set %s", where, e.Key, s.Name)
			}
		}
	}
	return nil
}
