package client

import (
	"context"
	"net/http"
	"net/url"
)

// Passkey is one of the caller's passkeys.
type Passkey struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Synced    bool   `json:"synced"`
	CreatedAt string `json:"created_at"`
	UsedAt    string `json:"used_at,omitempty"`
	SuspectAt string `json:"suspect_at,omitempty"` // there may be a copy of it: it signs nobody in
}

// PasskeyLink is an address at which a browser makes one passkey for the caller. It is a secret.
type PasskeyLink struct {
	URL       string `json:"url"`
	Name      string `json:"name"`
	ExpiresAt string `json:"expires_at"`
}

// Passkeys lists the caller's passkeys.
func (c *Client) Passkeys(ctx context.Context) ([]Passkey, error) {
	var out struct {
		Passkeys []Passkey `json:"passkeys"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"passkeys"}, out: &out})
	return out.Passkeys, err
}

// AddPasskey makes a link for a passkey of that name.
func (c *Client) AddPasskey(ctx context.Context, name string) (PasskeyLink, error) {
	var out PasskeyLink
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"passkeys"}, in: map[string]string{"name": name}, out: &out})
	return out, err
}

// RemovePasskey removes one by id or name, with force also the last one.
func (c *Client) RemovePasskey(ctx context.Context, which string, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"passkeys", which}, query: q})
}
