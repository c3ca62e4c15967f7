package controller

import (
	"net/netip"
	"slices"
	"testing"
)

// TestListenAddresses reads the kernel's tables of sockets, and passes over what a Machine
// may have written in their place.
func TestListenAddresses(t *testing.T) {
	const tables = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 3
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 0 0 0
   1: 00000000000000000000000001000000:1F92 00000000000000000000000000000000:0000 0A 0 0 0
   2: zz:1F92 0:0 0A
   3: 0100007F:123456 0:0 0A
   4: 01:1 0:0 0A
`
	want := []string{"127.0.0.1:8080", "0.0.0.0:3000", "[::]:8081", "[::1]:8082"}
	if got := listenAddresses(tables); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// FuzzListenAddresses: whatever a Machine writes in place of its tables, the answer is a few
// addresses, each once, and nothing else of what it wrote.
func FuzzListenAddresses(f *testing.F) {
	for _, s := range []string{
		"   0: 0100007F:1F90 00000000:0000 0A 0 0\n", "   1: 00000000000000000000000001000000:1F92 0:0 0A\n",
		"0: 0000000000000000FFFF00000100007F:1F90 0:0 0A", "a b c 0A", "0: :1 0 0A", "0: 0100007F: 0 0A", "\x00", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		found := listenAddresses(s)
		if len(found) > maxListens {
			t.Errorf("%d addresses", len(found))
		}
		for i, at := range found {
			if _, err := netip.ParseAddrPort(at); err != nil || slices.Contains(found[:i], at) {
				t.Errorf("%q of %q: %v", at, s, err)
			}
		}
	})
}
