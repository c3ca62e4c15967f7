package router

import (
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/privnet"
)

// probing is held by a Probe: the netlink library numbers sets in a variable that it
// does not guard.
var probing sync.Mutex

// Probe makes everything that a node's router and its uplink are made of once, with
// the code that makes them, in a network namespace that is gone when it returns. Its
// error says which part the kernel refused.
func Probe() error {
	probing.Lock()
	defer probing.Unlock()
	r := &Router{config: Config{Tag: "prob", Host: 1}}
	defer r.Close()
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		r.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return err
	}
	if r.nl, err = netlinkAt(r.ns); err != nil {
		return err
	}
	if r.sockets, err = socketsAt(r.ns); err != nil {
		return err
	}
	if err := Do(r.ns, routerSysctls); err != nil {
		return fmt.Errorf("set up a network namespace: %w", err)
	}
	if err := r.ensureAddresses(); err != nil {
		return fmt.Errorf("addresses and routes: %w", err)
	}
	if err := r.ensureRules([]Member{{Slot: privnet.Slot(1), Network: privnet.Network(1)}}); err != nil {
		return fmt.Errorf("nftables, inside: %w", err)
	}
	uplink := netip.MustParsePrefix("198.18.0.0/30")
	if err := Do(r.ns, func() error { return hostRules(r.config, uplink) }); err != nil {
		return fmt.Errorf("nftables, on the host's side: %w", err)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, PeerName: "probe1"}
	if err := r.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("a veth pair: %w", err)
	}
	return nil
}
