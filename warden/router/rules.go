package router

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"bulkhead/privnet"
)

// Names of the table and the sets inside the router namespace. Per-Machine changes
// are changes of set elements; the rules are written once.
const (
	tableName    = "bulkhead"
	setSource6   = "source6" // interface and source address that belong together
	setSource4   = "source4"
	setPeers6    = "peers6" // interface and /48 that it may reach
	setDenied4   = "denied4"
	elementBatch = 16 // members per transaction, well below the buffers of netlink
)

// accept, drop and so on end a rule.
var (
	accept  = &expr.Verdict{Kind: expr.VerdictAccept}
	drop    = &expr.Verdict{Kind: expr.VerdictDrop}
	counter = &expr.Counter{}
)

// ifname pads an interface name as the kernel compares it.
func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// The rules' building blocks. Register 1 takes the first operand, 2 the second; a
// lookup of a concatenation reads both.
func iif(name string) []expr.Any { return metaIs(expr.MetaKeyIIFNAME, ifname(name)) }
func oif(name string) []expr.Any { return metaIs(expr.MetaKeyOIFNAME, ifname(name)) }
func family(f byte) []expr.Any   { return metaIs(expr.MetaKeyNFPROTO, []byte{f}) }

func metaIs(k expr.MetaKey, v []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: k, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: v}}
}

func loadIIF() expr.Any { return &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1} }

// load reads an address of the network header: offset and length say which.
func load(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func lookup(s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}
}

// ctState matches connections in any of the states of mask.
func ctState(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// Flags in the TCP header.
const fin, syn, rst, ack byte = 0x01, 0x02, 0x04, 0x10

// tcpFlags matches packets whose flags, of those in mask, are exactly those set.
func tcpFlags(set, mask byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{set}},
	}
}

const replies = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED

// Offsets and lengths of addresses in the two network headers.
const (
	src6, dst6, len6 = 8, 24, 16
	src4, dst4, len4 = 12, 16, 4
)

func join(parts ...any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case expr.Any:
			out = append(out, p)
		case []expr.Any:
			out = append(out, p...)
		}
	}
	return out
}

// sets returns the router's sets, belonging to t.
func sets(t *nftables.Table) (source6, source4, peers6, denied4 *nftables.Set) {
	pair6 := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)
	pair4 := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
	source6 = &nftables.Set{Table: t, Name: setSource6, KeyType: pair6, Concatenation: true}
	source4 = &nftables.Set{Table: t, Name: setSource4, KeyType: pair4, Concatenation: true}
	peers6 = &nftables.Set{Table: t, Name: setPeers6, KeyType: pair6, Concatenation: true}
	denied4 = &nftables.Set{Table: t, Name: setDenied4, KeyType: nftables.TypeIPAddr, Interval: true}
	return
}

// setNumbers guards the variable with which nftables numbers sets.
var setNumbers sync.Mutex

// addSet queues a set; transactions of several goroutines may be in the making.
func addSet(c *nftables.Conn, s *nftables.Set, elements []nftables.SetElement) error {
	setNumbers.Lock()
	defer setNumbers.Unlock()
	return c.AddSet(s, elements)
}

