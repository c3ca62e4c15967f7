package fake

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"bulkhead/key"
	"bulkhead/sandbox"
)

// door is a listener: knocks come, connections go.
type door struct {
	box    *box
	knocks chan chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen is sandbox.Runtime's.
func (h *Host) Listen(ctx context.Context, id key.MachineID) (net.Listener, error) {
	b, err := h.running("listen", id)
	if err != nil {
		return nil, err
	}
	d := &door{box: b, knocks: make(chan chan net.Conn), closed: make(chan struct{})}
	b.mu.Lock()
	b.door = d
	b.mu.Unlock()
	return d, h.after("listen", id)
}

// Accept is net.Listener's.
func (d *door) Accept() (net.Conn, error) {
	select {
	case k := <-d.knocks:
		inside, outside := net.Pipe()
		k <- inside
		return outside, nil
	case <-d.closed:
	case <-d.box.done:
	}
	return nil, net.ErrClosed
}

// Close is net.Listener's.
func (d *door) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Addr is net.Listener's.
func (d *door) Addr() net.Addr {
	return &net.UnixAddr{Net: "unix", Name: string(d.box.spec.Machine) + ":" + sandbox.APISocket}
}

// Connect is what a process does with sandbox.APISocket.
func (p *Process) Connect() (net.Conn, error) {
	p.box.mu.Lock()
	d := p.box.door
	p.box.mu.Unlock()
	if d == nil {
		return nil, syscall.ECONNREFUSED
	}
	k := make(chan net.Conn, 1)
	select {
	case d.knocks <- k:
		return <-k, nil
	case <-d.closed:
		return nil, syscall.ECONNREFUSED
	case <-time.After(time.Second):
		return nil, syscall.EAGAIN
	}
}
