package privnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// MaxNameservers is how many name servers a resolver reads from its resolv.conf.
const MaxNameservers = 3

// ResolvConfs are the files that may name the host's name servers, in the order in which
// they are read. The second names those behind systemd's resolver on loopback.
var ResolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// Nameservers returns the name servers of a resolv.conf that Machines can use, IPv4 first:
// they reach public addresses only. It returns none where none is IPv4, since Machines
// have no IPv6 egress.
func Nameservers(resolvConf string) []netip.Addr {
	var out []netip.Addr
	for line := range strings.Lines(resolvConf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(out) == MaxNameservers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Zone() == "" && Public(a) {
			out = append(out, a.Unmap())
		}
	}
	return ipv4First(out)
}

// ParseNameservers reads a list of name servers with commas between them, as an operator
// sets it. All must be addresses that Machines can reach.
func ParseNameservers(list string) ([]netip.Addr, error) {
	var out []netip.Addr
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil || a.Zone() != "":
			return nil, fmt.Errorf("%q is not an IP address; give one such as 9.9.9.9", s)
		case !Public(a):
			return nil, fmt.Errorf("machines cannot reach %s; give a public address such as 9.9.9.9", a)
		}
		out = append(out, a.Unmap())
	}
	if len(out) > MaxNameservers {
		return nil, fmt.Errorf("%d are listed; a resolver reads at most %d", len(out), MaxNameservers)
	}
	usable := ipv4First(out)
	if len(out) > 0 && usable == nil {
		return nil, fmt.Errorf("%s is IPv6, and machines reach IPv4 only; add an IPv4 address such as 9.9.9.9", out[0])
	}
	return usable, nil
}

// ipv4First sorts addresses. A resolver waits for the first before it asks the next.
func ipv4First(a []netip.Addr) []netip.Addr {
	slices.SortStableFunc(a, func(x, y netip.Addr) int { return x.BitLen() - y.BitLen() })
	if len(a) == 0 || !a[0].Is4() {
		return nil
	}
	return a
}
