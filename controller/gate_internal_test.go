package controller

import (
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bulkhead/limit"
)

// far is one end of a connection, of a client's address.
type far struct {
	net.Conn
	from net.Addr
}

func (f far) RemoteAddr() net.Addr { return f.from }

// comings is a listener of connections that a test makes.
type comings chan net.Conn

func (c comings) Accept() (net.Conn, error) { return <-c, nil }
func (c comings) Close() error              { return nil }
func (c comings) Addr() net.Addr            { return &net.TCPAddr{} }

// TestStrangersMakeRoom: when there is no place left, the address with the most
// connections loses its oldest, but none over which a good token came; one address gets
// no more than its share, and when all are known nobody else is let in.
func TestStrangersMakeRoom(t *testing.T) {
	g := newGate(ConnLimits{Most: 10, MostEach: 6, New: limit.Rate{PerSecond: 1000, Burst: 1000}}, prometheus.NewRegistry())
	in := make(comings, 1)
	l := g.listener(in)
	near := map[*gateConn]net.Conn{}
	come := func(from string) *gateConn {
		t.Helper()
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close() })
		in <- far{a, &net.TCPAddr{IP: net.ParseIP(from), Port: 1}}
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c := nc.(*gateConn)
		near[c] = b
		go b.Write([]byte("x"))
		c.Read(make([]byte, 1))
		return c
	}
	open := func(c *gateConn) bool {
		near[c].SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := near[c].Read(make([]byte, 1))
		ne, ok := err.(net.Error)
		return ok && ne.Timeout()
	}
	owner, neighbour := come("192.0.2.1"), come("192.0.2.2")
	g.mu.Lock()
	g.know(owner)
	g.mu.Unlock()
	var flood []*gateConn
	for range 6 {
		flood = append(flood, come("2001:db8::1"))
	}
	if c := come("2001:db8::2"); open(c) { // the same /64
		t.Error("one address has more than its share")
	}
	come("192.0.2.3")
	come("192.0.2.4")
	newcomer := come("192.0.2.5")
	if !open(owner) || !open(neighbour) || !open(newcomer) || open(flood[0]) || !open(flood[1]) {
		t.Errorf("owner %v, neighbour %v, newcomer %v, the flood's oldest %v and next %v", open(owner), open(neighbour), open(newcomer), open(flood[0]), open(flood[1]))
	}
	for c := range near {
		g.mu.Lock()
		g.know(c)
		g.mu.Unlock()
	}
	a, b := net.Pipe()
	defer b.Close()
	in <- far{a, &net.TCPAddr{}}
	go func() { // a place, so that Accept returns
		b.Read(make([]byte, 1)) // closed by the gate
		neighbour.Close()
		x, _ := net.Pipe()
		in <- far{x, &net.TCPAddr{}}
	}()
	nc, err := l.Accept()
	if err != nil || nc.(*gateConn).Conn.(far).Conn == a {
		t.Errorf("somebody was let in though all places are taken by who is known: %v", err)
	}
	for c := range g.open {
		c.Close()
	}
	if len(g.open)+len(g.each)+len(g.strangers) != 0 {
		t.Errorf("left: %d open, %v, %v", len(g.open), g.each, g.strangers)
	}
}
