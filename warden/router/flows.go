package router

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// maxFlows is how many connections to the internet a Machine may have at a time, as
// connection tracking counts them. The tables, the router's and the host's, have
// room for 65536 and more; one that is full stops everybody's traffic.
const maxFlows = 8192

// setFlows4 counts each Machine's connections to the internet, by its interface.
const setFlows4 = "flows4"

// flowSet is the set behind setFlows4; the kernel adds the elements.
func flowSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: setFlows4, KeyType: nftables.TypeIFName, Dynamic: true, Size: 1 << 16}
}

// overFlows matches a packet that begins a connection for which its interface has no
// room. One that is dropped for it leaves nothing in the table.
func overFlows(s *nftables.Set) []expr.Any {
	return join(ctState(expr.CtStateBitNEW), loadIIF(), &expr.Dynset{
		SrcRegKey: 1, SetName: s.Name, SetID: s.ID, Operation: uint32(unix.NFT_DYNSET_OP_ADD),
		Exprs: []expr.Any{&expr.Connlimit{Count: maxFlows, Flags: expr.NFT_CONNLIMIT_F_INV}},
	})
}

// Attributes of connection tracking (linux/netfilter/nfnetlink_conntrack.h) that
// package nl does not name.
const (
	ctaFilter          = 25
	ctaFilterOrigFlags = 1
	ctaFilterSource    = 1 << 0 // CTA_FILTER_FLAG(CTA_IP_SRC)
	ctaFilterDest      = 1 << 1 // CTA_FILTER_FLAG(CTA_IP_DST)
)

// endFlows makes connection tracking forget what came from a, an IPv4 address that is
// to be given to another Machine, and what the edge opened to it: packets of those
// connections would pass between the edge, the internet and that Machine.
func (r *Router) endFlows(a netip.Addr) error {
	return errors.Join(
		r.endFlowsOf(a, nl.CTA_IP_V4_SRC, ctaFilterSource),
		r.endFlowsOf(a, nl.CTA_IP_V4_DST, ctaFilterDest))
}

// endFlowsOf is endFlows for one end of the connections: attr names the address there,
// filter says so to the kernel.
func (r *Router) endFlowsOf(a netip.Addr, attr uint16, filter uint32) error {
	dump := r.conntrack(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil).AddRtAttr(int(attr), a.AsSlice())
	dump.AddData(tuple)
	only := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	only.AddRtAttr(ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, filter))
	dump.AddData(only)
	var flows [][]byte
	err := dump.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		// A kernel before 5.8 does not know the filter and gives all.
		if end, ok := flowEnd(msg, attr); ok && end == a {
			flows = append(flows, bytes.Clone(msg))
		}
		return true
	})
	errs := []error{err}
	for _, f := range flows {
		del := r.conntrack(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		del.AddRawData(f[nl.SizeofNfgenmsg:])
		if _, err := del.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("end connections of %s: %w", a, err)
	}
	return nil
}

// socketsAt opens sockets to the connection tracking and to the socket diagnosis of
// the namespace ns.
func socketsAt(ns *os.File) (map[int]*nl.SocketHandle, error) {
	all := map[int]*nl.SocketHandle{}
	for _, family := range []int{unix.NETLINK_NETFILTER, unix.NETLINK_SOCK_DIAG} {
		s, err := nl.GetNetlinkSocketAt(netns.NsHandle(ns.Fd()), netns.None(), family)
		if err == nil {
			all[family] = &nl.SocketHandle{Socket: s}
			err = errors.Join(s.SetSendTimeout(&nl.SocketTimeoutTv), s.SetReceiveTimeout(&nl.SocketTimeoutTv))
		}
		if err != nil {
			for _, h := range all {
				h.Close()
			}
			return nil, fmt.Errorf("netlink: %w", err)
		}
	}
	return all, nil
}

// conntrack makes a request to the router namespace's connection tracking.
func (r *Router) conntrack(operation, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.Sockets = r.sockets
	req.AddData(&nl.Nfgenmsg{NfgenFamily: netlink.FAMILY_V4, Version: nl.NFNETLINK_V0})
	return req
}

// flowEnd finds one end of a connection, as it was begun, in a message of the dump.
func flowEnd(msg []byte, attr uint16) (netip.Addr, bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return netip.Addr{}, false
	}
	b := msg[nl.SizeofNfgenmsg:]
	for _, kind := range []uint16{nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_IP, attr} {
		attrs, err := nl.ParseRouteAttr(b)
		if err != nil {
			return netip.Addr{}, false
		}
		b = nil
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK == kind {
				b = a.Value
			}
		}
	}
	return netip.AddrFromSlice(b)
}
