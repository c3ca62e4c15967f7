package client

import (
	"context"
	"net/http"

	"bulkhead/key"
)

// Token is what the API says of a token.
type Token struct {
	ID        key.TokenID `json:"id"`
	Kind      string      `json:"kind"`
	Name      string      `json:"name,omitempty"`
	Org       string      `json:"organization,omitempty"`
	App       key.AppName `json:"app,omitempty"`
	User      string      `json:"user"`
	CreatedAt string      `json:"created_at"`
	ExpiresAt string      `json:"expires_at"`
	Token     string      `json:"token,omitempty"` // of CreateToken, this once
}

// TokenRequest says what token to make. Expiry is a duration of Go; empty means the
// organization's default. Commands are those of a machine-exec token.
type TokenRequest struct {
	Kind     string     `json:"kind"`
	App      string     `json:"app,omitempty"`
	Name     string     `json:"name,omitempty"`
	Expiry   string     `json:"expiry,omitempty"`
	Commands [][]string `json:"commands,omitempty"`
	Exact    bool       `json:"exact,omitempty"`
}

// CreateToken makes a token for an organization, or an app of it.
func (c *Client) CreateToken(ctx context.Context, org string, in TokenRequest) (Token, error) {
	var out Token
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"orgs", org, "tokens"}, in: in, out: &out})
	return out, err
}

// CreatePlatformToken makes a token that is about the platform as a whole.
func (c *Client) CreatePlatformToken(ctx context.Context, in TokenRequest) (Token, error) {
	var out Token
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"platform", "tokens"}, in: in, out: &out})
	return out, err
}

// Tokens lists an organization's tokens; with no organization, all of the caller's own.
func (c *Client) Tokens(ctx context.Context, org string) ([]Token, error) {
	path := []string{"tokens"}
	if org != "" {
		path = []string{"orgs", org, "tokens"}
	}
	var out struct {
		Tokens []Token `json:"tokens"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: path, out: &out})
	return out.Tokens, err
}

// RevokeToken ends a token, and all that were narrowed from it.
func (c *Client) RevokeToken(ctx context.Context, id key.TokenID) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"tokens", string(id)}})
}
