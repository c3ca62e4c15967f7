package privnet_test

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"bulkhead/privnet"
)

func TestLayout(t *testing.T) {
	if got := privnet.MachineAddr(0x18a7b, 0x7df066, 0x3f); got != netip.MustParseAddr("fdaa:1:8a7b:7d:f066:0:3f:2") {
		t.Error(got)
	}
	if got := privnet.Prefix(0x18a7b).String(); got != "fdaa:1:8a7b::/48" {
		t.Error(got)
	}
	if got := privnet.RouterAddr(1).String(); got != "fdaa::1:0:0:1" {
		t.Error(got)
	}
	if got := privnet.MachineIPv4(300).String(); got != "198.18.1.44" {
		t.Error(got)
	}
}

// TestNothingIsSharedBetweenSlots: addresses and user ids of different slots are
// different, lie where they should, and never meet the router's.
func TestNothingIsSharedBetweenSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slot := rapid.Map(rapid.IntRange(1, int(privnet.MaxSlot)), func(i int) privnet.Slot { return privnet.Slot(i) })
		net := rapid.Map(rapid.Uint32Range(1, 1<<32-1), func(i uint32) privnet.Network { return privnet.Network(i) })
		a, b := slot.Draw(t, "a"), slot.Draw(t, "b")
		n, m := net.Draw(t, "n"), net.Draw(t, "m")
		x, y := privnet.MachineAddr(n, 1, a), privnet.MachineAddr(m, 1, b)
		if (x == y) != (a == b && n == m) {
			t.Fatalf("%v and %v", x, y)
		}
		if s, ok := privnet.SlotOf(x.String()); !ok || s != a {
			t.Fatalf("slot %d, %v read from %v of slot %d", s, ok, x, a)
		}
		if _, ok := privnet.SlotOf(privnet.RouterAddr(1).String()); ok {
			t.Fatal("a slot read from the router's address")
		}
		if !privnet.Prefix(n).Contains(x) || privnet.Prefix(m).Contains(x) != (n == m) {
			t.Fatalf("%v is in the wrong network", x)
		}
		if privnet.MachineIPv4(a) == privnet.GatewayIPv4 || x == privnet.RouterAddr(1) || x == privnet.Resolver {
			t.Fatal("a Machine has the platform's address")
		}
		lo, hi := privnet.UIDRange(a), privnet.UIDRange(a)+privnet.UIDCount-1
		if hi < lo || lo < privnet.UIDBase {
			t.Fatalf("user ids %d to %d", lo, hi)
		}
		if a < b && hi >= privnet.UIDRange(b) {
			t.Fatal("user ids overlap")
		}
	})
}
