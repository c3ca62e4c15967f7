package controller

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
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
	machineNodeConns = 576              // of a node at once: what its worker lets through, and those that it does not know to have ended
	machineFirst     = 5 * time.Second  // for a worker to name the Machine
	machineIdleLimit = 10 * time.Second // between two requests of a connection
	machineTakeLimit = time.Minute      // for a worker to take a part of an answer
	// machineLife is how old a connection gets: after it an answer says that it is the last,
	// and what goes on for all that is cut when no answer can be due any more.
	machineLife = 10 * time.Minute
	machineEnd  = machineLife + answerLimit
)

// machineAPI serves the API on connections from inside Machines, which workers pass on.
// Who calls is known before the first byte: the Machine that the connection was made in.
type machineAPI struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once

	bounds atomic.Pointer[machineBounds] // tests change it

	mu    sync.Mutex
	conns map[key.MachineID]int
	nodes map[key.Node]int
}

// machineBounds are hasVoice, machineFirst, voiceWait, machineLife and machineEnd. Tests do
// not wait for so long, and put a weaker rule in its place to see that they notice.
type machineBounds struct {
	rule                   func(*record.Machine, *seen, key.Node) error
	first, wait, life, end time.Duration
}

func newMachineAPI() *machineAPI {
	m := &machineAPI{accept: make(chan net.Conn), closed: make(chan struct{}), conns: map[key.MachineID]int{}, nodes: map[key.Node]int{}}
	m.bounds.Store(&machineBounds{rule: hasVoice, first: machineFirst, wait: voiceWait, life: machineLife, end: machineEnd})
	return m
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
	node    key.Node
	app     key.AppName
	machine key.MachineID
	since   time.Time
}

// RemoteAddr names the Machine.
func (c *machineConn) RemoteAddr() net.Addr { return machineAddr(c.machine) }

// enter takes one of the Machine's places.
func (m *machineAPI) enter(id key.MachineID) (leave func(), err error) {
	leave, n := place(m, m.conns, id, machineConns)
	if leave == nil {
		return nil, fault.New(fault.TooMany, "machine %s has %d connections to the API; close some", id, n)
	}
	return leave, nil
}

// enterNode takes one of the node's places, before anything is known of the stream.
func (m *machineAPI) enterNode(n key.Node) (leave func(), err error) {
	leave, have := place(m, m.nodes, n, machineNodeConns)
	if leave == nil {
		return nil, fault.New(fault.TooMany, "the machines of node %s have %d connections to the API; try again", n, have)
	}
	return leave, nil
}

// place takes one of an owner's places; leave is nil when all are taken.
func place[K comparable](m *machineAPI, taken map[K]int, of K, most int) (leave func(), have int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if taken[of] >= most {
		return nil, taken[of]
	}
	taken[of]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if taken[of]--; taken[of] == 0 {
			delete(taken, of)
		}
	}, taken[of]
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
	api := c.serveAPI()
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if conn := callingMachine(req.Context()); conn == nil || time.Since(conn.since) > c.machines.bounds.Load().life {
				w.Header().Set("Connection", "close")
			}
			api.ServeHTTP(w, req)
		}),
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       machineIdleLimit,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          quietHTTPLog(c.log),
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, nc)
		},
	}
}

// MachineAPI takes one connection of a Machine, and ends it when the Machine has no voice
// any more (hasVoice).
func (s internalServer) MachineAPI(stream grpc.BidiStreamingServer[internalpb.MachineBytes, internalpb.MachineBytes]) error {
	ctx := stream.Context()
	who, err := rpc.Peer(ctx)
	if err != nil {
		return err
	}
	leaveNode, err := s.c.machines.enterNode(who.Node)
	if err != nil {
		return err
	}
	defer leaveNode()
	first, err := s.c.firstBytes(stream)
	if err != nil {
		return err
	}
	a, id, err := s.c.machineOf(ctx, who.Node, first.GetMachineId())
	if err != nil {
		s.c.noteDenied(who.Node, "speak for a machine", first.GetMachineId(), err)
		return err
	}
	leave, err := s.c.machines.enter(id)
	if err != nil {
		return err
	}
	defer leave()
	w, stop := s.c.view.follow(id)
	defer stop()
	if err := s.c.awaitVoice(ctx, who.Node, a.App, id, w); err != nil {
		s.c.noteDenied(who.Node, "speak for a machine", first.GetMachineId(), err)
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.c.machines.bounds.Load().end, fault.New(fault.Timeout, "the connection is too old; make another"))
	defer cancel()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	over, silent := make(chan error, 1), make(chan error, 1)
	conn := &machineConn{node: who.Node, app: a.App, machine: id, since: time.Now()}
	s.c.receivers.Go(func() { over <- s.c.machines.carry(ctx, cut, stream, first.GetData(), conn) })
	s.c.receivers.Go(func() { silent <- s.c.untilSilent(ctx, who.Node, a.App, id, w) })
	select {
	case err := <-over:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case why := <-silent:
		select { // whoever stops itself is still told so
		case err := <-over:
			return err
		case <-time.After(voiceGrace):
		case <-ctx.Done():
		}
		return why
	}
}

// firstBytes is the first message of a stream, which names the Machine. One that does not
// come is not waited for.
func (c *Controller) firstBytes(stream grpc.BidiStreamingServer[internalpb.MachineBytes, internalpb.MachineBytes]) (*internalpb.MachineBytes, error) {
	got, failed := make(chan *internalpb.MachineBytes, 1), make(chan error, 1)
	c.receivers.Go(func() { // ends with the stream at the latest
		if m, err := stream.Recv(); err != nil {
			failed <- err
		} else {
			got <- m
		}
	})
	limit := c.machines.bounds.Load().first
	select {
	case m := <-got:
		return m, nil
	case err := <-failed:
		return nil, err
	case <-time.After(limit):
		return nil, fault.New(fault.Timeout, "no machine was named within %v", limit)
	}
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

// carry joins a stream and a connection of the API, until either ends or ctx does, which
// it cuts when the worker does not take an answer.
func (m *machineAPI) carry(ctx context.Context, cut context.CancelCauseFunc, stream grpc.BidiStreamingServer[internalpb.MachineBytes, internalpb.MachineBytes], first []byte, conn *machineConn) error {
	outside, inside := net.Pipe()
	defer outside.Close()
	stop := context.AfterFunc(ctx, func() { outside.Close() })
	defer stop()
	conn.Conn = inside
	select {
	case m.accept <- conn:
	case <-m.closed:
		inside.Close()
		return fault.New(fault.Unavailable, "the controller stops")
	case <-ctx.Done():
		inside.Close()
		return ctx.Err()
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
			late := time.AfterFunc(machineTakeLimit, func() { cut(fault.New(fault.Timeout, "no part of the answer was taken for %v", machineTakeLimit)) })
			err := stream.Send(&internalpb.MachineBytes{Data: buf[:n]})
			late.Stop()
			if err != nil {
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
