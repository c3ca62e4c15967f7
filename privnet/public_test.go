package privnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestPublicAddresses(t *testing.T) {
	for addr, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "8.8.8.8": true,
		"127.0.0.1": false, "::1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false,
		"100.64.0.1": false, "168.63.129.16": false, "168.63.129.17": true, "0.0.0.0": false, "255.255.255.255": false, "224.0.0.1": false, "fe80::1": false, "fdaa::3": false,
		"::ffff:10.0.0.1": false, "64:ff9b::a00:1": false, "2002:a00:1::": false, "::": false,
	} {
		if got := Public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: public is %v", addr, got)
		}
	}
}

// TestTheHostsOwnAddressesAreRefused: a name that somebody else chose leads to no address of
// this host, though it is public, and to none that the operator denies.
func TestTheHostsOwnAddressesAreRefused(t *testing.T) {
	own := func() ([]net.Addr, error) {
		return []net.Addr{
			&net.IPNet{IP: net.ParseIP("8.8.4.4"), Mask: net.CIDRMask(24, 32)},
			&net.IPNet{IP: net.ParseIP("2606:4700::1234"), Mask: net.CIDRMask(64, 128)},
		}, nil
	}
	denied := []netip.Prefix{netip.MustParsePrefix("9.0.0.0/8")}
	allowed := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("9.1.0.0/16")}
	for _, c := range []struct {
		addr, want string
		g          Guard
	}{
		{"8.8.4.5", "", Guard{}},
		{"8.8.4.4", "8.8.4.4 is an address of this host", Guard{}},
		{"::ffff:8.8.4.4", "8.8.4.4 is an address of this host", Guard{}},
		{"2606:4700::1234", "is an address of this host", Guard{}},
		{"2606:4700::1235", "", Guard{}},
		{"8.8.4.4", "", Guard{Allowed: []netip.Prefix{netip.MustParsePrefix("8.8.4.4/32")}}},
		{"10.1.2.3", "10.1.2.3 is not a public address", Guard{}},
		{"10.1.2.3", "", Guard{Allowed: allowed}},
		{"9.9.9.9", "", Guard{}},
		{"9.9.9.9", "denied_ranges", Guard{Denied: denied}},
		{"9.1.9.9", "denied_ranges", Guard{Denied: denied, Allowed: allowed}},
		{"9.9.9.9", "denied_ranges", Guard{Denied: denied, AnyAddr: true}},
		{"127.0.0.1", "", Guard{Denied: denied, AnyAddr: true}},
	} {
		c.g.addrs = own
		err := c.g.Check(netip.MustParseAddr(c.addr))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.addr, err, c.want)
		}
	}
	unreadable := Guard{addrs: func() ([]net.Addr, error) { return nil, errors.New("no netlink") }}
	if err := unreadable.Check(netip.MustParseAddr("8.8.8.8")); err == nil {
		t.Error("an address is allowed though this host's own are not known")
	}
	// The real interfaces, through a dialer, as every user of a Guard has it.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	errOurs := errors.New("ours")
	g := Guard{addrs: func() ([]net.Addr, error) { return own() }}
	d := net.Dialer{Control: g.Control(func(err error) error { return fmt.Errorf("%w: %w", errOurs, err) })}
	if _, err := d.Dial("tcp", l.Addr().String()); !errors.Is(err, errOurs) {
		t.Errorf("loopback: %v", err)
	}
}

func TestDeniedRanges(t *testing.T) {
	for _, c := range []struct{ list, want string }{
		{"", "[]"},
		{"192.0.2.0/24, 2001:db8::/32,9.9.9.9", "[192.0.2.0/24 2001:db8::/32 9.9.9.9/32]"},
		{"192.0.2.1/24", `"192.0.2.1/24" has bits set after its first 24; write 192.0.2.0/24`},
		{"wat", `"wat" is neither a network such as 192.0.2.0/24 nor an address`},
		{"192.0.2.0/33", `"192.0.2.0/33" is neither a network`},
		{"fe80::1%eth0", `"fe80::1%eth0" is neither a network`},
		{"::ffff:10.0.0.0/104", "write it as IPv4"},
		{strings.Repeat("9.9.9.9,", maxDenied+1), "257 ranges are listed"},
	} {
		got, err := ParseDenied(c.list)
		if s := fmt.Sprint(got); err == nil && s != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s, %v; want %s", c.list, s, err, c.want)
		}
	}
}
