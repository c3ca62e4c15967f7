package client

import (
	"context"
	"net/http"
)

// Secret is what the API says of a secret: never its value.
type Secret struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"`
	CreatedAt string `json:"created_at"`
	UpdatedAt string `json:"updated_at"`
	// Status is "staged", "partly deployed" or "deployed".
	Status string `json:"status,omitempty"`
}

// Secrets is an app's secrets.
type Secrets struct {
	Secrets []Secret `json:"secrets"`
	Version uint64   `json:"version"` // grows with each change
}

// Secrets lists an app's secrets.
func (c *Client) Secrets(ctx context.Context, app string) (Secrets, error) {
	var out Secrets
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"apps", app, "secrets"}, out: &out})
	return out, err
}

// SetSecrets sets secrets, and unsets those whose value is nil: all or none. It changes
// nothing of Machines that run.
func (c *Client) SetSecrets(ctx context.Context, app string, values map[string]*string) (Secrets, error) {
	in := struct {
		Values map[string]*string `json:"values"`
	}{values}
	var out Secrets
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"apps", app, "secrets"}, in: in, out: &out})
	return out, err
}
