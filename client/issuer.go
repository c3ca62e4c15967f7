package client

import (
	"context"
	"net/http"
	"time"
)

// Issuer is the issuer of Machines' identity tokens.
type Issuer struct {
	Issuer string      `json:"issuer"` // its address, with {org} for the organization
	Keys   []IssuerKey `json:"keys"`   // the newest first
}

// IssuerKey is one of its keys: "next", "current" or "previous".
type IssuerKey struct {
	ID    string    `json:"id"`
	State string    `json:"state"`
	From  time.Time `json:"from"`
	Made  time.Time `json:"made"`
}

// Issuer returns the issuer and its keys.
func (c *Client) Issuer(ctx context.Context) (Issuer, error) {
	var out Issuer
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"platform", "issuer"}, out: &out})
	return out, err
}

// RotateIssuer makes a new key that signs soon; with compromised it signs at once, and
// the others are given up with every token that they have signed.
func (c *Client) RotateIssuer(ctx context.Context, compromised bool) (Issuer, error) {
	var out Issuer
	in := map[string]bool{"compromised": compromised}
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"platform", "issuer", "rotate"}, in: in, out: &out})
	return out, err
}