// ensureRules writes the table anew, with members, in one transaction: at no time
// do packets pass without rules.
func (r *Router) ensureRules(members []Member) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(r.ns.Fd())))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	c.AddTable(t) // so that deleting it cannot fail
	c.DelTable(t)
	c.AddTable(t)
	source6, source4, peers6, denied4 := sets(t)
	for _, s := range []*nftables.Set{source6, source4, peers6} {
		if err := addSet(c, s, nil); err != nil {
			return err
		}
	}
	if err := addSet(c, denied4, intervals(denied(r.config.Denied))); err != nil {
		return err
	}
	for _, d := range directions {
		if err := addSet(c, d.gate(t), nil); err != nil {
			return err
		}
	}
	first := members[:min(len(members), elementBatch)]
	if err := r.queueElements(c, t, first); err != nil {
		return err
	}
	flows4 := flowSet(t)
	if err := addSet(c, flows4, nil); err != nil {
		return err
	}
	r.addRouterChains(c, t, source6, source4, peers6, denied4, flows4)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write packet rules: %w", err)
	}
	for rest := members[len(first):]; len(rest) > 0; {
		n := min(len(rest), elementBatch)
		if err := r.addElements(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// addRouterChains queues the chains.
func (r *Router) addRouterChains(c *nftables.Conn, t *nftables.Table, source6, source4, peers6, denied4, flows4 *nftables.Set) {
	chain := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority, typ nftables.ChainType, policy nftables.ChainPolicy) func(...any) {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Hooknum: hook, Priority: prio, Type: typ, Policy: &policy})
		return func(parts ...any) { c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(parts...)}) }
	}
	samenet := []expr.Any{
		loadIIF(), load(2, dst6, len6),
		&expr.Bitwise{SourceRegister: 2, DestRegister: 2, Len: len6, Mask: append(bytes.Repeat([]byte{0xff}, 6), make([]byte, 10)...), Xor: make([]byte, 16)},
		lookup(peers6),
	}

	// Before connection tracking: a packet whose source does not belong to its
	// interface leaves no trace. Traffic inside a network is not tracked at all, so no
	// Machine can fill the table that way.
	track := c.AddChain(&nftables.Chain{Name: "track", Table: t})
	// What is for another network ends here, before routing, which would tell the sender
	// by its answer whether there is such a Machine.
	own := privnet.RouterAddr(r.config.Host).As16()
	for _, rule := range [][]expr.Any{
		join(samenet, &expr.Notrack{}, accept),
		join(load(1, dst6, len6), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: own[:]}, accept),
		join(load(1, dst6, 2), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: own[:2]}, counter, drop), // fdaa::/16
		join(accept),
	} {
		c.AddRule(&nftables.Rule{Table: t, Chain: track, Exprs: rule})
	}
	for _, d := range directions {
		ch := chain(d.set, d.hook, d.priority, nftables.ChainTypeFilter, nftables.ChainPolicyAccept)
		ch(&expr.Meta{Key: d.key, Register: 1}, &expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: d.set})
	}
	in := chain("ingress", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainTypeFilter, nftables.ChainPolicyDrop)
	in(iif("lo"), accept)
	in(family(unix.NFPROTO_IPV4), iif(uplinkName), accept)
	in(family(unix.NFPROTO_IPV6), loadIIF(), load(2, src6, len6), lookup(source6), &expr.Verdict{Kind: expr.VerdictJump, Chain: "track"})
	slots, mask := privnet.MachineIPv4(0).As4(), []byte{255, 255, 0, 0}
	gateway := privnet.GatewayIPv4.As4()
	in(family(unix.NFPROTO_IPV4), load(1, dst4, len4), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: gateway[:]},
		loadIIF(), load(2, src4, len4), lookup(source4), accept)
	in(family(unix.NFPROTO_IPV4), load(1, dst4, len4), &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: len4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: slots[:]}, counter, drop)
	in(family(unix.NFPROTO_IPV4), loadIIF(), load(2, src4, len4), lookup(source4), accept)

	// To the router's own addresses: answers to the edge, nothing else. Nothing that is
	// merely "related": every link has one MTU, and a Machine has no news of others.
	input := chain("input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter, nftables.ChainPolicyDrop)
	input(iif("lo"), accept)
	input(ctState(expr.CtStateBitESTABLISHED), accept)

	forward := chain("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter, nftables.ChainPolicyDrop)
	forward(ctState(replies), accept)
	forward(family(unix.NFPROTO_IPV6), samenet, accept)
	forward(family(unix.NFPROTO_IPV4), oif(uplinkName), load(1, dst4, len4), lookup(denied4), counter, drop)
	forward(family(unix.NFPROTO_IPV4), iif(uplinkName), counter, drop)
	forward(family(unix.NFPROTO_IPV4), oif(uplinkName), overFlows(flows4), counter, drop)
	forward(family(unix.NFPROTO_IPV4), oif(uplinkName), accept)

	// The edge lives here: it reaches Machines, from the router's addresses (a program
	// without any privilege may choose another, with IPV6_FREEBIND or IP_FREEBIND), and
	// nothing through the uplink. By IPv4 a connection begins with its first packet: an
	// address passes to the next Machine of the slot, and what was sent to the one before
	// must not.
	output := chain("output", nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter, nftables.ChainPolicyDrop)
	output(oif("lo"), accept)
	output(oif(uplinkName), counter, drop)
	output(family(unix.NFPROTO_IPV6), load(1, src6, len6), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: own[:]}, accept)
	fromGateway := join(family(unix.NFPROTO_IPV4), load(1, src4, len4), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: gateway[:]},
		metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}))
	output(fromGateway, ctState(expr.CtStateBitESTABLISHED), accept)
	output(fromGateway, ctState(expr.CtStateBitNEW), tcpFlags(syn, syn|ack|rst|fin), accept)
	output(family(unix.NFPROTO_IPV4), metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMP}), accept)

	nat := chain("nat", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT, nftables.ChainPolicyAccept)
	nat(family(unix.NFPROTO_IPV4), oif(uplinkName), &expr.Masq{})
}

