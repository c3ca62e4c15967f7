package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"bulkhead/key"
	"bulkhead/pki"
)

// Join makes this server a node of a cluster.
type Join struct {
	Token   string
	Node    string
	Dir     string // where identity.pem and node.json are kept
	Address string // instead of the API's name in the token
}

// JoinedNode is what node.json holds: where the cluster is that the identity is for.
type JoinedNode struct {
	Cluster    string   `json:"cluster"`
	Role       string   `json:"role"`
	Node       key.Node `json:"node"`
	API        string   `json:"api"`
	Pin        string   `json:"pin"`
	Controller key.Node `json:"controller"`   // the node whose cluster port it is
	Address    string   `json:"cluster_addr"` // host:port
}

// Run spends the token and returns the identity.
//
// Crash safety: everything that can be refused here is, before the token is spent. Cut off
// after that the node has no certificate, or one without node.json: another token for this
// node by name makes it whole.
func (j Join) Run(ctx context.Context) (pki.ID, error) {
	if os.Geteuid() != 0 {
		return pki.ID{}, errors.New("bulkheadd join must run as root")
	}
	t, err := pki.ParseJoinToken(j.Token)
	if err != nil {
		return pki.ID{}, err
	}
	node, err := key.ParseNode(j.Node)
	if err != nil {
		return pki.ID{}, err
	}
	if err := os.MkdirAll(j.Dir, 0o700); err != nil {
		return pki.ID{}, err
	}
	file, about := filepath.Join(j.Dir, "identity.pem"), filepath.Join(j.Dir, "node.json")
	if _, err := os.Stat(about); err == nil {
		return pki.ID{}, fmt.Errorf("%s holds a node already; name another --dir, or remove it", j.Dir)
	} else if !errors.Is(err, os.ErrNotExist) {
		return pki.ID{}, err
	}
	var got pki.JoinAnswer
	id, err := pki.JoinOnce(ctx, file, pki.Joiner(t, node, j.Address, func(a pki.JoinAnswer) { got = a }), slog.New(slog.DiscardHandler))
	if err != nil {
		return pki.ID{}, err
	}
	id.Close()
	b, err := json.MarshalIndent(JoinedNode{
		Cluster: t.Cluster, Role: t.Role, Node: node, API: t.API, Pin: t.Pin, Controller: got.Controller, Address: j.clusterAddr(t, got.ClusterPort),
	}, "", "  ")
	if err != nil {
		return pki.ID{}, err
	}
	return id.ID(), writeFile(nil, about, append(b, '\n'), 0o644, root)
}

// clusterAddr is the cluster port of the host that answered.
func (j Join) clusterAddr(t pki.JoinToken, port int) string {
	host, _, err := net.SplitHostPort(j.Address)
	if err != nil {
		if u, err := url.Parse(t.API); err == nil {
			host = u.Hostname()
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}
