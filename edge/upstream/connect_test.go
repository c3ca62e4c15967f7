package upstream_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"bulkhead/edge/upstream"
)

const addr6, addr4 = "[fdaa:0:1:0:1:0:5:2]:80", "198.18.0.5:80"

// machine answers dials from a script, and notes them and the connections it gave.
type machine struct {
	answers []string // "addr" connects, "addr!" is refused, "addr?" has no route
	wrong   string
	given   []net.Conn
}

func (m *machine) dial(_ context.Context, addr string) (net.Conn, error) {
	if len(m.answers) == 0 || strings.TrimRight(m.answers[0], "!?") != addr {
		m.wrong = addr
		return nil, net.ErrClosed
	}
	a := m.answers[0]
	m.answers = m.answers[1:]
	switch a[len(a)-1] {
	case '!':
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	case '?':
		return nil, &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}
	}
	c, other := net.Pipe()
	go func() { // its only byte is its address, and it ends with the connection
		defer other.Close()
		_, _ = other.Write([]byte{a[0]})
		_, _ = other.Read(make([]byte, 1))
	}()
	m.given = append(m.given, c)
	return c, nil
}

// TestConnect: which addresses are dialed, in which order, and what the caller gets: a
// connection by IPv6 or IPv4, or an error.
func TestConnect(t *testing.T) {
	type step struct {
		dials []string
		want  string // what the connection's other end says, or an error
	}
	refused, unreachable := syscall.ECONNREFUSED.Error(), syscall.EHOSTUNREACH.Error()
	on4 := step{[]string{addr6 + "!", addr4, addr6 + "!"}, "1"}
	for name, steps := range map[string][]step{
		"IPv6":                        {{[]string{addr6}, "["}, {[]string{addr6}, "["}},
		"nothing listens":             {{[]string{addr6 + "!", addr4 + "!"}, refused}, {[]string{addr6 + "!", addr4 + "!"}, refused}},
		"IPv4 alone, remembered":      {on4, {[]string{addr4, addr6 + "!"}, "1"}, {[]string{addr4, addr6 + "!"}, "1"}},
		"gone, nobody has the slot":   {on4, {[]string{addr4 + "?", addr6 + "?"}, unreachable}, {[]string{addr6 + "?"}, unreachable}},
		"gone, another has the slot":  {on4, {[]string{addr4, addr6 + "?"}, unreachable}, {[]string{addr6 + "?"}, unreachable}},
		"gone while it is dialed":     {{[]string{addr6 + "!", addr4, addr6 + "?"}, unreachable}},
		"restarted with another app":  {on4, {[]string{addr4 + "!", addr6}, "["}, {[]string{addr6}, "["}},
		"IPv4 first, then IPv6 too":   {on4, {[]string{addr4, addr6}, "["}, {[]string{addr6}, "["}},
		"not reachable, as a Machine": {{[]string{addr6 + "?"}, unreachable}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{}
			p := upstream.NewPool(addr6, addr4, m.dial)
			for i, s := range steps {
				m.answers, m.given = slices.Clone(s.dials), nil
				c, err := p.Connect(t.Context())
				if m.wrong != "" || len(m.answers) > 0 {
					t.Fatalf("step %d: dialed %q, expected %q next", i, m.wrong, m.answers)
				}
				got := make([]byte, 1)
				if err != nil {
					var errno syscall.Errno
					errors.As(err, &errno)
					got = []byte(errno.Error())
				} else if _, err := c.Read(got); err != nil {
					t.Fatal(err)
				}
				if string(got) != s.want {
					t.Errorf("step %d: got %q, want %q", i, got, s.want)
				}
				for _, g := range m.given {
					if g != c {
						if _, err := g.Write([]byte("x")); !errors.Is(err, net.ErrClosed) && err.Error() != "io: read/write on closed pipe" {
							t.Errorf("step %d: a connection that nobody gets stays open", i)
						}
					}
					g.Close()
				}
			}
		})
	}
}

// TestConnectWithoutIPv4: a route that an earlier version wrote has one address.
func TestConnectWithoutIPv4(t *testing.T) {
	m := &machine{answers: []string{addr6 + "!"}}
	if _, err := upstream.NewPool(addr6, "", m.dial).Connect(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) || m.wrong != "" {
		t.Errorf("%v, dialed %q", err, m.wrong)
	}
}