// denied are the IPv4 ranges that egress never reaches: what is not public, and more.
func denied(more []netip.Prefix) []netip.Prefix { return slices.Concat(privnet.DeniedIPv4, more) }

// intervals turns the IPv4 prefixes of a list into the elements of an interval set, whose
// intervals must be sorted and must not touch.
func intervals(prefixes []netip.Prefix) []nftables.SetElement {
	type interval struct{ start, end uint64 } // end is the first address after it
	var all []interval
	for _, p := range prefixes {
		if p.Addr().Is4() {
			start := uint64(binary.BigEndian.Uint32(p.Masked().Addr().AsSlice()))
			all = append(all, interval{start, start + 1<<(32-p.Bits())})
		}
	}
	slices.SortFunc(all, func(a, b interval) int { return cmp.Compare(a.start, b.start) })
	merged := all[:0]
	for _, i := range all {
		if n := len(merged); n > 0 && i.start <= merged[n-1].end {
			merged[n-1].end = max(merged[n-1].end, i.end)
		} else {
			merged = append(merged, i)
		}
	}
	var out []nftables.SetElement
	for _, i := range merged {
		out = append(out, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(i.start))})
		if i.end < 1<<32 {
			out = append(out, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(i.end)), IntervalEnd: true})
		}
	}
	return out
}

// elements are the members' entries in the three sets.
func (r *Router) elements(members []Member) (source6, source4, peers6 []nftables.SetElement) {
	key := func(m Member, a netip.Addr) []nftables.SetElement {
		return []nftables.SetElement{{Key: append(ifname(linkName(m.Slot)), a.AsSlice()...)}}
	}
	for _, m := range members {
		source6 = append(source6, key(m, privnet.MachineAddr(m.Network, r.config.Host, m.Slot))...)
		source4 = append(source4, key(m, privnet.MachineIPv4(m.Slot))...)
		peers6 = append(peers6, key(m, privnet.Prefix(m.Network).Addr())...)
	}
	return
}

func (r *Router) queueElements(c *nftables.Conn, t *nftables.Table, members []Member) error {
	if len(members) == 0 {
		return nil
	}
	s6, s4, p6, _ := sets(t)
	e6, e4, ep := r.elements(members)
	return errors.Join(c.SetAddElements(s6, e6), c.SetAddElements(s4, e4), c.SetAddElements(p6, ep), queueRates(c, t, members))
}

// addElements lets members send.
func (r *Router) addElements(members []Member) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := nftables.New(nftables.WithNetNSFd(int(r.ns.Fd())))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	if err := r.queueElements(c, t, members); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("add packet rule elements: %w", err)
	}
	return nil
}

// removeElements takes a member out of the sets, each on its own: one that is not
// there is no error.
func (r *Router) removeElements(m Member) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := nftables.New(nftables.WithNetNSFd(int(r.ns.Fd())))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	s6, s4, p6, _ := sets(t)
	e6, e4, ep := r.elements([]Member{m})
	var errs []error
	for set, e := range map[*nftables.Set][]nftables.SetElement{s6: e6, s4: e4, p6: ep} {
		if err := c.SetDeleteElements(set, e); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := c.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove packet rule elements: %w", err))
		}
	}
	return errors.Join(append(errs, removeRates(c, t, m))...)
}

// Members returns the slots that the packet rules know, in order.
func (r *Router) Members() ([]privnet.Slot, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(r.ns.Fd())))
	if err != nil {
		return nil, err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	s6, s4, p6, _ := sets(t)
	seen := map[privnet.Slot]bool{}
	var slots []privnet.Slot
	for _, set := range []*nftables.Set{s6, s4, p6} {
		es, err := c.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("read packet rule elements: %w", err)
		}
		for _, e := range es {
			name, _, _ := bytes.Cut(e.Key[:unix.IFNAMSIZ], []byte{0})
			var s privnet.Slot
			if _, err := fmt.Sscanf(string(name), linkPrefix+"%d", &s); err == nil && !seen[s] {
				seen[s] = true
				slots = append(slots, s)
			}
		}
	}
	slices.Sort(slots)
	return slots, nil
}
