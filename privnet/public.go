package privnet

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
)

// DeniedIPv4 is where nothing goes that is for the internet: private, shared, loopback,
// link-local (cloud metadata), benchmark (our own), protocol and documentation ranges,
// relay anycast, multicast and reserved. One cloud has its metadata at a public address:
// 168.63.129.16, Azure's WireServer, hands out a host's certificates and settings.
var DeniedIPv4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")

// deniedIPv6 are ranges that netip's predicates do not name: protocol addresses,
// documentation, and forms that carry an IPv4 address.
var deniedIPv6 = prefixes("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "fec0::/10")

func prefixes(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Contains reports whether one of the ranges has a.
func Contains(ranges []netip.Prefix, a netip.Addr) bool {
	for _, p := range ranges {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Public reports whether a is an address on the internet: what somebody else chose
// the name of may be connected to only there.
func Public(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	return !Contains(DeniedIPv4, a) && !Contains(deniedIPv6, a)
}

// Guard decides to which addresses the platform itself connects when somebody else chose
// the name: an image's registry, an identity provider. It is asked at each connection, when
// the name is resolved. The zero Guard lets public addresses through that are not this
// host's own.
type Guard struct {
	Denied  []netip.Prefix // by the operator, whatever Allowed says
	Allowed []netip.Prefix // by the operator, though not public or this host's own
	AnyAddr bool           // for tests: everything but Denied

	addrs func() ([]net.Addr, error) // of this host; nil: those of its interfaces
}

// Check returns why a may not be connected to, or nil.
func (g Guard) Check(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	switch {
	case Contains(g.Denied, a):
		return fmt.Errorf("%s is in a range that the operator denies (denied_ranges)", a)
	case g.AnyAddr || Contains(g.Allowed, a):
		return nil
	case !Public(a):
		return fmt.Errorf("%s is not a public address", a)
	}
	addrs := g.addrs
	if addrs == nil {
		addrs = net.InterfaceAddrs
	}
	own, err := addrs()
	if err != nil {
		return fmt.Errorf("this host's own addresses cannot be read: %w", err)
	}
	for _, o := range own {
		if n, ok := o.(*net.IPNet); ok {
			if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap() == a {
				return fmt.Errorf("%s is an address of this host", a)
			}
		}
	}
	return nil
}

// Control returns what a net.Dialer calls with every address that it is about to connect
// to. Its errors are what wrap makes of Check's.
func (g Guard) Control(wrap func(error) error) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if err := g.Check(ap.Addr()); err != nil {
			return wrap(err)
		}
		return nil
	}
}

// maxDenied bounds an operator's list.
const maxDenied = 256

// ParseDenied reads ranges with commas between them, as an operator denies them: networks
// or single addresses.
func ParseDenied(list string) (out []netip.Prefix, err error) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither a network such as 192.0.2.0/24 nor an address", s)
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is IPv4 in the form of IPv6; write it as IPv4", s)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%q has bits set after its first %d; write %s", s, p.Bits(), p.Masked())
		}
		out = append(out, p)
	}
	if len(out) > maxDenied {
		return nil, fmt.Errorf("%d ranges are listed; at most %d are taken", len(out), maxDenied)
	}
	return out, nil
}
