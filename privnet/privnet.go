// Package privnet is the address plan of the private network: pure functions from
// (network, node, slot) to addresses. It follows Fly's layout, so that its
// documents hold: fdaa, 32 bits of network, 32 bits of host, 32 bits of Machine,
// a /112 each.
package privnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Network numbers a private network. 0 is the platform's own and holds no Machine.
type Network uint32

// Host numbers a node inside the address plan, from 1.
type Host uint32

// Slot numbers a place for a Machine on a node, from 1 to MaxSlot. A slot also
// gives the Machine its IPv4 address and its range of user ids.
type Slot uint32

// MaxSlot is the highest slot of a node.
const MaxSlot Slot = 32000

// UIDBase is the first host user id of slot 0, and UIDCount the size of a
// Machine's range. The ids from 2^31 on are those that systemd's "Users, Groups,
// UIDs and GIDs" leaves to nobody else.
const (
	UIDBase  = 1 << 31
	UIDCount = 1 << 16
)

// MachineAddr returns the private IPv6 address of the Machine in slot s:
// fdaa:NNNN:NNNN:HHHH:HHHH:SSSS:SSSS:2.
func MachineAddr(n Network, h Host, s Slot) netip.Addr {
	var a [16]byte
	a[0], a[1] = 0xfd, 0xaa
	binary.BigEndian.PutUint32(a[2:], uint32(n))
	binary.BigEndian.PutUint32(a[6:], uint32(h))
	binary.BigEndian.PutUint32(a[10:], uint32(s))
	a[15] = 2
	return netip.AddrFrom16(a)
}

// SlotOf reads the slot back from what MachineAddr gave, as text.
func SlotOf(addr string) (Slot, bool) {
	a, err := netip.ParseAddr(addr)
	if err != nil || !a.Is6() || a.Zone() != "" {
		return 0, false
	}
	b := a.As16()
	s := Slot(binary.BigEndian.Uint32(b[10:]))
	return s, a == MachineAddr(Network(binary.BigEndian.Uint32(b[2:])), Host(binary.BigEndian.Uint32(b[6:])), s) && CheckSlot(s) == nil
}

// Prefix returns the /48 of a network.
func Prefix(n Network) netip.Prefix {
	var a [16]byte
	a[0], a[1] = 0xfd, 0xaa
	binary.BigEndian.PutUint32(a[2:], uint32(n))
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// RouterAddr is the address from which a node's edge reaches Machines:
// fdaa:0:0:HHHH:HHHH::1, in the platform's own network.
func RouterAddr(h Host) netip.Addr {
	var a [16]byte
	a[0], a[1] = 0xfd, 0xaa
	binary.BigEndian.PutUint32(a[6:], uint32(h))
	a[15] = 1
	return netip.AddrFrom16(a)
}

// Resolver is the address of the platform's DNS resolver as Machines see it.
var Resolver = netip.MustParseAddr("fdaa::3")

// MachineIPv4 returns the Machine's IPv4 address, which serves for NATed egress and
// for its node's edge: 198.18.0.0/16 is set aside by RFC 2544 and routed nowhere. It
// follows from the slot alone, so the next Machine of the slot has it too.
func MachineIPv4(s Slot) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(s >> 8), byte(s)})
}

// GatewayIPv4 is the next hop of every Machine, and the address from which a node's
// edge reaches Machines by IPv4. It is slot 65534's, which is above MaxSlot.
var GatewayIPv4 = netip.AddrFrom4([4]byte{198, 18, 255, 254})

// GatewayIPv6 is the link-local next hop of every Machine.
var GatewayIPv6 = netip.MustParseAddr("fe80::1")

// UIDRange returns the first host user id of the Machine in slot s; UIDCount ids
// from there are its own, for users and groups alike.
func UIDRange(s Slot) uint32 { return UIDBase + uint32(s)*UIDCount }

// CheckSlot reports whether s may be given to a Machine.
func CheckSlot(s Slot) error {
	if s < 1 || s > MaxSlot {
		return fmt.Errorf("slot %d is not between 1 and %d", s, MaxSlot)
	}
	return nil
}
