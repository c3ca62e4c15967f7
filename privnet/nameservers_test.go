package privnet

import (
	"fmt"
	"strings"
	"testing"
)

func TestNameserversThatMachinesReach(t *testing.T) {
	for _, c := range []struct{ conf, want string }{
		{"# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver 192.168.1.1\nnameserver 169.254.169.254\n" +
			"nameserver 100.100.100.100\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver fd00::53\nnameserver 168.63.129.16\n" +
			"nameserver 2620:fe::fe\noptions x\nnameserver 9.9.9.9\nnameserver nonsense\nnameserver ::ffff:8.8.8.8\nnameserver 1.1.1.1\n",
			"[9.9.9.9 8.8.8.8 2620:fe::fe]"},
		{"nameserver 2620:fe::fe\n", "[]"},
		{"nameserver 10.0.0.2\nsearch nameserver\nnameserver", "[]"},
		{"", "[]"},
	} {
		if got := fmt.Sprint(Nameservers(c.conf)); got != c.want {
			t.Errorf("%q: %s, not %s", c.conf, got, c.want)
		}
	}
}

func TestNameserversOfAnOperator(t *testing.T) {
	for _, c := range []struct{ list, want string }{
		{"", "[]"},
		{" 2620:fe::fe, 9.9.9.9,", "[9.9.9.9 2620:fe::fe]"},
		{"9.9.9.9,dns.example", `"dns.example" is not an IP address`},
		{"fe80::1%eth0", "not an IP address"},
		{"10.0.0.2", "machines cannot reach 10.0.0.2"},
		{"127.0.0.53", "machines cannot reach 127.0.0.53"},
		{"168.63.129.16", "machines cannot reach"},
		{"::ffff:192.168.1.1", "machines cannot reach"},
		{"1.1.1.1,8.8.8.8,9.9.9.9,4.4.4.4", "4 are listed; a resolver reads at most 3"},
		{"2620:fe::fe", "machines reach IPv4 only"},
	} {
		got, err := ParseNameservers(c.list)
		text := fmt.Sprint(got)
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, c.want) {
			t.Errorf("%q: %s, not %s", c.list, text, c.want)
		}
	}
}
