package router

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"bulkhead/privnet"
)

// A Machine's rates: for each direction a chain of its own drops what is beyond them
// and counts it. One lookup of the interface leads to the chain, however many
// Machines there are. What a Machine sends is dropped before anything else looks at
// it; what is sent to it, as the last thing.
//
// (tc could do the same with a police action, which not every kernel has.)

// direction is one way through a Machine's interface.
type direction struct {
	set      string // the verdict map, and the base chain that asks it
	chain    string // with the slot, a Machine's chain and its counter
	key      expr.MetaKey
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
}

var directions = []direction{
	{"rate_out", "out", expr.MetaKeyIIFNAME, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(*nftables.ChainPriorityRaw - 10)},
	{"rate_in", "in", expr.MetaKeyOIFNAME, nftables.ChainHookPostrouting, nftables.ChainPriorityFilter},
}

// gate is the direction's map from interfaces to chains.
func (d direction) gate(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: d.set, IsMap: true, KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict}
}

func (d direction) name(s privnet.Slot) string { return d.chain + strconv.Itoa(int(s)) }

// counter is where the direction's drops of a Machine are counted.
func (d direction) counter(t *nftables.Table, s privnet.Slot) *nftables.CounterObj {
	return &nftables.CounterObj{Table: t, Name: d.name(s)}
}

// objectCounter is NFT_OBJECT_COUNTER.
const objectCounter = 1

// queueRates queues the members' chains and what leads to them.
func queueRates(c *nftables.Conn, t *nftables.Table, members []Member) error {
	for _, d := range directions {
		var elements []nftables.SetElement
		for _, m := range members {
			ch := c.AddChain(&nftables.Chain{Name: d.name(m.Slot), Table: t})
			c.AddObj(d.counter(t, m.Slot))
			for _, l := range rates(m) {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(l, &expr.Objref{Type: objectCounter, Name: d.name(m.Slot)}, drop)})
			}
			elements = append(elements, nftables.SetElement{
				Key: ifname(linkName(m.Slot)), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: ch.Name},
			})
		}
		if err := c.SetAddElements(d.gate(t), elements); err != nil {
			return err
		}
	}
	return nil
}

// rates match what is beyond a member's rates. The kernel lets a second's worth pass
// at once.
func rates(m Member) (out []expr.Any) {
	if m.Mbps > 0 {
		out = append(out, &expr.Limit{Type: expr.LimitTypePktBytes, Rate: uint64(m.Mbps) * 1e6 / 8, Over: true, Unit: expr.LimitTimeSecond})
	}
	if m.PacketsPerSecond > 0 {
		out = append(out, &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(m.PacketsPerSecond), Over: true, Unit: expr.LimitTimeSecond, Burst: uint32(m.PacketsPerSecond)})
	}
	return out
}

// removeRates takes a member's chains away. What is not there is made first, so that
// it can be taken away all the same.
func removeRates(c *nftables.Conn, t *nftables.Table, m Member) error {
	for _, d := range directions {
		element := []nftables.SetElement{{Key: ifname(linkName(m.Slot)), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: d.name(m.Slot)}}}
		if err := c.SetDeleteElements(d.gate(t), element); err != nil {
			return err
		}
		if err := c.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove rate limit: %w", err)
		}
		ch := c.AddChain(&nftables.Chain{Name: d.name(m.Slot), Table: t})
		c.FlushChain(ch)
		c.DelChain(ch)
		c.DeleteObject(c.AddObj(d.counter(t, m.Slot)))
		if err := c.Flush(); err != nil {
			return fmt.Errorf("remove rate limit: %w", err)
		}
	}
	return nil
}

// Traffic is what went through a Machine's interface, as the Machine sees it.
type Traffic struct{ Sent, Received Flow }

// Flow is one direction of it.
type Flow struct {
	Bytes, Packets uint64
	Dropped        uint64 // packets beyond its rate
}

// Traffic reads the counters of all Machines.
func (r *Router) Traffic() (map[privnet.Slot]Traffic, error) {
	links, err := r.nl.LinkList()
	if err != nil {
		return nil, err
	}
	out := make(map[privnet.Slot]Traffic, len(links))
	for _, l := range links {
		slot, ok := slotOf(l.Attrs().Name, linkPrefix)
		if st := l.Attrs().Statistics; ok && st != nil { // the router's end: it receives what the Machine sends
			out[slot] = Traffic{Sent: Flow{Bytes: st.RxBytes, Packets: st.RxPackets}, Received: Flow{Bytes: st.TxBytes, Packets: st.TxPackets}}
		}
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(r.ns.Fd())))
	if err != nil {
		return out, err
	}
	objects, err := c.GetObjects(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
	if err != nil {
		return out, fmt.Errorf("read dropped packets: %w", err)
	}
	for _, o := range objects {
		n, ok := o.(*nftables.CounterObj)
		if !ok {
			continue
		}
		if slot, ok := slotOf(n.Name, directions[0].chain); ok {
			t := out[slot]
			t.Sent.Dropped = n.Packets
			out[slot] = t
		} else if slot, ok := slotOf(n.Name, directions[1].chain); ok {
			t := out[slot]
			t.Received.Dropped = n.Packets
			out[slot] = t
		}
	}
	return out, nil
}

// slotOf undoes linkName and direction.name.
func slotOf(name, prefix string) (privnet.Slot, bool) {
	num, ok := strings.CutPrefix(name, prefix)
	n, err := strconv.ParseUint(num, 10, 32)
	return privnet.Slot(n), ok && err == nil
}
