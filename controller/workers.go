package controller

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/api/rpc"
	"bulkhead/controller/record"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/role"
)

// Deadlines of calls to a worker.
const (
	workerLimit  = 15 * time.Second
	reserveLimit = 30 * time.Second // it may ask a registry elsewhere
)

// peers holds the connections to the roles of the nodes; each is made when it is
// first used.
type peers struct {
	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by role and node
}

// dial returns the connection to a role of a node. There is one node so far, and
// its roles are reached by their sockets.
func (c *Controller) dial(name string, n key.Node) (*grpc.ClientConn, error) {
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	k := name + "/" + string(n)
	if conn := c.peers.conns[k]; conn != nil {
		return conn, nil
	}
	path := c.cfg.Role.Sockets[name]
	if n != c.cfg.Role.Node || path == "" {
		return nil, fault.New(fault.Unavailable, "node %s has no %s that this controller can reach", n, name)
	}
	conn, err := rpc.Dial(c.identity, path, name, n)
	if err != nil {
		return nil, err
	}
	c.peers.conns[k] = conn
	return conn, nil
}

// worker returns a node's worker and a context that bounds one call to it.
func (c *Controller) worker(ctx context.Context, n key.Node, limit time.Duration) (internalpb.WorkerClient, context.Context, context.CancelFunc, error) {
	conn, err := c.dial(role.Worker, n)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	return internalpb.NewWorkerClient(conn), ctx, cancel, nil
}

// drop closes the connections to a node's roles.
func (p *peers) drop(n key.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, conn := range p.conns {
		if strings.HasSuffix(k, "/"+string(n)) {
			conn.Close()
			delete(p.conns, k)
		}
	}
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		conn.Close()
	}
	clear(p.conns)
}

// healthz answers whether this controller can do its work: its store answers, and
// which nodes are connected.
func (c *Controller) healthz(r *call) (int, any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	if _, _, err := record.Get[record.Org](ctx, c.store, record.OrgKey(record.OrgPersonal)); err != nil {
		return 0, nil, fault.Wrap(fault.Unavailable, err, "the store does not answer")
	}
	type node struct {
		Name      key.Node `json:"name"`
		Connected bool     `json:"connected"`
	}
	out := struct {
		Status string `json:"status"`
		Nodes  []node `json:"nodes"`
	}{Status: "ok", Nodes: []node{}}
	for n, st := range c.view.allNodes() {
		out.Nodes = append(out.Nodes, node{n, st.Connected})
	}
	return http.StatusOK, out, nil
}
