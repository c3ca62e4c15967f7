package controller

import (
	"fmt"
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
	g := newGate(ConnLimits{Most: 10, MostEach: 6, MostUser: 10, MostKnown: 10, New: limit.Rate{PerSecond: 1000, Burst: 1000}}, prometheus.NewRegistry())
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
	g.know(owner, "owner")
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
		g.know(c, "owner")
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
	if len(g.open)+len(g.each)+len(g.strangers)+len(g.known)+g.knownAll != 0 {
		t.Errorf("left: %d open, %v, %v, %v", len(g.open), g.each, g.strangers, g.known)
	}
}

// TestTokensDoNotTakeEveryPlace: who has a good token and many addresses, or many users,
// leaves places to others. The control is without the two bounds.
func TestTokensDoNotTakeEveryPlace(t *testing.T) {
	const most = 64
	for name, c := range map[string]struct {
		users  int
		limits ConnLimits
		in     bool
	}{
		"one user":                {1, ConnLimits{}, true},
		"many users":              {most, ConnLimits{}, true},
		"one user, the control":   {1, ConnLimits{MostUser: most, MostKnown: most}, false},
		"many users, the control": {most, ConnLimits{MostKnown: most}, false},
	} {
		l := c.limits
		l.Most, l.MostEach, l.New = most, most/8, limit.Rate{PerSecond: 1000, Burst: 1000}
		g := newGate(l, prometheus.NewRegistry())
		enter := func(i int) *gateConn {
			a, b := net.Pipe()
			t.Cleanup(func() { a.Close(); b.Close() })
			gc := &gateConn{Conn: far{a, &net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(i)), Port: 1}}, g: g}
			if !g.enter(gc) {
				return nil
			}
			if err := g.admit(gc); err != nil {
				t.Fatal(err)
			}
			return gc
		}
		var theirs []*gateConn
		for i := range most { // from most addresses, each one connection
			gc := enter(i)
			g.mu.Lock()
			g.know(gc, fmt.Sprint("user ", i%c.users))
			g.mu.Unlock()
			theirs = append(theirs, gc)
		}
		victim := enter(200)
		if got := victim != nil; got != c.in {
			t.Errorf("%s: another is let in: %v", name, got)
		}
		for _, gc := range append(theirs, victim) {
			if gc != nil {
				gc.Close()
			}
		}
		if len(g.known)+g.knownAll != 0 {
			t.Errorf("%s: left: %v, %d", name, g.known, g.knownAll)
		}
	}
}
