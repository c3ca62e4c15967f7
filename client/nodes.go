package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"bulkhead/key"
)

// Node is what the API says of a node.
type Node struct {
	Name         key.Node `json:"name"`
	Region       string   `json:"region"`
	State        string   `json:"state"` // connected, unreachable, unknown, joined, removed
	FirstSeen    string   `json:"first_seen,omitempty"`
	LastSeen     string   `json:"last_seen,omitempty"`
	Machines     int      `json:"machines"`
	CPUs         int      `json:"cpus,omitempty"`
	MemoryMB     int64    `json:"memory_mb,omitempty"`
	UsedMemoryMB int64    `json:"used_memory_mb"`
	RemovedAt    string   `json:"removed_at,omitempty"`
	RemovedBy    string   `json:"removed_by,omitempty"`
}

// NodeRemoval is what became of a node's Machines.
type NodeRemoval struct {
	Name      key.Node        `json:"name"`
	Destroyed []key.MachineID `json:"destroyed"`
}

// Nodes lists the nodes of the cluster, also removed ones.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var out struct {
		Nodes []Node `json:"nodes"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"platform", "nodes"}, out: &out})
	return out.Nodes, err
}

// RemoveNode removes a node for good. One that is connected or has Machines is
// refused, fault.Precondition, without force; with it the Machines count as destroyed.
func (c *Client) RemoveNode(ctx context.Context, name key.Node, force bool) (NodeRemoval, error) {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	var out NodeRemoval
	err := c.do(ctx, call{method: http.MethodDelete, path: []string{"platform", "nodes", string(name)}, query: q, out: &out, timeout: launchTimeout})
	return out, err
}

// ReadmitNode lets a removed node connect again.
func (c *Client) ReadmitNode(ctx context.Context, name key.Node) error {
	return c.do(ctx, call{method: http.MethodPost, path: []string{"platform", "nodes", string(name), "readmit"}, timeout: launchTimeout})
}

// JoinToken lets one node join the cluster as one role.
type JoinToken struct {
	Token     string   `json:"token"`
	ID        string   `json:"id"`
	Role      string   `json:"role"`
	Node      key.Node `json:"node,omitempty"`
	ExpiresAt string   `json:"expires_at"`
}

// MakeJoinToken makes a join token: for a role, for a node by name or (empty) any new one,
// good for a time or (0) ten minutes.
func (c *Client) MakeJoinToken(ctx context.Context, role string, node key.Node, life time.Duration) (JoinToken, error) {
	in := map[string]any{"role": role}
	if node != "" {
		in["node"] = node
	}
	if life != 0 {
		in["expires_in"] = int(life.Seconds())
	}
	var out JoinToken
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"platform", "join_tokens"}, in: in, out: &out})
	return out, err
}
