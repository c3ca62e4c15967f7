package controller

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
)

// Bounds of the API as Machines reach it.
const (
	machineConns     = 16               // of one Machine at once, whatever its worker says
	machineIdleLimit = 10 * time.Second // between two requests of a connection
)

// machineAPI serves the API on connections from inside Machines, which workers pass on.
// Who calls is known before the first byte: the Machine that the connection was made in.
type machineAPI struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu    sync.Mutex
	conns map[key.MachineID]int
}

func newMachineAPI() *machineAPI {
	return &machineAPI{accept: make(chan net.Conn), closed: make(chan struct{}), conns: map[key.MachineID]int{}}
}

// Accept, Close and Addr make it a net.Listener.
func (m *machineAPI) Accept() (net.Conn, error) {
	select {
	case c := <-m.accept:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (m *machineAPI) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

// Addr implements net.Listener.
func (m *machineAPI) Addr() net.Addr { return machineAddr("") }

// machineAddr is where a Machine's connection comes from.
type machineAddr string

func (a machineAddr) Network() string { return "machine" }
func (a machineAddr) String() string  { return "machine " + string(a) }

// machineConn is one connection, at the API's end.
type machineConn struct {
	net.Conn
	app     key.AppName
	machine key.MachineID
}

// RemoteAddr names the Machine.
func (c *machineConn) RemoteAddr() net.Addr { return machineAddr(c.machine) }

// enter takes one of the Machine's places.
func (m *machineAPI) enter(id key.MachineID) (leave func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns[id] >= machineConns {
		return nil, fault.New(fault.TooMany, "machine %s has %d connections to the API; close some", id, machineConns)
	}
	m.conns[id]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.conns[id]--; m.conns[id] == 0 {
			delete(m.conns, id)
		}
	}, nil
}

// connKey is the context key of a Machine's connection.
type connKey struct{}

// callingMachine returns the connection that a request came over when a Machine makes it.
func callingMachine(ctx context.Context) *machineConn {
	c, _ := ctx.Value(connKey{}).(*machineConn)
	return c
}

// machineServer is the server of the connections from inside Machines: the API alone,
// under whatever host name.
func (c *Controller) machineServer() *http.Server {
	return &http.Server{
		Handler:           c.serveAPI(),
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       machineIdleLimit,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          quietHTTPLog(c.log),
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, nc)
		},
	}
}

// MachineAPI takes one connection of a Machine.
func (s internalServer) MachineAPI(stream grpc.BidiStreamingServer[internalpb.MachineBytes, internalpb.MachineBytes]) error {
	who, err := rpc.Peer(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	a, id, err := s.c.machineOf(stream.Context(), who.Node, first.GetMachineId())
	if err != nil {
		s.c.noteDenied(who.Node, "speak for a machine", first.GetMachineId(), err)
		return err
	}
	leave, err := s.c.machines.enter(id)
	if err != nil {
		return err
	}
	defer leave()
	return s.c.machines.carry(stream, first.GetData(), a.App, id)
}

// machineOf finds the Machine of a node that its worker names.
func (c *Controller) machineOf(ctx context.Context, node key.Node, text string) (*record.Assigned, key.MachineID, error) {
	denied := fault.New(fault.Denied, "node %s has no machine %q", node, fault.Clip(text))
	id, err := key.ParseMachineID(text)
	if err != nil {
		return nil, "", denied
	}
	a, _, err := record.Get[record.Assigned](ctx, c.store, record.NodeKey(node, id))
	if err == nil && a == nil {
		err = denied
	}
	return a, id, err
}

// carry joins a stream and a connection of the API.
func (m *machineAPI) carry(stream grpc.BidiStreamingServer[internalpb.MachineBytes, internalpb.MachineBytes], first []byte, app key.AppName, id key.MachineID) error {
	outside, inside := net.Pipe()
	defer outside.Close()
	select {
	case m.accept <- &machineConn{Conn: inside, app: app, machine: id}:
	case <-m.closed:
		inside.Close()
		return fault.New(fault.Unavailable, "the controller stops")
	case <-stream.Context().Done():
		inside.Close()
		return stream.Context().Err()
	}
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	go func() { // up; its end is the stream's or the connection's
		defer outside.Close()
		for data := first; ; {
			if _, err := outside.Write(data); err != nil {
				return
			}
			next, err := stream.Recv()
			if err != nil {
				return
			}
			data = next.GetData()
		}
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := outside.Read(buf)
		if n > 0 {
			if err := stream.Send(&internalpb.MachineBytes{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
				return nil
			}
			return err
		}
	}
}
