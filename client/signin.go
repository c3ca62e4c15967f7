package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"time"

	"bulkhead/fault"
)

// Login is a login that was begun and that somebody approves in a browser. Its secret
// stays here.
type Login struct {
	ID              string `json:"id"`
	Code            string `json:"user_code"`
	AuthURL         string `json:"auth_url"`
	VerificationURI string `json:"verification_uri"`
	ExpiresIn       int    `json:"expires_in"`
	Interval        int    `json:"interval"`

	secret string
}

// LoginToken is what an approved login gives.
type LoginToken struct {
	Status    string `json:"status"`
	Token     string `json:"token"`
	Session   string `json:"session"`
	User      string `json:"user"`
	Org       string `json:"organization"`
	Method    string `json:"method"`
	ExpiresAt string `json:"expires_at"`
}

// BeginLogin begins a login of the host of that name, for an organization or for none in
// particular; with device for somebody who has no browser on this host.
func (c *Client) BeginLogin(ctx context.Context, name, org string, device bool) (*Login, error) {
	var b [32]byte
	rand.Read(b[:])
	l := &Login{secret: base64.RawURLEncoding.EncodeToString(b[:])}
	sum := sha256.Sum256([]byte(l.secret))
	in := map[string]any{"name": name, "organization": org, "device": device,
		"challenge": base64.RawURLEncoding.EncodeToString(sum[:])}
	err := c.do(ctx, call{method: http.MethodPost, path: []string{"cli_sessions"}, in: in, out: l})
	return l, err
}

// AwaitLogin waits until a login is approved, denied or over.
func (c *Client) AwaitLogin(ctx context.Context, l *Login) (*LoginToken, error) {
	pause := max(time.Duration(l.Interval)*time.Second, time.Second)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(l.ExpiresIn)*time.Second+pause)
	defer cancel()
	for {
		var out LoginToken
		err := c.once(ctx, call{method: http.MethodPost, path: []string{"cli_sessions", l.ID, "poll"},
			in: map[string]string{"secret": l.secret}, out: &out})
		switch {
		case err == nil && out.Token != "":
			return &out, nil
		case fault.Is(err, fault.TooMany), fault.Is(err, fault.Unavailable):
			pause += time.Second
		case err != nil:
			return nil, err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, fault.New(fault.Timeout, "nobody approved the login within %d s", l.ExpiresIn)
			}
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Session is one of the caller's sessions.
type Session struct {
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	Method    string `json:"method"`
	Org       string `json:"organization,omitempty"`
	Name      string `json:"name,omitempty"`
	From      string `json:"from,omitempty"`
	CreatedAt string `json:"created_at"`
	SeenAt    string `json:"seen_at"`
	ExpiresAt string `json:"expires_at"`
	Current   bool   `json:"current,omitempty"`
}

// Sessions lists the caller's sessions.
func (c *Client) Sessions(ctx context.Context) ([]Session, error) {
	var out struct {
		Sessions []Session `json:"sessions"`
	}
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"sessions"}, out: &out})
	return out.Sessions, err
}

// EndSession ends one of the caller's sessions: by its id, "current" or "all".
func (c *Client) EndSession(ctx context.Context, which string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"sessions", which}})
}

// SSO is an organization's single sign-on.
type SSO struct {
	Issuer       string            `json:"issuer"`
	ClientID     string            `json:"client_id"`
	ClientSecret string            `json:"client_secret,omitempty"` // sent, never answered
	HasSecret    bool              `json:"has_client_secret,omitempty"`
	Scopes       []string          `json:"scopes,omitempty"`
	GroupsClaim  string            `json:"groups_claim,omitempty"`
	Domains      []string          `json:"domains,omitempty"`
	Groups       map[string]string `json:"groups,omitempty"`
	Role         string            `json:"role,omitempty"`
	Mode         string            `json:"mode,omitempty"`
	SessionHours int               `json:"session_hours,omitempty"`
	// ServiceTokens is "allowed" or "refused": whether tokens of programs are good without a session.
	ServiceTokens string `json:"service_tokens,omitempty"`
	RedirectURL   string `json:"redirect_url,omitempty"`
}

// SSO returns an organization's single sign-on.
func (c *Client) SSO(ctx context.Context, org string) (SSO, error) {
	var out SSO
	err := c.do(ctx, call{method: http.MethodGet, path: []string{"orgs", org, "sso"}, out: &out})
	return out, err
}

// SetSSO configures it. A client secret that is left out stays as it is.
func (c *Client) SetSSO(ctx context.Context, org string, in SSO) (SSO, error) {
	var out SSO
	err := c.do(ctx, call{method: http.MethodPut, path: []string{"orgs", org, "sso"}, in: in, out: &out})
	return out, err
}

// UnsetSSO removes it.
func (c *Client) UnsetSSO(ctx context.Context, org string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"orgs", org, "sso"}})
}
