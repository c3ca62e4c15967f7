package upstream

import (
	"context"
	"errors"
	"net"
	"syscall"
)

// Connect returns a new connection to the Machine, which the pool does not keep: by its
// IPv6 address, or by IPv4 when the app listens on that alone.
//
// An IPv6 address names a Machine's network, an IPv4 address only its slot, which a
// Machine of another organization may have by now. So an IPv4 connection counts only when
// the IPv6 address was refused after it was made: whoever refused holds the slot, and the
// connections of an earlier holder were ended. The refusal comes from this node, within
// microseconds.
func (p *Pool) Connect(ctx context.Context) (net.Conn, error) {
	by4 := p.by4.Load()
	if !by4 {
		c, err := p.dial(ctx, p.addr)
		if p.addr4 == "" || !errors.Is(err, syscall.ECONNREFUSED) {
			return c, err
		}
		c4, err4 := p.dial(ctx, p.addr4)
		if err4 != nil {
			return nil, err
		}
		return p.proven(ctx, c4)
	}
	c4, err := p.dial(ctx, p.addr4)
	if err != nil {
		p.by4.Store(false)
		return p.dial(ctx, p.addr)
	}
	return p.proven(ctx, c4)
}

// proven returns c4 when it leads to the Machine, else what the IPv6 address gives.
func (p *Pool) proven(ctx context.Context, c4 net.Conn) (net.Conn, error) {
	c, err := p.dial(ctx, p.addr)
	by4 := errors.Is(err, syscall.ECONNREFUSED)
	p.by4.Store(by4)
	if by4 {
		return c4, nil
	}
	c4.Close()
	return c, err
}
