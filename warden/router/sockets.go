package router

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/inet_diag.h and linux/sock_diag.h, what package nl does not name. A
// socket's ID (ports, addresses, interface, cookie) has the same form in questions
// and answers.
const (
	diagHeader   = 8  // of a question, before the ID
	diagAnswerID = 4  // where the ID begins in an answer
	diagIDSize   = 48 // bytes
	diagBytecode = 1  // the attribute INET_DIAG_REQ_BYTECODE
	diagDCond    = 8  // the operation INET_DIAG_BC_D_COND: compare the remote address
	tcpAlive     = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9
)

// endSockets ends this namespace's own TCP connections to dst, the edge's, when the
// Machine there is gone: its sandbox may have been killed, and a caller would wait
// for an answer for as long as the edge does. A kernel that cannot (before 4.9, or
// built without INET_DIAG or INET_DIAG_DESTROY) leaves them to the edge's keep-alive.
func (r *Router) endSockets(dst netip.Addr) error { return r.endSocketsOf(familyOf(dst), dst) }

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// endSocketsOf is endSockets for the family of addresses that dst is of.
func (r *Router) endSocketsOf(family byte, dst netip.Addr) error {
	var ids [][]byte
	dump := r.sockDiag(family, nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, make([]byte, diagIDSize), nl.NewRtAttr(diagBytecode, remoteIs(dst)).Serialize())
	err := dump.ExecuteIter(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
		if len(msg) >= diagAnswerID+diagIDSize {
			ids = append(ids, bytes.Clone(msg[diagAnswerID:][:diagIDSize]))
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	errs := []error{err}
	for _, id := range ids {
		_, err := r.sockDiag(family, nl.SOCK_DESTROY, unix.NLM_F_ACK, id).Execute(unix.NETLINK_SOCK_DIAG, 0)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it ended by itself
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("end connections to %s: %w", dst, err)
	}
	return nil
}

// sockDiag makes a request about TCP to the router namespace's socket diagnosis.
func (r *Router) sockDiag(family byte, operation, flags int, parts ...[]byte) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(operation, flags)
	req.Sockets = r.sockets
	head := make([]byte, diagHeader) // struct inet_diag_req_v2
	head[0], head[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(head[4:], tcpAlive)
	req.AddRawData(append(head, bytes.Join(parts, nil)...))
	return req
}

// remoteIs is the bytecode that takes the sockets whose remote address is a, so that
// the kernel does not tell of all the others.
func remoteIs(a netip.Addr) []byte {
	addr := a.AsSlice()
	size := 4 + 8 + len(addr)
	b := make([]byte, 0, size) // struct inet_diag_bc_op, inet_diag_hostcond
	b = append(b, diagDCond, byte(size))
	b = binary.NativeEndian.AppendUint16(b, uint16(size+4)) // where to go on when it is not: past the end
	b = append(b, familyOf(a), byte(a.BitLen()), 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any port
	return append(b, addr...)
}
