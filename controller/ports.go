package controller

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"bulkhead/api/internalpb"
	"bulkhead/controller/record"
	"bulkhead/role"
)

// Limits of trying a Machine's ports.
const (
	tryLimit    = 5 * time.Second
	listenLimit = 5 * time.Second
	maxListens  = 32 // addresses that are answered
)

// listensCommand has bulkhead-init write the Machine's tables of TCP sockets.
const listensCommand = "bulkhead-init:listens"

// Ports is the answer to the question which ports of a Machine can be reached.
type Ports struct {
	// Ports are those of the Machine's services that the edge has a route to, as the edge
	// found them. Without a route there are none.
	Ports []TriedPort `json:"ports"`
	// Listens are the addresses at which the Machine's processes take TCP connections,
	// such as 127.0.0.1:8080. It is asked for when a port does not answer.
	Listens []string `json:"listens"`
}

// TriedPort is a port inside a Machine, and whether it takes connections from the network.
type TriedPort struct {
	Port    int32 `json:"port"`
	Answers bool  `json:"answers"`
}

// tryPorts answers whether the ports of a Machine's services can be reached.
func (c *Controller) tryPorts(r *call) (int, any, error) {
	m, err := c.runningMachine(r)
	if err != nil {
		return 0, nil, err
	}
	conn, err := c.dial(role.Edge, m.Node)
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), tryLimit)
	defer cancel()
	tried, err := internalpb.NewEdgeClient(conn).Try(ctx, &internalpb.TryRequest{App: string(m.App), MachineId: string(m.ID)})
	if err != nil {
		return 0, nil, err
	}
	out := Ports{Ports: []TriedPort{}, Listens: []string{}}
	silent := false
	for _, p := range tried.GetPorts() {
		out.Ports = append(out.Ports, TriedPort{Port: p.Port, Answers: p.Answers})
		silent = silent || !p.Answers
	}
	slices.SortFunc(out.Ports, func(a, b TriedPort) int { return int(a.Port - b.Port) })
	if silent {
		// Without it the answer is still true, and a Machine that is full has none.
		if found, err := c.listens(r.Context(), m); err == nil {
			out.Listens = found
		} else {
			c.log.Info("a machine's listening sockets are not known", "machine", m.ID, "err", err)
		}
	}
	return http.StatusOK, out, nil
}

// listens asks inside a Machine.
func (c *Controller) listens(ctx context.Context, m *record.Machine) ([]string, error) {
	w, ctx, cancel, err := c.worker(ctx, m.Node, listenLimit+execSlack)
	if err != nil {
		return nil, err
	}
	defer cancel()
	out, err := w.Exec(ctx, &internalpb.ExecRequest{
		MachineId: string(m.ID), Command: []string{listensCommand}, TimeoutMs: listenLimit.Milliseconds(),
	})
	if err != nil {
		return nil, err
	}
	return listenAddresses(string(out.Stdout)), nil
}

// listenAddresses reads tables in the form of /proc/net/tcp and tcp6 (proc(5)): the local
// addresses of the sockets in state LISTEN. The Machine wrote them, so what is not in that
// form is passed over.
func listenAddresses(tables string) []string {
	const stateListen = "0A"
	found := []string{}
	for line := range strings.Lines(tables) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != stateListen {
			continue
		}
		if at, ok := hexAddress(f[1]); ok && !slices.Contains(found, at) && len(found) < maxListens {
			found = append(found, at)
		}
	}
	return found
}

// hexAddress reads an address and a port as the kernel writes them: hexadecimal, the
// address in words of 32 bits in the order of this machine, which is little-endian.
func hexAddress(s string) (string, bool) {
	address, port, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return "", false
	}
	b, err := hex.DecodeString(address)
	if err != nil || len(b)%4 != 0 {
		return "", false
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	ip, ok := netip.AddrFromSlice(b)
	if !ok {
		return "", false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)).String(), true
}
